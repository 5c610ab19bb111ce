"""Fixed-step ODE solvers in a few lines each, and their solve as one `lax.scan`.

They take the same steps as Diffrax's solvers of the same name, and compile faster.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from fmjax.solvers.steps import Samples, Time, is_concrete, num_steps, samples_on_grid

Field: TypeAlias = Callable[[Time, jax.Array], tuple[jax.Array, jax.Array]]
"""Maps (time, x) to (velocity, network evaluations of each sample)."""


class Step(NamedTuple):
    """One step from t0 to t1.

    Attributes:
        x1: Points at t1.
        slopes: dx/dt at both ends, or the solver's approximation, for cubic interpolation.
        nfe: Network evaluations of each sample.
        memory: State passed to the next step.
    """

    x1: jax.Array
    slopes: tuple[jax.Array, jax.Array]
    nfe: jax.Array
    memory: PyTree


@runtime_checkable
class FixedStepSolver(Protocol):
    """An ODE solver that takes steps between given times.

    Laws: `advance` is pure, and the error of a solve decreases as
    `step size ** convergence_order` on smooth fields and smooth grids.
    """

    convergence_order: ClassVar[int]

    def start(self, x0: jax.Array) -> PyTree:
        """Return the memory passed to the first step."""
        ...

    def advance(self, field: Field, t0: Time, t1: Time, x: jax.Array, memory: PyTree) -> Step:
        """Take one step from t0 to t1."""
        ...


@dataclass(frozen=True)
class _OneStep:
    """Base class of one-step methods, which have no memory."""

    def start(self, x0: jax.Array) -> None:
        """Return no memory."""
        del x0


@dataclass(frozen=True)
class Euler(_OneStep):
    """`x1 = x + h v(t0, x)`: one evaluation per step."""

    convergence_order: ClassVar[int] = 1

    def advance(self, field: Field, t0: Time, t1: Time, x: jax.Array, memory: None) -> Step:
        """Take one step along the slope at t0."""
        k, nfe = field(t0, x)
        return Step(x + (t1 - t0) * k, (k, k), nfe, memory)


@dataclass(frozen=True)
class Midpoint(_OneStep):
    """The explicit midpoint method: two evaluations per step."""

    convergence_order: ClassVar[int] = 2

    def advance(self, field: Field, t0: Time, t1: Time, x: jax.Array, memory: None) -> Step:
        """Take one step along the slope at the midpoint of an Euler step."""
        h = t1 - t0
        k0, n0 = field(t0, x)
        k, n = field(t0 + 0.5 * h, x + 0.5 * h * k0)
        return Step(x + h * k, (k0, 2.0 * k - k0), n0 + n, memory)


@dataclass(frozen=True)
class Heun(_OneStep):
    """Heun's method, the mean slope of both ends of an Euler step: two evaluations per step."""

    convergence_order: ClassVar[int] = 2

    def advance(self, field: Field, t0: Time, t1: Time, x: jax.Array, memory: None) -> Step:
        """Take one step along the mean of the slopes at t0 and t1."""
        h = t1 - t0
        k0, n0 = field(t0, x)
        k1, n1 = field(t1, x + h * k0)
        return Step(x + 0.5 * h * (k0 + k1), (k0, k1), n0 + n1, memory)


@dataclass(frozen=True)
class RK4(_OneStep):
    """The classical Runge-Kutta method: four evaluations per step."""

    convergence_order: ClassVar[int] = 4

    def advance(self, field: Field, t0: Time, t1: Time, x: jax.Array, memory: None) -> Step:
        """Take one step along the weighted mean of four slopes."""
        h = t1 - t0
        k0, n0 = field(t0, x)
        k1, n1 = field(t0 + 0.5 * h, x + 0.5 * h * k0)
        k2, n2 = field(t0 + 0.5 * h, x + 0.5 * h * k1)
        k3, n3 = field(t1, x + h * k2)
        slope = (k0 + 2.0 * k1 + 2.0 * k2 + k3) / 6.0
        return Step(x + h * slope, (k0, k3), n0 + n1 + n2 + n3, memory)


