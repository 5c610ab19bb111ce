"""The report of a run: one HTML page that needs nothing else, and its figures beside it.

The page holds its pictures as data URIs, each in a light and a dark rendering of which the
reader's system chooses one, and a policy that forbids it to load anything.
"""

import base64
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from PIL import Image

import fmjax
from fmjax._files import write_atomically
from fmjax.report.advice import seconds_in_words, sentences
from fmjax.report.comparison import Comparison, power_of_ten, scientific
from fmjax.report.images import image_bytes, image_grid
from fmjax.report.plots import plot_loss, plot_points
from fmjax.report.solver_plots import plot_error, plot_metric, plot_steps
from fmjax.report.style import DARK, LIGHT, Theme, png_bytes, save_png


class KeyNumber(NamedTuple):
    """One figure at the head of the page.

    Attributes:
        name: What it measures.
        value: The figure as it is to be read, as "12.3" or "98.1 %".
        note: What to hold it against, as "two halves of the real data: 5.1".
    """

    name: str
    value: str
    note: str = ""


class SampleGrid(NamedTuple):
    """Sampled images, `[n, height, width, 1 or 3]` in [-1, 1], and how to lay them out."""

    images: np.ndarray
    columns: int
    row_labels: tuple[str, ...] = ()
    caption: str = ""


class SamplePoints(NamedTuple):
    """Samples of a two-dimensional model, `[n, 2]`, and real data, `[m, 2]`."""

    samples: np.ndarray
    data: np.ndarray
    caption: str = ""


class LossCurve(NamedTuple):
    """The training loss as logged, one value for each of `steps`."""

    steps: tuple[float, ...]
    losses: tuple[float, ...]


class Report(NamedTuple):
    """What a page shows; a part that is empty is left out.

    Attributes:
        title: The run's name.
        summary: A sentence on what was trained, on what, for how long.
        key_numbers: Shown large, in this order.
        samples: A grid of images or a scatter of points.
        comparison: The solver comparison.
        loss: The training loss.
        config: The whole experiment, as plain values that JSON can hold.
    """

    title: str
    summary: str = ""
    key_numbers: tuple[KeyNumber, ...] = ()
    samples: SampleGrid | SamplePoints | None = None
    comparison: Comparison | None = None
    loss: LossCurve | None = None
    config: Mapping[str, Any] | None = None


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
        return _data_uri(self.light)

    @property
    def dark_uri(self) -> str:
        """The dark rendering as a data URI."""
        return _data_uri(self.dark)


def write_report(report: Report, folder: Path) -> Path:
    """Write `report.html` and `figures/*.png` into `folder`.

    Each file is written whole or not at all, the page last.

    Returns:
        The path of the page.
    """
    pictures = draw(report)
    for picture in pictures.values():
        save_png(picture.light, folder / "figures" / f"{picture.name}.png")
    page = folder / "report.html"
    with write_atomically(page) as temporary:
        temporary.write_text(render(report, pictures), encoding="utf-8")
    return page


def render(report: Report, pictures: Mapping[str, Picture]) -> str:
    """The page as text. `pictures` are those that `draw` made of the same report."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fmjax", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["power"] = power_of_ten
    environment.filters["scientific"] = scientific
    environment.filters["seconds"] = seconds_in_words
    comparison = report.comparison
    return environment.get_template("page.html.j2").render(
        report=report,
        comparison=comparison,
        pictures=pictures,
        sentences=sentences(comparison) if comparison else (),
        config=json.dumps(report.config, indent=2, default=str) if report.config else "",
        version=fmjax.__version__,
    )


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
    return {picture.name: picture for picture in pictures}


def _comparison_pictures(comparison: Comparison) -> list[Picture]:
    pictures = [
        _picture(
            "error",
            "Error of the worst sample against network evaluations, one line for each solver",
            lambda theme: plot_error(comparison, theme=theme),
            "Down and to the left is better. Blue, dashed: fixed steps. Orange: adaptive.",
        ),
        _picture(
            "time",
            "Error of the worst sample against wall time, one line for each solver",
            lambda theme: plot_error(comparison, cost="seconds", theme=theme),
            f"The same against wall time for all {comparison.num_samples} samples, "
            "compilation apart.",
        ),
    ]
    for i, name in enumerate(comparison.metric_names):
        pictures.append(
            _picture(
                f"metric-{i + 1}",
                f"{name} against network evaluations",
                lambda theme, name=name: plot_metric(comparison, name, theme=theme),
                f"{name[:1].upper()}{name[1:]} of the same {comparison.num_samples} samples: once "
                "it meets the reference's line, a smaller error no longer shows in it.",
            )
        )
    if comparison.step_ends:
        pictures.append(
            _picture(
                "steps",
                "Where in t the adaptive solvers put their steps",
                lambda theme: plot_steps(comparison, theme=theme),
                "High where the solver takes short steps. Each tick below is one accepted "
                "step; their number stands at the right.",
            )
        )
    return pictures


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


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
