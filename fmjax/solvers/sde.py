"""`sample_sde`: solve an SDE with the same marginal distributions as the flow."""

from collections.abc import Callable
from functools import partial

import diffrax
import jax
import jax.numpy as jnp

from fmjax._arrays import Cond, Points, Times, expand_like
from fmjax._checks import require
from fmjax._inputs import require_cond, require_function, require_keys, require_like, require_points
from fmjax.paths import AffinePath, CountedField, Prediction, evaluations, require_conversion
from fmjax.solvers.diffusion_rates import DiffusionRate, SigmaRate, on_schedule
from fmjax.solvers.engine.brownian import solve_brownian
from fmjax.solvers.engine.diffrax_solvers import has_error_estimate, takes_derivatives
from fmjax.solvers.engine.programs import UserFunction, batch_of, reuse_program, times_of
from fmjax.solvers.steppers.sde import (
    EulerMaruyama,
    StochasticHeun,
    StochasticSolver,
    solve_stochastic,
    with_last_step,
)
from fmjax.solvers.steps import (
    AdaptiveSteps,
    ErrorControl,
    FixedSteps,
    Samples,
    Time,
    as_arguments,
    as_times,
    require_steps,
)

# All stochastic Runge-Kutta methods of Diffrax work; this table has those for additive noise, and
# SPaRK, which has an error estimate as ShARK and SRA1 do.
SDE_SOLVERS: dict[str, type] = {
    "euler_maruyama": EulerMaruyama,
    "stochastic_heun": StochasticHeun,
    "sea": diffrax.SEA,
    "sra1": diffrax.SRA1,
    "shark": diffrax.ShARK,
    "spark": diffrax.SPaRK,
}


def sample_sde(
    predict_fn: Callable[..., Points],
    path: AffinePath,
    x0: Points,
    keys: jax.Array,
    cond: Cond = None,
    *,
    prediction: Prediction = Prediction.VELOCITY,
    rate: DiffusionRate = SigmaRate(),  # noqa: B008 (frozen)
    solver: StochasticSolver | diffrax.AbstractSRK = EulerMaruyama(),  # noqa: B008 (frozen)
    steps: FixedSteps | AdaptiveSteps,
    last_step: float = 0.04,
) -> Samples:
    """Solve the SDE `dx = (u + w^2/2 score) dt + w dW` from `x0` at t = 0 to t = 1.

    At every time the points have the same distribution as those of the flow `dx = u dt`, for any
    diffusion rate w(t) >= 0. The path converts one prediction to both the velocity u and the score.

    The last step has no noise: it is a step of the flow, which preserves the distribution, and not
    of the SDE, whose drift without noise would contract it. It also avoids the score at t = 1,
    where sigma is zero and the score infinite. It starts at `1 - last_step`, or at the last time of
    a fixed grid before 1 if that is earlier; times in between are dropped.

    Pure, as `sample`: calls outside of `jax.jit` reuse compiled programs. Sharded points stay
    sharded.

    Args:
        predict_fn: Network `(t, x, cond) -> prediction`, guided or not.
        path: Probability path of training.
        x0: Samples of the source distribution (`path.start` of noise). bfloat16 is solved as
            float32.
        keys: Typed keys `[batch]`, one per sample (`fold_in(key, i)` for sample i of a run), so
            that the noise of a sample does not depend on its batch. With solvers of fmjax, step n
            uses `fold_in(key, n)`; solvers of Diffrax use one Brownian path per key, the same for
            all steps and tolerances.
        cond: Condition passed to `predict_fn`; every leaf has a leading batch axis.
        prediction: Quantity that `predict_fn` predicts.
        rate: Diffusion rate w(t); a `SigmaRate` without a schedule takes that of `path`. If
            w(1) > 0, the drift contracts at the rate `w^2 / (2 sigma^2)`, which grows without
            bound near t = 1; steps that are long compared with its inverse diverge.
        solver: `EulerMaruyama`, `StochasticHeun`, or one of `SDE_SOLVERS`.
        steps: Fixed time grid, or separate adaptive steps for each sample (`PER_SAMPLE`) with a
            solver that estimates its error.
        last_step: Minimum size of the last step. With 0 it is the last step of a fixed grid.

    Returns:
        The points at t = 1 and the exact cost of each.

    Raises:
        ValueError: If the solver does not support `steps`, there is not one key per sample, or
            `predict_fn` does not return the shape of its points.

    Reference: Albergo et al. 2023, arXiv:2303.08797; Ma et al. 2024, arXiv:2401.08740.
    """
    require_function("predict_fn", predict_fn)
    require_points("x0", x0)
    require_keys(keys, x0)
    require_cond(cond)
    require_steps(steps)
    require_conversion(path, prediction)
    require_function("rate", rate)
    _check_choices(solver, steps, last_step)
    rate = on_schedule(rate, path.schedule)
    x0 = x0.astype(jnp.result_type(x0.dtype, jnp.float32))

    def drift(t: Times, x: Points, cond: Cond, w: Times) -> Points:
        """Compute `u + w^2/2 score` from one prediction, away from poles of the conversion."""
        t = path.away_from_poles(t, from_=prediction, to=Prediction.VELOCITY)
        value = predict_fn(t, x, cond)
        require_like("predict_fn", value, x)
        value = value.astype(x.dtype)
        u = path.convert(t, x, value, from_=prediction, to=Prediction.VELOCITY)
        score = path.convert(t, x, value, from_=prediction, to=Prediction.SCORE)
        return u + expand_like(0.5 * jnp.square(w), x) * score

    sizes = (1, x0.shape[0]) if isinstance(solver, diffrax.AbstractSRK) else (x0.shape[0],)
    times, scalar = times_of(x0), jax.ShapeDtypeStruct((), x0.dtype)
    counts = [batch_of(size, (times,)) for size in sizes]
    calls = [batch_of(size, (times, x0, cond, times)) for size in sizes]
    functions = (
        UserFunction(drift, calls, takes_derivatives(solver)),
        UserFunction(partial(evaluations, predict_fn), counts),
        UserFunction(rate, [(scalar,), *counts], takes_derivatives(solver)),
    )
    arrays = (x0, keys, cond, as_arguments(steps))
    return reuse_program(_solve, functions, arrays, (solver, last_step))


