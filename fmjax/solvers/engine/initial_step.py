"""First step and step size controller of an adaptive solve."""

from typing import NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from fmjax._arrays import Cond
from fmjax.solvers.engine.implicit import PerSampleImplicit
from fmjax.solvers.engine.nfe_counter import (
    NUM_ENDS,
    NFECountingController,
    Nodes,
    SolveCounts,
    nodes_of,
)
from fmjax.solvers.engine.non_finite import MIN_STEP_ULPS, Guarded
from fmjax.solvers.engine.vector_field import BatchedField
from fmjax.solvers.steps import AdaptiveSteps, RealScalar


class InitialStep(NamedTuple):
    """Values known before the first step.

    Attributes:
        dt0: Size of the first step, None if the controller chooses it.
        solver_state: Initial solver state that reuses the slope at t = 0, or None.
        nfe: Network evaluations spent so far.
    """

    dt0: jax.Array | None
    solver_state: PyTree
    nfe: jax.Array


def make_initial_step(
    batched_field: BatchedField,
    x0: jax.Array,
    cond: Cond,
    solver: diffrax.AbstractSolver,
    steps: AdaptiveSteps,
) -> InitialStep:
    """Choose the size of the first step from two evaluations of the field."""
    order = solver.error_order(diffrax.ODETerm(batched_field.field))
    assert order is not None  # `sample` refuses solvers without an error estimate.
    dt0, slope, second_time = _first_step(batched_field, x0, cond, order, steps)
    nfe = batched_field.cost(jnp.zeros((), x0.dtype)) + batched_field.cost(second_time)
    return InitialStep(dt0, _state_from_slope(solver, nodes_of(solver), x0, slope), nfe)


def adaptive_controller(
    initial: InitialStep,
    batched_field: BatchedField,
    solver: diffrax.AbstractSolver,
    steps: AdaptiveSteps,
    dtype: np.dtype,
) -> NFECountingController:
    """Make the controller of adaptive `steps`, which counts evaluations from `initial` on."""
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
    inner: diffrax.AbstractStepSizeController,
    batched_field: BatchedField,
    solver: diffrax.AbstractSolver,
    num_ends: int,
    dtype: np.dtype,
) -> NFECountingController:
    """Wrap `inner` to count evaluations from `initial` on and to record `num_ends` step ends."""
    stats = SolveCounts.initial(initial.nfe, num_ends, dtype)
    slope_known = initial.solver_state is not None
    counts_evaluations = isinstance(solver, PerSampleImplicit)
    return NFECountingController(
        inner, stats, batched_field.cost, nodes_of(solver), slope_known, counts_evaluations
    )


def _state_from_slope(
    solver: diffrax.AbstractSolver, nodes: Nodes | None, x0: jax.Array, slope: jax.Array
) -> PyTree:
    """Make the solver state that reuses the slope at t = 0, None if the solver cannot."""
    if nodes is None or not nodes.reuses_first:
        return None
    if isinstance(solver, diffrax.ReversibleHeun):
        return x0, slope
    if isinstance(solver, diffrax.AbstractERK):
        return jnp.asarray(False), slope
    return None


def _first_step(
    batched_field: BatchedField,
    x0: jax.Array,
    cond: Cond,
    order: RealScalar,
    steps: AdaptiveSteps,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the first step size, the slope at t = 0, and the time of the second evaluation.

    The two evaluations are in a scan, so that the network is compiled once. Diffrax's default is
    0.01 for every field.

    Reference: Hairer, Norsett and Wanner 1993, Solving ODEs I, section II.4.
    """
    scale = steps.atol + steps.rtol * jnp.abs(x0)
    size = batched_field.norm(x0 / scale)

    def probe(point: tuple[jax.Array, jax.Array], _: None) -> tuple[PyTree, PyTree]:
        t, x = point
        slope = batched_field.field(t, x, cond)
        steepness = batched_field.norm(slope / scale)
        is_flat = (size < 1e-5) | (steepness < 1e-5)
        h = jnp.where(is_flat, 1e-6, 0.01 * size / jnp.where(is_flat, 1.0, steepness))
        h = jnp.minimum(h, 0.1).astype(x0.dtype)
        return (t + h, x + h * slope), (slope, steepness, h)

    start = (jnp.zeros((), x0.dtype), x0)
    _, (slopes, steepness, h) = jax.lax.scan(probe, start, length=2)
    curvature = batched_field.norm((slopes[1] - slopes[0]) / scale) / h[0]
    max_derivative = jnp.maximum(steepness[0], curvature)
    is_constant = max_derivative <= 1e-15
    guess = (0.01 / jnp.where(is_constant, 1.0, max_derivative)) ** (1.0 / order)
    guess = jnp.where(is_constant, jnp.maximum(1e-6, 1e-3 * h[0]), guess)
    dt0 = jnp.minimum(jnp.minimum(100.0 * h[0], guess), 1.0)
    # With a field that is not finite at t = 0 the steps must fail, not their size become NaN.
    dt0 = jnp.where(jnp.isfinite(max_derivative), dt0, 0.01).astype(x0.dtype)
    return jax.lax.stop_gradient(dt0), slopes[0], h[0]
