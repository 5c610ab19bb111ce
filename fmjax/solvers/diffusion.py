"""`sample_diffusion`: the samplers of diffusion models, for any network on an affine path."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fmjax._arrays import Cond, Points
from fmjax._checks import require, require_positive
from fmjax._inputs import require_cond, require_function, require_keys, require_like, require_points
from fmjax.paths import AffinePath, Prediction, evaluations, require_conversion
from fmjax.solvers.steppers.ddim import DDIM, Ancestral, DiffusionSampler, StepCoefficients
from fmjax.solvers.steppers.multistep import DPMSolverPP2M, UniPC
from fmjax.solvers.steppers.sde import standard_normal
from fmjax.solvers.steps import FixedSteps, Samples, as_times, require_steps, samples_on_grid

DIFFUSION_SAMPLERS: dict[str, Callable[[], Any]] = {
    "ancestral": Ancestral,
    "ddim": DDIM,
    "dpm_solver_pp_2m": DPMSolverPP2M,
    "unipc": UniPC,
}


def sample_diffusion(
    predict_fn: Callable[..., Any],
    path: AffinePath,
    x0: Points,
    keys: jax.Array | None = None,
    cond: Cond = None,
    *,
    prediction: Prediction = Prediction.VELOCITY,
    sampler: DiffusionSampler = DDIM(),  # noqa: B008 (frozen)
    steps: FixedSteps,
    clip: float | None = None,
) -> Samples:
    """Carry `x0` from t = 0 to t = 1 by a sampler of diffusion models.

    They differ from `fmjax.sample` in their steps only: what a network predicts is turned into
    data and noise by the path's conversions, so that flow models can be sampled in this way
    and DDPMs as flows.

    Pure: call it inside `jax.jit`. Points laid over devices stay so.

    Args:
        predict_fn: The network `(t, x, cond) -> prediction`, guided or not.
        path: The path it was trained on; of DDPM's networks `AffinePath(LinearBetas())`.
        x0: Source points (`path.start` of noise). bfloat16 is solved as float32.
        keys: Typed keys `[batch]`, one per sample, for samplers that draw noise: step n draws
            from `fold_in(key, n)`, so that a sample does not depend on its batch.
        cond: Passed to `predict_fn`, every leaf with a leading batch axis.
        prediction: What `predict_fn` predicts; X0 is DDPM's epsilon. Where alpha is next to zero,
            as at t = 0 of `CosineBetas`, an error of the predicted noise is magnified by
            sigma / alpha, up to 20,000, in the data that follow from it: `clip` bounds them.
        sampler: `DDIM`, `Ancestral`, `DPMSolverPP2M` or `UniPC`.
        steps: Where to step. A network of `T` discrete times has seen those of `uniform_grid(n)`
            if n divides T.
        clip: Bound on the predicted data, in data units, from which the noise then follows.
            DDPM clips images at 1; None does not.

    Returns:
        The points at t = 1 and the exact cost of each.

    Raises:
        ValueError: If the sampler is none, steps are adaptive, keys are missing or not one per
            sample, or `predict_fn` does not return the shape of its points.
    """
    require_function("predict_fn", predict_fn)
    require_points("x0", x0)
    require_cond(cond)
    require_conversion(path, prediction)
    known = isinstance(sampler, DiffusionSampler) and not isinstance(sampler, type)
    require(known, "sampler", "be one of fmjax.solvers.DIFFUSION_SAMPLERS", repr(sampler))
    fixed = isinstance(steps, FixedSteps)
    require(fixed, "steps", "be FixedSteps for a sampler of diffusion models", repr(steps))
    require_steps(steps)
    if clip is not None:
        require_positive("clip", clip)
    if sampler.is_stochastic:
        require_keys(keys, x0)
    x0 = x0.astype(jnp.result_type(x0.dtype, jnp.float32))
    times = jnp.asarray(as_times(steps), x0.dtype)
    alphas, sigmas = path.schedule.alpha(times), path.schedule.sigma(times)

    def predicted(t: jax.Array, x: Points) -> tuple[Points, Points]:
        """Data and noise."""
        value = predict_fn(t, x, cond)
        require_like("predict_fn", value, x)
        value = value.astype(x.dtype)
        x1, noise = (
            path.convert(t, x, value, source=prediction, target=target)
            for target in (Prediction.X1, Prediction.X0)
        )
        return x1, noise

    def take(carry: Any, n: jax.Array) -> Any:
        x, memory, nfe = carry
        t = jnp.broadcast_to(times[n], x.shape[:1])
        step = StepCoefficients(
            n=n,
            last=times[n + 1] >= 1.0,
            alpha=(alphas[n], alphas[n + 1]),
            sigma=(sigmas[n], sigmas[n + 1]),
            before_last=(times[n + 1] < 1.0) & (times[jnp.minimum(n + 2, len(times) - 1)] >= 1.0),
        )
        x1, noise = predicted(t, x)
        if clip is not None:
            x1 = jnp.clip(x1, -clip, clip)
            noise = (x - step.alpha[0] * x1) / step.sigma[0]
        fresh = standard_normal(keys, n, x) if sampler.is_stochastic else None
        x, memory = sampler.advance(step, x, x1, noise, fresh, memory)
        return x, memory, nfe + evaluations(predict_fn, t).astype(jnp.int32)

    def body(carry: Any, n: jax.Array) -> tuple[Any, None]:
        return jax.lax.cond(times[n] < 1.0, take, lambda carry, _: carry, carry, n), None

    nothing = jnp.zeros((x0.shape[0],), jnp.int32)
    carry = (x0, sampler.start(x0), nothing)
    (x1, _, nfe), _ = jax.lax.scan(body, carry, jnp.arange(len(times) - 1, dtype=jnp.int32))
    return samples_on_grid(x1, nfe, times)
