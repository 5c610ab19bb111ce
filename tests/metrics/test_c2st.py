"""Tests of the classifier two-sample test against the accuracy of the best classifier."""

import numpy as np
import pytest
from scipy.stats import norm

from fmjax.metrics import c2st


def normal(seed, num, dim):
    return np.random.default_rng(seed).standard_normal((num, dim))


@pytest.mark.slow
@pytest.mark.parametrize(("distance", "slack"), [(0.0, 0.0), (1.0, 0.01), (3.0, 0.01)])
def test_accuracy_for_shifted_gaussians_is_that_of_best_classifier(distance, slack):
    """The best classifier of N(0, I) and N(shift, I) has the accuracy Phi(|shift| / 2)."""
    num, shift = 1000, distance * np.array([0.6, 0.8])
    best = norm.cdf(distance / 2)
    result = c2st(normal(0, num, 2), normal(1, num, 2) + shift)
    # Standard error with the factor 1.2 of cross-validation. A trained classifier may be worse than
    # the best one by `slack`.
    error = 1.2 * np.sqrt(best * (1 - best) / (2 * num))
    assert best - slack - 4 * error < result < best + 4 * error


@pytest.mark.slow
def test_accuracy_for_wide_gaussian_is_that_of_best_classifier():
    """In one dimension, N(0, 1) and N(0, s^2) have equal densities at two points +-c."""
    num, s = 1500, 3.0
    c = np.sqrt(2 * np.log(s) / (1 - s**-2))
    best = 0.5 * (2 * norm.cdf(c) - 1) + norm.sf(c / s)
    result = c2st(normal(2, num, 1), s * normal(3, num, 1))
    error = 1.2 * np.sqrt(best * (1 - best) / (2 * num))
    assert best - 0.02 - 4 * error < result < best + 4 * error


@pytest.mark.slow
def test_accuracy_does_not_depend_on_units():
    """Powers of two change no digit, so that equal classifiers are trained."""
    x, y, units = normal(4, 800, 2), normal(5, 800, 2) + 1.0, np.array([2.0**40, 2.0**-40])
    assert c2st(x, y) == c2st(units * x, units * y)


def test_separate_sets_are_told_apart():
    x = np.linspace(-1, 1, 20)[:, None]
    assert c2st(x, x + 10.0, num_folds=2) == 1.0


@pytest.mark.slow
def test_seed_fixes_result():
    x, y = normal(6, 500, 1), normal(7, 500, 1)
    assert c2st(x, y, seed=3) == c2st(x, y, seed=3) != c2st(x, y, seed=4)


@pytest.mark.parametrize(
    ("x", "y", "settings", "message"),
    [
        (np.zeros((9, 2)), np.zeros((9, 3)), {}, r"samples must have the shape of reference, \(9,"),
        (normal(0, 9, 2), normal(0, 8, 2), {}, r"samples must have the shape of reference, \(9,"),
        (np.zeros(9), np.zeros(9), {}, r"reference must be \[n, d\], got shape \(9,\)"),
        (np.zeros((0, 2)), np.zeros((0, 2)), {}, "reference must hold at least one point"),
        (np.ones((9, 2)), np.ones((9, 2)), {}, r"vary in every coordinate, got constant \[0 1\]"),
        (normal(0, 9, 2), np.full((9, 2), np.nan), {}, "samples must be finite, got inf or nan"),
        (normal(0, 4, 2), normal(1, 4, 2), {}, "number of points in reference must be at least 5"),
        (normal(0, 9, 2), normal(1, 9, 2), {"num_folds": 1}, "num_folds must be at least 2, got 1"),
        (normal(0, 9, 2), normal(1, 9, 2), {"seed": 2**32}, "seed must lie in"),
    ],
)
def test_invalid_arguments_are_refused(x, y, settings, message):
    with pytest.raises(ValueError, match=message):
        c2st(x, y, **settings)
