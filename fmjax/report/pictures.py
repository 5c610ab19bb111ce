"""The pictures of a report as PNG, for the light and the dark theme."""

import base64
from collections.abc import Callable
from typing import NamedTuple

from matplotlib.figure import Figure
from PIL import Image

from fmjax.report.comparison import AS_REAL, Comparison
from fmjax.report.content import PosteriorChecks, Report, SampleGrid, SamplePoints
from fmjax.report.images import image_bytes, image_grid
from fmjax.report.plots import plot_lines, plot_loss, plot_points, plot_straightness
from fmjax.report.posterior_plots import plot_corner, plot_coverage, plot_ranks
from fmjax.report.solver_plots import plot_error, plot_metric, plot_steps
from fmjax.report.style import DARK, LIGHT, Theme, png_bytes


class Picture(NamedTuple):
    """A figure of the page.

    Attributes:
        name: Name of its file without the suffix.
        text: Description for screen readers, also used as title.
        light: PNG content for the light theme, which is also saved as a file.
        dark: PNG content for the dark theme.
        caption: Caption of the figure.
    """

    name: str
    text: str
    light: bytes
    dark: bytes
    caption: str = ""

    @property
    def light_uri(self) -> str:
        """The light rendering as a data URI."""
        return data_uri(self.light)

    @property
    def dark_uri(self) -> str:
        """The dark rendering as a data URI."""
        return data_uri(self.dark)


def draw_pictures(report: Report) -> dict[str, Picture]:
    """Draw all pictures of a report, by file name."""
    pictures = []
    if isinstance(report.samples, SampleGrid):
        pictures.append(_grid_picture(report.samples))
    elif isinstance(report.samples, SamplePoints):
        points = report.samples
        pictures.append(
            _picture(
                "samples",
                "Scatter plot of samples and real data",
                lambda theme: plot_points(points.samples, points.data, theme=theme),
                points.caption,
            )
        )
    if report.posterior is not None:
        pictures += _posterior_pictures(report.posterior)
    if report.comparison is not None:
        pictures += _comparison_pictures(report.comparison)
    if report.loss is not None and report.loss.steps:
        loss = report.loss
        pictures.append(
            _picture(
                "loss",
                "Training loss against step",
                lambda theme: plot_loss(loss.steps, loss.losses, theme=theme),
            )
        )
    if report.straightness is not None:
        trajectories = report.straightness
        pictures.append(
            _picture(
                "straightness",
                "Straightness and curvature of trajectories along t",
                lambda theme: plot_straightness(trajectories, theme=theme),
                trajectories.caption,
            )
        )
        if trajectories.lines:
            pictures.append(
                _picture(
                    "lines",
                    "Trajectories in the plane",
                    lambda theme: plot_lines(trajectories.lines, theme=theme),
                    "From source points (open) to samples (filled). Trajectories with the same "
                    "condition cross only at different times.",
                )
            )
    return {picture.name: picture for picture in pictures}


def _posterior_pictures(checks: PosteriorChecks) -> list[Picture]:
    pictures = [
        _picture(
            f"corner-{i + 1}",
            f"Marginals of the posterior for observation {i + 1}",
            lambda theme, corner=corner: plot_corner(corner, theme=theme),
            corner.caption
            or "Histograms, and regions of highest density with 50, 90 and 99 % of the samples.",
        )
        for i, corner in enumerate(checks.corners)
    ]
    if checks.ranks is not None:
        ranks, num = checks.ranks, int(checks.ranks.counts[0].sum())
        pictures.append(
            _picture(
                "ranks",
                "Ranks of the true parameters among posterior samples",
                lambda theme: plot_ranks(ranks, names=checks.names, theme=theme),
                f"Ranks in {num:,} simulations; p-values are of the chi-square test of uniformity. "
                "Too narrow posteriors have many ranks at both ends, too wide ones in the middle.",
            )
        )
    if checks.coverages:
        pictures.append(
            _picture(
                "coverage",
                "Expected coverage against credibility level",
                lambda theme: plot_coverage(checks.coverages, theme=theme),
                "How often credible regions contain the true parameters. Overconfident posteriors "
                "lie below the diagonal.",
            )
        )
    return pictures


def _comparison_pictures(comparison: Comparison) -> list[Picture]:
    pictures = []
    if comparison.reference is not None:
        pictures += [
            _picture(
                "error",
                "Error of the worst sample against network evaluations",
                lambda theme: plot_error(comparison, theme=theme),
                "Lower left is better. " + _describe_families(comparison),
            ),
            _picture(
                "time",
                "Error of the worst sample against wall time",
                lambda theme: plot_error(comparison, cost="seconds", theme=theme),
                f"Wall time for all {comparison.num_samples:,} samples, without compilation.",
            ),
        ]
    for i, name in enumerate(comparison.metric_names):
        pictures.append(
            _picture(
                f"metric-{i + 1}",
                f"{name[:1].upper()}{name[1:]} against network evaluations",
                lambda theme, name=name: plot_metric(comparison, name, theme=theme),
                _metric_caption(comparison, name),
            )
        )
    if comparison.step_ends:
        pictures.append(
            _picture(
                "steps",
                "Step density of the adaptive solvers along t",
                lambda theme: plot_steps(comparison, theme=theme),
                "Higher values are shorter steps; each horizontal segment is one accepted step.",
            )
        )
    return pictures


def _describe_families(comparison: Comparison) -> str:
    lines = {
        "fixed": "dashed: fixed steps",
        "adaptive": "solid: adaptive steps",
        "stochastic": "dotted: stochastic samplers",
    }
    families = {run.family for run in comparison.runs}
    words = "; ".join(words for family, words in lines.items() if family in families)
    return f"{words[:1].upper()}{words[1:]}."


def _metric_caption(comparison: Comparison, name: str) -> str:
    higher = name in comparison.higher_is_better
    better = "closer to real data" if name == AS_REAL else "higher" if higher else "lower"
    caption = f"Computed from {comparison.num_samples:,} samples; {better} is better."
    if comparison.reference is not None and name in comparison.reference.metrics:
        caption += " At the level of the reference, the metric does not resolve smaller errors."
    return f"{caption} {_describe_families(comparison)}"


def _picture(name: str, text: str, plot: Callable[[Theme], Figure], caption: str = "") -> Picture:
    return Picture(name, text, png_bytes(plot(LIGHT)), png_bytes(plot(DARK)), caption)


def _grid_picture(grid: SampleGrid) -> Picture:
    def render(theme: Theme) -> bytes:
        image: Image.Image = image_grid(
            grid.images,
            grid.columns,
            row_labels=grid.row_labels,
            background=theme.background,
            ink=theme.ink,
        )
        return image_bytes(image)

    return Picture("samples", "Grid of samples", render(LIGHT), render(DARK), grid.caption)


def data_uri(png: bytes) -> str:
    """Encode a PNG picture as a data URI."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
