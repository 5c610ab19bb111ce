"""The error of every solver falls with the step as its order says, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.paths import shifted_grid
from fmjax.solvers import FixedSteps, sample
from tests.solvers.table import EXPLICIT, GAUSSIAN, IMEX, IMPLICIT, PLAIN, ends, name, noise

# Order, and the numbers of steps between which the slope is taken: fine enough for the next
# term of the error to be small, coarse enough for it to stand clear of float64's rounding.
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
    # Diffrax says 3 for the explicit part, but sum(b c^2) = 7/18, not 1/3.
    "Sil3": (2, 64),
}
# On even steps the leading error of these nearly cancels over [0, 1] on this field, and what is
# left falls faster until it drowns in rounding. Steps that shorten towards t = 1 undo that.
SHORTENING = ("Tsit5", "Dopri5", "Dopri8")


def even(num_steps):
    return np.linspace(0.0, 1.0, num_steps + 1)


def shortening(num_steps):
    return 1.0 - np.square(1.0 - even(num_steps))


def measured_order(solver, sample_grid, coarse):
    """The slope of log(error) between `coarse` and twice as many steps; one program for both."""
    x0 = jnp.asarray([[-2.0], [-0.75], [1.0], [2.0]], jnp.float64)

    @jax.jit
    def error(times):
        x1 = sample(GAUSSIAN.velocity, x0, solver=solver, steps=FixedSteps(times)).x1
        return jnp.sqrt(jnp.mean(jnp.square(x1 - ends(x0))))

    fine = np.asarray(sample_grid(2 * coarse))
    padded = np.concatenate([np.asarray(sample_grid(coarse)), np.ones(coarse)])
    return float(jnp.log2(error(padded) / error(fine)))


@pytest.mark.slow
@pytest.mark.parametrize("solver", PLAIN + EXPLICIT + IMPLICIT + IMEX, ids=name)
def test_error_falls_with_the_order(solver):
    order, coarse = EXPECTED[type(solver).__name__]
    sample_grid = shortening if type(solver).__name__ in SHORTENING else even
    with jax.enable_x64(True):
        measured = measured_order(solver, sample_grid, coarse)
    assert measured == pytest.approx(order, abs=0.1)


def test_adams_bashforth_keeps_its_order_on_an_uneven_grid():
    solver = PLAIN[-1]
    with jax.enable_x64(True):
        measured = measured_order(solver, lambda n: shifted_grid(n, 3.0), 128)
    assert measured == pytest.approx(2, abs=0.1)


@pytest.mark.slow
def test_plain_and_diffrax_solvers_of_one_name_agree_to_rounding():
    x0, times = noise(), jnp.asarray([0.0, 0.1, 0.4, 0.55, 1.0])
    for plain in PLAIN[:3]:
        twin = next(s for s in EXPLICIT if type(s).__name__ == type(plain).__name__)
        ours, theirs = (
            sample(GAUSSIAN.velocity, x0, solver=s, steps=FixedSteps(times)).x1
            for s in (plain, twin)
        )
        np.testing.assert_allclose(ours, theirs, rtol=2e-6, atol=2e-6)
