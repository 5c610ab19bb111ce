"""Guidance of models, and classifier-free guidance of velocity fields."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from fmjax._arrays import Cond, Points, Times, expand_like
from fmjax._checks import require, require_at_least, require_numbers
from fmjax._inputs import null_like, require_cond, require_function, require_like
from fmjax.paths import VelocityFn, evaluations
from fmjax.solvers.model import Model, require_guidable


@runtime_checkable
class Guidance(Protocol):
    """Guidance of samples, applied to a model before the sampler.

    A guidance in a config is a frozen dataclass whose fields are JSON values or other dataclasses.

    Laws: pure; the returned model has the same parameters or a pytree that contains them.
    """

    def __call__(self, model: Model) -> Model:
        """Return the model with guidance, usually by `model.with_prediction`.

        Raises:
            ValueError: If the model does not support the guidance.
        """
        ...


@dataclass(frozen=True)
class ClassifierFree:
    """Classifier-free guidance: `v_uncond + scale (v_cond - v_uncond)` in an interval of times.

    A flow map that was trained with guidance gets scale and interval as its inputs.

    Attributes:
        scale: Guidance scale; 1 is no guidance, 0 ignores the condition.
        interval: First and last time with guidance (arXiv:2404.07724 guides the middle).

    Reference: Ho and Salimans 2022, arXiv:2207.12598; Kynkaanniemi et al. 2024, arXiv:2404.07724.
    """

    scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        require_numbers(self)
        require_at_least("guidance", self.scale, 0.0)
        is_pair = isinstance(self.interval, (tuple, list)) and len(self.interval) == 2
        require(is_pair, "guidance_interval", "be a pair of times", self.interval)
        low, high = self.interval
        in_order = 0.0 <= low <= high <= 1.0
        require(in_order, "guidance_interval", "be low <= high in [0, 1]", self.interval)

    def __call__(self, model: Model) -> Model:
        """Return the model with guidance.

        Raises:
            ValueError: If the scale is not 1 and the model has no null condition.
        """
        if model.flow_map is not None:
            flow_map = model.flow_map.with_guidance(self.scale, self.interval)
            return model._replace(flow_map=flow_map)
        require_guidable("guidance", self.scale, model.null_cond)
        if self.scale == 1.0:
            return model
        return model.with_prediction(
            lambda params: classifier_free(
                model.predict_fn(params), model.null_cond, self.scale, self.interval
            )
        )


@dataclass(frozen=True)
class GuidedField:
    """A velocity field with classifier-free guidance, made by `classifier_free`.

    Attributes:
        velocity_fn: Velocity field trained with dropped conditions.
        null_cond: Null condition, a pytree like the condition.
        scale: Guidance scale; 1 is no guidance.
        interval: Times [low, high] that are guided.
    """

    velocity_fn: VelocityFn
    null_cond: Cond
    scale: float
    interval: tuple[float, float]

    def __call__(self, t: Times, x: Points, cond: Cond = None) -> Points:
        """Evaluate the guided velocity, with one network evaluation outside the interval."""
        if self.interval == (0.0, 1.0):
            return self._guided(t, x, cond)  # Without the `cond` it compiles twice as fast.
        return jax.lax.cond(
            jnp.any(self._inside(t)),
            self._guided,
            lambda t, x, cond: self.velocity_fn(t, x, cond),
            t,
            x,
            cond,
        )

    def evaluations(self, t: Times) -> Int[Array, " batch"]:
        """Count two network evaluations at times inside the guidance interval, one outside."""
        count = evaluations(self.velocity_fn, t)
        return jnp.where(self._inside(t), 2 * count, count)

    def _inside(self, t: Times) -> jax.Array:
        low, high = self.interval
        return (t >= low) & (t <= high)

    def _guided(self, t: Times, x: Points, cond: Cond) -> Points:
        require(cond is not None, "cond", "be given for guidance", None)
        require_cond(cond, x.shape[0])
        null = null_like(cond, self.null_cond)
        # The two copies of an example are adjacent, so that on a mesh they stay on its device.
        both = jax.tree.map(_interleave, cond, null)
        velocity = self.velocity_fn(jnp.repeat(t, 2), jnp.repeat(x, 2, axis=0), both)
        require_like("velocity_fn", velocity, jax.ShapeDtypeStruct(_twice(x), x.dtype))
        conditional, unconditional = velocity[0::2], velocity[1::2]
        guided = unconditional + self.scale * (conditional - unconditional)
        return jnp.where(expand_like(self._inside(t), x), guided, conditional)


def _twice(x: jax.Array) -> tuple[int, ...]:
    return 2 * x.shape[0], *x.shape[1:]


def _interleave(first: jax.Array, second: jax.Array) -> jax.Array:
    return jnp.stack([first, second], axis=1).reshape(2 * first.shape[0], *first.shape[1:])


def classifier_free(
    velocity_fn: VelocityFn,
    null_cond: Cond,
    scale: float,
    interval: tuple[float, float] = (0.0, 1.0),
) -> VelocityFn:
    """Apply classifier-free guidance to a velocity field.

    `v = v_uncond + scale (v_cond - v_uncond)` for t in `interval`, `v_cond` elsewhere.

    Args:
        velocity_fn: Velocity field trained with dropped conditions.
        null_cond: Null condition of training: a pytree like the condition, each leaf broadcast to
            the leaf of the condition (for class labels the integer `num_classes`).
        scale: Guidance scale; 1 is no guidance, 0 ignores the condition.
        interval: Times [low, high] that are guided (arXiv:2404.07724 guides the middle).

    Returns:
        The guided velocity field. It takes two network evaluations inside the interval, and counts
        them. Where the samples of a batch are at different times (`ErrorControl.PER_SAMPLE`), the
        device computes both for all samples while any is inside, but the count is what each
        sample needs.

    Raises:
        ValueError: If the scale is negative or the interval is not within [0, 1].

    Reference: Ho and Salimans 2022, arXiv:2207.12598; Kynkaanniemi et al. 2024, arXiv:2404.07724.
    """
    require_function("velocity_fn", velocity_fn)
    require_at_least("guidance scale", scale, 0.0)
    is_pair = isinstance(interval, (tuple, list)) and len(interval) == 2
    require(is_pair, "guidance interval", "be a pair of times", interval)
    low, high = interval
    require(0.0 <= low <= high <= 1.0, "guidance interval", "be low <= high in [0, 1]", interval)
    if scale == 1.0:
        return velocity_fn
    return GuidedField(velocity_fn, null_cond, scale, (low, high))
