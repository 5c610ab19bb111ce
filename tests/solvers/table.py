"""The solvers that the contract tests run over, and the field they run on."""

import diffrax
import jax
import jax.numpy as jnp

from fmjax.paths import Cosine
from fmjax.solvers import RK4, AdamsBashforth2, Euler, Heun, Midpoint
from tests.oracles import Gaussian

PLAIN = (Euler(), Midpoint(), Heun(), RK4(), AdamsBashforth2())
EXPLICIT = (
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
IMPLICIT = (
    diffrax.ImplicitEuler(),
    diffrax.Kvaerno3(),
    diffrax.Kvaerno4(),
    diffrax.Kvaerno5(),
)
IMEX = (diffrax.KenCarp3(), diffrax.KenCarp4(), diffrax.KenCarp5(), diffrax.Sil3())

# The linear schedule is too kind: midpoint measures order 3 on it.
GAUSSIAN = Gaussian(Cosine(), mean=1.0, std=0.5)


def noise(batch=6, *event, seed=0):
    return jax.random.normal(jax.random.key(seed), (batch, *(event or (3,))))


def ends(x0, oracle=GAUSSIAN):
    return oracle.flow_map(jnp.ones(x0.shape[:1], x0.dtype), x0)


def name(value):
    return f"{type(value).__module__.split('.')[0]}-{type(value).__name__}"


class CountedField:
    """A field that counts its own calls, on the host."""

    def __init__(self, velocity):
        self.velocity, self.calls = velocity, 0

    def __call__(self, t, x, cond=None):
        jax.debug.callback(self._count, t[0])
        return self.velocity(t, x, cond)

    def _count(self, _):
        self.calls += 1

    def counted(self, fn, *args):
        """`fn(*args)` and the calls it made."""
        self.calls = 0
        result = jax.block_until_ready(fn(*args))
        jax.effects_barrier()
        return result, self.calls