def _solve(
    drift: Callable[..., jax.Array],
    cost: Callable[[jax.Array], jax.Array],
    rate: DiffusionRate,
    x0: jax.Array,
    keys: jax.Array,
    cond: Cond,
    steps: FixedSteps | AdaptiveSteps,
    solver: StochasticSolver | diffrax.AbstractSRK,
    last_step: float,
) -> Samples:
    def field(t: Time, x: Points, w: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Compute the drift at one time for all samples, and its cost."""
        t, w = jnp.broadcast_to(t, x.shape[:1]), jnp.broadcast_to(w, x.shape[:1])
        return drift(t, x, cond, w), cost(t).astype(jnp.int32)

    if isinstance(steps, AdaptiveSteps):
        grid, start = steps, jnp.asarray(1.0 - last_step, x0.dtype)
    else:
        grid = with_last_step(jnp.asarray(as_times(steps), x0.dtype), last_step)
        start = grid[-2]
        if isinstance(solver, StochasticSolver):
            return solve_stochastic(solver, field, rate, x0, keys, grid)
    assert isinstance(solver, diffrax.AbstractSRK)  # Other solvers have no adaptive steps.
    drift_fn = CountedField(lambda t, x, cond=None: drift(t, x, cond, rate(t)), cost)
    return solve_brownian(drift_fn, field, rate, x0, keys, cond, solver, grid, start)


def _check_choices(solver: object, steps: FixedSteps | AdaptiveSteps, last_step: float) -> None:
    known = isinstance(solver, (StochasticSolver, diffrax.AbstractSRK))
    known = known and not isinstance(solver, (type, diffrax.AbstractWrappedSolver))
    require(known, "solver", "be one of fmjax.solvers.SDE_SOLVERS", repr(solver))
    require(
        isinstance(last_step, (int, float)) and 0.0 <= last_step < 1.0,
        "last_step",
        "lie in [0, 1)",
        last_step,
    )
    if isinstance(steps, FixedSteps):
        return
    if not has_error_estimate(solver):
        raise ValueError(
            f"steps must be FixedSteps for {type(solver).__name__}, which estimates no error, "
            "got AdaptiveSteps"
        )
    per_sample = steps.control is ErrorControl.PER_SAMPLE and steps.slots is None
    require(per_sample, "control", "be PER_SAMPLE without slots for an SDE", steps.control.name)
    require(last_step > 0.0, "last_step", "be positive with AdaptiveSteps", last_step)
