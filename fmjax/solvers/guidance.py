"""Guidance: velocity fields made of velocity fields."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from fmjax._arrays import Cond, Points, Times, expand_like
from fmjax._checks import require, require_at_least
from fmjax._inputs import null_like, require_cond, require_function, require_like
from fmjax.paths import VelocityFn, evaluations


@dataclass(frozen=True)
class ClassifierFree:
    """A guided field; make it by `classifier_free`, which says what the fields mean."""

    velocity_fn: VelocityFn
    null_cond: Any
    scale: float
    interval: tuple[float, float]

    def __call__(self, t: Times, x: Points, cond: Cond = None) -> Points:
        """Give the guided velocity; outside the interval the network is called once only."""
        if self.interval == (0.0, 1.0):
            return self._guided(t, x, cond)  # Half the program, so half the time to compile.
        return jax.lax.cond(
            jnp.any(self._inside(t)),
            self._guided,
            lambda t, x, cond: self.velocity_fn(t, x, cond),
            t,
            x,
            cond,
        )

    def evaluations(self, t: Times) -> Int[Array, " batch"]:
        """Two network evaluations inside the interval, one outside."""
        each = evaluations(self.velocity_fn, t)
        return jnp.where(self._inside(t), 2 * each, each)

    def _inside(self, t: Times) -> jax.Array:
        low, high = self.interval
        return (t >= low) & (t <= high)

    def _guided(self, t: Times, x: Points, cond: Cond) -> Points:
        require(cond is not None, "cond", "be given for guidance", None)
        require_cond(cond, x.shape[0])
        null = null_like(cond, self.null_cond)
        # The two copies of an example stand side by side, so that on a mesh they stay on the
        # device that has the example.
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
    null_cond: Any,
    scale: float,
    interval: tuple[float, float] = (0.0, 1.0),
) -> VelocityFn:
    """`v = v_uncond + scale (v_cond - v_uncond)` for t in `interval`, `v_cond` elsewhere.

    Args:
        velocity_fn: A field trained with its condition dropped now and then.
        null_cond: What stood for no condition in training: a pytree like the condition,
            each leaf broadcast to its (for class labels the integer `num_classes`).
        scale: 1 is no guidance, 0 drops the condition.
        interval: The times [low, high] that are guided (arXiv:2404.07724 guides the middle).

    Returns:
        The guided field. It costs two network evaluations inside the interval, and says so.
        Where samples of a batch stand at different times (`ErrorControl.PER_SAMPLE`), the
        device computes two for all while any is inside; the count is of what each needs.

    Raises:
        ValueError: If the scale is negative or the interval is not within [0, 1].

    Source: Ho and Salimans 2022, arXiv:2207.12598; Kynkaanniemi et al. 2024, arXiv:2404.07724.
    """
    require_function("velocity_fn", velocity_fn)
    require_at_least("guidance scale", scale, 0.0)
    pair = isinstance(interval, (tuple, list)) and len(interval) == 2
    require(pair, "guidance interval", "be a pair of times", interval)
    low, high = interval
    require(0.0 <= low <= high <= 1.0, "guidance interval", "be low <= high in [0, 1]", interval)
    if scale == 1.0:
        return velocity_fn
    return ClassifierFree(velocity_fn, null_cond, scale, (low, high))
