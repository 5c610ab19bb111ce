"""An SDE by Diffrax: each sample with its own steps, along its own Brownian path.

The path is a function of the sample's key alone. A step that is rejected and taken again shorter
meets the same path again, and two solves with one key converge to the same point. The path is
Diffrax's virtual Brownian tree: drawn down to half a cell of `_RASTER`, interpolated in law below.
"""

from typing import Any, cast

import diffrax
import jax
import jax.numpy as jnp
import lineax

from fmjax._arrays import event_axes
from fmjax.paths import VelocityFn
from fmjax.solvers.diffusion_rates import ConstantRate, DiffusionRate
from fmjax.solvers.engine.nfe_counter import (
    NUM_ENDS,
    NFECountingController,
    Nodes,
    SolveStats,
    ToTimes,
)
from fmjax.solvers.engine.vector_field import BatchedField, make_sample_field
from fmjax.solvers.steppers.sde import DriftField, StochasticHeun
from fmjax.solvers.steps import AdaptiveSteps, Samples

# Adaptive steps end on multiples of this; a solve whose error asks for shorter ones fails. A path
# is so rough that a time moved by rounding moves its value, and with it the error, by the square
# root of that: without such a raster the steps on two devices would soon part company.
_RASTER = 2.0**-14
# Diffrax's own choice for SDEs. It costs no evaluation, and a step too long is taken again.
_FIRST_STEP = 0.01


def drift_nodes(solver: diffrax.AbstractSRK) -> Nodes:
    """At which times of a step [0, 1] the drift is evaluated, at each anew."""
    tableau: Any = solver.tableau
    nodes = (0.0, *map(float, tableau.c))
    ignored = tableau.ignore_stage_f
    if ignored is not None:
        nodes = tuple(node for node, skip in zip(nodes, ignored, strict=True) if not skip)
    return Nodes(nodes, reuses_first=False)


class OnRaster(diffrax.AbstractStepSizeController):
    """Decides as `inner` does, with steps rounded down to whole cells of the raster."""

    inner: diffrax.AbstractStepSizeController

    def wrap(self, direction: Any) -> "OnRaster":
        """Diffrax asks; time always runs forwards here."""
        del direction
        return self

    def init(
        self,
        terms: Any,
        t0: Any,
        t1: Any,
        y0: Any,
        dt0: Any,
        args: Any,
        func: Any,
        error_order: Any,
    ) -> tuple[Any, Any]:
        """The first step's end, and the state."""
        end, state = self.inner.init(terms, t0, t1, y0, dt0, args, func, error_order)
        return _on_raster(t0, end), state

    def adapt_step_size(
        self,
        t0: Any,
        t1: Any,
        y0: Any,
        y1_candidate: Any,
        args: Any,
        y_error: Any,
        error_order: Any,
        controller_state: Any,
    ) -> Any:
        """What `inner` says, rounded."""
        keep, next_t0, next_t1, *rest = self.inner.adapt_step_size(
            t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state
        )
        return keep, next_t0, _on_raster(next_t0, next_t1), *rest


def _on_raster(t0: Any, t1: Any) -> jax.Array:
    return t0 + _RASTER * jnp.maximum(jnp.floor((t1 - t0) / _RASTER), 1.0)


def solve_brownian(
    drift_fn: VelocityFn,
    field: DriftField,
    rate: DiffusionRate,
    x0: jax.Array,
    keys: jax.Array,
    cond: Any,
    solver: diffrax.AbstractSRK,
    steps: AdaptiveSteps | jax.Array,
    start: jax.Array,
) -> Samples:
    """Solve from t = 0 to `start` by Diffrax, and from there to 1 by Heun's method without noise.

    `steps` are adaptive, or the times of a grid; `drift_fn` is the drift as a counted field.
    """
    drift = make_sample_field(drift_fn, solver, x0, cond, len(x0))

    def solve(x0: jax.Array, key: jax.Array, cond: Any) -> Any:
        return _solve_one(drift, rate, x0, key, cond, solver, steps, start)

    x, arrived, stats = jax.vmap(solve)(x0, keys, cond)
    x1, spent = StochasticHeun().advance_with_noise(
        field, ConstantRate(0.0), start, jnp.ones_like(start), x, 0.0
    )
    num_accepted = stats.num_accepted + 1
    rows = jnp.arange(len(x0))
    last = jnp.where(arrived, stats.num_accepted, stats.ends.shape[1])
    return Samples(
        x1=x1,
        nfe=stats.nfe + spent,
        num_accepted=num_accepted,
        num_rejected=stats.num_rejected,
        succeeded=arrived & jnp.all(jnp.isfinite(x1), axis=event_axes(x1)),
        times=stats.ends.at[rows, last].set(1.0, mode="drop"),
        trajectory=None,
    )


def _solve_one(
    drift: BatchedField,
    rate: DiffusionRate,
    x0: jax.Array,
    key: jax.Array,
    cond: Any,
    solver: diffrax.AbstractSRK,
    steps: AdaptiveSteps | jax.Array,
    start: jax.Array,
) -> Any:
    """One sample at `start`, whether it arrived, and its books."""
    if isinstance(steps, AdaptiveSteps):
        control = diffrax.PIDController(
            rtol=steps.rtol,
            atol=steps.atol,
            dtmin=_RASTER,
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
    stats = SolveStats.initial(jnp.zeros((), jnp.int32), num_ends, x0.dtype)
    controller = NFECountingController(inner, stats, drift.cost, drift_nodes(solver), False, False)
    with_area = solver.tableau.coeffs_hh is not None
    path = diffrax.VirtualBrownianTree(
        0.0,
        1.0,
        0.5 * _RASTER,
        jax.ShapeDtypeStruct(x0.shape, x0.dtype),
        key,
        diffrax.SpaceTimeLevyArea if with_area else diffrax.BrownianIncrement,
    )

    def noise(t: Any, x: Any, cond: Any) -> lineax.AbstractLinearOperator:
        del cond
        return lineax.DiagonalLinearOperator(jnp.broadcast_to(rate(t), x.shape))

    solution = diffrax.diffeqsolve(
        diffrax.MultiTerm(diffrax.ODETerm(drift.field), diffrax.ControlTerm(noise, path)),
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
    _, stats = cast(Any, solution.controller_state)
    x = cast(jax.Array, solution.ys)[0]
    return x, solution.result == diffrax.RESULTS.successful, stats
