"""The measured density against the Gaussian's closed form, and what it is for: smaller errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.paths import Linear, quantile_grid, uniform_grid
from fmjax.solvers import Euler, FixedSteps, calibrate, sample
from tests.oracles import Gaussian, GaussianMixture

GAUSSIAN = Gaussian(Linear(), mean=1.0, std=0.1)


def test_the_density_is_the_root_of_a_gaussians_acceleration():
    x0 = jax.random.normal(jax.random.key(0), (16, 4))
    found = calibrate(GAUSSIAN.velocity, x0, num_pieces=32)
    # x_t = t mean + c(t) z with c^2 = s^2 t^2 + (1 - t)^2, so that x'' = c'' z = s^2 / c^3 z.
    ends = np.linspace(0.0, 1.0, 33)
    c = np.hypot(0.1 * ends, 1.0 - ends)
    c_rate = (0.01 * ends - (1.0 - ends)) / c
    exact = np.sqrt(np.diff(c_rate) * 32)  # The mean of c'' on each piece.
    # The paths are followed to 1e-4 and each density is the root of a difference of velocities.
    wide = exact > 0.05 * exact.max()
    ratio = np.asarray(found.density)[wide] / exact[wide]
    np.testing.assert_allclose(ratio / ratio.mean(), 1.0, rtol=0.02)


@pytest.mark.slow
def test_a_calibrated_grid_errs_less_than_a_uniform_one():
    mixture = GaussianMixture(Linear())
    x0 = jax.random.normal(jax.random.key(1), (64, 2))
    density = calibrate(mixture.velocity, x0[:16])

    @jax.jit
    def end(times):
        return sample(mixture.velocity, x0, solver=Euler(), steps=FixedSteps(times)).x1

    exact = end(uniform_grid(4096))
    errors = [
        float(jnp.sqrt(jnp.mean(jnp.square(end(grid) - exact))))
        for grid in (quantile_grid(8, density), uniform_grid(8))
    ]
    assert errors[0] < errors[1]


@pytest.mark.slow
def test_straight_paths_call_for_equal_steps():
    found = calibrate(lambda t, x, cond: jnp.ones_like(x), jnp.zeros((2, 3)))
    np.testing.assert_allclose(quantile_grid(8, found), uniform_grid(8), atol=1e-7)


@pytest.mark.slow
def test_a_sample_that_fails_does_not_count():
    x0 = jax.random.normal(jax.random.key(0), (8, 4))
    spoiled = jnp.concatenate([x0, jnp.full((1, 4), jnp.nan)])
    own = calibrate(GAUSSIAN.velocity, spoiled, num_pieces=8)
    np.testing.assert_allclose(
        own.density, calibrate(GAUSSIAN.velocity, x0, num_pieces=8).density, rtol=1e-3
    )


@pytest.mark.slow
def test_what_cannot_be_calibrated_is_refused():
    x0 = jnp.zeros((2, 3))
    with pytest.raises(ValueError, match="x0 must be a concrete array"):
        jax.jit(lambda x0: calibrate(GAUSSIAN.velocity, x0).density)(x0)
    with pytest.raises(ValueError, match="num_pieces must be at least 1, got 0"):
        calibrate(GAUSSIAN.velocity, x0, num_pieces=0)
    with pytest.raises(ValueError, match="x0 must contain a sample that reaches t = 1"):
        calibrate(lambda t, x, cond: x * jnp.nan, x0 + 1.0)
