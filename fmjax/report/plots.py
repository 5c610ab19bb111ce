"""Figures of a training run: its loss, and the samples of a two-dimensional model."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from fmjax._checks import require
from fmjax.report.content import PathShape
from fmjax.report.style import LIGHT, WIDTH, Theme, dress, new_figure


def plot_loss(
    steps: Sequence[float | int],
    losses: Sequence[float | int],
    *,
    ylabel: str = "training loss",
    theme: Theme = LIGHT,
) -> Figure:
    """The loss against the training step: as logged, faint, and its running mean.

    The mean runs over about a twentieth of the points to each side, fewer near the ends.

    Raises:
        ValueError: If `steps` and `losses` differ in length.
    """
    require(
        len(steps) == len(losses), "losses", f"be one for each of {len(steps)} steps", len(losses)
    )
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
    """Mean over the finite ones of `reach` neighbours to each side, fewer near the ends."""
    finite = np.isfinite(values)
    total = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    count = np.concatenate([[0], np.cumsum(finite)])
    index = np.arange(len(values))
    # The same reach to both sides, or the ends would lean towards the middle.
    span = np.minimum(reach, np.minimum(index, len(values) - 1 - index))
    first, last = index - span, index + span + 1
    means = (total[last] - total[first]) / np.maximum(count[last] - count[first], 1)
    return np.where(count[last] > count[first], means, np.nan)


def plot_paths(paths: PathShape, *, theme: Theme = LIGHT) -> Figure:
    """How far paths are from straight lines at constant speed, and how they bend, along t."""
    figure = new_figure(WIDTH, 3.2, theme)
    left, right = figure.subplots(1, 2)
    dress(
        left,
        theme,
        xlabel="t (0: noise, 1: data)",
        ylabel="squared deviation of the velocity",
        title="Straightness",
    )
    left.fill_between(paths.times, paths.deviation, color=theme.cool[1], alpha=0.25, linewidth=0)
    left.plot(paths.times, paths.deviation, color=theme.cool[1], linewidth=2.0)
    dress(
        right,
        theme,
        xlabel="t (0: noise, 1: data)",
        ylabel="second derivative, rms",
        title="Curvature",
    )
    right.plot(paths.midpoints, paths.curvature, color=theme.warm[1], linewidth=2.0)
    for axes in (left, right):
        axes.set_xlim(0.0, 1.0)
        axes.set_ylim(bottom=0.0)
    return figure


def plot_lines(lines: Sequence[Sequence[Sequence[float]]], *, theme: Theme = LIGHT) -> Figure:
    """Paths in the plane, `[paths, times, 2]`: open where they start, filled where they end."""
    points = np.asarray(lines, np.float64)
    figure = new_figure(WIDTH, 4.4, theme)
    axes = figure.subplots()
    dress(axes, theme, title=f"Paths ({len(points)})")
    axes.add_collection(LineCollection(list(points), colors=theme.faint, linewidths=0.8))
    x0, x1 = points[:, 0], points[:, -1]
    axes.scatter(*x0.T, s=16, facecolors=theme.background, edgecolors=theme.cool[1], zorder=3)
    axes.scatter(*x1.T, s=16, color=theme.warm[1], linewidths=0, zorder=3)
    axes.set_aspect("equal")
    low, high = _limits(points.reshape(-1, 2))
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    return figure


def plot_points(samples: np.ndarray, data: np.ndarray, *, theme: Theme = LIGHT) -> Figure:
    """Samples of a two-dimensional model beside real data, on the same axes limits.

    Args:
        samples: `[n, 2]`.
        data: `[m, 2]`; an empty one leaves its panel out.
        theme: Colours.

    Raises:
        ValueError: If either is not of shape `[n, 2]`.
    """
    for name, points in (("samples", samples), ("data", data)):
        require(points.ndim == 2 and points.shape[1] == 2, name, "be of shape [n, 2]", points.shape)
    figure = new_figure(WIDTH, 3.2, theme)
    pairs = ((samples, "Samples", theme.warm[1]), (data, "Real data", theme.cool[1]))
    pairs = pairs if len(data) else pairs[:1]
    panels = figure.subplots(1, len(pairs), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (points, title, colour) in zip(panels, pairs, strict=True):
        dress(axes, theme, title=f"{title} ({len(points):,})")
        size = float(np.clip(12_000 / max(len(points), 1), 1.0, 14.0))
        axes.scatter(points[:, 0], points[:, 1], s=size, color=colour, alpha=0.5, linewidths=0)
        axes.set_aspect("equal")
    low, high = _limits(np.concatenate([samples, data]))
    panels[0].set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    return figure


def _limits(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What holds 99.8 % of the finite points, with a margin: a stray one must not zoom out."""
    points = points[np.isfinite(points).all(axis=1)]
    if not len(points):
        return np.full(2, -1.0), np.full(2, 1.0)
    low, high = np.quantile(points, (0.001, 0.999), axis=0)
    margin = 0.08 * np.maximum(high - low, math.ulp(1.0) * 1e6)
    return low - margin, high + margin
