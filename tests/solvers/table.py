"""Solvers and the velocity field that the solver tests share."""

import diffrax
import jax
import jax.numpy as jnp

from fmjax.paths import Cosine
from fmjax.solvers import RK4, AdamsBashforth2, Euler, Heun, Midpoint
from tests.oracles import Gaussian

FMJAX_SOLVERS = (Euler(), Midpoint(), Heun(), RK4(), AdamsBashforth2())
DIFFRAX_EXPLICIT = (
    diffrax.Euler(),
    diffrax.Heun(),
    diffrax.Midpoint(),
    diffrax.Ralston(),
    diffrax.Bosh3(),
    diffrax.Tsit5(),
    diffrax.Dopri5(),
    diffrax.Dopri8(),
    diffrax.ReversibleHeun(),
    diffrax.LeapfrogMidpoint(),
)
DIFFRAX_IMPLICIT = (
    diffrax.ImplicitEuler(),
    diffrax.Kvaerno3(),
    diffrax.Kvaerno4(),
    diffrax.Kvaerno5(),
)
DIFFRAX_IMEX = (diffrax.KenCarp3(), diffrax.KenCarp4(), diffrax.KenCarp5(), diffrax.Sil3())

# On the linear schedule Midpoint would have order 3.
GAUSSIAN = Gaussian(Cosine(), mean=1.0, std=0.5)


def noise(batch=6, *event, seed=0):
    return jax.random.normal(jax.random.key(seed), (batch, *(event or (3,))))


def exact_x1(x0, oracle=GAUSSIAN):
    """Exact points at t = 1."""
    return oracle.flow_map(jnp.ones(x0.shape[:1], x0.dtype), x0)


def solver_id(value):
    """Parametrize id with the library and the class of the solver."""
    return f"{type(value).__module__.split('.')[0]}-{type(value).__name__}"


class CountedField:
    """A velocity field that counts its calls on the host."""

    def __init__(self, velocity):
        self.velocity, self.calls = velocity, 0

    def __call__(self, t, x, cond=None):
        jax.debug.callback(self._count, t[0])
        return self.velocity(t, x, cond)

    def _count(self, _):
        self.calls += 1

    def count_calls(self, fn, *args):
        """Return `fn(*args)` and the number of calls it made."""
        self.calls = 0
        result = jax.block_until_ready(fn(*args))
        jax.effects_barrier()
        return result, self.calls
