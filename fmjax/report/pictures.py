"""Every picture of a report as PNG, in a light and a dark rendering."""

import base64
from collections.abc import Callable
from typing import Any, NamedTuple

from PIL import Image

from fmjax.report.comparison import AS_REAL, Comparison
from fmjax.report.content import Report, SampleGrid, SamplePoints
from fmjax.report.images import image_bytes, image_grid
from fmjax.report.plots import plot_lines, plot_loss, plot_paths, plot_points
from fmjax.report.solver_plots import plot_error, plot_metric, plot_steps
from fmjax.report.style import DARK, LIGHT, Theme, png_bytes


class Picture(NamedTuple):
    """A figure for the page, in both themes, as PNG content.

    Attributes:
        name: Its file name without the suffix.
        text: What it shows, for those who cannot see it.
        light: For a light page, and what is saved as a file.
        dark: For a dark page.
        caption: What to read from it.
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


def draw(report: Report) -> dict[str, Picture]:
    """Every picture of the report, by file name."""
    pictures = []
    if isinstance(report.samples, SampleGrid):
        pictures.append(_grid_picture(report.samples))
    elif isinstance(report.samples, SamplePoints):
        points = report.samples
        pictures.append(
            _picture(
                "samples",
                "Scatter of samples beside real data",
                lambda theme: plot_points(points.samples, points.data, theme=theme),
                points.caption,
            )
        )
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
    if report.paths is not None:
        paths = report.paths
        pictures.append(
            _picture(
                "paths",
                "How far paths are from straight lines, along t",
                lambda theme: plot_paths(paths, theme=theme),
                paths.caption,
            )
        )
        if paths.lines:
            pictures.append(
                _picture(
                    "lines",
                    "Paths in the plane, from where they start to where they end",
                    lambda theme: plot_lines(paths.lines, theme=theme),
                    "From the source (open) to the samples (filled). Where lines of one condition "
                    "cross, they do at different times.",
                )
            )
    return {picture.name: picture for picture in pictures}


def _comparison_pictures(comparison: Comparison) -> list[Picture]:
    pictures = []
    if comparison.reference is not None:
        pictures += [
            _picture(
                "error",
                "Error of the worst sample against network evaluations",
                lambda theme: plot_error(comparison, theme=theme),
                "Down and to the left is better. " + _families_in_words(comparison),
            ),
            _picture(
                "time",
                "Error of the worst sample against wall time",
                lambda theme: plot_error(comparison, cost="seconds", theme=theme),
                f"The same against wall time for all {comparison.num_samples:,} samples, "
                "compilation apart.",
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
                "Where in t the adaptive solvers put their steps",
                lambda theme: plot_steps(comparison, theme=theme),
                "High where the solver takes short steps; each level piece is one accepted step.",
            )
        )
    return pictures


def _families_in_words(comparison: Comparison) -> str:
    lines = {
        "fixed": "dashed: fixed steps",
        "adaptive": "solid: adaptive steps",
        "stochastic": "dotted: with noise along the way",
    }
    families = {run.family for run in comparison.runs}
    words = "; ".join(words for family, words in lines.items() if family in families)
    return f"{words[:1].upper()}{words[1:]}."


def _metric_caption(comparison: Comparison, name: str) -> str:
    higher = name in comparison.higher_is_better
    better = "nearest to real data's" if name == AS_REAL else "higher" if higher else "lower"
    caption = f"Of {comparison.num_samples:,} samples; {better} is better."
    if comparison.reference is not None and name in comparison.reference.metrics:
        caption += " Once it meets the reference's line, a smaller error no longer shows in it."
    return f"{caption} {_families_in_words(comparison)}"


def _picture(name: str, text: str, plot: Callable[[Theme], Any], caption: str = "") -> Picture:
    return Picture(name, text, png_bytes(plot(LIGHT)), png_bytes(plot(DARK)), caption)


def _grid_picture(grid: SampleGrid) -> Picture:
    def drawn(theme: Theme) -> bytes:
        image: Image.Image = image_grid(
            grid.images,
            grid.columns,
            row_labels=grid.row_labels,
            background=theme.background,
            ink=theme.ink,
        )
        return image_bytes(image)

    return Picture("samples", "Grid of samples", drawn(LIGHT), drawn(DARK), grid.caption)


def data_uri(png: bytes) -> str:
    """The picture as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
