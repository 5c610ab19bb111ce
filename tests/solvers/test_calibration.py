"""Tests of the calibrated step density and of the errors of calibrated grids."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.paths import Linear, quantile_grid, uniform_grid
from fmjax.solvers import Euler, FixedSteps, calibrate, sample
from tests.oracles import Gaussian, GaussianMixture

GAUSSIAN = Gaussian(Linear(), mean=1.0, std=0.1)


def test_density_is_the_root_of_the_gaussian_acceleration():
    x0 = jax.random.normal(jax.random.key(0), (16, 4))
    result = calibrate(GAUSSIAN.velocity, x0, num_pieces=32)
    # x_t = t mean + c(t) z with c^2 = s^2 t^2 + (1 - t)^2, so x'' = c'' z = s^2 / c^3 z.
    times = np.linspace(0.0, 1.0, 33)
    c = np.hypot(0.1 * times, 1.0 - times)
    c_rate = (0.01 * times - (1.0 - times)) / c
    expected = np.sqrt(np.diff(c_rate) * 32)  # From the mean of c'' on each piece.
    # Trajectories have errors of 1e-4 and the density is the root of a velocity difference, so
    # that only large densities are accurate.
    large = expected > 0.05 * expected.max()
    ratio = np.asarray(result.density)[large] / expected[large]
    np.testing.assert_allclose(ratio / ratio.mean(), 1.0, rtol=0.02)


@pytest.mark.slow
def test_calibrated_grid_has_a_smaller_error_than_a_uniform_grid():
    mixture = GaussianMixture(Linear())
    x0 = jax.random.normal(jax.random.key(1), (64, 2))
    density = calibrate(mixture.velocity, x0[:16])

    @jax.jit
    def solve(times):
        return sample(mixture.velocity, x0, solver=Euler(), steps=FixedSteps(times)).x1

    exact = solve(uniform_grid(4096))
    calibrated_error, uniform_error = (
        float(jnp.sqrt(jnp.mean(jnp.square(solve(grid) - exact))))
        for grid in (quantile_grid(8, density), uniform_grid(8))
    )
    assert calibrated_error < uniform_error


@pytest.mark.slow
def test_straight_trajectories_give_a_uniform_grid():
    density = calibrate(lambda t, x, cond: jnp.ones_like(x), jnp.zeros((2, 3)))
    np.testing.assert_allclose(quantile_grid(8, density), uniform_grid(8), atol=1e-7)


@pytest.mark.slow
def test_failed_sample_is_ignored():
    x0 = jax.random.normal(jax.random.key(0), (8, 4))
    x0_with_nan = jnp.concatenate([x0, jnp.full((1, 4), jnp.nan)])
    actual = calibrate(GAUSSIAN.velocity, x0_with_nan, num_pieces=8)
    expected = calibrate(GAUSSIAN.velocity, x0, num_pieces=8)
    np.testing.assert_allclose(actual.density, expected.density, rtol=1e-3)


@pytest.mark.slow
def test_invalid_arguments_raise_value_error():
    x0 = jnp.zeros((2, 3))
    with pytest.raises(ValueError, match="x0 must be a concrete array"):
        jax.jit(lambda x0: calibrate(GAUSSIAN.velocity, x0).density)(x0)
    with pytest.raises(ValueError, match="num_pieces must be at least 1, got 0"):
        calibrate(GAUSSIAN.velocity, x0, num_pieces=0)
    with pytest.raises(ValueError, match="x0 must contain a sample that reaches t = 1"):
        calibrate(lambda t, x, cond: x * jnp.nan, x0 + 1.0)
