"""How an adaptive solve begins, and what decides and counts its steps from there."""

from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp

from fmjax.solvers.engine.implicit import EachSample
from fmjax.solvers.engine.nfe_counter import NUM_ENDS, Books, Counting, Nodes, nodes_of
from fmjax.solvers.engine.non_finite import SHORTEST, Guarded
from fmjax.solvers.engine.vector_field import Task
from fmjax.solvers.steps import AdaptiveSteps


class Opening(NamedTuple):
    """What is known before the first step.

    Attributes:
        dt0: Its length, None if the controller knows.
        solver_state: That starts from a slope already evaluated, None if the solver's own does.
        nfe: Evaluations spent so far.
    """

    dt0: jax.Array | None
    solver_state: Any
    nfe: jax.Array


def open_adaptive(
    task: Task, x0: jax.Array, cond: Any, solver: Any, steps: AdaptiveSteps
) -> Opening:
    """Choose the first step, at two evaluations."""
    order = solver.error_order(diffrax.ODETerm(task.field))
    dt0, slope, second = _first_step(task, x0, cond, order, steps)
    nfe = task.cost(jnp.zeros((), x0.dtype)) + task.cost(second)
    return Opening(dt0, _known_slope(solver, nodes_of(solver), x0, slope), nfe)


def adaptive_control(
    opening: Opening, task: Task, solver: Any, steps: AdaptiveSteps, dtype: Any
) -> Counting:
    """What decides the steps, as `steps` asks, and counts from `opening` on."""
    by_error = diffrax.PIDController(
        rtol=steps.rtol, atol=steps.atol, norm=task.norm, force_dtmin=False,
        dtmin=SHORTEST * float(jnp.finfo(dtype).eps),
        pcoeff=steps.pcoeff, icoeff=steps.icoeff, dcoeff=steps.dcoeff,
    )  # fmt: skip
    guarded = Guarded(by_error, batched=bool(task.batch))
    return counting_from(opening, guarded, task, solver, min(steps.max_steps, NUM_ENDS), dtype)


def counting_from(
    opening: Opening, inner: Any, task: Task, solver: Any, num_ends: int, dtype: Any
) -> Counting:
    """`inner`, with books that start from `opening` and have room for `num_ends` steps."""
    books = Books.opened(opening.nfe, num_ends, dtype)
    slope_known = opening.solver_state is not None
    metered = isinstance(solver, EachSample)
    return Counting(inner, books, task.cost, nodes_of(solver), slope_known, metered)


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
    task: Task, x0: jax.Array, cond: Any, order: Any, steps: AdaptiveSteps
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
    chosen = jnp.where(jnp.isfinite(bend), chosen, 0.01).astype(x0.dtype)
    return jax.lax.stop_gradient(chosen), slopes[0], h[0]
