"""Solve a batch with Diffrax, with the same steps for all samples or separate steps for each."""

from typing import TypeAlias, cast

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from fmjax._arrays import Cond, event_axes, expand_like
from fmjax.paths import VelocityFn
from fmjax.solvers.engine.adjoint import Adjoint, without_rejected
from fmjax.solvers.engine.diffrax_solvers import is_implicit
from fmjax.solvers.engine.implicit import each_sample
from fmjax.solvers.engine.initial_step import (
    InitialStep,
    adaptive_controller,
    counting_controller,
    make_initial_step,
)
from fmjax.solvers.engine.nfe_counter import SolveCounts, ToTimes
from fmjax.solvers.engine.vector_field import (
    BatchedField,
    largest_sample_norm,
    make_batched_field,
    make_sample_field,
    rms_norm,
)
from fmjax.solvers.steps import (
    AdaptiveSteps,
    ErrorControl,
    FixedSteps,
    Samples,
    SolveStats,
    as_times,
)

# The points at t = 1 and those at the saved times if there are any, whether the solve succeeded,
# and its counts.
_Solved: TypeAlias = tuple[list[jax.Array], jax.Array, SolveCounts]


def solve_together(
    velocity_fn: VelocityFn,
    x0: jax.Array,
    cond: Cond,
    solver: diffrax.AbstractSolver,
    steps: FixedSteps | AdaptiveSteps,
    saved: jax.Array | None,
    adjoint: Adjoint,
) -> Samples:
    """Solve a batch with the same steps for all samples.

    A sample that is not finite at t = 0 has no error estimate that could set the step size. It is
    replaced by zeros during the solve, so that the others succeed, and by NaN at the end.
    """
    finite = jnp.all(jnp.isfinite(x0), axis=event_axes(x0))
    x0 = jnp.where(expand_like(finite, x0), x0, 0.0)
    adaptive = isinstance(steps, AdaptiveSteps)
    uses_rms = adaptive and steps.control is ErrorControl.WHOLE_BATCH_RMS
    norm = rms_norm if uses_rms else largest_sample_norm
    batched_field = make_batched_field(velocity_fn, x0.shape[:1], norm)
    may_reject = adaptive and not is_implicit(solver)
    if may_reject and adjoint is Adjoint.RECURSIVE_CHECKPOINT:
        field = without_rejected(velocity_fn, x0, cond)
        batched_field = batched_field._replace(
            field=lambda t, x, c: field(jnp.broadcast_to(t, x.shape[:1]), x, c)
        )
    outputs, succeeded, stats = _diffeqsolve(batched_field, x0, cond, solver, steps, saved, adjoint)
    finite = expand_like(finite, x0)[None]
    outputs = [jnp.where(finite, points, jnp.nan) for points in outputs]
    return samples_of(outputs, succeeded, stats)


def solve_each(
    velocity_fn: VelocityFn,
    x0: jax.Array,
    cond: Cond,
    solver: diffrax.AbstractSolver,
    steps: FixedSteps | AdaptiveSteps,
    saved: jax.Array | None,
    adjoint: Adjoint,
) -> Samples:
    """Solve each sample of a batch with separate steps, under `vmap`."""
    batched_field = make_sample_field(velocity_fn, solver, x0, cond, x0.shape[0])

    def solve(x0: jax.Array, cond: Cond) -> _Solved:
        return _diffeqsolve(batched_field, x0, cond, solver, steps, saved, adjoint)

    outputs, succeeded, stats = jax.vmap(solve, out_axes=(1, 0, 0))(x0, cond)
    return samples_of(outputs, succeeded, stats)


def samples_of(outputs: list[jax.Array], succeeded: jax.Array, counts: SolveCounts) -> Samples:
    """Make the `Samples` of a solve.

    Args:
        outputs: Points at t = 1, `[1, batch, *event]`, followed by those at the saved times,
            `[times, batch, *event]`, if there are any.
        succeeded: Whether each sample, or the entire batch, reached t = 1.
        counts: Counts of evaluations and steps.
    """
    (x1,), *trajectory = outputs
    batch = x1.shape[:1]
    stats = SolveStats(
        num_accepted=jnp.broadcast_to(counts.num_accepted, batch),
        num_rejected=jnp.broadcast_to(counts.num_rejected, batch),
        step_ends=counts.ends,
        trajectory=trajectory[0] if trajectory else None,
    )
    succeeded = succeeded & jnp.all(jnp.isfinite(x1), axis=event_axes(x1))
    return Samples(x1, counts.nfe, succeeded, stats)


def _diffeqsolve(
    batched_field: BatchedField,
    x0: jax.Array,
    cond: Cond,
    solver: diffrax.AbstractSolver,
    steps: FixedSteps | AdaptiveSteps,
    saved: jax.Array | None,
    adjoint: Adjoint,
) -> _Solved:
    """Solve with Diffrax and count the evaluations."""
    dtype = x0.dtype
    terms = diffrax.ODETerm(batched_field.field)
    if is_implicit(solver):
        solver = each_sample(
            solver,
            batched_field.field_of_one,
            batched_field.evaluations,
            steps,
            rms_norm,
            dtype,
            batched=bool(batched_field.batch),
        )
    if isinstance(steps, AdaptiveSteps):
        initial = make_initial_step(batched_field, x0, cond, solver, steps)
        controller = adaptive_controller(initial, batched_field, solver, steps, dtype)
        max_steps = steps.max_steps
    else:
        times = jnp.asarray(as_times(steps), dtype)
        max_steps = times.shape[0] - 1
        initial = InitialStep(
            dt0=None, solver_state=None, nfe=jnp.zeros(batched_field.batch, jnp.int32)
        )
        controller = counting_controller(
            initial, ToTimes(times), batched_field, solver, max_steps, dtype
        )
    # Saved separately, because a failed solve has a last point but an incomplete trajectory.
    outputs = [diffrax.SubSaveAt(t1=True)]
    if saved is not None:
        outputs.append(diffrax.SubSaveAt(ts=saved))
    solution = diffrax.diffeqsolve(
        terms,
        solver,
        t0=jnp.zeros((), dtype),
        t1=jnp.ones((), dtype),
        dt0=initial.dt0,
        y0=x0,
        args=cond,
        saveat=diffrax.SaveAt(subs=outputs, controller_state=True),
        stepsize_controller=controller,
        max_steps=max_steps,
        solver_state=initial.solver_state,
        adjoint=adjoint.diffrax,
        throw=False,
    )
    _, stats = cast(tuple[PyTree, SolveCounts], solution.controller_state)
    ys = cast(list[jax.Array], solution.ys)
    return ys, solution.result == diffrax.RESULTS.successful, stats
