"""How straight a flow's paths are: a straight one at constant speed takes one step of Euler's."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fmjax._arrays import Cond, PerExample, Points, event_axes, safe_sqrt
from fmjax._checks import require
from fmjax._inputs import require_cond, require_function, require_points
from fmjax.paths import VelocityFn, evaluations, uniform_grid
from fmjax.solvers.engine.vector_field import checked_velocity
from fmjax.solvers.steppers.ode import RK4, FixedStepSolver


class Straightness(NamedTuple):
    """How far each path is from a straight line at constant speed.

    A path that is not finite has NaN here, and spoils no other's.

    Attributes:
        s: `integral over t of mean over event axes of |(x1 - x0) - v(t, x_t)|^2`, in squared
            data units per coordinate. Zero where the path is straight and its speed constant, up
            to the square of what the steps round: about `(num_steps eps |x|)^2`. The paper's S
            is the mean over examples times the number of coordinates.
        length_ratio: The path's length over the distance of its ends, both Euclidean. 1 where
            the path is straight, at any speed, and where nothing moves; infinite where it moves
            and ends where it began.
        deviation: What `s` is the integral of, at `times`.
        times: `num_steps + 1` of them, evenly from 0 to 1.
        curvature: `|d^2 x_t / dt^2|`, rms over event axes, at `midpoints`, in data units per
            squared unit of time. One Euler step of length h errs by `h^2 / 2` of it.
        midpoints: The middle of each step.
        cost: `mean over event axes of |x1 - x0|^2`, what the transport costs. A reflow never
            raises its mean (arXiv:2209.03003, theorem 3.5).
        positions: Where the path is at `times`.
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
    """Measure the paths on which the field carries `x0` from t = 0 to t = 1.

    x1 is where the field's own path ends, not an example of the data. Integrals are Simpson's,
    second derivatives are differences of the velocities at both ends of a step. So with a solver
    of order p the errors of `s`, `length_ratio` and `deviation` fall as `num_steps ** -min(p, 4)`,
    that of `curvature` as `num_steps ** -min(p, 2)`, on smooth fields.

    Pure: call it inside `jax.jit`, or every call compiles. It keeps positions and velocities of the
    batch at all `times` at once, and costs one evaluation beside the solver's.

    Args:
        velocity_fn: The field `(t, x, cond) -> dx/dt`, guided or not.
        x0: Source points. bfloat16 is measured as float32.
        cond: Passed to `velocity_fn`, every leaf with a leading batch axis.
        num_steps: Equal steps of the solver, an even number.
        solver: One of `fmjax.solvers.steppers.ode`.

    Raises:
        ValueError: If `num_steps` is odd or below 2, the solver is another, `x0` is not floating
            point, or `velocity_fn` does not return the shape of its points.

    Source: Liu et al. 2022, arXiv:2209.03003, section 2, S(Z), which takes the squared norm
        where this library takes the mean over event axes.
    """
    whole = isinstance(num_steps, int)
    require(whole, "num_steps", "be an integer, even and at least 2", num_steps)
    even = num_steps >= 2 and num_steps % 2 == 0
    require(even, "num_steps", "be even and at least 2", num_steps)
    fits = isinstance(solver, FixedStepSolver)
    require(fits, "solver", "be one of fmjax.solvers.steppers.ode", type(solver).__name__)
    require_function("velocity_fn", velocity_fn)
    require_points("x0", x0)
    require_cond(cond)
    x0 = x0.astype(jnp.result_type(x0.dtype, jnp.float32))
    times = uniform_grid(num_steps).astype(x0.dtype)
    x, v = _path(velocity_fn, x0, cond, times, solver)
    x1 = x[-1]

    over = tuple(range(2, v.ndim))  # All axes but times and batch.
    deviation = jnp.mean(jnp.square((x1 - x0)[None] - v), axis=over)
    acceleration = num_steps * jnp.diff(v, axis=0)
    length = _integral(safe_sqrt(jnp.sum(jnp.square(v), axis=over)))
    distance = safe_sqrt(jnp.sum(jnp.square(x1 - x0), axis=event_axes(x0)))
    rests = length == 0.0
    return Straightness(
        s=_integral(deviation),
        length_ratio=jnp.where(rests, 1.0, length / jnp.where(rests, 1.0, distance)),
        deviation=deviation.T,
        times=times,
        curvature=safe_sqrt(jnp.mean(jnp.square(acceleration), axis=over)).T,
        midpoints=0.5 * (times[:-1] + times[1:]),
        cost=jnp.mean(jnp.square(x1 - x0), axis=event_axes(x0)),
        positions=jnp.moveaxis(x, 0, 1),
    )


def _path(
    velocity_fn: VelocityFn, x0: Points, cond: Cond, times: jax.Array, solver: FixedStepSolver
) -> tuple[Float[Array, "points batch *event"], Float[Array, "points batch *event"]]:
    """Positions and velocities at `times`."""

    def field(t: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        t = jnp.broadcast_to(t, x.shape[:1])
        return checked_velocity(velocity_fn, t, x, cond), evaluations(velocity_fn, t)

    def body(carry: tuple, interval: tuple[jax.Array, jax.Array]) -> tuple[tuple, Any]:
        x, memory = carry
        step = solver.advance(field, *interval, x, memory)
        return (step.x1, step.memory), (x, step.slopes[0])

    start = (x0, solver.start(x0))
    (x1, _), (x, v) = jax.lax.scan(body, start, (times[:-1], times[1:]))
    end = field(times[-1], x1)[0]
    return jnp.concatenate([x, x1[None]]), jnp.concatenate([v, end[None]])


def _integral(values: Float[Array, "points batch"]) -> PerExample:
    """Simpson's rule over [0, 1], on an odd number of evenly spaced points."""
    weights = np.ones(len(values))
    weights[1:-1:2], weights[2:-1:2] = 4.0, 2.0
    weights = jnp.asarray(weights / weights.sum(), values.dtype)
    # Not as a product of matrices, which TPUs would round to bfloat16.
    return jnp.sum(weights[:, None] * values, axis=0)
