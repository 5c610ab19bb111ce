"""`sample_flow_map`: go from noise to data in the jumps of a flow map."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from fmjax._arrays import Cond, Points
from fmjax._checks import require
from fmjax._inputs import require_cond, require_function, require_points
from fmjax.paths import FlowMapFn, evaluations
from fmjax.solvers.engine.vector_field import checked_velocity
from fmjax.solvers.steppers.ode import Step, solve_fixed
from fmjax.solvers.steps import FixedSteps, Samples, as_times, require_steps


@dataclass(frozen=True)
class _Jumps:
    """`x1 = x + (t1 - t0) u(t1, t0, x)`: one evaluation a step, exact on the true map."""

    map_fn: Any
    cond: Any
    convergence_order: ClassVar[int] = 1

    def start(self, x0: jax.Array) -> None:
        """Nothing."""
        del x0

    def advance(self, field: Any, t0: jax.Array, t1: jax.Array, x: jax.Array, memory: None) -> Step:
        """Go to t1 in one jump."""
        del field
        t = jnp.broadcast_to(t0, x.shape[:1])

        def mean_velocity(t: jax.Array, x: jax.Array, cond: Any) -> jax.Array:
            return self.map_fn(jnp.broadcast_to(t1, t.shape), t, x, cond)

        u = checked_velocity(mean_velocity, t, x, self.cond)
        nfe = evaluations(self.map_fn, t).astype(jnp.int32)
        return Step(x + (t1 - t0) * u, (u, u), nfe, memory)


def sample_flow_map(
    map_fn: FlowMapFn, x0: Points, cond: Cond = None, *, steps: FixedSteps
) -> Samples:
    """Carry `x0` to t = 1 in the jumps of a flow map, one from each time of a grid to the next.

    Pure, as `sample`. As an ordinary velocity field the same map is `u(t, t, x, cond)`, for
    `sample` and any of its solvers.

    Args:
        map_fn: The map `(r, t, x, cond) -> mean velocity`.
        x0: Source points. bfloat16 is carried, and returned, as float32.
        cond: Passed to `map_fn`, every leaf with a leading batch axis.
        steps: Where to stop on the way; `FixedSteps([0, 1])` is one jump.

    Raises:
        ValueError: If `map_fn` does not return the shape of its points.

    Source: arXiv:2505.13447, equation 12.
    """
    require_function("map_fn", map_fn)
    require_points("x0", x0)
    require_cond(cond)
    require(isinstance(steps, FixedSteps), "steps", "be FixedSteps for a flow map", steps)
    require_steps(steps)
    x0 = x0.astype(jnp.result_type(x0.dtype, jnp.float32))

    def velocity(t: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        raise AssertionError("the map itself goes from time to time")

    return solve_fixed(_Jumps(map_fn, cond), velocity, x0, as_times(steps), None)
