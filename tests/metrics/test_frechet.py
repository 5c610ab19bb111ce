"""Frechet distance against closed forms and against the matrix square root of scipy."""

import numpy as np
import pytest
import scipy.linalg

from fmjax.metrics import frechet_distance
from fmjax.metrics.frechet import GaussianFit, fit_gaussian, gaussian_frechet_distance


def draw(seed, num, dim, rank=None):
    generator = np.random.default_rng(seed)
    mixing = generator.standard_normal((rank or dim, dim))
    return generator.standard_normal((num, rank or dim)) @ mixing + generator.standard_normal(dim)


def by_sqrtm(x, y):
    (mean_x, c_x), (mean_y, c_y) = fit_gaussian(x), fit_gaussian(y)
    root = scipy.linalg.sqrtm(c_x @ c_y).real
    return np.sum((mean_x - mean_y) ** 2) + np.trace(c_x + c_y - 2 * root)


def test_commuting_covariances_have_the_closed_form_distance():
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]
    x_std, y_std = np.array([1.0, 2.0, 0.5]), np.array([3.0, 2.0, 0.0])
    x = GaussianFit(np.zeros(3), turn @ np.diag(x_std**2) @ turn.T)
    y = GaussianFit(np.array([1.0, 2.0, 2.0]), turn @ np.diag(y_std**2) @ turn.T)
    # |m|^2 + sum (s_x - s_y)^2; the zero eigenvalue costs half of the digits.
    assert gaussian_frechet_distance(x, y) == pytest.approx(9 + 4 + 0.25, abs=1e-7)


def test_a_single_feature_has_the_closed_form_distance():
    x, y = np.array([[0.0], [2.0]]), np.array([[1.0], [5.0], [9.0]])
    expected = 16 + (np.sqrt(2) - 4) ** 2
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-12)


def test_it_agrees_with_the_matrix_square_root():
    x, y = draw(1, 50, 8), draw(2, 70, 8)
    assert frechet_distance(x, y) == pytest.approx(by_sqrtm(x, y), rel=1e-9)


def test_covariances_without_full_rank_are_safe():
    # Rank 3 in 16 dimensions, and fewer samples than features.
    x, y = draw(1, 50, 16, rank=3), draw(2, 10, 16)
    ridge = 1e-9 * np.eye(16)
    fits = [fit_gaussian(features) for features in (x, y)]
    full = [GaussianFit(mean, covariance + ridge) for mean, covariance in fits]
    # A ridge e moves a root of an eigenvalue by up to sqrt(e): 16 roots of 3e-5 times std 6.
    assert frechet_distance(x, y) == pytest.approx(gaussian_frechet_distance(*full), abs=0.01)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-6)


def test_a_set_of_float32_features_is_at_distance_zero_from_itself():
    x = draw(3, 40, 8).astype(np.float32)
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
def test_features_without_a_distance_are_refused(x, y, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(x, y)
