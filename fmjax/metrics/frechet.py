"""Frechet distance between Gaussians fitted to two sets of features."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from fmjax._checks import require
from fmjax._inputs import as_features


class GaussianFit(NamedTuple):
    """A Gaussian fitted to a set of features.

    Attributes:
        mean: Mean `[d]`, float64.
        covariance: Unbiased covariance `[d, d]`, float64.
    """

    mean: np.ndarray
    covariance: np.ndarray


def fit_gaussian(features: ArrayLike) -> GaussianFit:
    """Compute the mean and unbiased covariance of features `[n, d]`, in float64.

    Raises:
        ValueError: If there are fewer than two samples, or a value is not finite.
    """
    x = as_features("features", features).astype(np.float64)
    require(len(x) >= 2, "features", "hold at least 2 samples, to estimate a covariance", len(x))
    return GaussianFit(x.mean(axis=0), np.atleast_2d(np.cov(x, rowvar=False)))


def frechet_distance(features_x: ArrayLike, features_y: ArrayLike) -> float:
    """Compute the squared Frechet distance between Gaussians fitted to two sets of features.

    The estimate is biased upward unless there are many more samples than features: compare only
    distances computed from the same numbers of samples.

    Args:
        features_x: Features of the first set, `[n, d]`, n at least 2.
        features_y: Features of the second set, `[m, d]`, m at least 2.

    Returns:
        The distance, in squared units of the features; 0 up to rounding for equal sets.

    Raises:
        ValueError: If a set has fewer than two samples or holds inf or nan, or the sets differ in
            the number of features.

    Reference: Heusel et al. 2017, arXiv:1706.08500, equation 6.
    """
    return gaussian_frechet_distance(fit_gaussian(features_x), fit_gaussian(features_y))


def gaussian_frechet_distance(x: GaussianFit, y: GaussianFit) -> float:
    """Compute the squared Frechet distance between two Gaussians, in float64 on the host.

    It is `|m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2))`. The trace of the square root is the
    sum of the singular values of `F_x^T F_y`, where `C = F F^T`. This works for covariances of any
    rank, where `sqrtm(C_x C_y)` may fail or return complex numbers because the product is not
    symmetric.

    Raises:
        ValueError: If the Gaussians differ in dimension.

    Reference: Dowson and Landau 1982, The Frechet distance between multivariate normal
        distributions, J. Multivar. Anal. 12, equation 4.
    """
    matches = x.mean.shape == y.mean.shape
    rule = f"have {x.mean.size} features per sample, like features_x"
    require(matches, "features_y", rule, y.mean.size)
    shift = float(np.sum((x.mean - y.mean) ** 2))
    overlap = _factor(x.covariance).T @ _factor(y.covariance)
    trace_of_root = float(np.linalg.svd(overlap, compute_uv=False).sum())
    return shift + float(np.trace(x.covariance) + np.trace(y.covariance)) - 2 * trace_of_root


def _factor(covariance: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d d"]:
    """Return a matrix F with `F F^T = covariance`."""
    # A negative eigenvalue is a rounded zero.
    values, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(np.maximum(values, 0.0))[None, :]
