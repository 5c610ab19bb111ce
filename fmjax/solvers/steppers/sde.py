"""Fixed steps of an SDE whose noise does not depend on the point, as one `lax.scan`.

With such noise the readings of Ito and Stratonovich are the same, and both methods here have
strong order one. The last step has no noise at all (see `fmjax.solvers.sde`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from fmjax.solvers.diffusion_rates import DiffusionRate
from fmjax.solvers.steps import Samples, samples_on_grid

# (t scalar, x, w scalar) -> (drift `u + w^2/2 score`, network evaluations of each example)
DriftField = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


@runtime_checkable
class StochasticSolver(Protocol):
    """A solver of `dx = drift dt + w(t) dW` that steps where it is told.

    Laws: `advance_with_noise` is pure; with w = 0 it is a step of an ODE solver.
    """

    def advance_with_noise(
        self, field: DriftField, rate: DiffusionRate, t0: Any, t1: Any, x: jax.Array, dw: Any
    ) -> tuple[jax.Array, jax.Array]:
        """Go from t0 to t1 while W grows by `dw`: the points, and what each cost."""
        ...


@dataclass(frozen=True)
class EulerMaruyama:
    """`x1 = x + h drift(t0, x) + w(t0) dW`: one evaluation a step, weak order 1.

    Without noise it is Euler's method.
    """

    def advance_with_noise(
        self, field: DriftField, rate: DiffusionRate, t0: Any, t1: Any, x: jax.Array, dw: Any
    ) -> tuple[jax.Array, jax.Array]:
        """Go along the drift at the start, and add the noise."""
        w = rate(t0)
        k, nfe = field(t0, x, w)
        return x + (t1 - t0) * k + w * dw, nfe


@dataclass(frozen=True)
class StochasticHeun:
    """Drift and rate as the mean of both ends of an Euler-Maruyama step: two evaluations a step.

    Without noise it is Heun's method. Weak order 2, because the end of the step is looked up
    with its noise and the start without. (SiT's Heun adds the noise before both look-ups, which
    counts its effect on the drift twice, and has weak order 1.)

    Source: Kloeden and Platen 1992, Numerical Solution of SDEs, section 15.1, for additive noise.
    """

    def advance_with_noise(
        self, field: DriftField, rate: DiffusionRate, t0: Any, t1: Any, x: jax.Array, dw: Any
    ) -> tuple[jax.Array, jax.Array]:
        """Go along the mean drift, and add the noise at the mean rate."""
        h, w0, w1 = t1 - t0, rate(t0), rate(t1)
        k0, n0 = field(t0, x, w0)
        k1, n1 = field(t1, x + h * k0 + w0 * dw, w1)
        return x + 0.5 * h * (k0 + k1) + 0.5 * (w0 + w1) * dw, n0 + n1


def with_last_step(times: Any, last_step: float) -> Any:
    """The grid whose last step is the one without noise, at least `last_step` long.

    Times beyond its start are moved there, so that steps of length zero stand before it: an
    array as long as `times`, rising from 0 to 1. So are those just before it, or rounding would
    make a step of its own, and an evaluation of the network, of what is meant to be one time.
    """
    before = jnp.max(jnp.where(times < 1.0, times, 0.0))
    start = jnp.minimum(before, 1.0 - last_step)
    return jnp.where(times > start - 1e-6, start, times).at[0].set(0.0).at[-1].set(1.0)


def standard_normal(keys: Any, n: Any, like: jax.Array) -> jax.Array:
    """Noise of step n, shaped like `like`: each sample draws from its own `fold_in(key, n)`."""

    def draw(key: jax.Array) -> jax.Array:
        return jax.random.normal(jax.random.fold_in(key, n), like.shape[1:], like.dtype)

    return jax.vmap(draw)(keys)


def solve_stochastic(
    solver: StochasticSolver,
    field: DriftField,
    rate: DiffusionRate,
    x0: jax.Array,
    keys: jax.Array,
    times: jax.Array,
) -> Samples:
    """Step through `times`, a grid of `with_last_step`, with no noise in the last step."""

    def take(carry: Any, n: jax.Array, t0: jax.Array, t1: jax.Array) -> Any:
        x, nfe = carry

        def rate_here(t: jax.Array) -> jax.Array:
            return jnp.where(t1 < 1.0, rate(t), 0.0)

        dw = jnp.sqrt(t1 - t0) * standard_normal(keys, n, x)
        x, spent = solver.advance_with_noise(field, rate_here, t0, t1, x, dw)
        return x, nfe + spent

    def body(carry: Any, step: Any) -> tuple[Any, None]:
        n, t0, t1 = step
        return jax.lax.cond(t1 > t0, take, lambda carry, *_: carry, carry, n, t0, t1), None

    nothing = jnp.zeros((x0.shape[0],), jnp.int32)
    steps = (jnp.arange(len(times) - 1), times[:-1], times[1:])
    (x1, nfe), _ = jax.lax.scan(body, (x0, nothing), steps)
    return samples_on_grid(x1, nfe, times)
