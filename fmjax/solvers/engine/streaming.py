"""Streaming: a few slots solve many samples, each with its own steps, for their mean cost.

Under `vmap` a batch is evaluated until its slowest sample arrives. Here a sample that arrives
hands its slot to the next of those that wait, inside one `lax.while_loop`, so that every
evaluation of the network works for someone until the queue runs dry.

A sample is solved as in a solve of its own: Diffrax's solver and step control, the same first
step, the same counts. Its neighbours, the queue's length and order, its slot, the moment it enters
and the number of devices change nothing but rounding: on some processors XLA rounds a row of a
batch by its place in it, on others the bits are equal.

Another number of slots is another batch for the velocity, and XLA sums products of matrices in an
order that depends on the size. Rounding is amplified by the field and by step lengths that follow
error estimates; where tolerances are close to float32's precision, these are mere rounding.
"""

import dataclasses
import math
from functools import partial
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from fmjax._arrays import expand_like
from fmjax._checks import require
from fmjax.sharding import batch_axes
from fmjax.solvers.engine.adjoint import Adjoint
from fmjax.solvers.engine.batch_solve import samples_of
from fmjax.solvers.engine.diffrax_solvers import is_implicit
from fmjax.solvers.engine.initial_step import InitialStep, adaptive_controller, make_initial_step
from fmjax.solvers.engine.nfe_counter import SolveStats
from fmjax.solvers.engine.vector_field import BatchedField, make_sample_field
from fmjax.solvers.steps import AdaptiveSteps, Samples

# Diffrax ends a step at t = 1 that would end within 100 units in the last place of it. Below 1
# such a unit is half of eps.
_ALMOST_THERE = 50


def solve_streaming(
    velocity_fn: Any,
    x0: Any,
    cond: Any,
    solver: Any,
    steps: AdaptiveSteps,
    saved: Any,
    adjoint: Adjoint,
) -> Samples:
    """Solve a batch of any size in `steps.slots` slots on each device.

    On a mesh in context (`jax.set_mesh`) each device takes an equal share of the batch and loops
    by itself, with all of the field's weights: they are gathered once, before the loop.
    Gradients are in forward mode only: `jax.jvp` with `Adjoint.FORWARD`.

    Raises:
        ValueError: If the solver is implicit or IMEX, or `saved` times are asked for, or the
            batch is empty or does not divide by the devices.
    """
    named = type(solver).__name__
    require(not is_implicit(solver), "solver", "be explicit to stream (slots)", named)
    require(saved is None, "save_at", "be None with slots", saved)
    require(x0.shape[0] >= 1, "x0", "hold at least one sample", x0.shape[0])
    if adjoint is Adjoint.FORWARD and isinstance(solver, diffrax.AbstractRungeKutta):
        # As `diffrax.ForwardMode` does: the default loop over stages has no forward mode.
        solver = dataclasses.replace(solver, scan_kind="lax")
    stream = partial(_stream, velocity_fn, solver, steps)
    axes = batch_axes()
    if not axes:
        return stream(x0, cond)
    num_shards = math.prod(jax.sharding.get_abstract_mesh().shape[name] for name in axes)
    fits = x0.shape[0] % num_shards == 0
    require(
        fits,
        "x0",
        f"hold a multiple of {num_shards} samples, one share for each device",
        x0.shape[0],
    )
    rows = PartitionSpec(axes)
    return jax.shard_map(stream, in_specs=(rows, rows), out_specs=rows, check_vma=False)(x0, cond)


class _Slot(NamedTuple):
    """A sample in flight.

    Attributes:
        index: Its place in the batch; the batch's size says that the slot is idle.
        t0: Where it stands.
        t1: Where the step it tries next ends.
        x: Its point at t0.
        cond: Its condition.
        solver_state: The slope at t0, for solvers that reuse it.
        controller_state: Of `NFECountingController`: what decides its steps, and its books.
    """

    index: jax.Array
    t0: jax.Array
    t1: jax.Array
    x: jax.Array
    cond: Any
    solver_state: Any
    controller_state: tuple[Any, SolveStats]


class _Outcome(NamedTuple):
    """What is kept of a sample when it leaves its slot."""

    x1: jax.Array
    arrived: jax.Array
    stats: SolveStats


