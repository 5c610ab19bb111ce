"""Straightness of a flow: one Euler step is exact on a straight trajectory at constant speed."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from fmjax._arrays import Cond, PerExample, Points, event_axes, safe_sqrt
from fmjax._checks import require
from fmjax._inputs import require_cond, require_function, require_points
from fmjax.paths import VelocityFn, evaluations, uniform_grid
from fmjax.solvers.engine.vector_field import checked_velocity
from fmjax.solvers.steppers.ode import RK4, FixedStepSolver


class Straightness(NamedTuple):
    """How far each trajectory is from a straight line at constant speed.

    Entries of a trajectory that is not finite are NaN; other trajectories are not affected.

    Attributes:
        s: `integral over t of mean over event axes of |(x1 - x0) - v(t, x_t)|^2`, in squared
            data units per coordinate. Zero for a straight trajectory at constant speed, up to
            squared rounding errors of about `(num_steps eps |x|)^2`. S in the paper is the mean of
            `s` over samples times the number of coordinates.
        length_ratio: Length of the trajectory divided by the distance between its ends, both
            Euclidean. 1 for a straight trajectory at any speed and for one that does not move;
            infinite for one that returns to its start.
        deviation: Integrand of `s` at `times`.
        times: `num_steps + 1` equidistant times from 0 to 1.
        curvature: Root mean square over event axes of `d^2 x_t / dt^2` at `midpoints`, in data
            units per squared unit of time. The error of an Euler step of length h is `h^2 / 2`
            times the curvature.
        midpoints: Midpoint of each step.
        cost: Transport cost, `mean over event axes of |x1 - x0|^2`. Reflow never increases its
            mean (arXiv:2209.03003, theorem 3.5).
        positions: Points on the trajectory at `times`.
    """

    s: PerExample
    length_ratio: PerExample
    deviation: Float[Array, "batch points"]
    times: Float[Array, " points"]
    curvature: Float[Array, "batch num_steps"]
    midpoints: Float[Array, " num_steps"]
    cost: PerExample
    positions: Float[Array, "batch points *event"]


def straightness(
    velocity_fn: VelocityFn,
    x0: Points,
    cond: Cond = None,
    *,
    num_steps: int = 64,
    solver: FixedStepSolver = RK4(),  # noqa: B008 (frozen)
) -> Straightness:
    """Measure the straightness of the trajectories of a velocity field from t = 0 to t = 1.

    x1 is the end of the trajectory from `x0`, not an example of the data. Integrals use Simpson's
    rule; second derivatives are differences of the velocities at both ends of a step. On smooth
    fields and with a solver of order p, the errors of `s`, `length_ratio` and `deviation` are
    `O(num_steps ** -min(p, 4))`, and that of `curvature` is `O(num_steps ** -min(p, 2))`.

    Call this pure function inside `jax.jit`; otherwise every call compiles. It stores the positions
    and velocities at all `times`, and needs one network evaluation more than the solver.

    Args:
        velocity_fn: Velocity field `(t, x, cond) -> dx/dt`, with or without guidance.
        x0: Source points. bfloat16 is converted to float32.
        cond: Condition passed to `velocity_fn`; every leaf has a leading batch axis.
        num_steps: Number of equal solver steps, an even number.
        solver: Fixed-step solver from `fmjax.solvers.steppers.ode`.

    Raises:
        ValueError: If `num_steps` is odd or below 2, `solver` is not a fixed-step solver, `x0` is
            not floating point, or `velocity_fn` does not return the shape of its points.

    Reference: Liu et al. 2022, arXiv:2209.03003, section 2, S(Z), which uses the squared norm
        where this function uses the mean over event axes.
    """
    is_int = isinstance(num_steps, int)
    require(is_int, "num_steps", "be an integer, even and at least 2", num_steps)
    is_even = num_steps >= 2 and num_steps % 2 == 0
    require(is_even, "num_steps", "be even and at least 2", num_steps)
    is_fixed_step = isinstance(solver, FixedStepSolver)
    rule = "be a fixed-step solver from fmjax.solvers.steppers.ode"
    require(is_fixed_step, "solver", rule, type(solver).__name__)
    require_function("velocity_fn", velocity_fn)
    require_points("x0", x0)
    require_cond(cond)
    x0 = x0.astype(jnp.result_type(x0.dtype, jnp.float32))
    times = uniform_grid(num_steps).astype(x0.dtype)
    x, v = _trajectory(velocity_fn, x0, cond, times, solver)
    x1 = x[-1]

    axes = tuple(range(2, v.ndim))  # The event axes: v is [times, batch, *event].
    deviation = jnp.mean(jnp.square((x1 - x0)[None] - v), axis=axes)
    acceleration = num_steps * jnp.diff(v, axis=0)
    length = _integrate(safe_sqrt(jnp.sum(jnp.square(v), axis=axes)))
    distance = safe_sqrt(jnp.sum(jnp.square(x1 - x0), axis=event_axes(x0)))
    is_at_rest = length == 0.0
    return Straightness(
        s=_integrate(deviation),
        length_ratio=jnp.where(is_at_rest, 1.0, length / jnp.where(is_at_rest, 1.0, distance)),
        deviation=deviation.T,
        times=times,
        curvature=safe_sqrt(jnp.mean(jnp.square(acceleration), axis=axes)).T,
        midpoints=0.5 * (times[:-1] + times[1:]),
        cost=jnp.mean(jnp.square(x1 - x0), axis=event_axes(x0)),
        positions=jnp.moveaxis(x, 0, 1),
    )


def _trajectory(
    velocity_fn: VelocityFn, x0: Points, cond: Cond, times: jax.Array, solver: FixedStepSolver
) -> tuple[Float[Array, "points batch *event"], Float[Array, "points batch *event"]]:
    """Compute the positions and velocities at `times`."""

    def field(t: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        t = jnp.broadcast_to(t, x.shape[:1])
        return checked_velocity(velocity_fn, t, x, cond), evaluations(velocity_fn, t)

    def body(
        carry: tuple[jax.Array, PyTree], interval: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, PyTree], tuple[jax.Array, jax.Array]]:
        x, memory = carry
        step = solver.advance(field, *interval, x, memory)
        return (step.x1, step.memory), (x, step.slopes[0])

    initial = (x0, solver.start(x0))
    (x1, _), (x, v) = jax.lax.scan(body, initial, (times[:-1], times[1:]))
    v1 = field(times[-1], x1)[0]
    return jnp.concatenate([x, x1[None]]), jnp.concatenate([v, v1[None]])


def _integrate(values: Float[Array, "points batch"]) -> PerExample:
    """Integrate values at an odd number of equidistant times in [0, 1] by Simpson's rule."""
    weights = np.ones(len(values))
    weights[1:-1:2], weights[2:-1:2] = 4.0, 2.0
    weights = jnp.asarray(weights / weights.sum(), values.dtype)
    # Not a matrix product, which TPUs compute in bfloat16 by default.
    return jnp.sum(weights[:, None] * values, axis=0)
