"""`sample`: solve the ODE of a velocity field from noise at t = 0 to data at t = 1."""

from collections.abc import Callable, Sequence
from functools import partial

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fmjax._arrays import Cond, Points
from fmjax._checks import require
from fmjax._inputs import describe, is_array, require_cond, require_function, require_points
from fmjax.paths import CountedField, VelocityFn, evaluations
from fmjax.sharding import batch_axes
from fmjax.solvers.engine.adjoint import Adjoint, check_backsolve, with_backsolve_adjoint
from fmjax.solvers.engine.batch_solve import solve_each, solve_together
from fmjax.solvers.engine.diffrax_solvers import (
    Solver,
    check_solver,
    has_error_estimate,
    is_implicit,
    takes_derivatives,
)
from fmjax.solvers.engine.programs import (
    UserFunction,
    batch_of,
    call_directly,
    reuse_program,
    times_of,
)
from fmjax.solvers.engine.streaming import solve_streaming
from fmjax.solvers.engine.vector_field import checked_velocity
from fmjax.solvers.steppers.ode import FixedStepSolver, solve_fixed
from fmjax.solvers.steps import (
    AdaptiveSteps,
    ErrorControl,
    FixedSteps,
    Samples,
    as_arguments,
    as_times,
    is_concrete,
    require_steps,
)


def sample(
    velocity_fn: VelocityFn,
    x0: Points,
    cond: Cond = None,
    *,
    solver: Solver = diffrax.Tsit5(),  # noqa: B008 (frozen)
    steps: FixedSteps | AdaptiveSteps = AdaptiveSteps(),  # noqa: B008 (frozen)
    save_at: Sequence[float] | Float[Array, "..."] | None = None,
    adjoint: Adjoint = Adjoint.RECURSIVE_CHECKPOINT,
) -> Samples:
    """Solve the ODE `dx/dt = velocity_fn(t, x, cond)` from `x0` at t = 0 to t = 1.

    Pure: call it inside `jax.jit` or outside. Outside, a call traces `velocity_fn` and reuses the
    compiled program of an earlier call with the same operations, shapes and settings, also for
    other parameters and tolerances. Sharded points stay sharded.
    A failed solve raises no error: see `Samples.succeeded`.

    Args:
        velocity_fn: Velocity field `(t, x, cond) -> dx/dt`.
        x0: Samples of the source distribution. bfloat16 is solved, and returned, as float32.
        cond: Condition passed to `velocity_fn`; every leaf has a leading batch axis.
        solver: An ODE solver of Diffrax, or a fixed-step solver (`fmjax.solvers.steppers.ode`).
            IMEX solvers treat the entire field as their explicit term.
        steps: Fixed time grid, or tolerances of adaptive steps.
        save_at: Strictly increasing times in [0, 1] at which to return the points as well. They do
            not change the steps: points within a step are the solver's interpolation.
        adjoint: How gradients of the points are computed, and what memory they need. They are with
            respect to x0, the condition and everything that `velocity_fn` closes over.

    Returns:
        The points at t = 1 and the exact cost of each. One evaluation is one call of the network
        on one sample. Choosing the first adaptive step takes two evaluations for solvers that
        cannot reuse the slope at t = 0, and one for the others. Implicit solvers take one
        evaluation per iteration of their root finder, and one plus the number of columns per
        Jacobian.

    Raises:
        ValueError: If the solver does not support `steps`, `velocity_fn` does not return the shape
            of its points, `save_at` is not strictly increasing within [0, 1], or the solve cannot
            be differentiated by `adjoint`.
    """
    require_function("velocity_fn", velocity_fn)
    require_points("x0", x0)
    require_cond(cond)
    require_steps(steps)
    require(isinstance(adjoint, Adjoint), "adjoint", "be an Adjoint", describe(adjoint))
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
    streams = isinstance(steps, AdaptiveSteps) and steps.slots is not None
    # On a mesh each device streams, and the field's jaxpr depends on the place where it is traced.
    run = call_directly if streams and batch_axes() else reuse_program
    return run(
        _solve,
        _user_functions(velocity_fn, x0, cond, solver, steps),
        (x0, cond, as_arguments(steps), saved),
        (solver, adjoint),
    )


