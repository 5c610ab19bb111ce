"""Frechet distance: how far apart two sets of features are, taken as Gaussians."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from fmjax._checks import require
from fmjax._inputs import as_features


class GaussianFit(NamedTuple):
    """Mean `[d]` and covariance `[d, d]` of a set of features, float64."""

    mean: np.ndarray
    covariance: np.ndarray


def fit_gaussian(features: ArrayLike) -> GaussianFit:
    """Mean and unbiased covariance of features `[n, d]`, in float64.

    Raises:
        ValueError: If there are fewer than two examples, or a value is not finite.
    """
    x = as_features("features", features).astype(np.float64)
    require(len(x) >= 2, "features", "hold at least 2 examples (a covariance needs them)", len(x))
    return GaussianFit(x.mean(axis=0), np.atleast_2d(np.cov(x, rowvar=False)))


def frechet_distance(features_x: ArrayLike, features_y: ArrayLike) -> float:
    """Squared Frechet distance of the Gaussians fitted to two sets of features.

    With fewer examples than a few times the number of features it is biased upwards: compare
    only distances that were taken with the same numbers of examples.

    Args:
        features_x: `[n, d]`, n at least 2.
        features_y: `[m, d]`, m at least 2.

    Returns:
        The distance, in squared units of the features; 0 for equal sets, to rounding.

    Raises:
        ValueError: If a set has fewer than two examples, holds inf or nan, or the two have
            not the same number of features.

    Source: Heusel et al. 2017, arXiv:1706.08500, equation 6.
    """
    return gaussian_frechet_distance(fit_gaussian(features_x), fit_gaussian(features_y))


def gaussian_frechet_distance(x: GaussianFit, y: GaussianFit) -> float:
    """`|m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2))`, in float64 on the host.

    The last trace is the sum of the singular values of `F_x^T F_y`, where `C = F F^T`. So no
    square root of a product that is not symmetric is taken, and covariances of any rank are
    safe: the usual `sqrtm(C_x C_y)` may fail there, or give complex numbers.

    Raises:
        ValueError: If the two have not the same number of features.

    Source: Dowson and Landau 1982, The Frechet distance between multivariate normal
        distributions, J. Multivar. Anal. 12, equation 4.
    """
    same = x.mean.shape == y.mean.shape
    require(same, "features_y", f"have {x.mean.size} features each, as features_x", y.mean.size)
    shift = float(np.sum((x.mean - y.mean) ** 2))
    overlap = _factor(x.covariance).T @ _factor(y.covariance)
    shared = float(np.linalg.svd(overlap, compute_uv=False).sum())
    return shift + float(np.trace(x.covariance) + np.trace(y.covariance)) - 2 * shared


def _factor(covariance: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d d"]:
    """F with `F F^T` = the covariance. An eigenvalue below zero is rounding of a zero."""
    values, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(np.maximum(values, 0.0))[None, :]
