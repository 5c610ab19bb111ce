"""Precision and recall: how much of the samples is like the data, and the other way round."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike

from fmjax._checks import require, require_at_least, require_count
from fmjax._inputs import as_features

_ROWS = 1024
# Pairs whose squared distance is below this share of `|x|^2 + |y|^2` are subtracted one by one.
_CLOSE = 1e-6
_PAIRS = 65_536


class PrecisionRecall(NamedTuple):
    """Both lie in [0, 1] and are better when higher.

    Attributes:
        precision: The share of samples that lie within the manifold of real examples.
        recall: The share of real examples that lie within the manifold of samples: diversity.
    """

    precision: float
    recall: float


def precision_recall(
    features_samples: ArrayLike, features_real: ArrayLike, *, num_neighbours: int = 3
) -> PrecisionRecall:
    """Improved precision and recall on feature vectors.

    The manifold of a set is the union of balls around its points, each as large as the distance
    to the point's `num_neighbours`-th neighbour in the set. Both figures depend on the sizes of
    the sets: compare only what was measured with equal ones.

    Args:
        features_samples: `[n, d]`, of generated examples.
        features_real: `[m, d]`, of real ones; as many, or the two differ for that alone.
        num_neighbours: The paper's k.

    Raises:
        ValueError: If a set has too few points, or their features differ in number.

    Source: Kynkaanniemi et al. 2019, arXiv:1904.06991, equations 1 and 2.
    """
    require_count("num_neighbours", num_neighbours, 1)
    samples = as_features("samples", features_samples)
    real = as_features("real", features_real)
    for name, features in (("samples", samples), ("real", real)):
        require_at_least(f"the number of {name}", len(features), num_neighbours + 1)
    wanted, got = real.shape[1], samples.shape[1]
    require(wanted == got, "samples", f"have {wanted} features as the real ones", got)
    return PrecisionRecall(
        precision=float(np.mean(_covered(samples, real, num_neighbours))),
        recall=float(np.mean(_covered(real, samples, num_neighbours))),
    )


def _covered(
    points: Float[np.ndarray, "num features"],
    manifold: Float[np.ndarray, "others features"],
    num_neighbours: int,
) -> Bool[np.ndarray, " num"]:
    """Whether each point lies within the balls around the manifold's points."""
    squared_radii = np.concatenate(
        [
            # A point is its own nearest: the k-th neighbour comes k + 1st.
            np.partition(squared, num_neighbours, axis=1)[:, num_neighbours]
            for squared in _squared_distances(manifold, manifold)
        ]
    )
    return np.concatenate(
        [
            np.any(squared <= squared_radii[None], axis=1)
            for squared in _squared_distances(points, manifold)
        ]
    )


def _squared_distances(x: np.ndarray, y: np.ndarray) -> Iterator[np.ndarray]:
    """Of all pairs, some rows at a time: 60,000 points have 29 GB of them."""
    # Distances do not change with the origin, but what is lost in rounding does.
    x, y = (points.astype(np.float64) for points in (x, y))
    centre = y.mean(axis=0)
    x, y = x - centre, y - centre
    norms = np.sum(y * y, axis=1)
    for start in range(0, len(x), _ROWS):
        rows = x[start : start + _ROWS]
        sums = np.sum(rows * rows, axis=1)[:, None] + norms[None]
        squared = sums - 2.0 * rows @ y.T
        # Where next to nothing is left of the sums, it is mostly rounding.
        close = np.flatnonzero(squared < _CLOSE * sums)
        for some in np.array_split(close, 1 + len(close) // _PAIRS):
            i, j = np.unravel_index(some, squared.shape)
            squared[i, j] = np.sum(np.square(rows[i] - y[j]), axis=1)
        yield squared
