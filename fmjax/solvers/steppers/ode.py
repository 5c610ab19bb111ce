"""Plain fixed-step solvers: a step in a few lines, a solve as one `lax.scan`.

On fixed steps they do what Diffrax's solvers of the same name do, with less around it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from fmjax.solvers.steps import Samples, is_concrete, num_steps, samples_on_grid

# (t scalar, x) -> (velocity, network evaluations it cost each example)
Field = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


class Step(NamedTuple):
    """One step from t0 to t1.

    Attributes:
        x1: The points at t1.
        slopes: dx/dt at both ends as far as this step knows them, between which the points
            are a cubic.
        nfe: Network evaluations of each example.
        memory: What the next step is told.
    """

    x1: jax.Array
    slopes: tuple[jax.Array, jax.Array]
    nfe: jax.Array
    memory: Any


@runtime_checkable
class FixedStepSolver(Protocol):
    """A solver that steps where it is told.

    Laws: `advance` is pure, has no Python state, and its error over a solve falls as
    `step size ** convergence_order` on smooth fields and smooth grids.
    """

    convergence_order: ClassVar[int]

    def start(self, x0: jax.Array) -> Any:
        """The memory that the first step is given."""
        ...

    def advance(
        self, field: Field, t0: jax.Array, t1: jax.Array, x: jax.Array, memory: Any
    ) -> Step:
        """Go from t0 to t1."""
        ...


@dataclass(frozen=True)
class _OneStep:
    """What steps that remember nothing have in common."""

    def start(self, x0: jax.Array) -> None:
        """Nothing."""
        del x0


@dataclass(frozen=True)
class Euler(_OneStep):
    """`x1 = x + h v(t0, x)`: one evaluation a step."""

    convergence_order: ClassVar[int] = 1

    def advance(self, field: Field, t0: Any, t1: Any, x: jax.Array, memory: None) -> Step:
        """Go along the tangent."""
        k, nfe = field(t0, x)
        return Step(x + (t1 - t0) * k, (k, k), nfe, memory)


@dataclass(frozen=True)
class Midpoint(_OneStep):
    """The slope in the middle of an Euler step: two evaluations a step."""

    convergence_order: ClassVar[int] = 2

    def advance(self, field: Field, t0: Any, t1: Any, x: jax.Array, memory: None) -> Step:
        """Go along the slope at the middle."""
        h = t1 - t0
        k0, n0 = field(t0, x)
        k, n = field(t0 + 0.5 * h, x + 0.5 * h * k0)
        return Step(x + h * k, (k0, 2.0 * k - k0), n0 + n, memory)


@dataclass(frozen=True)
class Heun(_OneStep):
    """The mean of the slopes at both ends of an Euler step: two evaluations a step."""

    convergence_order: ClassVar[int] = 2

    def advance(self, field: Field, t0: Any, t1: Any, x: jax.Array, memory: None) -> Step:
        """Go along the mean slope."""
        h = t1 - t0
        k0, n0 = field(t0, x)
        k1, n1 = field(t1, x + h * k0)
        return Step(x + 0.5 * h * (k0 + k1), (k0, k1), n0 + n1, memory)


@dataclass(frozen=True)
class RK4(_OneStep):
    """The classical Runge-Kutta method: four evaluations a step."""

    convergence_order: ClassVar[int] = 4

    def advance(self, field: Field, t0: Any, t1: Any, x: jax.Array, memory: None) -> Step:
        """Go along the weighted slope."""
        h = t1 - t0
        k0, n0 = field(t0, x)
        k1, n1 = field(t0 + 0.5 * h, x + 0.5 * h * k0)
        k2, n2 = field(t0 + 0.5 * h, x + 0.5 * h * k1)
        k3, n3 = field(t1, x + h * k2)
        slope = (k0 + 2.0 * k1 + 2.0 * k2 + k3) / 6.0
        return Step(x + h * slope, (k0, k3), n0 + n1 + n2 + n3, memory)


@dataclass(frozen=True)
class AdamsBashforth2:
    """The slope extrapolated from this step and the last: one evaluation a step.

    On any grid: `x1 = x + h (k + h / (2 h_last) (k - k_last))`. The first step has no last and
    is Heun's, so n steps cost n + 1 evaluations. An Euler step instead would save one, but it
    would be the largest error of all: second order like the whole rest together.

    Source: Hairer, Norsett and Wanner 1993, Solving ODEs I, section III.5.
    """

    convergence_order: ClassVar[int] = 2

    def start(self, x0: jax.Array) -> Any:
        """The last slope and the last step's length; 0 says that there was none."""
        return jnp.zeros_like(x0), jnp.zeros((), x0.dtype)

    def advance(self, field: Field, t0: Any, t1: Any, x: jax.Array, memory: Any) -> Step:
        """Go along the extrapolated slope."""
        h = t1 - t0
        k0, n0 = field(t0, x)
        last, h_last = memory
        is_first = h_last == 0.0

        def first() -> tuple[jax.Array, jax.Array]:
            k1, n1 = field(t1, x + h * k0)
            return k1, n0 + n1

        # Under vmap both branches are computed.
        growth = h / jnp.where(is_first, 1.0, h_last)
        # The slope expected at t1: of an Euler step, or by a straight line through the last two.
        k1, nfe = jax.lax.cond(is_first, first, lambda: (k0 + growth * (k0 - last), n0))
        return Step(x + 0.5 * h * (k0 + k1), (k0, k1), nfe, (k0, h))


