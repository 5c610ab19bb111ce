"""The shape vocabulary that every other module speaks.

Batched throughout: times are `[batch]`, points are `[batch, *event]`.
"""

from typing import Any, NamedTuple, TypeAlias

import jax
from jaxtyping import Array, Float, Key, PyTree

Times: TypeAlias = Float[Array, "batch"]
Points: TypeAlias = Float[Array, "batch *event"]
PerExample: TypeAlias = Float[Array, "batch"]
PRNGKey: TypeAlias = Key[Array, ""]
Cond: TypeAlias = PyTree | None
Params: TypeAlias = Any


class Batch(NamedTuple):
    """Data of one training step: targets and what they are conditioned on.

    Attributes:
        x1: Target points, `[batch, *event]`, images in [-1, 1].
        cond: The condition, a pytree with leading axis batch (class labels: int32 `[batch]`),
            or None for an unconditional model.
    """

    x1: Any
    cond: Any = None


def expand_like(t: jax.Array, x: jax.Array) -> jax.Array:
    """`t` of shape `[batch]` with trailing axes of length one, as many as `x` has."""
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim))


def event_axes(x: jax.Array) -> tuple[int, ...]:
    """All axes of `x` but the leading batch axis."""
    return tuple(range(1, x.ndim))
