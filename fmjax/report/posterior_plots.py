"""Figures of a posterior: corner plots, and its calibration by ranks and coverage."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from fmjax._checks import require
from fmjax.metrics import Coverage, RankHistogram
from fmjax.report.content import CornerPlot
from fmjax.report.style import LIGHT, WIDTH, Theme, dress, new_figure

MAX_PARAMETERS = 12
MASSES = (0.5, 0.9, 0.99)
"""Probabilities of the regions that corner plots outline."""
PAIR_BINS = 96
# Standard deviations of the smoothing kernel in bins, from which `smooth_density` chooses.
BANDWIDTHS = tuple(0.6 * 1.3**i for i in range(10))
# Weight of the uniform density that makes the likelihood of isolated points finite.
UNIFORM_WEIGHT = 0.01


def plot_corner(corner: CornerPlot, *, theme: Theme = LIGHT) -> Figure:
    """Plot the marginals of all parameters and of all pairs of parameters.

    The diagonal shows histograms of equal area. Below it, the shades are the regions of highest
    density with 50, 90 and 99 % of the samples, from a histogram smoothed by `smooth_density`. The
    axes span 99.9 % of the samples and include the true values.

    Raises:
        ValueError: If the shapes do not match, or there are more than 12 parameters.
    """
    reference, true = corner.reference, corner.true
    sets = [_finite_rows("samples", corner.samples)]
    num = sets[0].shape[1]
    require(num <= MAX_PARAMETERS, "samples", f"have at most {MAX_PARAMETERS} parameters", num)
    if reference is not None:
        sets.append(_finite_rows("reference", reference))
        other = sets[1].shape[1]
        require(other == num, "reference", f"have {num} parameters, like samples", other)
    if true is not None:
        require(np.shape(true) == (num,), "true", f"have shape ({num},)", np.shape(true))
    names = _names(corner.names, num)
    size = max(WIDTH, 1.25 * num)
    figure = new_figure(size, size if num > 1 else 3.2, theme)
    panels = figure.subplots(num, num, squeeze=False)
    limits = _parameter_limits(sets, true)
    for row in range(num):
        for column in range(num):
            axes = panels[row, column]
            if column > row:
                axes.remove()
                continue
            dress(axes, theme)
            axes.grid(False)
            axes.set_xlim(*limits[column])
            if column == row:
                _draw_marginal(axes, [points[:, row] for points in sets], limits[row], theme)
            else:
                pairs = [points[:, [column, row]] for points in sets]
                _draw_pair(axes, pairs, limits[[column, row]], theme)
            _mark(axes, true, column, row, theme)
            _label(axes, names, row, column, theme)
    figure.align_labels()
    _corner_legend(figure, sets, true, theme)
    return figure


def plot_ranks(
    histogram: RankHistogram, *, names: Sequence[str] = (), theme: Theme = LIGHT
) -> Figure:
    """Plot the rank histogram of each parameter with the band of uniform ranks and its p-value.

    Args:
        histogram: Histograms from `fmjax.metrics.rank_histogram`.
        names: Names of the parameters; none to number them from 1.
        theme: Colors of the figure.

    Raises:
        ValueError: If the number of names is not that of the parameters.
    """
    num = len(histogram.counts)
    names = _names(names, num)
    columns = min(num, 3)
    rows = math.ceil(num / columns)
    figure = new_figure(WIDTH, 0.5 + 2.0 * rows, theme)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    top = 1.25 * max(histogram.counts.max(), histogram.high.max())
    for i, axes in enumerate(panels):
        if i >= num:
            axes.remove()
            continue
        dress(
            axes,
            theme,
            xlabel="rank of the true value" if i >= num - columns else "",
            ylabel="simulations" if i % columns == 0 else "",
            title=names[i],
        )
        axes.tick_params(labelbottom=i >= num - columns)
        axes.stairs(
            histogram.high,
            histogram.edges,
            baseline=histogram.low,
            fill=True,
            color=theme.grid,
            linewidth=0,
            gid="band",
        )
        axes.stairs(
            histogram.expected,
            histogram.edges,
            baseline=None,
            color=theme.faint,
            linewidth=1.0,
            gid="expected",
        )
        axes.stairs(
            histogram.counts[i],
            histogram.edges,
            baseline=0,
            color=theme.warm[1],
            linewidth=1.6,
            gid="counts",
        )
        axes.set(xlim=(0, histogram.edges[-1]), ylim=(0, top))
        _note(axes, theme, (0.97, 0.96), _p_text(histogram.p_values[i]), "right", "top")
    handles = [
        Line2D([], [], color=theme.warm[1], linewidth=1.6),
        Patch(color=theme.grid, linewidth=0),
        Line2D([], [], color=theme.faint, linewidth=1.0),
    ]
    labels = ["ranks", f"{100 * histogram.band:g} % band of uniform ranks", "uniform ranks"]
    _legend(figure, handles, labels, theme)
    return figure


def plot_coverage(coverages: Mapping[str, Coverage], *, theme: Theme = LIGHT) -> Figure:
    """Plot expected coverage against the credibility level, one curve per kind of region.

    Curves below the diagonal are those of overconfident posteriors. The band is that of an exact
    posterior with the number of simulations of the first curve.

    Args:
        coverages: Coverage by name of the regions, such as "highest density".
        theme: Colors of the figure.

    Raises:
        ValueError: If there is no curve.
    """
    require(len(coverages) > 0, "coverages", "hold at least one curve", "none")
    figure = new_figure(WIDTH, 4.6, theme)
    axes = figure.subplots()
    dress(axes, theme, xlabel="credibility level", ylabel="expected coverage", title="Calibration")
    first = next(iter(coverages.values()))
    axes.fill_between(
        first.levels, first.low, first.high, color=theme.grid, linewidth=0, zorder=1, gid="band"
    )
    axes.plot([0, 1], [0, 1], color=theme.faint, linewidth=1.0, zorder=2, gid="exact")
    lines = []
    for i, (name, it) in enumerate(coverages.items()):
        color = theme.warm[1] if len(coverages) == 1 else theme.hues[i % len(theme.hues)]
        lines += axes.plot(it.levels, it.coverage, color=color, linewidth=2.0, label=name)
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    ticks = (0, 0.25, 0.5, 0.75, 1)
    axes.set(xticks=ticks, yticks=ticks)
    _note(axes, theme, (0.03, 0.97), "too wide", "left", "top")
    _note(axes, theme, (0.97, 0.03), "too narrow (overconfident)", "right", "bottom")
    handles = [*lines, Patch(color=theme.grid, linewidth=0)]
    _legend(figure, handles, [*coverages, f"{100 * first.band:g} % band if exact"], theme)
    return figure


def _finite_rows(name: str, points: np.ndarray) -> np.ndarray:
    """Return the rows without inf or nan of points `[n, parameters]`, in float64."""
    table = np.asarray(points, np.float64)
    ok = table.ndim == 2 and table.shape[1] > 0
    require(ok, name, "have shape [n, parameters]", table.shape)
    table = table[np.isfinite(table).all(axis=1)]
    require(len(table) > 0, name, "hold at least one finite sample", "none")
    return table


def _names(names: Sequence[str], num: int) -> Sequence[str]:
    rule = f"have one entry for each of {num} parameters"
    require(len(names) in (0, num), "names", rule, len(names))
    return names or [f"parameter {i + 1}" for i in range(num)]


def _parameter_limits(sets: Sequence[np.ndarray], true: np.ndarray | None) -> np.ndarray:
    """Return the limits of each parameter, `[parameters, 2]`, with a margin of 6 %."""
    quantiles = np.concatenate([np.quantile(p, (0.0005, 0.9995), axis=0) for p in sets])
    if true is not None:
        quantiles = np.concatenate([quantiles, np.asarray(true, np.float64)[None]])
    low, high = quantiles.min(axis=0), quantiles.max(axis=0)
    width = np.where(high > low, high - low, np.maximum(np.abs(high), 1.0) * 1e-3)
    return np.stack([low - 0.06 * width, high + 0.06 * width], axis=1)


def _draw_marginal(
    axes: Axes, sets: Sequence[np.ndarray], limits: np.ndarray, theme: Theme
) -> None:
    num_bins = int(np.clip(2 * len(sets[0]) ** (1 / 3), 12, 60))
    edges = np.linspace(limits[0], limits[1], num_bins + 1)
    for i, values in enumerate(sets):
        counts = np.histogram(values, edges)[0]
        heights = counts / max(len(values), 1) / np.diff(edges)
        if i == 0:
            axes.stairs(heights, edges, fill=True, color=theme.warm[1], alpha=0.3, linewidth=0)
        axes.stairs(
            heights,
            edges,
            color=theme.cool[1] if i else theme.warm[1],
            linewidth=1.3,
            gid="reference" if i else "samples",
        )
    axes.set_ylim(bottom=0)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)


def _draw_pair(axes: Axes, sets: Sequence[np.ndarray], limits: np.ndarray, theme: Theme) -> None:
    """Draw the highest-density regions of pairs: filled for samples, outlined for a reference."""
    axes.set_ylim(*limits[1])
    edges = [np.linspace(low, high, PAIR_BINS + 1) for low, high in limits]
    centers = [(edge[:-1] + edge[1:]) / 2 for edge in edges]
    for i, points in enumerate(sets):
        density = smooth_density(np.histogram2d(points[:, 0], points[:, 1], bins=edges)[0])
        levels = density_levels(density, MASSES)
        if not levels:
            continue
        if i == 0:
            alphas = np.linspace(0.2, 0.75, len(levels))
            colors = [to_rgba(theme.warm[1], alpha) for alpha in alphas]
            top = density.max() * (1 + 1e-9)
            axes.contourf(*centers, density.T, levels=[*levels, top], colors=colors)
        else:
            axes.contour(*centers, density.T, levels=levels, colors=theme.cool[1], linewidths=1.0)


def smooth_density(counts: np.ndarray) -> np.ndarray:
    """Smooth a two-dimensional histogram by the Gaussian kernel that predicts its points best.

    The bandwidth maximizes the log-likelihood of each point under the density of all others. So
    it is small for thin structures and large for smooth densities of few points.

    Args:
        counts: Number of points in each cell, `[x, y]`.

    Returns:
        Smoothed counts of the same shape.
    """
    from scipy.ndimage import gaussian_filter  # Slow to import.

    counts = counts.astype(np.float64)
    num = counts.sum()
    point = np.zeros_like(counts)
    point[tuple(n // 2 for n in counts.shape)] = 1.0
    best, best_likelihood = counts, -np.inf
    for bandwidth in BANDWIDTHS:
        density = gaussian_filter(counts, bandwidth, mode="constant")
        others = density - gaussian_filter(point, bandwidth, mode="constant").max()
        share = np.maximum(others, 0.0) / max(num - 1, 1)
        predicted = (1 - UNIFORM_WEIGHT) * share + UNIFORM_WEIGHT / counts.size
        likelihood = np.sum(counts * np.log(predicted))
        if likelihood > best_likelihood:
            best, best_likelihood = density, likelihood
    return best


def density_levels(density: np.ndarray, masses: Sequence[float]) -> list[float]:
    """Return the density levels above which the given fractions of a histogram lie.

    Args:
        density: Density or counts in cells of equal size, at least 0.
        masses: Fractions in (0, 1).

    Returns:
        Different levels above 0 and below the highest density, in increasing order.
    """
    ordered = np.sort(density, axis=None)[::-1]
    mass = np.cumsum(ordered)
    if not mass[-1] > 0:
        return []
    indices = np.searchsorted(mass, np.asarray(masses) * mass[-1])
    return [float(v) for v in np.unique(ordered[indices]) if 0 < v < ordered[0]]


def _mark(axes: Axes, true: np.ndarray | None, column: int, row: int, theme: Theme) -> None:
    """Draw lines at the true values, and a square where they cross."""
    if true is None:
        return
    style = {"color": theme.ink, "linewidth": 0.9, "linestyle": (0, (4, 2)), "zorder": 4}
    axes.axvline(true[column], gid="true", **style)
    if column != row:
        axes.axhline(true[row], gid="true", **style)
        axes.plot(true[column], true[row], "s", markersize=3.5, color=theme.ink, zorder=5)


def _label(axes: Axes, names: Sequence[str], row: int, column: int, theme: Theme) -> None:
    """Label the axes of the lowest row and of the first column."""
    few = MaxNLocator(3, prune="both")
    axes.xaxis.set_major_locator(few)
    axes.tick_params(labelsize=7.5, length=2.5)
    is_bottom, is_left = row == len(names) - 1, column == 0 and row > 0
    axes.tick_params(labelbottom=is_bottom, labelleft=is_left)
    if row != column:
        axes.yaxis.set_major_locator(MaxNLocator(3, prune="both"))
    if is_bottom:
        axes.set_xlabel(names[column], color=theme.ink, fontsize=10)
    if is_left:
        axes.set_ylabel(names[row], color=theme.ink, fontsize=10)


def _corner_legend(
    figure: Figure, sets: Sequence[np.ndarray], true: np.ndarray | None, theme: Theme
) -> None:
    handles: list[Line2D | Patch] = [Patch(color=theme.warm[1], alpha=0.6, linewidth=0)]
    labels = [f"samples ({len(sets[0]):,})"]
    if len(sets) > 1:
        handles.append(Line2D([], [], color=theme.cool[1], linewidth=1.3))
        labels.append(f"exact posterior ({len(sets[1]):,})")
    if true is not None:
        handles.append(Line2D([], [], color=theme.ink, linewidth=0.9, linestyle=(0, (4, 2))))
        labels.append("true values")
    _legend(figure, handles, labels, theme)


def _legend(
    figure: Figure, handles: Sequence[Line2D | Patch], labels: Sequence[str], theme: Theme
) -> None:
    figure.legend(
        handles,
        labels,
        loc="outside lower left",
        ncols=3,
        frameon=False,
        fontsize=9,
        labelcolor=theme.ink,
        columnspacing=1.2,
    )


def _note(
    axes: Axes, theme: Theme, position: tuple[float, float], text: str, ha: str, va: str
) -> None:
    """Write small text at a position in fractions of the axes."""
    axes.text(
        *position, text, transform=axes.transAxes, ha=ha, va=va, fontsize=8.5, color=theme.faint
    )


def _p_text(p_value: float) -> str:
    return f"p = {p_value:.2g}" if p_value >= 1e-3 else "p < 0.001"
