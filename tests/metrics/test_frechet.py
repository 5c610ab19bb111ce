"""Tests of the Fréchet distance against closed forms and the matrix square root of SciPy."""

import numpy as np
import pytest
import scipy.linalg

from fmjax.metrics import frechet_distance
from fmjax.metrics.frechet import GaussianFit, fit_gaussian, gaussian_frechet_distance


def random_features(seed, num, dim, rank=None):
    generator = np.random.default_rng(seed)
    mixing = generator.standard_normal((rank or dim, dim))
    return generator.standard_normal((num, rank or dim)) @ mixing + generator.standard_normal(dim)


def distance_by_sqrtm(x, y):
    (mean_x, c_x), (mean_y, c_y) = fit_gaussian(x), fit_gaussian(y)
    root = scipy.linalg.sqrtm(c_x @ c_y).real
    return np.sum((mean_x - mean_y) ** 2) + np.trace(c_x + c_y - 2 * root)


def test_commuting_covariances_match_closed_form():
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]
    x_std, y_std = np.array([1.0, 2.0, 0.5]), np.array([3.0, 2.0, 0.0])
    x = GaussianFit(np.zeros(3), rotation @ np.diag(x_std**2) @ rotation.T)
    y = GaussianFit(np.array([1.0, 2.0, 2.0]), rotation @ np.diag(y_std**2) @ rotation.T)
    # |m|^2 + sum (s_x - s_y)^2. The zero eigenvalue halves the number of accurate digits.
    assert gaussian_frechet_distance(x, y) == pytest.approx(9 + 4 + 0.25, abs=1e-7)


def test_single_feature_matches_closed_form():
    x, y = np.array([[0.0], [2.0]]), np.array([[1.0], [5.0], [9.0]])
    expected = 16 + (np.sqrt(2) - 4) ** 2
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-12)


def test_distance_matches_matrix_square_root():
    x, y = random_features(1, 50, 8), random_features(2, 70, 8)
    assert frechet_distance(x, y) == pytest.approx(distance_by_sqrtm(x, y), rel=1e-9)


def test_rank_deficient_covariances_are_accurate():
    # x has rank 3 in 16 dimensions; y has fewer samples than features.
    x, y = random_features(1, 50, 16, rank=3), random_features(2, 10, 16)
    ridge = 1e-9 * np.eye(16)
    fits = [fit_gaussian(features) for features in (x, y)]
    regularized = [GaussianFit(mean, covariance + ridge) for mean, covariance in fits]
    # A ridge e changes the root of an eigenvalue by up to sqrt(e): 16 * 3e-5 times std 6.
    assert frechet_distance(x, y) == pytest.approx(
        gaussian_frechet_distance(*regularized), abs=0.01
    )
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-6)


def test_float32_features_have_zero_distance_to_themselves():
    x = random_features(3, 40, 8).astype(np.float32)
    assert frechet_distance(x, x[::-1]) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((1, 3)), np.zeros((5, 3)), r"features must hold at least 2 samples, .*, got 1"),
        (np.zeros(3), np.zeros((5, 3)), r"features must be \[n, d\], got shape \(3,\)"),
        (np.zeros((5, 2)), np.zeros((5, 3)), "features_y must have 2 features per sample"),
        (np.full((5, 3), np.nan), np.zeros((5, 3)), "features must be finite, got inf or nan"),
    ],
)
def test_invalid_features_are_refused(x, y, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(x, y)
