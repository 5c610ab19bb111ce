"""Solving a batch by Diffrax: all with the same steps, or each sample with its own."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import diffrax
import jax
import jax.numpy as jnp

from fmjax._arrays import event_axes
from fmjax.solvers.catalog import is_implicit
from fmjax.solvers.counting import NUM_ENDS, Books, Counting, Nodes, ToTimes, nodes_of
from fmjax.solvers.implicit import each_sample
from fmjax.solvers.steps import AdaptiveSteps, ErrorControl, Samples, as_times
from fmjax.velocity import evaluations

# Steps shorter than this many units in the last place of t = 1 lead nowhere: the solve fails,
# at once and not after `max_steps` rejections of a field that is not finite.
_SHORTEST = 16


def checked_velocity(velocity_fn: Any, t: jax.Array, x: jax.Array, cond: Any) -> jax.Array:
    """The velocity in the points' precision.

    Raises:
        ValueError: If it is not shaped like them.
    """
    velocity = velocity_fn(t, x, cond)
    if velocity.shape != x.shape:
        raise ValueError(f"velocity_fn must return shape {x.shape}, got {velocity.shape}")
    return velocity.astype(x.dtype)


def largest_sample_norm(x: Any) -> jax.Array:
    """The largest of the samples' rms over their event axes."""
    return jnp.max(jnp.sqrt(jnp.mean(jnp.square(x), axis=event_axes(x))))


def rms_norm(x: Any) -> jax.Array:
    """The rms over everything."""
    return jnp.sqrt(jnp.mean(jnp.square(x)))


class _Task(NamedTuple):
    """What `_diffeqsolve` solves: the points of a batch together, or one sample by itself.

    Attributes:
        field: `field(t, x, cond)`, t scalar.
        field_of_one: The same for one sample without batch axis.
        evaluations: `evaluations(t)` of one call of `field_of_one`, a scalar.
        batch: The batch axis, () for one sample.
        norm: Of an error over its tolerance.
    """

    field: Callable[..., jax.Array]
    field_of_one: Callable[..., jax.Array]
    evaluations: Callable[[jax.Array], jax.Array]
    batch: tuple[int, ...]
    norm: Callable[[jax.Array], jax.Array]


def solve_together(
    velocity_fn: Any, x0: Any, cond: Any, solver: Any, steps: Any, saved: Any
) -> Samples:
    """Solve a batch with the same steps for all."""
    batch = x0.shape[:1]
    whole = isinstance(steps, AdaptiveSteps) and steps.control is ErrorControl.WHOLE_BATCH_RMS
    task = _Task(
        field=lambda t, x, cond: checked_velocity(velocity_fn, jnp.broadcast_to(t, batch), x, cond),
        field_of_one=partial(_velocity_of_one, velocity_fn),
        evaluations=partial(_evaluations_of_one, velocity_fn),
        batch=batch,
        norm=rms_norm if whole else largest_sample_norm,
    )
    solution, books = _diffeqsolve(task, x0, cond, solver, steps, saved)
    return _samples(solution, books, x0)


def _velocity_of_one(velocity_fn: Any, t: jax.Array, x: jax.Array, cond: Any) -> jax.Array:
    cond = jax.tree.map(lambda c: c[None], cond)
    return checked_velocity(velocity_fn, t[None], x[None], cond)[0]


def _evaluations_of_one(velocity_fn: Any, t: jax.Array) -> jax.Array:
    return evaluations(velocity_fn, t[None])[0].astype(jnp.int32)


def solve_each(
    velocity_fn: Any, x0: Any, cond: Any, solver: Any, steps: Any, saved: Any
) -> Samples:
    """A solve per sample under vmap, whose calls of the field are put together again.

    Without that, `vmap` would turn a choice between two networks (guidance inside its interval)
    into both of them.
    """
    field_of_one = partial(_velocity_of_one, velocity_fn)
    rejoined = jax.custom_batching.custom_vmap(field_of_one)

    @rejoined.def_vmap
    def _(axis_size: int, batched: Any, t: jax.Array, x: jax.Array, cond: Any) -> Any:
        def spread(value: jax.Array, is_batched: bool) -> jax.Array:
            return value if is_batched else jnp.broadcast_to(value, (axis_size, *value.shape))

        t, x, cond = jax.tree.map(spread, (t, x, cond), tuple(batched))
        return checked_velocity(velocity_fn, t, x, cond), True

    task = _Task(
        # A Jacobian cannot be taken through the rejoined field.
        field=field_of_one if is_implicit(solver) else rejoined,
        field_of_one=field_of_one,
        evaluations=partial(_evaluations_of_one, velocity_fn),
        batch=(),
        norm=rms_norm,
    )

    def solve(x0: jax.Array, cond: Any) -> Any:
        return _diffeqsolve(task, x0, cond, solver, steps, saved)

    solution, books = jax.vmap(solve, out_axes=((1, 0), 0))(x0, cond)
    return _samples(solution, books, x0)


