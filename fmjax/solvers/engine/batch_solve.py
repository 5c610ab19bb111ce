"""Solving a batch by Diffrax: all with the same steps, or each sample with its own."""

from typing import Any, cast

import diffrax
import jax
import jax.numpy as jnp

from fmjax._arrays import event_axes, expand_like
from fmjax.solvers.engine.adjoint import Adjoint, without_rejected
from fmjax.solvers.engine.diffrax_solvers import is_implicit
from fmjax.solvers.engine.implicit import each_sample
from fmjax.solvers.engine.initial_step import (
    InitialStep,
    adaptive_controller,
    counting_controller,
    make_initial_step,
)
from fmjax.solvers.engine.nfe_counter import SolveStats, ToTimes
from fmjax.solvers.engine.vector_field import (
    BatchedField,
    largest_sample_norm,
    make_batched_field,
    make_sample_field,
    rms_norm,
)
from fmjax.solvers.steps import AdaptiveSteps, ErrorControl, Samples, as_times


def solve_together(
    velocity_fn: Any, x0: Any, cond: Any, solver: Any, steps: Any, saved: Any, adjoint: Adjoint
) -> Samples:
    """Solve a batch with the same steps for all.

    A sample that is not finite at t = 0 has no error that steps could be chosen by: zeros take
    its place on the way, so that its neighbours arrive, and NaN at the end.
    """
    finite = jnp.all(jnp.isfinite(x0), axis=event_axes(x0))
    x0 = jnp.where(expand_like(finite, x0), x0, 0.0)
    whole = isinstance(steps, AdaptiveSteps) and steps.control is ErrorControl.WHOLE_BATCH_RMS
    batched_field = make_batched_field(
        velocity_fn, x0.shape[:1], rms_norm if whole else largest_sample_norm
    )
    rejects = isinstance(steps, AdaptiveSteps) and not is_implicit(solver)
    if rejects and adjoint is Adjoint.RECURSIVE_CHECKPOINT:
        used = without_rejected(velocity_fn, x0, cond)
        batched_field = batched_field._replace(
            field=lambda t, x, c: used(jnp.broadcast_to(t, x.shape[:1]), x, c)
        )
    ends, arrived, stats = _diffeqsolve(batched_field, x0, cond, solver, steps, saved, adjoint)
    finite = expand_like(finite, x0)[None]
    ends = [jnp.where(finite, points, jnp.nan) for points in ends]
    return samples_of(ends, arrived, stats)


def solve_each(
    velocity_fn: Any, x0: Any, cond: Any, solver: Any, steps: Any, saved: Any, adjoint: Adjoint
) -> Samples:
    """A solve per sample under vmap."""
    batched_field = make_sample_field(velocity_fn, solver, x0, cond, x0.shape[0])

    def solve(x0: jax.Array, cond: Any) -> Any:
        return _diffeqsolve(batched_field, x0, cond, solver, steps, saved, adjoint)

    ends, arrived, stats = jax.vmap(solve, out_axes=(1, 0, 0))(x0, cond)
    return samples_of(ends, arrived, stats)


def samples_of(ends: Any, arrived: jax.Array, stats: SolveStats) -> Samples:
    """The result, from ([points at t = 1], and perhaps the trajectory) and the books."""
    (x1,), *trajectory = ends
    batch = x1.shape[:1]
    return Samples(
        x1=x1,
        nfe=stats.nfe,
        num_accepted=jnp.broadcast_to(stats.num_accepted, batch),
        num_rejected=jnp.broadcast_to(stats.num_rejected, batch),
        succeeded=arrived & jnp.all(jnp.isfinite(x1), axis=event_axes(x1)),
        times=stats.ends,
        trajectory=trajectory[0] if trajectory else None,
    )


def _diffeqsolve(
    batched_field: BatchedField,
    x0: jax.Array,
    cond: Any,
    solver: Any,
    steps: Any,
    saved: Any,
    adjoint: Adjoint,
) -> Any:
    """Solve by Diffrax: [points at the end, at the saved times], arrived, books."""
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
    # Apart: a solve that fails leaves holes in its trajectory, but has an end.
    kept = [diffrax.SubSaveAt(t1=True)] + ([] if saved is None else [diffrax.SubSaveAt(ts=saved)])
    solution = diffrax.diffeqsolve(
        terms,
        solver,
        t0=jnp.zeros((), dtype),
        t1=jnp.ones((), dtype),
        dt0=initial.dt0,
        y0=x0,
        args=cond,
        saveat=diffrax.SaveAt(subs=kept, controller_state=True),
        stepsize_controller=controller,
        max_steps=max_steps,
        solver_state=initial.solver_state,
        adjoint=adjoint.diffrax,
        throw=False,
    )
    _, stats = cast(Any, solution.controller_state)
    return solution.ys, solution.result == diffrax.RESULTS.successful, stats
