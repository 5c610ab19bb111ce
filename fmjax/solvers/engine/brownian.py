"""Solve an SDE with Diffrax, with separate steps and a separate Brownian path for each sample.

The Brownian path depends on the sample's key only. A rejected step is repeated with the same path,
and two solves with the same key converge to the same point. The path is Diffrax's virtual Brownian
tree, with a resolution of half of `_MIN_STEP`.
"""

from collections.abc import Callable
from typing import TypeAlias, cast

import diffrax
import jax
import jax.numpy as jnp
import lineax
from jaxtyping import PyTree

from fmjax._arrays import Cond, event_axes
from fmjax.paths import VelocityFn
from fmjax.solvers.diffusion_rates import ConstantRate, DiffusionRate
from fmjax.solvers.engine.nfe_counter import (
    NUM_ENDS,
    NFECountingController,
    Nodes,
    SolveCounts,
    StepDecision,
    ToTimes,
)
from fmjax.solvers.engine.vector_field import BatchedField, make_sample_field
from fmjax.solvers.steppers.sde import DriftField, StochasticHeun
from fmjax.solvers.steps import AdaptiveSteps, RealScalar, Samples, SolveStats

# Adaptive steps end on multiples of this; a solve whose error requires shorter steps fails. The
# Brownian path is so rough that rounding a time changes its value, and the error estimate, by the
# square root of the rounding: without this grid the steps on two devices would soon differ.
_MIN_STEP = 2.0**-14
# Diffrax's default for SDEs. It takes no evaluation, and a step that is too long is rejected.
_FIRST_STEP = 0.01


def drift_nodes(solver: diffrax.AbstractSRK) -> Nodes:
    """Return the times within a step [0, 1] at which the drift is evaluated."""
    tableau = cast(diffrax.StochasticButcherTableau, solver.tableau)
    nodes = (0.0, *map(float, tableau.c))
    ignored = tableau.ignore_stage_f
    if ignored is not None:
        nodes = tuple(node for node, skip in zip(nodes, ignored, strict=True) if not skip)
    return Nodes(nodes, reuses_first=False)


class OnRaster(diffrax.AbstractStepSizeController):
    """A step size controller that rounds the steps of `inner` down to multiples of `_MIN_STEP`.

    Attributes:
        inner: Controller that chooses the steps.
    """

    inner: diffrax.AbstractStepSizeController

    def wrap(self, direction: int | jax.Array) -> "OnRaster":
        """Return this controller: Diffrax requires the method, and time only runs forwards."""
        del direction
        return self

    def init(
        self,
        terms: diffrax.AbstractTerm,
        t0: RealScalar,
        t1: RealScalar,
        y0: PyTree,
        dt0: RealScalar | None,
        args: PyTree,
        func: Callable[..., PyTree],
        error_order: RealScalar | None,
    ) -> tuple[RealScalar, PyTree]:
        """Return the rounded end of the first step, and the state of `inner`."""
        end, state = self.inner.init(terms, t0, t1, y0, dt0, args, func, error_order)
        return _on_raster(t0, end), state

    def adapt_step_size(
        self,
        t0: jax.Array,
        t1: jax.Array,
        y0: PyTree,
        y1_candidate: PyTree,
        args: PyTree,
        y_error: PyTree,
        error_order: RealScalar,
        controller_state: PyTree,
    ) -> StepDecision:
        """Return the decision of `inner` with a rounded next step."""
        keep, next_t0, next_t1, jump, state, result = self.inner.adapt_step_size(
            t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state
        )
        return keep, next_t0, _on_raster(next_t0, next_t1), jump, state, result


def _on_raster(t0: RealScalar, t1: RealScalar) -> RealScalar:
    """Round the end of a step from t0 to t1 down to a multiple of `_MIN_STEP` after t0."""
    return t0 + _MIN_STEP * jnp.maximum(jnp.floor((t1 - t0) / _MIN_STEP), 1.0)


# The point at the end of the solve, whether the solve succeeded, and its counts.
_Solved: TypeAlias = tuple[jax.Array, jax.Array, SolveCounts]


