"""The shape vocabulary that every other module speaks.

Batched throughout: times are `[batch]`, points are `[batch, *event]`.
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
Params: TypeAlias = Any


def noun(event_shape: tuple[int, ...]) -> str:
    """What examples of a shape are called: images, points, or else examples."""
    return {1: "points", 3: "images"}.get(len(event_shape), "examples")


class Batch(NamedTuple):
    """Data of one training step: targets and what they are conditioned on.

    Attributes:
        x1: Target points, `[batch, *event]`, images in [-1, 1].
        cond: The condition, a pytree with leading axis batch (class labels: int32 `[batch]`),
            or None for an unconditional model.
        x0: Source points that belong to them, shaped like x1, or None: noise is drawn.
    """

    x1: Any
    cond: Any = None
    x0: Any = None


class Text(NamedTuple):
    """Prompts as their encoders gave them: the condition of text-to-image models.

    Attributes:
        tokens: One vector for each token, `[batch, tokens, width]`.
        pooled: One vector for the whole prompt, `[batch, pooled_width]`.
        guidance: The scale that a guidance-distilled network is asked for, `[batch]`, or None.
    """

    tokens: Any
    pooled: Any
    guidance: Any = None


@dataclass(frozen=True)
class TextPart:
    """What one of several text encoders has in a `Text`, each from a first place to before a last.

    Attributes:
        tokens: Its tokens.
        channels: The channels of these.
        pooled: Its channels of the pooled vector.
    """

    tokens: tuple[Count, Count]
    channels: tuple[Count, Count]
    pooled: tuple[Count, Count]


@dataclass(frozen=True)
class TextShape:
    """Sizes of a `Text`.

    Attributes:
        num_tokens: Of a prompt, padded or cut.
        width: Of a token's vector.
        pooled_width: Of the prompt's.
        parts: What of it is whose, where several encoders made it and that is known.
    """

    num_tokens: Size
    width: Size
    pooled_width: Size
    parts: tuple[TextPart, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The same as JSON has it; `fmjax._json.check_json` reads it back."""
        return json.loads(json.dumps(asdict(self)))


@dataclass(frozen=True)
class TokenShape:
    """Sizes of captions as numbers of words, int32 `[batch, num_tokens]`; all zeros is none.

    Attributes:
        num_tokens: Of a caption, padded or cut.
        vocab_size: How many numbers there are; 0 is padding.
    """

    num_tokens: Size
    vocab_size: Size


class FlowMapCond(NamedTuple):
    """The condition of a network that is a flow map: of what, to where, how much guided.

    Attributes:
        cond: As of a velocity network: class labels, or None.
        end: The time that the point is to be carried to, `[batch]`.
        guidance: Scale, and the first and last time at which it holds, `[batch, 3]`; None for a
            network without that input.
    """

    cond: Any
    end: Any
    guidance: Any = None


@dataclass(frozen=True)
class FlowMapConditions:
    """What a network that is a flow map is conditioned on, beside a time to go to.

    Attributes:
        num_classes: As of a velocity network.
        guided: Whether guidance is one of its inputs.
    """

    num_classes: int | None = None
    guided: bool = False


Conditions: TypeAlias = int | TextShape | TokenShape | None
"""What a model is conditioned on: classes (so many), text, captions as tokens, or nothing."""


def expand_like(t: jax.Array, x: jax.Array) -> jax.Array:
    """`t` of shape `[batch]` with trailing axes of length one, as many as `x` has."""
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim))


def safe_sqrt(x: jax.Array) -> jax.Array:
    """The square root, with the derivative zero at zero, where that of `jnp.sqrt` is infinite.

    A norm of zeros then has the gradient zero and not NaN (infinity times zero).
    """
    zero = x == 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, x)))


def event_axes(x: jax.Array) -> tuple[int, ...]:
    """All axes of `x` but the leading batch axis."""
    return tuple(range(1, x.ndim))


def is_image(event_shape: tuple[int, ...]) -> bool:
    """Whether an example is (height, width, channel), grey or of three colours."""
    return len(event_shape) == 3 and event_shape[-1] in (1, 3)