@dataclass(frozen=True)
class AdamsBashforth2:
    """The two-step Adams-Bashforth method: one evaluation per step.

    On any grid: `x1 = x + h (k + h / (2 h_last) (k - k_last))`. The first step is Heun's, so that
    n steps take n + 1 evaluations. An Euler step would save one evaluation, but its error would be
    as large as that of all other steps together.

    Reference: Hairer, Norsett and Wanner 1993, Solving ODEs I, section III.5.
    """

    convergence_order: ClassVar[int] = 2

    def start(self, x0: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the last slope and the last step size, which is 0 before the first step."""
        return jnp.zeros_like(x0), jnp.zeros((), x0.dtype)

    def advance(
        self,
        field: Field,
        t0: Time,
        t1: Time,
        x: jax.Array,
        memory: tuple[jax.Array, jax.Array],
    ) -> Step:
        """Take one step along the slope extrapolated from this step and the last."""
        h = t1 - t0
        k0, n0 = field(t0, x)
        k_last, h_last = memory
        is_first = h_last == 0.0

        def euler_end() -> tuple[jax.Array, jax.Array]:
            k1, n1 = field(t1, x + h * k0)
            return k1, n0 + n1

        # Under vmap both branches are computed, so the division must be finite in the first step.
        growth = h / jnp.where(is_first, 1.0, h_last)
        # The slope at t1: at the end of an Euler step, or extrapolated linearly from two slopes.
        k1, nfe = jax.lax.cond(is_first, euler_end, lambda: (k0 + growth * (k0 - k_last), n0))
        return Step(x + 0.5 * h * (k0 + k1), (k0, k1), nfe, (k0, h))


def between(step: Step, t0: Time, t1: Time, x: jax.Array, t: jax.Array) -> jax.Array:
    """Interpolate a step at times t `[times]` in [t0, t1], with a cubic Hermite polynomial."""
    h = t1 - t0
    s = ((t - t0) / jnp.where(h > 0.0, h, 1.0)).reshape((-1,) + (1,) * x.ndim)
    x, x1, slope0, slope1 = (a[None] for a in (x, step.x1, *step.slopes))
    rise = x1 - x
    bend = (1.0 - s) * (h * slope0 - rise) + s * (rise - h * slope1)
    return x + s * rise + s * (1.0 - s) * bend


# Points, memory of the solver, network evaluations, and the trajectory if it is saved.
_Carry: TypeAlias = tuple[jax.Array, PyTree, jax.Array, jax.Array | None]


def solve_fixed(
    solver: FixedStepSolver,
    field: Field,
    x0: jax.Array,
    times: jax.Array | np.ndarray,
    save_at: jax.Array | None,
) -> Samples:
    """Solve from 0 to 1 on the grid `times`, skipping the padding of a traced grid.

    Args:
        solver: Fixed-step solver.
        field: Velocity field and its cost.
        x0: Points at t = 0, `[batch, *event]`.
        times: Time grid, which may be padded with ones.
        save_at: Times `[times]` of the trajectory, or None.
    """
    padded = not is_concrete(times)
    if not padded:
        times = np.asarray(times)
        times = times[: num_steps(times) + 1]
    times = jnp.asarray(times, x0.dtype)
    saved = None if save_at is None else jnp.repeat(x0[None], len(save_at), axis=0)

    @jax.checkpoint  # Gradients store the points of each step, not the activations within a step.
    def take(carry: _Carry, t0: Time, t1: Time) -> _Carry:
        x, memory, nfe, saved = carry
        step = solver.advance(field, t0, t1, x, memory)
        if saved is not None and save_at is not None:
            in_step = ((save_at >= t0) & (save_at <= t1)).reshape((-1,) + (1,) * x.ndim)
            saved = jnp.where(in_step, between(step, t0, t1, x, save_at), saved)
        return step.x1, step.memory, nfe + step.nfe, saved

    def body(carry: _Carry, interval: tuple[Time, Time]) -> tuple[_Carry, None]:
        if not padded:
            return take(carry, *interval), None
        t0, t1 = interval
        return jax.lax.cond(t1 > t0, take, lambda carry, t0, t1: carry, carry, t0, t1), None

    no_evaluations = jnp.zeros((x0.shape[0],), jnp.int32)
    carry = (x0, solver.start(x0), no_evaluations, saved)
    (x1, _, nfe, saved), _ = jax.lax.scan(body, carry, (times[:-1], times[1:]))
    return samples_on_grid(x1, nfe, times, saved)