def between(step: Step, t0: jax.Array, t1: jax.Array, x: jax.Array, t: jax.Array) -> jax.Array:
    """The points at times t `[times]` in [t0, t1]: the cubic through both ends and slopes."""
    h = t1 - t0
    s = ((t - t0) / jnp.where(h > 0.0, h, 1.0)).reshape((-1,) + (1,) * x.ndim)
    x, x1, slope0, slope1 = (a[None] for a in (x, step.x1, *step.slopes))
    rise = x1 - x
    bend = (1.0 - s) * (h * slope0 - rise) + s * (rise - h * slope1)
    return x + s * rise + s * (1.0 - s) * bend


def solve_fixed(
    solver: FixedStepSolver,
    field: Field,
    x0: jax.Array,
    times: Any,
    save_at: jax.Array | None,
) -> Samples:
    """Step through `times`; a padded grid that is traced skips its padding."""
    padded = not is_concrete(times)
    if not padded:
        times = np.asarray(times)
        times = times[: num_steps(times) + 1]
    times = jnp.asarray(times, x0.dtype)
    saved = None if save_at is None else jnp.repeat(x0[None], len(save_at), axis=0)

    @jax.checkpoint  # A gradient keeps the points of each step, not what is computed within.
    def take(carry: Any, t0: jax.Array, t1: jax.Array) -> Any:
        x, memory, nfe, saved = carry
        step = solver.advance(field, t0, t1, x, memory)
        if saved is not None and save_at is not None:
            here = ((save_at >= t0) & (save_at <= t1)).reshape((-1,) + (1,) * x.ndim)
            saved = jnp.where(here, between(step, t0, t1, x, save_at), saved)
        return step.x1, step.memory, nfe + step.nfe, saved

    def body(carry: Any, interval: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        if not padded:
            return take(carry, *interval), None
        t0, t1 = interval
        return jax.lax.cond(t1 > t0, take, lambda carry, t0, t1: carry, carry, t0, t1), None

    nothing = jnp.zeros((x0.shape[0],), jnp.int32)
    carry = (x0, solver.start(x0), nothing, saved)
    (x1, _, nfe, saved), _ = jax.lax.scan(body, carry, (times[:-1], times[1:]))
    return samples_on_grid(x1, nfe, times, saved)