def _samples(solution: Any, books: Books, x0: jax.Array) -> Samples:
    ((end, *trajectory), arrived), batch = solution, x0.shape[:1]
    x1 = end[0]
    return Samples(
        x1=x1,
        nfe=books.nfe,
        num_accepted=jnp.broadcast_to(books.num_accepted, batch),
        num_rejected=jnp.broadcast_to(books.num_rejected, batch),
        succeeded=arrived & jnp.all(jnp.isfinite(x1), axis=event_axes(x1)),
        times=books.ends,
        trajectory=trajectory[0] if trajectory else None,
    )


def _diffeqsolve(task: _Task, x0: jax.Array, cond: Any, solver: Any, steps: Any, saved: Any) -> Any:
    """Solve by Diffrax: ([points at the end, at the saved times], arrived), books."""
    dtype = x0.dtype
    nodes, terms = nodes_of(solver), diffrax.ODETerm(task.field)
    implicit = is_implicit(solver)
    if implicit:
        solver = each_sample(solver, task.field_of_one, task.evaluations, steps, rms_norm,
                             dtype, batched=bool(task.batch))  # fmt: skip

    def cost(t: jax.Array) -> jax.Array:
        return jnp.broadcast_to(task.evaluations(t), task.batch)

    nfe, slope, dt0 = jnp.zeros(task.batch, jnp.int32), None, None
    if isinstance(steps, AdaptiveSteps):
        shortest = _SHORTEST * float(jnp.finfo(dtype).eps)
        inner = diffrax.PIDController(
            rtol=steps.rtol, atol=steps.atol, norm=task.norm, dtmin=shortest, force_dtmin=False,
            pcoeff=steps.pcoeff, icoeff=steps.icoeff, dcoeff=steps.dcoeff,
        )  # fmt: skip
        dt0, slope, second = _first_step(task, x0, cond, solver.error_order(terms), steps)
        nfe = cost(jnp.zeros((), dtype)) + cost(second)
        max_steps, num_ends = steps.max_steps, min(steps.max_steps, NUM_ENDS)
    else:
        times = jnp.asarray(as_times(steps), dtype)
        inner = ToTimes(times)
        max_steps = num_ends = times.shape[0] - 1
    known = _known_slope(solver, nodes, x0, slope)
    count = jnp.zeros((), jnp.int32)
    opening = Books(nfe, count, count, ends=jnp.full((num_ends,), jnp.nan, dtype))
    # Apart: a solve that fails leaves holes in its trajectory, but has an end.
    kept = [diffrax.SubSaveAt(t1=True)] + ([] if saved is None else [diffrax.SubSaveAt(ts=saved)])
    solution = diffrax.diffeqsolve(
        terms,
        solver,
        t0=jnp.zeros((), dtype),
        t1=jnp.ones((), dtype),
        dt0=dt0,
        y0=x0,
        args=cond,
        saveat=diffrax.SaveAt(subs=kept, controller_state=True),
        stepsize_controller=Counting(inner, opening, cost, nodes, known is not None, implicit),
        max_steps=max_steps,
        solver_state=known,
        throw=False,
    )
    _, books = cast(Any, solution.controller_state)
    return (solution.ys, solution.result == diffrax.RESULTS.successful), books


def _known_slope(solver: Any, nodes: Nodes | None, x0: jax.Array, slope: Any) -> Any:
    """The solver state that starts from a slope already evaluated, None if it has none."""
    if slope is None or nodes is None or not nodes.reuses_first:
        return None
    if isinstance(solver, diffrax.ReversibleHeun):
        return x0, slope
    if isinstance(solver, diffrax.AbstractERK):
        return jnp.asarray(False), slope
    return None


def _first_step(
    task: _Task, x0: jax.Array, cond: Any, order: Any, steps: AdaptiveSteps
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The first step's length, the slope at t = 0, and the time of the second evaluation.

    Two evaluations, in a scan so that the network is compiled once. Diffrax's own choice is
    0.01 whatever the field.

    Source: Hairer, Norsett and Wanner 1993, Solving ODEs I, section II.4.
    """
    scale = steps.atol + steps.rtol * jnp.abs(x0)
    size = task.norm(x0 / scale)

    def probe(at: Any, _: None) -> Any:
        t, x = at
        slope = task.field(t, x, cond)
        steepness = task.norm(slope / scale)
        flat = (size < 1e-5) | (steepness < 1e-5)
        h = jnp.where(flat, 1e-6, 0.01 * size / jnp.where(flat, 1.0, steepness))
        h = jnp.minimum(h, 0.1).astype(x0.dtype)
        return (t + h, x + h * slope), (slope, steepness, h)

    start = (jnp.zeros((), x0.dtype), x0)
    _, (slopes, steepness, h) = jax.lax.scan(probe, start, length=2)
    curvature = task.norm((slopes[1] - slopes[0]) / scale) / h[0]
    bend = jnp.maximum(steepness[0], curvature)
    still = bend <= 1e-15
    guess = (0.01 / jnp.where(still, 1.0, bend)) ** (1.0 / order)
    guess = jnp.where(still, jnp.maximum(1e-6, 1e-3 * h[0]), guess)
    # A field that is not finite at t = 0 must fail by its steps, not by a NaN for their length.
    chosen = jnp.minimum(jnp.minimum(100.0 * h[0], guess), 1.0)
    chosen = jnp.where(jnp.isfinite(chosen), chosen, 0.01).astype(x0.dtype)
    return jax.lax.stop_gradient(chosen), slopes[0], h[0]
