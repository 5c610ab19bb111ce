"""Figures of a solver comparison: error against cost, metrics against evaluations, and step sizes.

The style of the curves is defined in `fmjax.report.curve_styles`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from fmjax._checks import require, require_one_of
from fmjax.report.comparison import Comparison, SolverRun, StepEnds, power_of_ten
from fmjax.report.curve_styles import Look, legend, looks
from fmjax.report.style import LIGHT, WIDTH, Theme, dress, new_figure, shades

Color: TypeAlias = tuple[float, float, float, float]

LINES: dict[str, str | tuple[int, tuple[float, ...]]] = {
    "fixed": (0, (5, 2)),
    "adaptive": "-",
    "stochastic": (0, (1, 1.5)),
    "": "",
}
COSTS = {
    "nfe": ("evaluations", "network evaluations per sample", lambda run: run.nfe_mean),
    "seconds": ("wall time", "wall time for the batch, seconds", lambda run: run.seconds),
}


def plot_error(
    comparison: Comparison,
    *,
    cost: str = "nfe",
    theme: Theme = LIGHT,
) -> Figure:
    """Plot the RMSE of the worst sample against evaluations or wall time, on logarithmic axes.

    Runs with failed or non-finite samples have no point. The shaded band marks errors below the
    uncertainty of the reference, which are not meaningful.

    Args:
        comparison: Solver comparison.
        cost: "nfe" for evaluations per sample, or "seconds" for the wall time of the batch.
        theme: Colors of the figure.

    Raises:
        ValueError: If `cost` is neither "nfe" nor "seconds".
    """
    require_one_of("cost", cost, COSTS)
    name, xlabel, x = COSTS[cost]
    figure = new_figure(WIDTH, 5.0, theme)
    axes = figure.subplots()
    dress(
        axes, theme, xlabel=xlabel, ylabel="RMSE of the worst sample", title=f"Error against {name}"
    )
    lines = _draw_curves(axes, comparison, theme, x, lambda run: run.rmse_worst)
    _set_logarithmic(axes)
    uncertainty = comparison.reference.uncertainty if comparison.reference else 0.0
    if 0 < uncertainty < math.inf and lines:
        low, high = axes.get_ylim()
        if uncertainty > low:
            axes.axhspan(low, uncertainty, color=theme.grid, alpha=0.6, linewidth=0, zorder=0)
            _note(axes, theme, uncertainty, "uncertainty of the reference", above=True)
        axes.set_ylim(low, high)
    _legend(figure, comparison, theme)
    return figure


def plot_metric(comparison: Comparison, name: str, *, theme: Theme = LIGHT) -> Figure:
    """Plot a sample metric against evaluations, with lines for real data and the reference.

    Metrics that are better when higher are fractions and have a linear axis from 0 to 1.

    Args:
        comparison: Solver comparison.
        name: Name of the metric.
        theme: Colors of the figure.

    Raises:
        ValueError: If the comparison has no metric of that name.
    """
    require_one_of("name", name, comparison.metric_names)
    is_fraction = name in comparison.higher_is_better
    figure = new_figure(WIDTH, 5.0, theme)
    axes = figure.subplots()
    dress(
        axes,
        theme,
        xlabel="network evaluations per sample",
        ylabel=name,
        title=f"{name[:1].upper()}{name[1:]} against evaluations",
    )
    _draw_curves(
        axes,
        comparison,
        theme,
        lambda run: run.nfe_mean,
        lambda run: run.metrics.get(name),
        allow_zero=is_fraction,
    )
    _set_logarithmic(axes, y=not is_fraction)
    if is_fraction:
        axes.set_ylim(0.0, 1.0)
    reference = comparison.reference
    floor = comparison.floors.get(name)
    exact = None if reference is None else reference.metrics.get(name)
    if floor is not None:
        axes.axhline(floor, color=theme.ink, linewidth=1.2, linestyle=(0, (1, 2)), gid="floor")
        above = exact is not None and floor > exact
        _note(axes, theme, floor, "real data against real data", above=above)
    if exact is not None:
        axes.axhline(exact, color=theme.faint, linewidth=1.0, gid="exact", zorder=1)
        above = floor is None or exact >= floor
        _note(axes, theme, exact, "the reference solve", above=above)
    _legend(figure, comparison, theme)
    return figure


def plot_steps(comparison: Comparison, *, theme: Theme = LIGHT) -> Figure:
    """Plot the accepted steps of each adaptive solver along t, one panel per solver.

    The curve of each tolerance is the step density, the inverse of the step size; each horizontal
    segment is one accepted step. The ticks below are the ends of the steps, with one row per
    tolerance, the largest at the top.

    Raises:
        ValueError: If the comparison has no step ends.
    """
    solvers = tuple(dict.fromkeys(ends.solver for ends in comparison.step_ends))
    require(bool(solvers), "comparison", "contain step ends", "none")
    rows = math.ceil(len(solvers) / 2)
    figure = new_figure(WIDTH, 0.7 + 3.0 * rows, theme)
    grid = figure.add_gridspec(2 * rows, 2, height_ratios=(3, 1.4) * rows)
    tolerances = sorted({ends.tolerance for ends in comparison.step_ends}, reverse=True)
    colors = dict(zip(tolerances, shades(theme.ramp, len(tolerances)), strict=True))
    top: Axes | None = None
    for i, solver in enumerate(solvers):
        row, column = divmod(i, 2)
        density = figure.add_subplot(grid[2 * row, column], sharey=top)
        rug = figure.add_subplot(grid[2 * row + 1, column], sharex=density)
        top = top or density
        solves = sorted(
            (ends for ends in comparison.step_ends if ends.solver == solver),
            key=lambda ends: -ends.tolerance,
        )
        _draw_density(density, solves, colors, theme, solver)
        density.set_ylabel("steps per unit of t" if column == 0 else "", color=theme.ink)
        _draw_rug(rug, solves, colors, theme)
    handles = [Line2D([], [], color=colors[t], linewidth=2.2) for t in tolerances]
    names = [power_of_ten(t) for t in tolerances]
    legend = figure.legend(
        handles,
        names,
        title="tolerance",
        loc="outside upper center",
        ncols=len(names),
        frameon=False,
        fontsize=9,
        labelcolor=theme.ink,
    )
    legend.get_title().set_color(theme.faint)
    return figure


def _draw_curves(
    axes: Axes,
    comparison: Comparison,
    theme: Theme,
    x: Callable[[SolverRun], float],
    y: Callable[[SolverRun], float | None],
    *,
    allow_zero: bool = False,
) -> dict[str, Line2D]:
    """Draw the curves from all finite points, which must be positive unless `allow_zero`."""
    curve_looks = looks(comparison, theme)
    lines: dict[str, Line2D] = {}
    for name, runs in comparison.curves().items():
        points = [(x(run), y(run)) for run in runs if run.succeeded == 1]
        points = [(a, b) for a, b in points if b is not None and 0 <= b < math.inf]
        points = [(a, b) for a, b in points if b > 0 or allow_zero]
        if points:
            style = _line_style(curve_looks[name], theme)
            (lines[name],) = axes.plot(*zip(*points, strict=True), label=name, **style)
    return lines


def _line_style(look: Look, theme: Theme) -> dict[str, Any]:
    return {
        "color": look.color,
        "linewidth": 1.8,
        "linestyle": LINES[look.family],
        "marker": look.marker,
        "markersize": 6,
        "markerfacecolor": theme.background if look.family == "fixed" else look.color,
        "markeredgecolor": look.color,
        "markeredgewidth": 1.5,
    }


def _set_logarithmic(axes: Axes, *, y: bool = True) -> None:
    """Make the axes logarithmic, with short numbers as tick labels."""
    axes.set_xscale("log")
    if y:
        axes.set_yscale("log")
    plain = FuncFormatter(lambda v, _: f"{v:,.10g}" if 1e-3 <= v <= 1e5 else power_of_ten(v))
    for axis in (axes.xaxis, axes.yaxis) if y else (axes.xaxis,):
        low, high = sorted(axis.get_view_interval())
        # Less than two decades contain too few powers of ten to read off values.
        narrow = low > 0 and high / low < 100
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if narrow else (1.0,)))
        axis.set_major_formatter(plain)
        axis.set_minor_formatter(NullFormatter())


def _legend(figure: Figure, comparison: Comparison, theme: Theme) -> None:
    """Draw the legend below the axes: a thick line for a model, a line with marker for a solver."""
    handles, names = [], []
    for group in legend(comparison, theme):
        for entry in group.entries:
            hue_only = {"color": entry.look.color, "linewidth": 5}
            style = _line_style(entry.look, theme) if entry.look.family else hue_only
            handles.append(Line2D([], [], **style))
            names.append(entry.name)
    if names:
        figure.legend(
            handles,
            names,
            loc="outside lower left",
            ncols=3,
            frameon=False,
            fontsize=9,
            labelcolor=theme.ink,
            handlelength=2.8,
            columnspacing=1.2,
        )


def _note(axes: Axes, theme: Theme, y: float, text: str, *, above: bool) -> None:
    """Write small text at the left end of a horizontal line."""
    axes.annotate(
        text,
        (0.01, y),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3 if above else -3),
        textcoords="offset points",
        va="bottom" if above else "top",
        fontsize=8.5,
        color=theme.faint,
    )


def _draw_density(
    axes: Axes, solves: Sequence[StepEnds], colors: Mapping[float, Color], theme: Theme, solver: str
) -> None:
    dress(axes, theme, title=solver)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.10g}"))
    axes.tick_params(labelbottom=False)
    for ends in solves:
        edges = (0.0, *ends.times)
        heights = [1 / (b - a) for a, b in zip(edges, edges[1:], strict=False)]
        axes.stairs(heights, edges, baseline=None, color=colors[ends.tolerance], linewidth=1.6)


def _draw_rug(
    axes: Axes, solves: Sequence[StepEnds], colors: Mapping[float, Color], theme: Theme
) -> None:
    dress(axes, theme, xlabel="t (0 noise, 1 data)")
    axes.grid(False)
    axes.set(xlim=(0, 1), ylim=(-0.5, len(solves) - 0.5), yticks=[])
    axes.spines["left"].set_visible(False)
    for row, ends in enumerate(reversed(solves)):
        axes.vlines(
            ends.times,
            row - 0.36,
            row + 0.36,
            color=colors[ends.tolerance],
            linewidth=max(0.4, min(1.4, 60 / len(ends.times))),
        )
        axes.annotate(
            f"{len(ends.times)}",
            (1.0, row),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
            color=theme.faint,
            annotation_clip=False,
        )
