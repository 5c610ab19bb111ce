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
    Opening,
    adaptive_control,
    counting_from,
    open_adaptive,
)
from fmjax.solvers.engine.nfe_counter import Books, ToTimes
from fmjax.solvers.engine.vector_field import (
    Task,
    largest_sample_norm,
    rms_norm,
    task_of_all,
    task_of_one,
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
    task = task_of_all(velocity_fn, x0.shape[:1], rms_norm if whole else largest_sample_norm)
    rejects = isinstance(steps, AdaptiveSteps) and not is_implicit(solver)
    if rejects and adjoint is Adjoint.RECURSIVE_CHECKPOINT:
        used = without_rejected(velocity_fn, x0, cond)
        task = task._replace(field=lambda t, x, c: used(jnp.broadcast_to(t, x.shape[:1]), x, c))
    ends, arrived, books = _diffeqsolve(task, x0, cond, solver, steps, saved, adjoint)
    finite = expand_like(finite, x0)[None]
    ends = [jnp.where(finite, points, jnp.nan) for points in ends]
    return samples_of(ends, arrived, books)


def solve_each(
    velocity_fn: Any, x0: Any, cond: Any, solver: Any, steps: Any, saved: Any, adjoint: Adjoint
) -> Samples:
    """A solve per sample under vmap."""
    task = task_of_one(velocity_fn, solver, x0, cond, x0.shape[0])

    def solve(x0: jax.Array, cond: Any) -> Any:
        return _diffeqsolve(task, x0, cond, solver, steps, saved, adjoint)

    ends, arrived, books = jax.vmap(solve, out_axes=(1, 0, 0))(x0, cond)
    return samples_of(ends, arrived, books)


def samples_of(ends: Any, arrived: jax.Array, books: Books) -> Samples:
    """The result, from ([points at t = 1], and perhaps the trajectory) and the books."""
    (x1,), *trajectory = ends
    batch = x1.shape[:1]
    return Samples(
        x1=x1,
        nfe=books.nfe,
        num_accepted=jnp.broadcast_to(books.num_accepted, batch),
        num_rejected=jnp.broadcast_to(books.num_rejected, batch),
        succeeded=arrived & jnp.all(jnp.isfinite(x1), axis=event_axes(x1)),
        times=books.ends,
        trajectory=trajectory[0] if trajectory else None,
    )


def _diffeqsolve(
    task: Task, x0: jax.Array, cond: Any, solver: Any, steps: Any, saved: Any, adjoint: Adjoint
) -> Any:
    """Solve by Diffrax: [points at the end, at the saved times], arrived, books."""
    dtype = x0.dtype
    terms = diffrax.ODETerm(task.field)
    if is_implicit(solver):
        solver = each_sample(solver, task.field_of_one, task.evaluations, steps, rms_norm,
                             dtype, batched=bool(task.batch))  # fmt: skip
    if isinstance(steps, AdaptiveSteps):
        opening = open_adaptive(task, x0, cond, solver, steps)
        controller = adaptive_control(opening, task, solver, steps, dtype)
        max_steps = steps.max_steps
    else:
        times = jnp.asarray(as_times(steps), dtype)
        max_steps = times.shape[0] - 1
        opening = Opening(dt0=None, solver_state=None, nfe=jnp.zeros(task.batch, jnp.int32))
        controller = counting_from(opening, ToTimes(times), task, solver, max_steps, dtype)
    # Apart: a solve that fails leaves holes in its trajectory, but has an end.
    kept = [diffrax.SubSaveAt(t1=True)] + ([] if saved is None else [diffrax.SubSaveAt(ts=saved)])
    solution = diffrax.diffeqsolve(
        terms,
        solver,
        t0=jnp.zeros((), dtype),
        t1=jnp.ones((), dtype),
        dt0=opening.dt0,
        y0=x0,
        args=cond,
        saveat=diffrax.SaveAt(subs=kept, controller_state=True),
        stepsize_controller=controller,
        max_steps=max_steps,
        solver_state=opening.solver_state,
        adjoint=adjoint.diffrax,
        throw=False,
    )
    _, books = cast(Any, solution.controller_state)
    return solution.ys, solution.result == diffrax.RESULTS.successful, books
