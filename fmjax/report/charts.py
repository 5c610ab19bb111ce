"""The charts of a page as plain data for its script: what is plotted, and how it looks.

A chart has two axes, curves of points, level lines, and the name of its legend; a curve is seen
while all its keys are on in the legend. Colours are CSS values that follow the page's theme.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import to_hex

from fmjax.report.comparison import Comparison, SolverRun, power_of_ten
from fmjax.report.plots import running_mean
from fmjax.report.series import Look, keys_of, legend, looks
from fmjax.report.solver_plots import COSTS
from fmjax.report.style import DARK, LIGHT, shades

ERROR_CHARTS = {"error": "nfe", "time": "seconds"}  # By name, what the cost is.
MAX_POINTS = 800  # Of a loss curve, roughly: more than there are pixels says nothing more.

# By name, in light and in dark.
LOSS_LOOKS = {
    "as logged": [Look(theme.cool[0], "adaptive", "") for theme in (LIGHT, DARK)],
    "running mean": [Look(theme.cool[1], "adaptive", "") for theme in (LIGHT, DARK)],
}


def comparison_charts(comparison: Comparison) -> dict[str, Any]:
    """By name: "error" and "time" if there are errors, "metric-1" and on."""
    charts = {}
    if comparison.reference is not None:
        charts = {name: _error_chart(comparison, cost) for name, cost in ERROR_CHARTS.items()}
    for i, name in enumerate(comparison.metric_names):
        charts[f"metric-{i + 1}"] = _metric_chart(comparison, name)
    return charts


def loss_chart(steps: Sequence[float | int], losses: Sequence[float | int]) -> dict[str, Any]:
    """The loss as logged where it is finite, and its running mean, as `plots.plot_loss` has it."""
    values = np.asarray(losses, dtype=np.float64)
    at, values = np.asarray(steps)[np.isfinite(values)], values[np.isfinite(values)]
    smooth = running_mean(values, max(1, len(values) // 20))
    kept = range(0, len(values), max(1, len(values) // MAX_POINTS))
    spread = values.size and values.min() > 0 and values.max() > 10 * values.min()
    series = [
        _series(name, [f"loss:{name}"], look, [(at[i], line[i], "") for i in kept])
        for (name, look), line in zip(LOSS_LOOKS.items(), (values, smooth), strict=True)
    ]
    return {
        "legend": "loss",
        "x": {"label": "step", "log": False},
        "y": {"label": "training loss", "log": bool(spread)},
        "series": series,
        "levels": [],
    }


def loss_legend() -> list[dict[str, Any]]:
    """The legend of `loss_chart`."""
    entries = [
        {"key": f"loss:{name}", "name": name, **_look(*look)} for name, look in LOSS_LOOKS.items()
    ]
    return [{"title": "", "entries": entries}]


def step_charts(comparison: Comparison) -> dict[str, dict[str, Any]]:
    """By "steps-1" and on, of each adaptive solver how dense its steps lie, as stairs."""
    solvers = dict.fromkeys(ends.solver for ends in comparison.step_ends)
    found = _tolerance_looks(comparison)
    charts = {}
    for i, solver in enumerate(solvers):
        mine = [ends for ends in comparison.step_ends if ends.solver == solver]
        series = []
        for ends in sorted(mine, key=lambda ends: -ends.tolerance):
            name = power_of_ten(ends.tolerance)
            starts = (0.0, *ends.times)
            points = [
                (end, 1 / (end - start), f"step {n + 1} of {len(ends.times)}")
                for n, (start, end) in enumerate(zip(starts, ends.times, strict=False))
            ]
            look = found[ends.tolerance]
            stairs = _series(f"tolerance {name}", [f"tolerance:{name}"], look, points)
            series.append({**stairs, "stairs": True})
        charts[f"steps-{i + 1}"] = {
            "title": solver,
            "legend": "tolerances",
            "x": {"label": "t (0 noise, 1 data)", "log": False, "range": [0, 1]},
            "y": {"label": "steps per unit of t", "log": True},
            "series": series,
            "levels": [],
        }
    return charts


def step_legend(comparison: Comparison) -> list[dict[str, Any]]:
    """The legend of `step_charts`: the tolerances, loosest first."""
    entries = [
        {"key": f"tolerance:{power_of_ten(t)}", "name": power_of_ten(t), **_look(*look)}
        for t, look in _tolerance_looks(comparison).items()
    ]
    return [{"title": "Tolerance", "entries": entries}]


def _tolerance_looks(comparison: Comparison) -> dict[float, list[Look]]:
    tolerances = sorted({ends.tolerance for ends in comparison.step_ends}, reverse=True)
    ramps = (shades(theme.ramp, len(tolerances)) for theme in (LIGHT, DARK))
    return {
        tolerance: [Look(to_hex(colour), "adaptive", "") for colour in colours]
        for tolerance, *colours in zip(tolerances, *ramps, strict=True)
    }


def comparison_legend(comparison: Comparison) -> list[dict[str, Any]]:
    """Groups of names, each with its key and look."""
    groups = zip(legend(comparison, LIGHT), legend(comparison, DARK), strict=True)
    return [
        {
            "title": light.title,
            "entries": [
                {"key": a.key, "name": a.name, **_look(a.look, b.look)}
                for a, b in zip(light.entries, dark.entries, strict=True)
            ],
        }
        for light, dark in groups
    ]


def to_script(data: Mapping[str, Any]) -> str:
    """JSON that can stand within a script element: no "<", so no end of it."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def _error_chart(comparison: Comparison, cost: str) -> dict[str, Any]:
    assert comparison.reference is not None
    _, label, x = COSTS[cost]
    uncertainty = comparison.reference.uncertainty
    levels = []
    if 0 < uncertainty < math.inf:
        levels.append({"y": uncertainty, "label": "uncertainty of the reference", "band": True})
    return {
        "legend": "solvers",
        "x": {"label": label, "log": True},
        "y": {"label": "RMSE of the worst sample", "log": True},
        "series": _curves(comparison, x, lambda run: run.rmse_worst),
        "levels": levels,
    }


