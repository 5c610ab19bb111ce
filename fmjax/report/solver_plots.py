"""Figures of a comparison: error against cost, metric against evaluations, steps in t.

`fmjax.report.series` says how each curve looks.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from fmjax._checks import require, require_one_of
from fmjax.report.comparison import Comparison, SolverRun, StepEnds, power_of_ten
from fmjax.report.series import Look, legend, looks
from fmjax.report.style import LIGHT, WIDTH, Theme, dress, new_figure, shades

LINES: dict[str, Any] = {"fixed": (0, (5, 2)), "adaptive": "-", "stochastic": (0, (1, 1.5)), "": ""}
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
    """Worst-sample RMSE against evaluations or wall time, log-log, one line for each solver.

    `cost` is "nfe", evaluations per sample, or "seconds", wall time for the whole batch.
    Runs in which a sample is not finite or did not reach the end have no point. The shaded
    band lies below the reference's own uncertainty, where errors say little.

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
    _logarithmic(axes)
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
    """A sample metric against evaluations, with what real data and the exact solve score.

    A metric that is better when higher is a share, on a linear axis from 0 to 1.

    Raises:
        ValueError: If the comparison has no metric of that name.
    """
    require_one_of("name", name, comparison.metric_names)
    share = name in comparison.higher_is_better
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
        zero=share,
    )
    _logarithmic(axes, y=not share)
    if share:
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
    """Where in t each adaptive solver puts its steps: one panel a solver, one row a tolerance.

    The line is the local step density, one over the step's length (each flat piece is one
    accepted step); the ticks below are the step ends, the loosest tolerance on top.

    Raises:
        ValueError: If the comparison holds no step positions.
    """
    solvers = tuple(dict.fromkeys(ends.solver for ends in comparison.step_ends))
    require(bool(solvers), "comparison", "hold step positions", "none")
    rows = math.ceil(len(solvers) / 2)
    figure = new_figure(WIDTH, 0.7 + 3.0 * rows, theme)
    grid = figure.add_gridspec(2 * rows, 2, height_ratios=(3, 1.4) * rows)
    tolerances = sorted({ends.tolerance for ends in comparison.step_ends}, reverse=True)
    colours = dict(zip(tolerances, shades(theme.ramp, len(tolerances)), strict=True))
    top: Axes | None = None
    for i, solver in enumerate(solvers):
        row, column = divmod(i, 2)
        density = figure.add_subplot(grid[2 * row, column], sharey=top)
        rug = figure.add_subplot(grid[2 * row + 1, column], sharex=density)
        top = top or density
        mine = sorted(
            (ends for ends in comparison.step_ends if ends.solver == solver),
            key=lambda ends: -ends.tolerance,
        )
        _draw_density(density, mine, colours, theme, solver)
        density.set_ylabel("steps per unit of t" if column == 0 else "", color=theme.ink)
        _draw_rug(rug, mine, colours, theme)
    handles = [Line2D([], [], color=colours[t], linewidth=2.2) for t in tolerances]
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
    zero: bool = False,
) -> dict[str, Line2D]:
    """One line for each curve that has a finite, positive point (a logarithm needs both)."""
    found = looks(comparison, theme)
    lines: dict[str, Line2D] = {}
    for name, runs in comparison.curves().items():
        points = [(x(run), y(run)) for run in runs if run.succeeded == 1]
        points = [(a, b) for a, b in points if b is not None and 0 <= b < math.inf]
        points = [(a, b) for a, b in points if b > 0 or zero]
        if points:
            style = _line_style(found[name], theme)
            (lines[name],) = axes.plot(*zip(*points, strict=True), label=name, **style)
    return lines


def _line_style(look: Look, theme: Theme) -> dict[str, Any]:
    return {
        "color": look.colour,
        "linewidth": 1.8,
        "linestyle": LINES[look.family],
        "marker": look.marker,
        "markersize": 6,
        "markerfacecolor": theme.background if look.family == "fixed" else look.colour,
        "markeredgecolor": look.colour,
        "markeredgewidth": 1.5,
    }


def _logarithmic(axes: Axes, *, y: bool = True) -> None:
    """The axes logarithmic, ticks as plain numbers where they stay short."""
    axes.set_xscale("log")
    if y:
        axes.set_yscale("log")
    plain = FuncFormatter(lambda v, _: f"{v:,.10g}" if 1e-3 <= v <= 1e5 else power_of_ten(v))
    for axis in (axes.xaxis, axes.yaxis) if y else (axes.xaxis,):
        low, high = sorted(axis.get_view_interval())
        # Less than two decades hold too few powers of ten to read a value by.
        narrow = low > 0 and high / low < 100
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if narrow else (1.0,)))
        axis.set_major_formatter(plain)
        axis.set_minor_formatter(NullFormatter())


def _legend(figure: Figure, comparison: Comparison, theme: Theme) -> None:
    """Names below the axes: a thick line for a model's hue, the very curve for a solver."""
    handles, names = [], []
    for group in legend(comparison, theme):
        for entry in group.entries:
            hue_only = {"color": entry.look.colour, "linewidth": 5}
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
    """Small text at the left end of a horizontal line."""
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
    axes: Axes, solves: Sequence[StepEnds], colours: dict, theme: Theme, solver: str
) -> None:
    dress(axes, theme, title=solver)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.10g}"))
    axes.tick_params(labelbottom=False)
    for ends in solves:
        edges = (0.0, *ends.times)
        heights = [1 / (b - a) for a, b in zip(edges, edges[1:], strict=False)]
        axes.stairs(heights, edges, baseline=None, color=colours[ends.tolerance], linewidth=1.6)


def _draw_rug(axes: Axes, solves: Sequence[StepEnds], colours: dict, theme: Theme) -> None:
    dress(axes, theme, xlabel="t (0 noise, 1 data)")
    axes.grid(False)
    axes.set(xlim=(0, 1), ylim=(-0.5, len(solves) - 0.5), yticks=[])
    axes.spines["left"].set_visible(False)
    for row, ends in enumerate(reversed(solves)):
        axes.vlines(
            ends.times,
            row - 0.36,
            row + 0.36,
            color=colours[ends.tolerance],
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
