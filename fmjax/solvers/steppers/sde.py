"""Fixed-step solvers of SDEs with additive noise, and their solve as one `lax.scan`.

With additive noise, which does not depend on x, the Ito and Stratonovich solutions are the same,
and both methods here have strong order one. The last step has no noise (see `fmjax.solvers.sde`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp

from fmjax.solvers.diffusion_rates import DiffusionRate
from fmjax.solvers.steps import Samples, Time, samples_on_grid

DriftField: TypeAlias = Callable[[Time, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
"""Maps (time, x, diffusion rate w) to (`u + w^2/2 score`, network evaluations of each sample)."""


@runtime_checkable
class StochasticSolver(Protocol):
    """A solver of `dx = drift dt + w(t) dW` that takes steps between given times.

    Laws: `advance_with_noise` is pure; with w = 0 it is a step of an ODE solver.
    """

    def advance_with_noise(
        self,
        field: DriftField,
        rate: DiffusionRate,
        t0: Time,
        t1: Time,
        x: jax.Array,
        dw: jax.Array | float,
    ) -> tuple[jax.Array, jax.Array]:
        """Take one step from t0 to t1 with Brownian increment `dw`.

        Returns:
            The points at t1, and the network evaluations of each sample.
        """
        ...


@dataclass(frozen=True)
class EulerMaruyama:
    """`x1 = x + h drift(t0, x) + w(t0) dW`: one evaluation per step, weak order 1.

    Without noise it is Euler's method.
    """

    def advance_with_noise(
        self,
        field: DriftField,
        rate: DiffusionRate,
        t0: Time,
        t1: Time,
        x: jax.Array,
        dw: jax.Array | float,
    ) -> tuple[jax.Array, jax.Array]:
        """Take one step along the drift at t0, and add the noise."""
        w = rate(t0)
        k, nfe = field(t0, x, w)
        return x + (t1 - t0) * k + w * dw, nfe


@dataclass(frozen=True)
class StochasticHeun:
    """Mean drift and rate of both ends of an Euler-Maruyama step: two evaluations per step.

    Without noise it is Heun's method. It has weak order 2, because the drift at t1 is evaluated
    with the noise of the step and the drift at t0 without it. (SiT's Heun adds the noise before
    both evaluations, which counts its effect on the drift twice, and has weak order 1.)

    Reference: Kloeden and Platen 1992, Numerical Solution of SDEs, section 15.1, with additive
        noise.
    """

    def advance_with_noise(
        self,
        field: DriftField,
        rate: DiffusionRate,
        t0: Time,
        t1: Time,
        x: jax.Array,
        dw: jax.Array | float,
    ) -> tuple[jax.Array, jax.Array]:
        """Take one step along the mean drift, and add the noise at the mean rate."""
        h, w0, w1 = t1 - t0, rate(t0), rate(t1)
        k0, n0 = field(t0, x, w0)
        k1, n1 = field(t1, x + h * k0 + w0 * dw, w1)
        return x + 0.5 * h * (k0 + k1) + 0.5 * (w0 + w1) * dw, n0 + n1


def with_last_step(times: jax.Array, last_step: float) -> jax.Array:
    """Change a time grid so that its last step, which has no noise, has at least a given size.

    Times after the start of the last step are moved to that start, which makes steps of length
    zero and keeps the length of the array. Times just before it are moved too: otherwise rounding
    could split one time in two and add a step with a network evaluation.
    """
    before = jnp.max(jnp.where(times < 1.0, times, 0.0))
    start = jnp.minimum(before, 1.0 - last_step)
    return jnp.where(times > start - 1e-6, start, times).at[0].set(0.0).at[-1].set(1.0)


def standard_normal(keys: jax.Array, n: jax.Array, like: jax.Array) -> jax.Array:
    """Sample standard normal noise for step n, shaped like `like`, from `fold_in(key, n)`."""

    def sample_one(key: jax.Array) -> jax.Array:
        return jax.random.normal(jax.random.fold_in(key, n), like.shape[1:], like.dtype)

    return jax.vmap(sample_one)(keys)


# Points and network evaluations.
_Carry: TypeAlias = tuple[jax.Array, jax.Array]


def solve_stochastic(
    solver: StochasticSolver,
    field: DriftField,
    rate: DiffusionRate,
    x0: jax.Array,
    keys: jax.Array,
    times: jax.Array,
) -> Samples:
    """Solve from 0 to 1 on a grid of `with_last_step`, with no noise in the last step."""

    def take(carry: _Carry, n: jax.Array, t0: Time, t1: Time) -> _Carry:
        x, nfe = carry

        def step_rate(t: jax.Array) -> jax.Array:
            return jnp.where(t1 < 1.0, rate(t), 0.0)

        dw = jnp.sqrt(t1 - t0) * standard_normal(keys, n, x)
        x, step_nfe = solver.advance_with_noise(field, step_rate, t0, t1, x, dw)
        return x, nfe + step_nfe

    def body(carry: _Carry, step: tuple[jax.Array, Time, Time]) -> tuple[_Carry, None]:
        n, t0, t1 = step
        return jax.lax.cond(t1 > t0, take, lambda carry, *_: carry, carry, n, t0, t1), None

    no_evaluations = jnp.zeros((x0.shape[0],), jnp.int32)
    steps = (jnp.arange(len(times) - 1), times[:-1], times[1:])
    (x1, nfe), _ = jax.lax.scan(body, (x0, no_evaluations), steps)
    return samples_on_grid(x1, nfe, times)
