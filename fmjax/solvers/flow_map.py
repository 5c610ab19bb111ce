"""`sample_flow_map`: sample with a flow map, one network evaluation per step."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp

from fmjax._arrays import Cond, Points, Times
from fmjax._checks import require
from fmjax._inputs import require_cond, require_function, require_points
from fmjax.paths import CountedField, FlowMapFn, evaluations
from fmjax.solvers.engine.programs import UserFunction, batch_of, reuse_program, times_of
from fmjax.solvers.engine.vector_field import checked_velocity
from fmjax.solvers.steppers.ode import Field, Step, solve_fixed
from fmjax.solvers.steps import FixedSteps, Samples, Time, as_arguments, as_times, require_steps


@dataclass(frozen=True)
class _FlowMapStep:
    """`x1 = x + (t1 - t0) u(t1, t0, x)`: one evaluation per step, exact for the true flow map."""

    map_fn: FlowMapFn
    cond: Cond
    convergence_order: ClassVar[int] = 1

    def start(self, x0: jax.Array) -> None:
        """Return no memory."""
        del x0

    def advance(self, field: Field, t0: Time, t1: Time, x: jax.Array, memory: None) -> Step:
        """Move the points from t0 to t1 with one evaluation of the flow map."""
        del field
        t = jnp.broadcast_to(t0, x.shape[:1])

        u = self.map_fn(jnp.broadcast_to(t1, t.shape), t, x, self.cond)
        nfe = evaluations(self.map_fn, t).astype(jnp.int32)
        return Step(x + (t1 - t0) * u, (u, u), nfe, memory)


def sample_flow_map(
    map_fn: FlowMapFn, x0: Points, cond: Cond = None, *, steps: FixedSteps
) -> Samples:
    """Sample with a flow map: move `x0` from each time of a grid to the next, up to t = 1.

    Pure, as `sample`. The same flow map is also the velocity field `u(t, t, x, cond)`, which
    `sample` solves with any of its solvers.

    Args:
        map_fn: Flow map `(r, t, x, cond) -> mean velocity` from time t to time r.
        x0: Samples of the source distribution. bfloat16 is solved, and returned, as float32.
        cond: Condition passed to `map_fn`; every leaf has a leading batch axis.
        steps: Time grid; `FixedSteps([0, 1])` takes a single step.

    Raises:
        ValueError: If `map_fn` does not return the shape of its points.

    Reference: Geng et al. 2025, arXiv:2505.13447, equation 12.
    """
    require_function("map_fn", map_fn)
    require_points("x0", x0)
    require_cond(cond)
    require(isinstance(steps, FixedSteps), "steps", "be FixedSteps for a flow map", steps)
    require_steps(steps)
    x0 = x0.astype(jnp.result_type(x0.dtype, jnp.float32))

    def mean_velocity(r: Times, t: Times, x: Points, cond: Cond) -> jax.Array:
        return checked_velocity(partial(map_fn, r), t, x, cond)

    times = times_of(x0)
    functions = (
        UserFunction(mean_velocity, [batch_of(None, (times, times, x0, cond))]),
        UserFunction(partial(evaluations, map_fn), [(times,)]),
    )
    return reuse_program(_solve, functions, (x0, cond, as_arguments(steps)), ())


def _solve(
    mean_velocity: FlowMapFn,
    cost: Callable[[jax.Array], jax.Array],
    x0: jax.Array,
    cond: Cond,
    steps: FixedSteps,
) -> Samples:
    def unused_field(t: Time, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        raise AssertionError("a flow map needs no velocity field")

    step = _FlowMapStep(CountedField(mean_velocity, cost), cond)
    return solve_fixed(step, unused_field, x0, as_times(steps), None)
