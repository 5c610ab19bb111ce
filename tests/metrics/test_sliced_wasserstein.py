"""Sliced Wasserstein distance against scipy in one dimension and closed forms in more."""

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
def test_order_one_in_one_dimension_is_scipys_distance(num_x, num_y):
    x, y = normal(1, num_x, 1), 0.5 + 2 * normal(2, num_y, 1)
    ours = sliced_wasserstein(KEY, x, y, num_projections=3, order=1)
    theirs = wasserstein_distance(np.asarray(x)[:, 0], np.asarray(y)[:, 0])
    assert float(ours) == pytest.approx(theirs, rel=1e-5)


def test_order_two_in_one_dimension_is_the_distance_of_sorted_points():
    x, y = jnp.array([[0.0], [3.0]]), jnp.array([[7.0], [1.0]])
    # 0 goes to 1 and 3 to 7: sqrt((1 + 16) / 2).
    result = sliced_wasserstein(KEY, x, y, num_projections=1)
    assert float(result) == pytest.approx(np.sqrt(8.5), rel=1e-6)


def test_order_two_of_unequal_counts_splits_the_mass():
    x, y = jnp.array([[0.0], [1.0]]), jnp.array([[0.0], [0.0], [4.0]])
    # Quantiles: 1/3 of mass 0 -> 0, 1/6 of 0 -> 0, 1/6 of 1 -> 0, 1/3 of 1 -> 4.
    result = sliced_wasserstein(KEY, x, y, num_projections=1)
    assert float(result) == pytest.approx(np.sqrt(1 / 6 + 9 / 3), rel=1e-6)


@pytest.mark.parametrize(
    ("place", "spread"), [(1.0, 1e-6), (1e8, 1.0), (-3.0, 1e-12), (0.0, 1e-30)]
)
def test_points_close_together_keep_their_distance_wherever_they_lie(place, spread):
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((40, 1)), 0.5 + 2 * generator.standard_normal((40, 1))
    x, y = (place + spread * points for points in (x, y))
    ours = sliced_wasserstein(KEY, x, y, num_projections=3, order=2)
    theirs = np.sqrt(np.mean((np.sort(x[:, 0]) - np.sort(y[:, 0])) ** 2))
    assert float(ours) == pytest.approx(theirs, rel=1e-5)


def test_the_distance_under_jit_is_the_one_outside():
    x, y = 100.0 + normal(1, 20, 2), 100.0 + normal(2, 30, 2)
    traced = jax.jit(lambda x, y: sliced_wasserstein(KEY, x, y))(x, y)
    np.testing.assert_allclose(traced, sliced_wasserstein(KEY, x, y), rtol=1e-5)
    assert float(sliced_wasserstein(KEY, x, x)) == 0.0


def test_repeated_points_change_nothing():
    x, y = normal(1, 20, 2), normal(2, 30, 2)
    few = sliced_wasserstein(KEY, x, y)
    many = sliced_wasserstein(KEY, jnp.repeat(x, 3, axis=0), jnp.repeat(y, 2, axis=0))
    assert float(few) == pytest.approx(float(many), rel=1e-4)


def test_a_shift_counts_by_its_length_over_the_root_of_the_dimension():
    x, shift = normal(1, 50, 2, 3), jnp.arange(6.0).reshape(2, 3)
    result = sliced_wasserstein(KEY, x, x + shift[None], num_projections=4096)
    # (shift . d)^2 has relative standard deviation sqrt(2 * 5 / 8) = 1.1 in 6 dimensions, so its
    # mean over 4,096 directions 1.8 % and the root half of that; 4 standard errors.
    expected = float(jnp.linalg.norm(shift)) / np.sqrt(6)
    assert float(result) == pytest.approx(expected, rel=0.036)


@pytest.mark.parametrize("order", [1, 2])
def test_a_scaled_gaussian_has_the_closed_form_distance(order):
    # Every projection of N(0, s^2 I) is N(0, s^2): W_2 = |s - 1|, W_1 = |s - 1| sqrt(2 / pi).
    # y is x scaled, so the sampling error is that of the moments of 5,000 points: a relative
    # standard error of 1 % or less; 4 of them.
    x = normal(1, 5000, 2)
    result = sliced_wasserstein(KEY, x, 3 * x, num_projections=16, order=order)
    expected = 2.0 if order == 2 else 2 * np.sqrt(2 / np.pi)
    assert float(result) == pytest.approx(expected, rel=0.04)


def test_equal_sets_are_at_distance_zero_and_order_does_not_matter():
    x, y = normal(1, 30, 2), normal(2, 20, 2)
    assert float(sliced_wasserstein(KEY, x, x[::-1])) == pytest.approx(0, abs=1e-6)
    forth, back = sliced_wasserstein(KEY, x, y), sliced_wasserstein(KEY, y, x)
    assert float(forth) == pytest.approx(float(back), rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        ((jnp.zeros((2, 3)), jnp.zeros((2, 4))), {}, r"y must have the event shape of x, \(3,\)"),
        ((jnp.zeros((0, 3)), jnp.zeros((2, 3))), {}, "x must hold at least one sample, got shape "),
        ((jnp.zeros((2, 3)),) * 2, {"num_projections": 0}, "num_projections must be at least 1"),
        ((jnp.zeros((2, 3)),) * 2, {"order": 3}, "order must be 1 or 2, got 3"),
    ],
)
def test_sets_that_do_not_compare_are_refused(arguments, settings, message):
    with pytest.raises(ValueError, match=message):
        sliced_wasserstein(KEY, *arguments, **settings)
