"""Tests that every solver converges at its order, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.paths import shifted_grid
from fmjax.solvers import FixedSteps, sample
from tests.solvers.table import (
    DIFFRAX_EXPLICIT,
    DIFFRAX_IMEX,
    DIFFRAX_IMPLICIT,
    FMJAX_SOLVERS,
    GAUSSIAN,
    exact_x1,
    noise,
    solver_id,
)

# Order and coarse number of steps of each solver. The order is measured between this number and
# twice this number: large enough for asymptotic errors, small enough to exceed float64 rounding.
EXPECTED = {
    "Euler": (1, 256),
    "Midpoint": (2, 64),
    "Heun": (2, 64),
    "RK4": (4, 64),
    "AdamsBashforth2": (2, 64),
    "Ralston": (2, 64),
    "Bosh3": (3, 64),
    "Tsit5": (5, 64),
    "Dopri5": (5, 48),
    "Dopri8": (8, 12),
    "ReversibleHeun": (2, 64),
    "LeapfrogMidpoint": (2, 64),
    "ImplicitEuler": (1, 256),
    "Kvaerno3": (3, 64),
    "Kvaerno4": (4, 64),
    "Kvaerno5": (5, 32),
    "KenCarp3": (3, 64),
    "KenCarp4": (4, 64),
    "KenCarp5": (5, 32),
    # Diffrax states order 3 for the explicit part, but sum(b c^2) is 7/18 instead of 1/3.
    "Sil3": (2, 64),
}
# With uniform steps the leading error term of these solvers nearly cancels over [0, 1] for this
# field, so that errors fall faster than their order. Steps that shrink towards t = 1 prevent it.
NEED_SHRINKING_STEPS = ("Tsit5", "Dopri5", "Dopri8")


def uniform_times(num_steps):
    return np.linspace(0.0, 1.0, num_steps + 1)


def shrinking_times(num_steps):
    return 1.0 - np.square(1.0 - uniform_times(num_steps))


def measured_order(solver, sample_grid, coarse):
    """Slope of log(error) from `coarse` to `2 * coarse` steps, with one compiled program."""
    x0 = jnp.asarray([[-2.0], [-0.75], [1.0], [2.0]], jnp.float64)

    @jax.jit
    def error(times):
        x1 = sample(GAUSSIAN.velocity, x0, solver=solver, steps=FixedSteps(times)).x1
        return jnp.sqrt(jnp.mean(jnp.square(x1 - exact_x1(x0))))

    fine = np.asarray(sample_grid(2 * coarse))
    padded = np.concatenate([np.asarray(sample_grid(coarse)), np.ones(coarse)])
    return float(jnp.log2(error(padded) / error(fine)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "solver", FMJAX_SOLVERS + DIFFRAX_EXPLICIT + DIFFRAX_IMPLICIT + DIFFRAX_IMEX, ids=solver_id
)
def test_solver_converges_at_its_order(solver):
    order, coarse = EXPECTED[type(solver).__name__]
    sample_grid = (
        shrinking_times if type(solver).__name__ in NEED_SHRINKING_STEPS else uniform_times
    )
    with jax.enable_x64(True):
        measured = measured_order(solver, sample_grid, coarse)
    assert measured == pytest.approx(order, abs=0.1)


def test_adams_bashforth_keeps_its_order_on_nonuniform_grid():
    solver = FMJAX_SOLVERS[-1]
    with jax.enable_x64(True):
        measured = measured_order(solver, lambda n: shifted_grid(n, 3.0), 128)
    assert measured == pytest.approx(2, abs=0.1)


@pytest.mark.slow
def test_fmjax_and_diffrax_solvers_agree():
    x0, times = noise(), jnp.asarray([0.0, 0.1, 0.4, 0.55, 1.0])
    for fmjax_solver in FMJAX_SOLVERS[:3]:
        name = type(fmjax_solver).__name__
        diffrax_solver = next(s for s in DIFFRAX_EXPLICIT if type(s).__name__ == name)
        actual, expected = (
            sample(GAUSSIAN.velocity, x0, solver=solver, steps=FixedSteps(times)).x1
            for solver in (fmjax_solver, diffrax_solver)
        )
        np.testing.assert_allclose(actual, expected, rtol=2e-6, atol=2e-6)
