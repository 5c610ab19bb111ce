"""Streaming: solve many samples in few slots, with separate steps, at their mean cost.

Under `vmap` a batch is evaluated until its slowest sample reaches t = 1. Here the slot of a sample
that finishes is refilled with the next waiting sample, inside one `lax.while_loop`, so that every
network evaluation is used until no samples wait.

A sample is solved as if alone: Diffrax's solver and step size control, the same first step, the
same counts. The other samples, the number and order of samples, the slot, the time at which a
sample enters and the number of devices change rounding only: on some processors the rounding by
XLA depends on the position of a row in the batch, on others the bits are equal.

Another number of slots is another batch size for the velocity, and the order in which XLA sums
matrix products depends on it. Rounding is amplified by the field and by step sizes that follow
from error estimates, which consist of rounding where tolerances are close to float32's precision.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeAlias

import diffrax
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import PyTree

from fmjax._arrays import Cond, expand_like
from fmjax._checks import require
from fmjax.paths import VelocityFn
from fmjax.sharding import batch_axes
from fmjax.solvers.engine.adjoint import Adjoint
from fmjax.solvers.engine.batch_solve import samples_of
from fmjax.solvers.engine.diffrax_solvers import is_implicit
from fmjax.solvers.engine.initial_step import InitialStep, adaptive_controller, make_initial_step
from fmjax.solvers.engine.nfe_counter import SolveCounts
from fmjax.solvers.engine.vector_field import BatchedField, make_sample_field
from fmjax.solvers.steps import AdaptiveSteps, RealScalar, Samples

# Diffrax extends a step to t = 1 if it would end less than 100 units in the last place before. Such
# a unit is half of eps below 1.
_END_TOLERANCE_EPS = 50


def solve_streaming(
    velocity_fn: VelocityFn,
    x0: jax.Array,
    cond: Cond,
    solver: diffrax.AbstractSolver,
    steps: AdaptiveSteps,
    saved: jax.Array | None,
    adjoint: Adjoint,
) -> Samples:
    """Solve a batch of any size in `steps.slots` slots on each device.

    On the mesh in context (`jax.set_mesh`) each device solves an equal part of the batch in a
    separate loop. The field's weights are gathered once, before the loop. Only forward-mode
    derivatives are supported: `jax.jvp` with `Adjoint.FORWARD`.

    Raises:
        ValueError: If the solver is implicit or IMEX, there are `saved` times, the batch is empty,
            or its size is not divisible by the number of devices.
    """
    solver_name = type(solver).__name__
    require(not is_implicit(solver), "solver", "be explicit if slots is set", solver_name)
    require(saved is None, "save_at", "be None with slots", saved)
    require(x0.shape[0] >= 1, "x0", "hold at least one sample", x0.shape[0])
    if adjoint is Adjoint.FORWARD and isinstance(solver, diffrax.AbstractRungeKutta):
        # As in `diffrax.ForwardMode`: the default loop over stages has no forward mode.
        solver = dataclasses.replace(solver, scan_kind="lax")
    stream = partial(_stream, velocity_fn, solver, steps)
    axes = batch_axes()
    if not axes:
        return stream(x0, cond)
    num_shards = math.prod(jax.sharding.get_abstract_mesh().shape[name] for name in axes)
    require(
        x0.shape[0] % num_shards == 0,
        "x0",
        f"have a batch size divisible by {num_shards}, the number of devices",
        x0.shape[0],
    )
    rows = PartitionSpec(axes)
    return jax.shard_map(stream, in_specs=(rows, rows), out_specs=rows, check_vma=False)(x0, cond)


class _Slot(NamedTuple):
    """State of the sample that occupies a slot.

    Attributes:
        index: Index of the sample in the batch; the batch size marks an idle slot.
        t0: Current time.
        t1: End of the next step to try.
        x: Point at t0.
        cond: Condition of the sample.
        solver_state: Solver state, the slope at t0 for solvers that reuse it.
        controller_state: State of `NFECountingController`: (state of the inner controller, counts).
    """

    index: jax.Array
    t0: jax.Array
    t1: jax.Array
    x: jax.Array
    cond: Cond
    solver_state: PyTree
    controller_state: tuple[PyTree, SolveCounts]


class _Outcome(NamedTuple):
    """Result of a sample, stored when it leaves its slot."""

    x1: jax.Array
    succeeded: jax.Array
    stats: SolveCounts


class _Stream(NamedTuple):
    """The operations on one slot, without batch axis.

    Attributes:
        batched_field: Velocity field of a single sample.
        solver: Diffrax solver.
        steps: Tolerances and step size control.
        x0: Points of all samples at t = 0, `[num, *event]`.
        cond: Conditions of all samples.
    """

    batched_field: BatchedField
    solver: diffrax.AbstractSolver
    steps: AdaptiveSteps
    x0: jax.Array
    cond: Cond

    def row(self, index: jax.Array) -> tuple[jax.Array, Cond]:
        """Return a sample at t = 0 and its condition."""
        return jax.tree.map(lambda a: a[index], (self.x0, self.cond))

    def initial_step(self, index: jax.Array) -> InitialStep:
        """Choose the first step of a sample."""
        x0, cond = self.row(index)
        return make_initial_step(self.batched_field, x0, cond, self.solver, self.steps)

    def enter(self, initial_steps: InitialStep, index: jax.Array) -> _Slot:
        """Put a sample into a slot, which is idle if `index` is past the last sample."""
        num, dtype = self.x0.shape[0], self.x0.dtype
        row = jnp.minimum(index, num - 1)
        (x0, cond), initial = self.row(row), jax.tree.map(lambda a: a[row], initial_steps)
        # An idle slot is at t = 1, which is outside most guidance intervals: it should not cause a
        # second network evaluation.
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
        """Try a step, as in Diffrax's loop.

        Returns:
            The slot after the step, whether its sample is done, and the result of the sample.
        """
        t0, t1, x, cond, (_, stats) = *slot[1:5], slot.controller_state
        terms, order = self._terms_and_order()
        x_next, error, _, solver_state, _ = self.solver.step(
            terms, t0, t1, x, cond, slot.solver_state, False
        )
        assert error is not None  # `sample` refuses solvers without an error estimate.
        error = jnp.where(jnp.isnan(error), jnp.inf, error)
        initial = InitialStep(None, slot.solver_state, stats.nfe)
        control = adaptive_controller(initial, self.batched_field, self.solver, self.steps, x.dtype)
        keep, t0, t1, _, controller_state, result = control.adapt_step_size(
            t0, t1, x, x_next, cond, error, order, slot.controller_state
        )
        x, solver_state = jax.tree.map(
            lambda new, old: jnp.where(keep, new, old),
            (x_next, solver_state),
            (x, slot.solver_state),
        )
        t0 = jnp.minimum(t0, 1.0)
        almost_end = 1.0 - _END_TOLERANCE_EPS * float(jnp.finfo(x.dtype).eps)
        t1 = jnp.where(t1 > almost_end, jnp.where(keep, 1.0, t0 + 0.5 * (1.0 - t0)), t1)
        failed, (_, stats) = result != diffrax.RESULTS.successful, controller_state
        too_many_steps = stats.num_accepted + stats.num_rejected >= self.steps.max_steps
        outcome = _Outcome(x, (t0 >= 1.0) & ~failed, stats)
        slot = _Slot(slot.index, t0, t1, x, cond, solver_state, controller_state)
        return slot, (t0 >= 1.0) | failed | too_many_steps, outcome

    def _terms_and_order(self) -> tuple[diffrax.AbstractTerm, RealScalar]:
        terms = diffrax.ODETerm(self.batched_field.field)
        order = self.solver.error_order(terms)
        assert order is not None  # `sample` refuses solvers without an error estimate.
        return terms, order


# The slots, the number of samples that have entered one, and the results of all samples.
_State: TypeAlias = tuple[_Slot, jax.Array, _Outcome]


def _stream(
    velocity_fn: VelocityFn,
    solver: diffrax.AbstractSolver,
    steps: AdaptiveSteps,
    x0: jax.Array,
    cond: Cond,
) -> Samples:
    """Solve the batch of one device."""
    num, num_slots = x0.shape[0], steps.slots
    assert num_slots is not None  # Without slots `sample` does not stream.
    stream = _Stream(
        make_sample_field(velocity_fn, solver, x0, cond, num_slots), solver, steps, x0, cond
    )
    initial_steps = _in_chunks(jax.vmap(stream.initial_step), num, num_slots)
    enter = jax.vmap(partial(stream.enter, initial_steps))
    attempt = jax.vmap(stream.attempt)

    def advance(state: _State) -> _State:
        slots, num_entered, outcomes = state
        slots, done, outcome = attempt(slots)
        index = jnp.where(done, slots.index, num)
        outcomes = jax.tree.map(
            lambda stored, new: stored.at[index].set(new, mode="drop"), outcomes, outcome
        )
        next_index = num_entered + jnp.cumsum(done, dtype=jnp.int32) - 1
        slots = jax.tree.map(
            lambda new, old: jnp.where(expand_like(done, new), new, old),
            enter(jnp.minimum(next_index, num)),
            slots,
        )
        return slots, num_entered + jnp.sum(done, dtype=jnp.int32), outcomes

    def is_busy(state: _State) -> jax.Array:
        return jnp.any(state[0].index < num)

    slots = enter(jnp.arange(num_slots, dtype=jnp.int32))
    *_, outcome = jax.eval_shape(attempt, slots)
    outcomes = jax.tree.map(lambda a: jnp.zeros((num, *a.shape[1:]), a.dtype), outcome)
    state = (slots, jnp.asarray(num_slots, jnp.int32), outcomes)
    *_, outcomes = jax.lax.while_loop(is_busy, advance, state)
    return samples_of([outcomes.x1[None]], outcomes.succeeded, outcomes.stats)


def _in_chunks(fn: Callable[[jax.Array], InitialStep], num: int, size: int) -> InitialStep:
    """Map `fn` over the integers below `num` in chunks of `size`, the batch size of the loop.

    The leading axis of the result is padded to a multiple of `size`.
    """
    rows = jnp.minimum(jnp.arange(-(-num // size) * size, dtype=jnp.int32), num - 1)
    chunks = jax.lax.map(fn, rows.reshape(-1, size))
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), chunks)
