"""Tests of the sliced Wasserstein distance against SciPy and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from fmjax.metrics import sliced_wasserstein

KEY = jax.random.key(0)


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize(("num_x", "num_y"), [(40, 40), (40, 100), (7, 3), (1, 5)])
def test_order_one_in_one_dimension_matches_scipy(num_x, num_y):
    x, y = normal(1, num_x, 1), 0.5 + 2 * normal(2, num_y, 1)
    actual = sliced_wasserstein(KEY, x, y, num_projections=3, order=1)
    expected = wasserstein_distance(np.asarray(x)[:, 0], np.asarray(y)[:, 0])
    assert float(actual) == pytest.approx(expected, rel=1e-5)


def test_order_two_in_one_dimension_sorts_points():
    x, y = jnp.array([[0.0], [3.0]]), jnp.array([[7.0], [1.0]])
    # 0 is transported to 1 and 3 to 7: sqrt((1 + 16) / 2).
    result = sliced_wasserstein(KEY, x, y, num_projections=1)
    assert float(result) == pytest.approx(np.sqrt(8.5), rel=1e-6)


def test_order_two_of_unequal_counts_splits_mass():
    x, y = jnp.array([[0.0], [1.0]]), jnp.array([[0.0], [0.0], [4.0]])
    # Transported mass: 1/3 and 1/6 from 0 to 0, 1/6 from 1 to 0, 1/3 from 1 to 4.
    result = sliced_wasserstein(KEY, x, y, num_projections=1)
    assert float(result) == pytest.approx(np.sqrt(1 / 6 + 9 / 3), rel=1e-6)


@pytest.mark.parametrize(
    ("offset", "spread"), [(1.0, 1e-6), (1e8, 1.0), (-3.0, 1e-12), (0.0, 1e-30)]
)
def test_distance_of_close_points_is_accurate_at_any_offset(offset, spread):
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((40, 1)), 0.5 + 2 * generator.standard_normal((40, 1))
    x, y = (offset + spread * points for points in (x, y))
    actual = sliced_wasserstein(KEY, x, y, num_projections=3, order=2)
    expected = np.sqrt(np.mean((np.sort(x[:, 0]) - np.sort(y[:, 0])) ** 2))
    assert float(actual) == pytest.approx(expected, rel=1e-5)


def test_distance_under_jit_matches_eager():
    x, y = 100.0 + normal(1, 20, 2), 100.0 + normal(2, 30, 2)
    traced = jax.jit(lambda x, y: sliced_wasserstein(KEY, x, y))(x, y)
    np.testing.assert_allclose(traced, sliced_wasserstein(KEY, x, y), rtol=1e-5)
    assert float(sliced_wasserstein(KEY, x, x)) == 0.0


def test_repeated_points_do_not_change_distance():
    x, y = normal(1, 20, 2), normal(2, 30, 2)
    single = sliced_wasserstein(KEY, x, y)
    repeated = sliced_wasserstein(KEY, jnp.repeat(x, 3, axis=0), jnp.repeat(y, 2, axis=0))
    assert float(single) == pytest.approx(float(repeated), rel=1e-4)


def test_distance_of_shift_is_norm_over_root_of_dimension():
    x, shift = normal(1, 50, 2, 3), jnp.arange(6.0).reshape(2, 3)
    result = sliced_wasserstein(KEY, x, x + shift[None], num_projections=4096)
    # In 6 dimensions (shift . d)^2 has the relative standard deviation sqrt(2 * 5 / 8) = 1.1. That
    # of its mean over 4,096 directions is 1.8 %, and of the root 0.9 %. The tolerance is 4 of them.
    expected = float(jnp.linalg.norm(shift)) / np.sqrt(6)
    assert float(result) == pytest.approx(expected, rel=0.036)


@pytest.mark.parametrize("order", [1, 2])
def test_scaled_gaussian_matches_closed_form(order):
    # Every projection of N(0, s^2 I) is N(0, s^2): W_2 = |s - 1|, W_1 = |s - 1| sqrt(2 / pi).
    # The sampling error is that of the moments of 5,000 points, a relative standard error of at
    # most 1 %. The tolerance is 4 standard errors.
    x = normal(1, 5000, 2)
    result = sliced_wasserstein(KEY, x, 3 * x, num_projections=16, order=order)
    expected = 2.0 if order == 2 else 2 * np.sqrt(2 / np.pi)
    assert float(result) == pytest.approx(expected, rel=0.04)


def test_distance_is_symmetric_and_zero_for_equal_sets():
    x, y = normal(1, 30, 2), normal(2, 20, 2)
    assert float(sliced_wasserstein(KEY, x, x[::-1])) == pytest.approx(0, abs=1e-6)
    forward, backward = sliced_wasserstein(KEY, x, y), sliced_wasserstein(KEY, y, x)
    assert float(forward) == pytest.approx(float(backward), rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        ((jnp.zeros((2, 3)), jnp.zeros((2, 4))), {}, r"y must have the event shape of x, \(3,\)"),
        ((jnp.zeros((0, 3)), jnp.zeros((2, 3))), {}, "x must hold at least one sample, got shape "),
        ((jnp.zeros((2, 3)),) * 2, {"num_projections": 0}, "num_projections must be at least 1"),
        ((jnp.zeros((2, 3)),) * 2, {"order": 3}, "order must be 1 or 2, got 3"),
    ],
)
def test_invalid_arguments_are_refused(arguments, settings, message):
    with pytest.raises(ValueError, match=message):
        sliced_wasserstein(KEY, *arguments, **settings)
