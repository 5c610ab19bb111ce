"""How an adaptive solve begins, and what decides and counts its steps from there."""

from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp

from fmjax.solvers.engine.implicit import PerSampleImplicit
from fmjax.solvers.engine.nfe_counter import (
    NUM_ENDS,
    NFECountingController,
    Nodes,
    SolveStats,
    nodes_of,
)
from fmjax.solvers.engine.non_finite import MIN_STEP_ULPS, Guarded
from fmjax.solvers.engine.vector_field import BatchedField
from fmjax.solvers.steps import AdaptiveSteps


class InitialStep(NamedTuple):
    """What is known before the first step.

    Attributes:
        dt0: Its length, None if the controller knows.
        solver_state: That starts from a slope already evaluated, None if the solver's own does.
        nfe: Evaluations spent so far.
    """

    dt0: jax.Array | None
    solver_state: Any
    nfe: jax.Array


def make_initial_step(
    batched_field: BatchedField, x0: jax.Array, cond: Any, solver: Any, steps: AdaptiveSteps
) -> InitialStep:
    """Choose the first step, at two evaluations."""
    order = solver.error_order(diffrax.ODETerm(batched_field.field))
    dt0, slope, second = _first_step(batched_field, x0, cond, order, steps)
    nfe = batched_field.cost(jnp.zeros((), x0.dtype)) + batched_field.cost(second)
    return InitialStep(dt0, _known_slope(solver, nodes_of(solver), x0, slope), nfe)


def adaptive_controller(
    initial: InitialStep, batched_field: BatchedField, solver: Any, steps: AdaptiveSteps, dtype: Any
) -> NFECountingController:
    """What decides the steps, as `steps` asks, and counts from `initial` on."""
    by_error = diffrax.PIDController(
        rtol=steps.rtol,
        atol=steps.atol,
        norm=batched_field.norm,
        force_dtmin=False,
        dtmin=MIN_STEP_ULPS * float(jnp.finfo(dtype).eps),
        pcoeff=steps.pcoeff,
        icoeff=steps.icoeff,
        dcoeff=steps.dcoeff,
    )
    guarded = Guarded(by_error, batched=bool(batched_field.batch))
    return counting_controller(
        initial, guarded, batched_field, solver, min(steps.max_steps, NUM_ENDS), dtype
    )


def counting_controller(
    initial: InitialStep,
    inner: Any,
    batched_field: BatchedField,
    solver: Any,
    num_ends: int,
    dtype: Any,
) -> NFECountingController:
    """`inner`, with books that start from `initial` and have room for `num_ends` steps."""
    stats = SolveStats.initial(initial.nfe, num_ends, dtype)
    slope_known = initial.solver_state is not None
    counts_evaluations = isinstance(solver, PerSampleImplicit)
    return NFECountingController(
        inner, stats, batched_field.cost, nodes_of(solver), slope_known, counts_evaluations
    )


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
    batched_field: BatchedField, x0: jax.Array, cond: Any, order: Any, steps: AdaptiveSteps
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The first step's length, the slope at t = 0, and the time of the second evaluation.

    Two evaluations, in a scan so that the network is compiled once. Diffrax's own choice is
    0.01 whatever the field.

    Source: Hairer, Norsett and Wanner 1993, Solving ODEs I, section II.4.
    """
    scale = steps.atol + steps.rtol * jnp.abs(x0)
    size = batched_field.norm(x0 / scale)

    def probe(at: Any, _: None) -> Any:
        t, x = at
        slope = batched_field.field(t, x, cond)
        steepness = batched_field.norm(slope / scale)
        flat = (size < 1e-5) | (steepness < 1e-5)
        h = jnp.where(flat, 1e-6, 0.01 * size / jnp.where(flat, 1.0, steepness))
        h = jnp.minimum(h, 0.1).astype(x0.dtype)
        return (t + h, x + h * slope), (slope, steepness, h)

    start = (jnp.zeros((), x0.dtype), x0)
    _, (slopes, steepness, h) = jax.lax.scan(probe, start, length=2)
    curvature = batched_field.norm((slopes[1] - slopes[0]) / scale) / h[0]
    bend = jnp.maximum(steepness[0], curvature)
    still = bend <= 1e-15
    guess = (0.01 / jnp.where(still, 1.0, bend)) ** (1.0 / order)
    guess = jnp.where(still, jnp.maximum(1e-6, 1e-3 * h[0]), guess)
    # A field that is not finite at t = 0 must fail by its steps, not by a NaN for their length.
    chosen = jnp.minimum(jnp.minimum(100.0 * h[0], guess), 1.0)
    chosen = jnp.where(jnp.isfinite(bend), chosen, 0.01).astype(x0.dtype)
    return jax.lax.stop_gradient(chosen), slopes[0], h[0]
