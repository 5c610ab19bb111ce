"""The interactive charts of a page, as JSON data for its script.

A chart has two axes, curves, horizontal level lines, and the name of its legend. A curve is visible
while all of its keys are enabled in the legend. Colors are CSS values that follow the page's theme.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from matplotlib.colors import to_hex

from fmjax.report.comparison import Comparison, SolverRun, power_of_ten
from fmjax.report.curve_styles import Look, keys_of, legend, looks
from fmjax.report.plots import running_mean
from fmjax.report.solver_plots import COSTS
from fmjax.report.style import DARK, LIGHT, shades

JsonObject: TypeAlias = dict[str, Any]

ERROR_CHARTS = {"error": "nfe", "time": "seconds"}  # The cost axis of each error chart.
MAX_POINTS = 800  # Approximate number of points of a loss curve: about one per pixel.

# The look of each curve in the light and the dark theme.
LOSS_LOOKS = {
    "as logged": [Look(theme.cool[0], "adaptive", "") for theme in (LIGHT, DARK)],
    "running mean": [Look(theme.cool[1], "adaptive", "") for theme in (LIGHT, DARK)],
}


def comparison_charts(comparison: Comparison) -> dict[str, JsonObject]:
    """Make the charts of a comparison by name: error and time per evaluation, one per metric."""
    charts = {}
    if comparison.reference is not None:
        charts = {name: _error_chart(comparison, cost) for name, cost in ERROR_CHARTS.items()}
    for i, name in enumerate(comparison.metric_names):
        charts[f"metric-{i + 1}"] = _metric_chart(comparison, name)
    return charts


def loss_chart(steps: Sequence[float | int], losses: Sequence[float | int]) -> JsonObject:
    """Make the chart of the finite logged losses and their running mean, as in `plot_loss`."""
    values = np.asarray(losses, dtype=np.float64)
    finite = np.isfinite(values)
    finite_steps, values = np.asarray(steps)[finite], values[finite]
    smooth = running_mean(values, max(1, len(values) // 20))
    indices = range(0, len(values), max(1, len(values) // MAX_POINTS))
    is_log = values.size and values.min() > 0 and values.max() > 10 * values.min()
    series = [
        _series(name, [f"loss:{name}"], look, [(finite_steps[i], line[i], "") for i in indices])
        for (name, look), line in zip(LOSS_LOOKS.items(), (values, smooth), strict=True)
    ]
    return {
        "legend": "loss",
        "x": {"label": "step", "log": False},
        "y": {"label": "training loss", "log": bool(is_log)},
        "series": series,
        "levels": [],
    }


def loss_legend() -> list[JsonObject]:
    """Make the legend of `loss_chart`."""
    entries = [
        {"key": f"loss:{name}", "name": name, **_look(*look)} for name, look in LOSS_LOOKS.items()
    ]
    return [{"title": "", "entries": entries}]


def step_charts(comparison: Comparison) -> dict[str, JsonObject]:
    """Make the charts "steps-1" etc. of the step density of each adaptive solver, by name."""
    solvers = dict.fromkeys(ends.solver for ends in comparison.step_ends)
    tolerance_looks = _tolerance_looks(comparison)
    charts = {}
    for i, solver in enumerate(solvers):
        solves = [ends for ends in comparison.step_ends if ends.solver == solver]
        series = []
        for ends in sorted(solves, key=lambda ends: -ends.tolerance):
            name = power_of_ten(ends.tolerance)
            starts = (0.0, *ends.times)
            points = [
                (end, 1 / (end - start), f"step {n + 1} of {len(ends.times)}")
                for n, (start, end) in enumerate(zip(starts, ends.times, strict=False))
            ]
            look = tolerance_looks[ends.tolerance]
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


def step_legend(comparison: Comparison) -> list[JsonObject]:
    """Make the legend of `step_charts`: the tolerances in decreasing order."""
    entries = [
        {"key": f"tolerance:{power_of_ten(t)}", "name": power_of_ten(t), **_look(*look)}
        for t, look in _tolerance_looks(comparison).items()
    ]
    return [{"title": "Tolerance", "entries": entries}]


def _tolerance_looks(comparison: Comparison) -> dict[float, list[Look]]:
    tolerances = sorted({ends.tolerance for ends in comparison.step_ends}, reverse=True)
    ramps = (shades(theme.ramp, len(tolerances)) for theme in (LIGHT, DARK))
    return {
        tolerance: [Look(to_hex(color), "adaptive", "") for color in colors]
        for tolerance, *colors in zip(tolerances, *ramps, strict=True)
    }


def comparison_legend(comparison: Comparison) -> list[JsonObject]:
    """Make the legend of `comparison_charts`: groups of names with their keys and looks."""
    groups = zip(legend(comparison, LIGHT), legend(comparison, DARK), strict=True)
    return [
        {
            "title": light.title,
            "entries": [
                {"key": entry.key, "name": entry.name, **_look(entry.look, dark_entry.look)}
                for entry, dark_entry in zip(light.entries, dark.entries, strict=True)
            ],
        }
        for light, dark in groups
    ]


def to_script(data: Mapping[str, Any]) -> str:
    """Format JSON for a script element, without "<", which could end the element."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def _error_chart(comparison: Comparison, cost: str) -> JsonObject:
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


def _metric_chart(comparison: Comparison, name: str) -> JsonObject:
    is_fraction = name in comparison.higher_is_better
    levels = []
    if name in comparison.floors:
        levels.append({"y": comparison.floors[name], "label": "real data against real data"})
    if comparison.reference is not None and name in comparison.reference.metrics:
        levels.append({"y": comparison.reference.metrics[name], "label": "the reference solve"})
    y_range = {"range": [0, 1]} if is_fraction else {}
    return {
        "legend": "solvers",
        "x": {"label": COSTS["nfe"][1], "log": True},
        "y": {"label": name, "log": not is_fraction, **y_range},
        "series": _curves(
            comparison, COSTS["nfe"][2], lambda run: run.metrics.get(name), allow_zero=is_fraction
        ),
        "levels": [level for level in levels if math.isfinite(level["y"])],
    }


def _curves(
    comparison: Comparison,
    x: Callable[[SolverRun], float],
    y: Callable[[SolverRun], float | None],
    *,
    allow_zero: bool = False,
) -> list[JsonObject]:
    """Make the curves from all finite points, which must be positive unless `allow_zero`."""
    light, dark = looks(comparison, LIGHT), looks(comparison, DARK)
    curves = []
    for name, runs in comparison.curves().items():
        points = []
        for run in runs:
            value = y(run)
            if run.succeeded < 1 or value is None or not 0 <= value < math.inf:
                continue
            if value > 0 or allow_zero:
                points.append((x(run), value, run.setting))
        if points:
            look = [light[name], dark[name]]
            curves.append(_series(name, keys_of(comparison, runs[0]), look, points))
    return curves


def _series(
    name: str,
    keys: Sequence[str],
    look: Sequence[Look],
    points: Sequence[tuple[float | int | np.number, float | int | np.number, str]],
) -> JsonObject:
    rounded = [(float(f"{x:.5g}"), float(f"{y:.5g}"), note) for x, y, note in points]
    finite = [point for point in rounded if math.isfinite(point[1])]
    return {"name": name, "keys": list(keys), **_look(*look), "points": finite}


def _look(light: Look, dark: Look) -> dict[str, str]:
    color = f"light-dark({light.color}, {dark.color})"
    return {"color": color, "family": light.family, "marker": light.marker}