class _Stream(NamedTuple):
    """What one slot does, without batch axis.

    Attributes:
        task: The field of one sample.
        solver: Diffrax's.
        steps: How exact.
        x0: All samples, `[num, *event]`.
        cond: Their conditions.
    """

    batched_field: BatchedField
    solver: Any
    steps: AdaptiveSteps
    x0: jax.Array
    cond: Any

    def row(self, index: jax.Array) -> tuple[jax.Array, Any]:
        """A sample and its condition."""
        return jax.tree.map(lambda a: a[index], (self.x0, self.cond))

    def open(self, index: jax.Array) -> InitialStep:
        """Choose a sample's first step."""
        x0, cond = self.row(index)
        return make_initial_step(self.batched_field, x0, cond, self.solver, self.steps)

    def enter(self, openings: InitialStep, index: jax.Array) -> _Slot:
        """Put a sample into a slot; past the last one the slot is idle."""
        num, dtype = self.x0.shape[0], self.x0.dtype
        row = jnp.minimum(index, num - 1)
        (x0, cond), initial = self.row(row), jax.tree.map(lambda a: a[row], openings)
        # An idle slot stands at t = 1, where no guidance asks for a second network's sake.
        t0 = jnp.where(index < num, 0.0, 1.0).astype(dtype)
        terms, order = self._terms_and_order()
        control = adaptive_controller(initial, self.batched_field, self.solver, self.steps, dtype)
        t1, controller_state = control.init(
            terms, t0, 1.0, x0, initial.dt0, cond, self.solver.func, order
        )
        t1, solver_state = jnp.minimum(t1, 1.0), initial.solver_state
        if solver_state is None:
            solver_state = self.solver.init(terms, t0, t1, x0, cond)
        return _Slot(index, t0, t1, x0, cond, solver_state, controller_state)

    def attempt(self, slot: _Slot) -> tuple[_Slot, jax.Array, _Outcome]:
        """Try a step, as Diffrax's own loop does: the slot, whether that was all, the outcome."""
        t0, t1, x, cond, (_, stats) = *slot[1:5], slot.controller_state
        terms, order = self._terms_and_order()
        x_next, error, _, solver_state, _ = self.solver.step(
            terms, t0, t1, x, cond, slot.solver_state, False
        )
        error = jnp.where(jnp.isnan(error), jnp.inf, error)
        here = InitialStep(None, slot.solver_state, stats.nfe)
        control = adaptive_controller(here, self.batched_field, self.solver, self.steps, x.dtype)
        keep, t0, t1, _, controller_state, verdict = control.adapt_step_size(
            t0, t1, x, x_next, cond, error, order, slot.controller_state
        )
        x, solver_state = jax.tree.map(
            lambda new, old: jnp.where(keep, new, old),
            (x_next, solver_state),
            (x, slot.solver_state),
        )
        t0 = jnp.minimum(t0, 1.0)
        almost = 1.0 - _ALMOST_THERE * float(jnp.finfo(x.dtype).eps)
        t1 = jnp.where(t1 > almost, jnp.where(keep, 1.0, t0 + 0.5 * (1.0 - t0)), t1)
        failed, (_, stats) = verdict != diffrax.RESULTS.successful, controller_state
        worn_out = stats.num_accepted + stats.num_rejected >= self.steps.max_steps
        outcome = _Outcome(x, (t0 >= 1.0) & ~failed, stats)
        slot = _Slot(slot.index, t0, t1, x, cond, solver_state, controller_state)
        return slot, (t0 >= 1.0) | failed | worn_out, outcome

    def _terms_and_order(self) -> tuple[Any, Any]:
        terms = diffrax.ODETerm(self.batched_field.field)
        return terms, self.solver.error_order(terms)


def _stream(velocity_fn: Any, solver: Any, steps: Any, x0: jax.Array, cond: Any) -> Samples:
    """Solve the batch of one device."""
    num, num_slots = x0.shape[0], steps.slots
    stream = _Stream(
        make_sample_field(velocity_fn, solver, x0, cond, num_slots), solver, steps, x0, cond
    )
    openings = _in_chunks(jax.vmap(stream.open), num, num_slots)
    enter = jax.vmap(partial(stream.enter, openings))
    attempt = jax.vmap(stream.attempt)

    def advance(state: Any) -> Any:
        slots, num_entered, outcomes = state
        slots, done, outcome = attempt(slots)
        place = jnp.where(done, slots.index, num)
        outcomes = jax.tree.map(
            lambda every, new: every.at[place].set(new, mode="drop"), outcomes, outcome
        )
        upcoming = num_entered + jnp.cumsum(done, dtype=jnp.int32) - 1
        slots = jax.tree.map(
            lambda new, old: jnp.where(expand_like(done, new), new, old),
            enter(jnp.minimum(upcoming, num)),
            slots,
        )
        return slots, num_entered + jnp.sum(done, dtype=jnp.int32), outcomes

    def busy(state: Any) -> jax.Array:
        return jnp.any(state[0].index < num)

    slots = enter(jnp.arange(num_slots, dtype=jnp.int32))
    *_, outcome = jax.eval_shape(attempt, slots)
    outcomes = jax.tree.map(lambda a: jnp.zeros((num, *a.shape[1:]), a.dtype), outcome)
    start = (slots, jnp.asarray(num_slots, jnp.int32), outcomes)
    *_, outcomes = jax.lax.while_loop(busy, advance, start)
    return samples_of([outcomes.x1[None]], outcomes.arrived, outcomes.stats)


def _in_chunks(fn: Any, num: int, size: int) -> Any:
    """`fn` of the numbers below `num`, `size` at a time: a program for one size, as in the loop.

    The result's leading axis is padded to a multiple of `size`.
    """
    rows = jnp.minimum(jnp.arange(-(-num // size) * size, dtype=jnp.int32), num - 1)
    chunks = jax.lax.map(fn, rows.reshape(-1, size))
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), chunks)
