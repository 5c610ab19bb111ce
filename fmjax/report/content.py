"""What a page shows, as plain data."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fmjax.report.comparison import Comparison
from fmjax.report.gallery import GalleryEntry
from fmjax.report.tables import Table


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


class PathShape(NamedTuple):
    """How far a flow's paths are from straight ones, along t: means over paths.

    Attributes:
        times: Of the deviation.
        deviation: Squared distance of the velocity from that of the straight line, a coordinate.
        midpoints: Of the curvature.
        curvature: Rms of the second derivative.
        caption: What to read from it.
        lines: Of points in the plane, where each path is at `times`; or nothing.
    """

    times: tuple[float, ...]
    deviation: tuple[float, ...]
    midpoints: tuple[float, ...]
    curvature: tuple[float, ...]
    caption: str = ""
    lines: Sequence[Sequence[Sequence[float]]] = ()


class NamedPicture(NamedTuple):
    """A picture under its title, as PNG content."""

    title: str
    png: bytes
    caption: str = ""


class Report(NamedTuple):
    """What a page shows; a part that is empty is left out.

    Attributes:
        title: The run's name.
        summary: A sentence on what was trained, on what, for how long.
        key_numbers: Shown large, in this order.
        samples: A grid of images or a scatter of points.
        comparison: The solver comparison.
        loss: The training loss.
        paths: How straight the paths are.
        config: The whole experiment, as plain values that JSON can hold.
        gallery: Samples of every row of the comparison.
        tables: Further figures, each in a section of its own.
        pictures: Further pictures, each in a section of its own.
    """

    title: str
    summary: str = ""
    key_numbers: tuple[KeyNumber, ...] = ()
    samples: SampleGrid | SamplePoints | None = None
    comparison: Comparison | None = None
    loss: LossCurve | None = None
    paths: PathShape | None = None
    config: Mapping[str, Any] | None = None
    gallery: tuple[GalleryEntry, ...] = ()
    tables: tuple[Table, ...] = ()
    pictures: tuple[NamedPicture, ...] = ()