def solve_brownian(
    drift_fn: VelocityFn,
    field: DriftField,
    rate: DiffusionRate,
    x0: jax.Array,
    keys: jax.Array,
    cond: Cond,
    solver: diffrax.AbstractSRK,
    steps: AdaptiveSteps | jax.Array,
    start: jax.Array,
) -> Samples:
    """Solve with Diffrax from t = 0 to `start`, then take one Heun step without noise to t = 1.

    Args:
        drift_fn: Drift with the diffusion rate `rate`, as a velocity field that counts evaluations.
        field: Drift for a given diffusion rate.
        rate: Diffusion rate w(t).
        x0: Points at t = 0, `[batch, *event]`.
        keys: Typed keys `[batch]`, one per sample.
        cond: Condition, every leaf with a leading batch axis.
        solver: Stochastic Runge-Kutta method of Diffrax.
        steps: Adaptive steps, or a time grid.
        start: Start of the last step.
    """
    drift = make_sample_field(drift_fn, solver, x0, cond, len(x0))

    def solve(x0: jax.Array, key: jax.Array, cond: Cond) -> _Solved:
        return _solve_one(drift, rate, x0, key, cond, solver, steps, start)

    x, succeeded, counts = jax.vmap(solve)(x0, keys, cond)
    x1, last_nfe = StochasticHeun().advance_with_noise(
        field, ConstantRate(0.0), start, jnp.ones_like(start), x, 0.0
    )
    rows = jnp.arange(len(x0))
    last = jnp.where(succeeded, counts.num_accepted, counts.ends.shape[1])
    stats = SolveStats(
        num_accepted=counts.num_accepted + 1,
        num_rejected=counts.num_rejected,
        step_ends=counts.ends.at[rows, last].set(1.0, mode="drop"),
    )
    succeeded = succeeded & jnp.all(jnp.isfinite(x1), axis=event_axes(x1))
    return Samples(x1, counts.nfe + last_nfe, succeeded, stats)


def _solve_one(
    drift: BatchedField,
    rate: DiffusionRate,
    x0: jax.Array,
    key: jax.Array,
    cond: Cond,
    solver: diffrax.AbstractSRK,
    steps: AdaptiveSteps | jax.Array,
    start: jax.Array,
) -> _Solved:
    """Solve a single sample to `start`."""
    if isinstance(steps, AdaptiveSteps):
        control = diffrax.PIDController(
            rtol=steps.rtol,
            atol=steps.atol,
            dtmin=_MIN_STEP,
            force_dtmin=False,
            pcoeff=steps.pcoeff,
            icoeff=steps.icoeff,
            dcoeff=steps.dcoeff,
        )
        inner, dt0 = OnRaster(control), jnp.minimum(_FIRST_STEP, start)
        max_steps, num_ends = steps.max_steps, min(steps.max_steps + 1, NUM_ENDS)
    else:
        max_steps = num_ends = len(steps) - 1
        inner, dt0 = ToTimes(steps), None
    stats = SolveCounts.initial(jnp.zeros((), jnp.int32), num_ends, x0.dtype)
    controller = NFECountingController(inner, stats, drift.cost, drift_nodes(solver), False, False)
    needs_levy_area = solver.tableau.coeffs_hh is not None
    brownian_path = diffrax.VirtualBrownianTree(
        0.0,
        1.0,
        0.5 * _MIN_STEP,
        jax.ShapeDtypeStruct(x0.shape, x0.dtype),
        key,
        diffrax.SpaceTimeLevyArea if needs_levy_area else diffrax.BrownianIncrement,
    )

    def noise(t: RealScalar, x: jax.Array, cond: Cond) -> lineax.AbstractLinearOperator:
        del cond
        return lineax.DiagonalLinearOperator(jnp.broadcast_to(rate(jnp.asarray(t)), x.shape))

    solution = diffrax.diffeqsolve(
        diffrax.MultiTerm(diffrax.ODETerm(drift.field), diffrax.ControlTerm(noise, brownian_path)),
        solver,
        t0=jnp.zeros_like(start),
        t1=start,
        dt0=dt0,
        y0=x0,
        args=cond,
        saveat=diffrax.SaveAt(t1=True, controller_state=True),
        stepsize_controller=controller,
        max_steps=max_steps,
        throw=False,
    )
    _, stats = cast(tuple[PyTree, SolveCounts], solution.controller_state)
    x = cast(jax.Array, solution.ys)[0]
    return x, solution.result == diffrax.RESULTS.successful, stats
