"""Array type aliases, and containers for batches and conditions.

Everything is batched: times have shape `[batch]`, points have shape `[batch, *event]`.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from fmjax._json import Count, Size

Times: TypeAlias = Float[Array, " batch"]
Points: TypeAlias = Float[Array, " batch *event"]
PerExample: TypeAlias = Float[Array, " batch"]
PRNGKey: TypeAlias = Key[Array, ""]
Cond: TypeAlias = PyTree | None
Params: TypeAlias = PyTree


def noun(event_shape: tuple[int, ...]) -> str:
    """Return the word for examples of a shape: "points", "images" or "examples"."""
    return {1: "points", 3: "images"}.get(len(event_shape), "examples")


class Batch(NamedTuple):
    """Data of one training step: data points, and optionally conditions, sources and weights.

    Attributes:
        x1: Data points, `[batch, *event]`; images have values in [-1, 1].
        cond: Condition, a pytree with leading axis `batch` (class labels: int32 `[batch]`), or
            None for an unconditional model.
        x0: Source points paired with `x1`, of the same shape, or None to sample them from the
            source distribution.
        weight: Weight of the loss of each example, `[batch]`, at least 0, or None for equal
            weights. The loss of the step is `sum(weight * loss) / sum(weight)` over the global
            batch, for any number of microbatches and devices, and 0 if all weights are 0.
        mask: True for each element of `x1` that counts in the loss, bool, or None to count all. It
            has the shape `[batch, ...]` of the first axes of `x1`, with axes of length 1 where it
            is the same for all elements; `[batch, time]` masks steps of `[batch, time, channel]`.
            The loss of an example is the mean over its unmasked elements, and 0 without any. The
            network still sees masked elements in x_t: give it the mask in `cond` if it should
            ignore them. Their values must be finite.
    """

    x1: PyTree
    cond: PyTree = None
    x0: PyTree = None
    weight: PyTree = None
    mask: PyTree = None


class Text(NamedTuple):
    """Encoded prompts: the condition of text-to-image models.

    Attributes:
        tokens: One embedding per token, `[batch, tokens, width]`.
        pooled: One embedding per prompt, `[batch, pooled_width]`.
        guidance: Guidance scale, an input of guidance-distilled networks, `[batch]`, or None.
    """

    tokens: PyTree
    pooled: PyTree
    guidance: PyTree = None


@dataclass(frozen=True)
class TextPart:
    """Slices of a `Text` that one text encoder fills, each as `(start, stop)`.

    Attributes:
        tokens: Slice of the token axis of `Text.tokens`.
        channels: Slice of the last axis of `Text.tokens`.
        pooled: Slice of the last axis of `Text.pooled`.
    """

    tokens: tuple[Count, Count]
    channels: tuple[Count, Count]
    pooled: tuple[Count, Count]


@dataclass(frozen=True)
class TextShape:
    """Sizes of a `Text`.

    Attributes:
        num_tokens: Number of tokens per prompt, after padding or truncation.
        width: Length of a token embedding.
        pooled_width: Length of the pooled embedding.
        parts: One `TextPart` per text encoder; empty if unknown.
    """

    num_tokens: Size
    width: Size
    pooled_width: Size
    parts: tuple[TextPart, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Convert to plain JSON values; `fmjax._json.check_json` reads them back."""
        return json.loads(json.dumps(asdict(self)))


class FlowMapCond(NamedTuple):
    """The condition of a flow-map network: a data condition, an end time and guidance.

    Attributes:
        cond: Condition as for a velocity field: class labels, or None.
        end: Time to which the flow map transports the points, `[batch]`.
        guidance: Guidance scale and the start and end of its time interval, `[batch, 3]`; None
            for a network without that input.
    """

    cond: PyTree
    end: PyTree
    guidance: PyTree = None


def expand_like(t: jax.Array, x: jax.Array) -> jax.Array:
    """Append axes of length one to `t`, shape `[batch]`, until it has as many axes as `x`."""
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim))


def safe_sqrt(x: jax.Array) -> jax.Array:
    """Compute the square root, with derivative 0 instead of infinity at 0.

    The gradient of the norm of a zero vector is then zero instead of NaN (infinity times zero).
    """
    zero = x == 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, x)))


def event_axes(x: jax.Array) -> tuple[int, ...]:
    """Return all axes of `x` except the leading batch axis."""
    return tuple(range(1, x.ndim))


def is_image(event_shape: tuple[int, ...]) -> bool:
    """Return whether the shape is (height, width, channels) with one or three channels."""
    return len(event_shape) == 3 and event_shape[-1] in (1, 3)