def _user_functions(
    velocity_fn: VelocityFn,
    x0: jax.Array,
    cond: Cond,
    solver: Solver,
    steps: FixedSteps | AdaptiveSteps,
) -> tuple[UserFunction, UserFunction]:
    """Return the velocity field and its cost, with the batch sizes at which a solve calls them."""
    sizes = {x0.shape[0]}
    if isinstance(steps, AdaptiveSteps) and steps.control is ErrorControl.PER_SAMPLE:
        sizes = {1, steps.slots or x0.shape[0]}
    if is_implicit(solver):
        sizes |= {1}
    calls = [batch_of(size, (times_of(x0), x0, cond)) for size in sorted(sizes)]
    costs = [batch_of(size, (times_of(x0),)) for size in sorted(sizes | {1})]
    return (
        UserFunction(partial(checked_velocity, velocity_fn), calls, takes_derivatives(solver)),
        UserFunction(partial(evaluations, velocity_fn), costs),
    )


def _solve(
    velocity: VelocityFn,
    cost: Callable[[jax.Array], jax.Array],
    x0: jax.Array,
    cond: Cond,
    steps: FixedSteps | AdaptiveSteps,
    saved: jax.Array | None,
    solver: Solver,
    adjoint: Adjoint,
) -> Samples:
    velocity_fn = CountedField(velocity, cost)
    if adjoint is Adjoint.BACKSOLVE:

        def solve(x0: jax.Array, cond: Cond) -> Samples:
            return _solve_forward(velocity_fn, x0, cond, solver, steps, None, adjoint)

        return with_backsolve_adjoint(solve, velocity_fn, x0, cond, solver, steps)
    return _solve_forward(velocity_fn, x0, cond, solver, steps, saved, adjoint)


def _solve_forward(
    velocity_fn: VelocityFn,
    x0: jax.Array,
    cond: Cond,
    solver: Solver,
    steps: FixedSteps | AdaptiveSteps,
    saved: jax.Array | None,
    adjoint: Adjoint,
) -> Samples:
    if isinstance(solver, FixedStepSolver):
        field = partial(_field_and_cost, velocity_fn, cond)
        assert isinstance(steps, FixedSteps)  # `sample` refuses adaptive steps.
        return solve_fixed(solver, field, x0, as_times(steps), saved)
    if isinstance(steps, AdaptiveSteps) and steps.control is ErrorControl.PER_SAMPLE:
        require_cond(cond, x0.shape[0])
        if steps.slots is not None:
            return solve_streaming(velocity_fn, x0, cond, solver, steps, saved, adjoint)
        return solve_each(velocity_fn, x0, cond, solver, steps, saved, adjoint)
    return solve_together(velocity_fn, x0, cond, solver, steps, saved, adjoint)


def _checked_save_at(
    save_at: Sequence[float] | Float[Array, "..."] | None, dtype: np.dtype
) -> jax.Array | None:
    if save_at is None:
        return None
    if is_concrete(save_at):
        times = np.asarray(save_at)
        require(is_array(times), "save_at", "be numbers", describe(times))
        increasing = times.ndim == 1 and times.size > 0 and bool(np.all(np.diff(times) > 0.0))
        valid = increasing and bool(times[0] >= 0.0 and times[-1] <= 1.0)
        require(valid, "save_at", "increase strictly within [0, 1]", times.tolist())
    return jnp.asarray(save_at, dtype)


def _field_and_cost(
    velocity_fn: VelocityFn, cond: Cond, t: jax.Array, x: jax.Array
) -> tuple[jax.Array, jax.Array]:
    times = jnp.broadcast_to(t, x.shape[:1])
    nfe = evaluations(velocity_fn, times).astype(jnp.int32)
    return checked_velocity(velocity_fn, times, x, cond), nfe