def _metric_chart(comparison: Comparison, name: str) -> dict[str, Any]:
    share = name in comparison.higher_is_better
    levels = []
    if name in comparison.floors:
        levels.append({"y": comparison.floors[name], "label": "real data against real data"})
    if comparison.reference is not None and name in comparison.reference.metrics:
        levels.append({"y": comparison.reference.metrics[name], "label": "the reference solve"})
    return {
        "legend": "solvers",
        "x": {"label": COSTS["nfe"][1], "log": True},
        "y": {"label": name, "log": not share, **({"range": [0, 1]} if share else {})},
        "series": _curves(comparison, COSTS["nfe"][2], lambda run: run.metrics.get(name), share),
        "levels": [level for level in levels if math.isfinite(level["y"])],
    }


def _curves(
    comparison: Comparison,
    x: Callable[[SolverRun], float],
    y: Callable[[SolverRun], float | None],
    zero: bool = False,
) -> list[dict[str, Any]]:
    """Every curve with its finite points, positive ones unless `zero` is as good."""
    light, dark = looks(comparison, LIGHT), looks(comparison, DARK)
    found = []
    for name, runs in comparison.curves().items():
        points = []
        for run in runs:
            value = y(run)
            if run.succeeded < 1 or value is None or not 0 <= value < math.inf:
                continue
            if value > 0 or zero:
                points.append((x(run), value, run.setting))
        if points:
            look = [light[name], dark[name]]
            found.append(_series(name, keys_of(comparison, runs[0]), look, points))
    return found


def _series(name: str, keys: Any, look: list[Look], points: list[Any]) -> dict[str, Any]:
    rounded = [(float(f"{a:.5g}"), float(f"{b:.5g}"), note) for a, b, note in points]
    finite = [point for point in rounded if math.isfinite(point[1])]
    return {"name": name, "keys": list(keys), **_look(*look), "points": finite}


def _look(light: Look, dark: Look) -> dict[str, str]:
    colour = f"light-dark({light.colour}, {dark.colour})"
    return {"colour": colour, "family": light.family, "marker": light.marker}
