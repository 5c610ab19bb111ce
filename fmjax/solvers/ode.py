"""`sample`: solve a velocity field from noise at t = 0 to data at t = 1."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fmjax._arrays import Cond, Points
from fmjax._checks import require
from fmjax._inputs import described, is_array, require_cond, require_function, require_points
from fmjax.paths import evaluations
from fmjax.solvers.engine.adjoint import Adjoint, backsolved, check_backsolve
from fmjax.solvers.engine.batch_solve import solve_each, solve_together
from fmjax.solvers.engine.diffrax_solvers import check_solver, has_error_estimate
from fmjax.solvers.engine.streaming import solve_streaming
from fmjax.solvers.engine.vector_field import checked_velocity
from fmjax.solvers.steppers.ode import FixedStepSolver, solve_fixed
from fmjax.solvers.steps import (
    AdaptiveSteps,
    ErrorControl,
    FixedSteps,
    Samples,
    as_times,
    is_concrete,
    require_steps,
)


def sample(
    velocity_fn: Callable[..., Any],
    x0: Points,
    cond: Cond = None,
    *,
    solver: Any = diffrax.Tsit5(),  # noqa: B008 (frozen)
    steps: FixedSteps | AdaptiveSteps = AdaptiveSteps(),  # noqa: B008 (frozen)
    save_at: Sequence[float] | Float[Array, "..."] | None = None,
    adjoint: Adjoint = Adjoint.RECURSIVE_CHECKPOINT,
) -> Samples:
    """Carry `x0` along the field from t = 0 to t = 1.

    Pure: call it inside `jax.jit`, or every call compiles. Points laid over devices stay so.
    Never raises for what only the device knows: see `Samples.succeeded`.

    Args:
        velocity_fn: The field `(t, x, cond) -> dx/dt`.
        x0: Source points. bfloat16 is solved, and returned, as float32.
        cond: Passed to `velocity_fn`, every leaf with a leading batch axis.
        solver: Any ODE solver of Diffrax, or a fixed-step one (`fmjax.solvers.steppers.ode`).
            IMEX solvers take the whole field as their explicit part.
        steps: Where to step.
        save_at: Rising times in [0, 1] at which to keep the points as well. They do not change
            the steps: in between, the points are the solver's own interpolation.
        adjoint: How gradients of the points are found, and what memory they take: with respect
            to x0, the condition and everything that `velocity_fn` closes over.

    Returns:
        The points at t = 1 and the exact cost of each. An evaluation is one call of the network
        on one example; the choice of the first adaptive step takes two for solvers that cannot
        reuse the slope at t = 0, one for the others. Implicit solvers pay for every iteration of
        their root finder, and for a Jacobian one evaluation and one for each of its columns.

    Raises:
        ValueError: If the solver cannot take such steps, or `velocity_fn` does not return the
            shape of its points, or `save_at` is not rising within [0, 1],
            or the solve cannot be differentiated by the `adjoint`.
    """
    require_function("velocity_fn", velocity_fn)
    require_points("x0", x0)
    require_cond(cond)
    require_steps(steps)
    require(isinstance(adjoint, Adjoint), "adjoint", "be an Adjoint", described(adjoint))
    check_solver(solver)
    if isinstance(steps, AdaptiveSteps) and not has_error_estimate(solver):
        raise ValueError(
            f"steps must be FixedSteps for {type(solver).__name__}, which estimates no error, "
            "got AdaptiveSteps"
        )
    x0 = x0.astype(jnp.result_type(x0.dtype, jnp.float32))
    saved = _checked_save_at(save_at, x0.dtype)
    if adjoint is Adjoint.BACKSOLVE:
        check_backsolve(solver, saved)

        def solve(x0: Any, cond: Any) -> Samples:
            return _solve(velocity_fn, x0, cond, solver, steps, None, adjoint)

        return backsolved(solve, velocity_fn, x0, cond, solver, steps)
    return _solve(velocity_fn, x0, cond, solver, steps, saved, adjoint)


def _solve(
    velocity_fn: Any, x0: Any, cond: Any, solver: Any, steps: Any, saved: Any, adjoint: Adjoint
) -> Samples:
    if isinstance(solver, FixedStepSolver):
        field = partial(_field_and_cost, velocity_fn, cond)
        assert isinstance(steps, FixedSteps)  # Adaptive ones were refused above.
        return solve_fixed(solver, field, x0, as_times(steps), saved)
    if isinstance(steps, AdaptiveSteps) and steps.control is ErrorControl.PER_SAMPLE:
        require_cond(cond, x0.shape[0])
        if steps.slots is not None:
            return solve_streaming(velocity_fn, x0, cond, solver, steps, saved, adjoint)
        return solve_each(velocity_fn, x0, cond, solver, steps, saved, adjoint)
    return solve_together(velocity_fn, x0, cond, solver, steps, saved, adjoint)


def _checked_save_at(save_at: Any, dtype: Any) -> jax.Array | None:
    if save_at is None:
        return None
    if is_concrete(save_at):
        times = np.asarray(save_at)
        require(is_array(times), "save_at", "be numbers", described(times))
        rising = times.ndim == 1 and times.size > 0 and bool(np.all(np.diff(times) > 0.0))
        inside = rising and bool(times[0] >= 0.0 and times[-1] <= 1.0)
        require(inside, "save_at", "rise strictly within [0, 1]", times.tolist())
    return jnp.asarray(save_at, dtype)


def _field_and_cost(
    velocity_fn: Any, cond: Any, t: jax.Array, x: jax.Array
) -> tuple[jax.Array, jax.Array]:
    times = jnp.broadcast_to(t, x.shape[:1])
    nfe = evaluations(velocity_fn, times).astype(jnp.int32)
    return checked_velocity(velocity_fn, times, x, cond), nfe
