"""Improved precision and recall: fidelity and diversity of samples, measured on features."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike

from fmjax._checks import require, require_at_least, require_count
from fmjax._inputs import as_features

_ROWS = 1024
# Below this fraction of `|x|^2 + |y|^2`, a squared distance is computed from the difference.
_CLOSE = 1e-6
_PAIRS = 65_536


class PrecisionRecall(NamedTuple):
    """Precision and recall of samples, both in [0, 1]; higher is better.

    Attributes:
        precision: Fraction of samples within the manifold of the real data (fidelity).
        recall: Fraction of real examples within the manifold of the samples (diversity).
    """

    precision: float
    recall: float


def precision_recall(
    features_samples: ArrayLike, features_real: ArrayLike, *, num_neighbors: int = 3
) -> PrecisionRecall:
    """Compute improved precision and recall from features.

    The manifold of a set is the union of balls around its points. The radius of each ball is the
    distance to the point's `num_neighbors`-th nearest neighbor in the set. Both values depend on
    the sizes of the sets: compare only results computed with equal sizes.

    Args:
        features_samples: Features of generated samples, `[n, d]`.
        features_real: Features of real examples, `[m, d]`; use m = n, since a difference in size
            alone makes precision and recall differ.
        num_neighbors: Rank of the neighbor that sets the radius of a ball, k in the paper.

    Raises:
        ValueError: If a set has at most `num_neighbors` points, or the sets differ in the number
            of features.

    Reference: Kynkaanniemi et al. 2019, arXiv:1904.06991, equations 1 and 2.
    """
    require_count("num_neighbors", num_neighbors, 1)
    samples = as_features("samples", features_samples)
    real = as_features("real", features_real)
    for name, features in (("samples", samples), ("real", real)):
        require_at_least(f"the number of {name}", len(features), num_neighbors + 1)
    num_real, num_samples = real.shape[1], samples.shape[1]
    rule = f"have {num_real} features, like real"
    require(num_real == num_samples, "samples", rule, num_samples)
    return PrecisionRecall(
        precision=float(np.mean(_covered(samples, real, num_neighbors))),
        recall=float(np.mean(_covered(real, samples, num_neighbors))),
    )


def _covered(
    points: Float[np.ndarray, "num features"],
    manifold: Float[np.ndarray, "others features"],
    num_neighbors: int,
) -> Bool[np.ndarray, " num"]:
    """Test whether each point lies within a ball around a point of the manifold."""
    squared_radii = np.concatenate(
        [
            # Index 0 is the distance of a point to itself, so index k is its k-th neighbor.
            np.partition(squared, num_neighbors, axis=1)[:, num_neighbors]
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
    """Yield the squared distances of all pairs in blocks of rows.

    The full matrix would need 29 GB for 60,000 points.
    """
    # Centering does not change distances but reduces the rounding error.
    x, y = (points.astype(np.float64) for points in (x, y))
    center = y.mean(axis=0)
    x, y = x - center, y - center
    norms = np.sum(y * y, axis=1)
    for start in range(0, len(x), _ROWS):
        rows = x[start : start + _ROWS]
        sums = np.sum(rows * rows, axis=1)[:, None] + norms[None]
        squared = sums - 2.0 * rows @ y.T
        # Where the terms cancel almost completely, recompute the distance without cancellation.
        close = np.flatnonzero(squared < _CLOSE * sums)
        for indices in np.array_split(close, 1 + len(close) // _PAIRS):
            i, j = np.unravel_index(indices, squared.shape)
            squared[i, j] = np.sum(np.square(rows[i] - y[j]), axis=1)
        yield squared
