"""Figures of a training run: its loss, trajectories, and samples of two-dimensional models."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from fmjax._checks import require
from fmjax.report.content import StraightnessPlot
from fmjax.report.style import LIGHT, WIDTH, Theme, dress, new_figure


def plot_loss(
    steps: Sequence[float | int],
    losses: Sequence[float | int],
    *,
    ylabel: str = "training loss",
    theme: Theme = LIGHT,
) -> Figure:
    """Plot the logged loss and its running mean against the training step.

    The running mean extends over a twentieth of the points to each side, fewer near the ends.

    Args:
        steps: Training steps with a log line.
        losses: Logged loss at each of `steps`.
        ylabel: Label of the vertical axis.
        theme: Colors of the figure.

    Raises:
        ValueError: If `steps` and `losses` differ in length.
    """
    rule = f"have one entry for each of {len(steps)} steps"
    require(len(steps) == len(losses), "losses", rule, len(losses))
    figure = new_figure(WIDTH, 3.2, theme)
    axes = figure.subplots()
    dress(axes, theme, xlabel="step", ylabel=ylabel, title="Loss")
    values = np.asarray(losses, dtype=np.float64)
    axes.plot(steps, values, color=theme.cool[1], linewidth=1.0, alpha=0.4, label="as logged")
    smooth = running_mean(values, max(1, len(values) // 20))
    axes.plot(steps, smooth, color=theme.cool[1], linewidth=2.2, label="running mean")
    finite = values[np.isfinite(values)]
    if finite.size and finite.min() > 0 and finite.max() > 10 * finite.min():
        axes.set_yscale("log")
    if len(values) > 1:
        axes.set_xlim(min(0, *steps), max(steps))
    axes.legend(frameon=False, fontsize=9.5, labelcolor=theme.ink)
    return figure


def running_mean(values: np.ndarray, reach: int) -> np.ndarray:
    """Average the finite values of `reach` neighbors to each side, fewer near the ends."""
    finite = np.isfinite(values)
    total = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    count = np.concatenate([[0], np.cumsum(finite)])
    index = np.arange(len(values))
    # A symmetric window does not bias the values near the ends.
    span = np.minimum(reach, np.minimum(index, len(values) - 1 - index))
    first, last = index - span, index + span + 1
    means = (total[last] - total[first]) / np.maximum(count[last] - count[first], 1)
    return np.where(count[last] > count[first], means, np.nan)


def plot_straightness(shape: StraightnessPlot, *, theme: Theme = LIGHT) -> Figure:
    """Plot the deviation from straight lines at constant speed and the curvature along t."""
    figure = new_figure(WIDTH, 3.2, theme)
    left, right = figure.subplots(1, 2)
    dress(
        left,
        theme,
        xlabel="t (0: noise, 1: data)",
        ylabel="squared deviation of the velocity",
        title="Straightness",
    )
    left.fill_between(shape.times, shape.deviation, color=theme.cool[1], alpha=0.25, linewidth=0)
    left.plot(shape.times, shape.deviation, color=theme.cool[1], linewidth=2.0)
    dress(
        right,
        theme,
        xlabel="t (0: noise, 1: data)",
        ylabel="RMS of the second derivative",
        title="Curvature",
    )
    right.plot(shape.midpoints, shape.curvature, color=theme.warm[1], linewidth=2.0)
    for axes in (left, right):
        axes.set_xlim(0.0, 1.0)
        axes.set_ylim(bottom=0.0)
    return figure


def plot_lines(lines: Sequence[Sequence[Sequence[float]]], *, theme: Theme = LIGHT) -> Figure:
    """Plot trajectories `[n, times, 2]` in the plane, with open starts and filled ends."""
    points = np.asarray(lines, np.float64)
    figure = new_figure(WIDTH, 4.4, theme)
    axes = figure.subplots()
    dress(axes, theme, title=f"Trajectories ({len(points)})")
    axes.add_collection(LineCollection(list(points), colors=theme.faint, linewidths=0.8))
    x0, x1 = points[:, 0], points[:, -1]
    axes.scatter(*x0.T, s=16, facecolors=theme.background, edgecolors=theme.cool[1], zorder=3)
    axes.scatter(*x1.T, s=16, color=theme.warm[1], linewidths=0, zorder=3)
    axes.set_aspect("equal")
    low, high = _limits(points.reshape(-1, 2))
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    return figure


def plot_points(samples: np.ndarray, data: np.ndarray, *, theme: Theme = LIGHT) -> Figure:
    """Plot samples of a two-dimensional model and real data side by side, with equal limits.

    Args:
        samples: Sampled points, `[n, 2]`.
        data: Real data, `[m, 2]`; its panel is omitted if it is empty.
        theme: Colors of the figure.

    Raises:
        ValueError: If `samples` or `data` does not have shape `[n, 2]`.
    """
    for name, points in (("samples", samples), ("data", data)):
        require(points.ndim == 2 and points.shape[1] == 2, name, "have shape [n, 2]", points.shape)
    figure = new_figure(WIDTH, 3.2, theme)
    panels = ((samples, "Samples", theme.warm[1]), (data, "Real data", theme.cool[1]))
    panels = panels if len(data) else panels[:1]
    all_axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (points, title, color) in zip(all_axes, panels, strict=True):
        dress(axes, theme, title=f"{title} ({len(points):,})")
        size = float(np.clip(12_000 / max(len(points), 1), 1.0, 14.0))
        axes.scatter(points[:, 0], points[:, 1], s=size, color=color, alpha=0.5, linewidths=0)
        axes.set_aspect("equal")
    low, high = _limits(np.concatenate([samples, data]))
    all_axes[0].set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    return figure


def plot_examples(
    points: np.ndarray,
    labels: np.ndarray | None = None,
    class_names: Sequence[str] = (),
    *,
    theme: Theme = LIGHT,
) -> Figure:
    """Plot examples in the plane, with one color per class; after ten classes, colors repeat.

    Args:
        points: The examples, `[n, 2]`.
        labels: Class label of each example, `[n]`; None for one color.
        class_names: Names of the classes; empty shows their numbers.
        theme: Colors of the figure.

    Raises:
        ValueError: If `points` does not have shape `[n, 2]`.
    """
    is_plane = points.ndim == 2 and points.shape[1] == 2
    require(is_plane, "points", "have shape [n, 2]", points.shape)
    figure = new_figure(WIDTH, 4.4, theme)
    axes = figure.subplots()
    dress(axes, theme, title=f"Examples ({len(points):,})")
    size = float(np.clip(12_000 / max(len(points), 1), 1.0, 14.0))
    style = {"s": size, "alpha": 0.5, "linewidths": 0}
    if labels is None:
        axes.scatter(*points.T, color=theme.cool[1], **style)
    else:
        for label in np.unique(labels).tolist():
            name = class_names[label] if class_names else str(label)
            color = theme.hues[label % len(theme.hues)]
            axes.scatter(*points[labels == label].T, color=color, label=name, **style)
        place = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}
        axes.legend(frameon=False, fontsize=9.5, labelcolor=theme.ink, markerscale=3, **place)
    axes.set_aspect("equal")
    low, high = _limits(points)
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    return figure


def _limits(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the limits of 99.8 % of the finite points, with a margin; outliers are cut off."""
    points = points[np.isfinite(points).all(axis=1)]
    if not len(points):
        return np.full(2, -1.0), np.full(2, 1.0)
    low, high = np.quantile(points, (0.001, 0.999), axis=0)
    margin = 0.08 * np.maximum(high - low, math.ulp(1.0) * 1e6)
    return low - margin, high + margin
