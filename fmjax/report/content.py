"""The content of a report page, as plain data."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fmjax.metrics import Coverage, RankHistogram
from fmjax.report.comparison import Comparison
from fmjax.report.gallery import GalleryEntry
from fmjax.report.tables import Table


class KeyNumber(NamedTuple):
    """A number at the top of the page.

    Attributes:
        name: Name of the quantity.
        value: Formatted number, such as "12.3" or "98.1 %".
        note: Value for comparison, such as "two halves of the real data: 5.1".
    """

    name: str
    value: str
    note: str = ""


class SampleGrid(NamedTuple):
    """A grid of sampled images.

    Attributes:
        images: `[n, height, width, 1 or 3]` in [-1, 1].
        columns: Number of images in a row.
        row_labels: One label for each row, or none.
        caption: Caption of the grid.
    """

    images: np.ndarray
    columns: int
    row_labels: tuple[str, ...] = ()
    caption: str = ""


class SamplePoints(NamedTuple):
    """Samples of a two-dimensional model and real data.

    Attributes:
        samples: Sampled points, `[n, 2]`.
        data: Real data, `[m, 2]`.
        caption: Caption of the figure.
    """

    samples: np.ndarray
    data: np.ndarray
    caption: str = ""


class LossCurve(NamedTuple):
    """The training loss.

    Attributes:
        steps: Training steps with a log line.
        losses: Logged loss at each of `steps`.
    """

    steps: tuple[float, ...]
    losses: tuple[float, ...]


class StraightnessPlot(NamedTuple):
    """Deviation of a flow's trajectories from straight lines along t, as means over trajectories.

    Attributes:
        times: Times of `deviation`.
        deviation: Squared difference between the velocity and that of the straight line, per
            coordinate.
        midpoints: Times of `curvature`.
        curvature: Root mean square of the second derivative.
        caption: Caption of the figure.
        lines: Positions of each trajectory at `times` for two-dimensional data, otherwise empty.
    """

    times: tuple[float, ...]
    deviation: tuple[float, ...]
    midpoints: tuple[float, ...]
    curvature: tuple[float, ...]
    caption: str = ""
    lines: Sequence[Sequence[Sequence[float]]] = ()


class CornerPlot(NamedTuple):
    """Samples of the posterior for one observation.

    Attributes:
        samples: Samples, `[n, parameters]`. Rows with inf or nan are not shown.
        true: Parameters that the observation was simulated with, `[parameters]`, or None.
        reference: Samples of the exact posterior, `[m, parameters]`, shown as lines, or None.
        names: Names of the parameters; none to number them from 1.
        caption: Caption of the figure.
    """

    samples: np.ndarray
    true: np.ndarray | None = None
    reference: np.ndarray | None = None
    names: Sequence[str] = ()
    caption: str = ""


class PosteriorChecks(NamedTuple):
    """Posteriors of simulated observations, and their calibration; empty parts are omitted.

    Attributes:
        corners: Samples of the posteriors for single observations.
        ranks: Histograms of the ranks of the true parameters.
        coverages: Expected coverage, by name of the credible regions.
        names: Names of the parameters in the rank histograms; none to number them from 1.
    """

    corners: tuple[CornerPlot, ...] = ()
    ranks: RankHistogram | None = None
    coverages: Mapping[str, Coverage] = {}
    names: Sequence[str] = ()


class NamedPicture(NamedTuple):
    """A picture with a title.

    Attributes:
        title: Title of its section.
        png: Content of the PNG file.
        caption: Caption of the picture.
    """

    title: str
    png: bytes
    caption: str = ""


class Report(NamedTuple):
    """The content of a report page; empty parts are omitted.

    Attributes:
        title: Name of the run.
        summary: A sentence about the model, the data and the training time.
        key_numbers: Numbers shown at the top, in this order.
        samples: A grid of images or a scatter plot of points.
        comparison: Solver comparison.
        loss: Training loss.
        straightness: Straightness of the trajectories.
        config: Config of the experiment, as JSON data.
        gallery: Samples of every row of the comparison.
        tables: Additional tables, each in a separate section.
        pictures: Additional pictures, each in a separate section.
        posterior: Posteriors of a simulator's parameters, and their calibration.
    """

    title: str
    summary: str = ""
    key_numbers: tuple[KeyNumber, ...] = ()
    samples: SampleGrid | SamplePoints | None = None
    comparison: Comparison | None = None
    loss: LossCurve | None = None
    straightness: StraightnessPlot | None = None
    config: Mapping[str, Any] | None = None
    gallery: tuple[GalleryEntry, ...] = ()
    tables: tuple[Table, ...] = ()
    pictures: tuple[NamedPicture, ...] = ()
    posterior: PosteriorChecks | None = None
