"""`sample_diffusion`: diffusion samplers such as DDIM, for any network on an affine path."""

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from fmjax._arrays import Cond, Points
from fmjax._checks import require, require_positive
from fmjax._inputs import require_cond, require_function, require_keys, require_like, require_points
from fmjax.paths import AffinePath, Prediction, evaluations, require_conversion
from fmjax.solvers.engine.programs import UserFunction, batch_of, reuse_program, times_of
from fmjax.solvers.steppers.ddim import DDIM, Ancestral, DiffusionSolver, StepCoefficients
from fmjax.solvers.steppers.multistep import DPMSolverPP2M, UniPC
from fmjax.solvers.steppers.sde import standard_normal
from fmjax.solvers.steps import (
    FixedSteps,
    Samples,
    as_arguments,
    as_times,
    require_steps,
    samples_on_grid,
)

DIFFUSION_SAMPLERS: dict[str, Callable[[], DiffusionSolver]] = {
    "ancestral": Ancestral,
    "ddim": DDIM,
    "dpm_solver_pp_2m": DPMSolverPP2M,
    "unipc": UniPC,
}

# Points, memory of the sampler, and network evaluations.
_Carry: TypeAlias = tuple[jax.Array, PyTree, jax.Array]


def sample_diffusion(
    predict_fn: Callable[..., Points],
    path: AffinePath,
    x0: Points,
    keys: jax.Array | None = None,
    cond: Cond = None,
    *,
    prediction: Prediction = Prediction.VELOCITY,
    sampler: DiffusionSolver = DDIM(),  # noqa: B008 (frozen)
    steps: FixedSteps,
    clip: float | None = None,
) -> Samples:
    """Sample with a diffusion sampler from `x0` at t = 0 to t = 1.

    The path converts the network's prediction to predicted data and noise, so that flow models
    can be sampled with diffusion samplers, and diffusion models with `fmjax.sample`.

    Pure, as `sample`: calls outside of `jax.jit` reuse compiled programs. Sharded points stay
    sharded.

    Args:
        predict_fn: Network `(t, x, cond) -> prediction`, guided or not.
        path: Probability path of training; `AffinePath(LinearBetas())` for DDPM's networks.
        x0: Samples of the source distribution (`path.start` of noise). bfloat16 is solved as
            float32.
        keys: Typed keys `[batch]`, one per sample, for stochastic samplers. Step n uses
            `fold_in(key, n)`, so that a sample does not depend on the others of its batch.
        cond: Condition passed to `predict_fn`; every leaf has a leading batch axis.
        prediction: Quantity that `predict_fn` predicts; X0 is DDPM's epsilon. Where alpha is close
            to zero, as at t = 0 of `CosineBetas`, an error of the predicted noise is amplified by
            sigma / alpha, up to 20,000, in the predicted data: `clip` bounds them.
        sampler: `DDIM`, `Ancestral`, `DPMSolverPP2M` or `UniPC`.
        steps: Time grid. A network with `T` discrete training times was trained on the times of
            `uniform_grid(n)` if n divides T.
        clip: Bound on the absolute value of the predicted data, in data units; the predicted noise
            is recomputed from the clipped data. DDPM clips images at 1. None does not clip.

    Returns:
        The points at t = 1 and the exact cost of each.

    Raises:
        ValueError: If the sampler is unknown, steps are adaptive, keys are missing or not one per
            sample, or `predict_fn` does not return the shape of its points.
    """
    require_function("predict_fn", predict_fn)
    require_points("x0", x0)
    require_cond(cond)
    require_conversion(path, prediction)
    known = isinstance(sampler, DiffusionSolver) and not isinstance(sampler, type)
    require(known, "sampler", "be one of fmjax.solvers.DIFFUSION_SAMPLERS", repr(sampler))
    is_fixed = isinstance(steps, FixedSteps)
    require(is_fixed, "steps", "be FixedSteps for a diffusion sampler", repr(steps))
    require_steps(steps)
    if clip is not None:
        require_positive("clip", clip)
    if sampler.is_stochastic:
        require_keys(keys, x0)
    x0 = x0.astype(jnp.result_type(x0.dtype, jnp.float32))
    grid = as_times(as_arguments(steps))
    times = jax.ShapeDtypeStruct(grid.shape, x0.dtype)

    def coefficients(times: jax.Array) -> tuple[jax.Array, jax.Array]:
        return path.schedule.alpha(times), path.schedule.sigma(times)

    def predict(t: jax.Array, x: Points, cond: Cond) -> tuple[Points, Points]:
        """Predict the data and the noise."""
        value = predict_fn(t, x, cond)
        require_like("predict_fn", value, x)
        value = value.astype(x.dtype)
        x1, noise = (
            path.convert(t, x, value, from_=prediction, to=target)
            for target in (Prediction.X1, Prediction.X0)
        )
        return x1, noise

    functions = (
        UserFunction(predict, [batch_of(None, (times_of(x0), x0, cond))]),
        UserFunction(partial(evaluations, predict_fn), [(times_of(x0),)]),
        UserFunction(coefficients, [(times,)]),
    )
    return reuse_program(_solve, functions, (x0, keys, cond, grid), (sampler, clip))


def _solve(
    predict: Callable[..., tuple[Points, Points]],
    cost: Callable[[jax.Array], jax.Array],
    coefficients: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
    x0: jax.Array,
    keys: jax.Array | None,
    cond: Cond,
    grid: jax.Array | np.ndarray,
    sampler: DiffusionSolver,
    clip: float | None,
) -> Samples:
    times = jnp.asarray(grid, x0.dtype)
    alphas, sigmas = coefficients(times)

    def take(carry: _Carry, n: jax.Array) -> _Carry:
        x, memory, nfe = carry
        t = jnp.broadcast_to(times[n], x.shape[:1])
        step = StepCoefficients(
            n=n,
            last=times[n + 1] >= 1.0,
            alpha=(alphas[n], alphas[n + 1]),
            sigma=(sigmas[n], sigmas[n + 1]),
            before_last=(times[n + 1] < 1.0) & (times[jnp.minimum(n + 2, len(times) - 1)] >= 1.0),
        )
        x1, noise = predict(t, x, cond)
        if clip is not None:
            x1 = jnp.clip(x1, -clip, clip)
            noise = (x - step.alpha[0] * x1) / step.sigma[0]
        new_noise = None
        if sampler.is_stochastic and keys is not None:
            new_noise = standard_normal(keys, n, x)
        x, memory = sampler.advance(step, x, x1, noise, new_noise, memory)
        return x, memory, nfe + cost(t).astype(jnp.int32)

    def body(carry: _Carry, n: jax.Array) -> tuple[_Carry, None]:
        return jax.lax.cond(times[n] < 1.0, take, lambda carry, _: carry, carry, n), None

    no_evaluations = jnp.zeros((x0.shape[0],), jnp.int32)
    carry = (x0, sampler.start(x0), no_evaluations)
    (x1, _, nfe), _ = jax.lax.scan(body, carry, jnp.arange(len(times) - 1, dtype=jnp.int32))
    return samples_on_grid(x1, nfe, times)
