"""Networks from text and an image's patches to an image: what they have around their blocks."""

from abc import abstractmethod
from typing import Any, TypeAlias

from flax import nnx
from jaxtyping import Array, Float

from fmjax._arrays import Cond, Conditions, Points, Text, TextShape, Times
from fmjax._checks import require
from fmjax.networks.layers.functional import functionalize
from fmjax.networks.layers.linear import (
    Linear,
    at_least_float32,
    compute_dtype,
    ddpm_features,
    modulate,
)
from fmjax.networks.layers.lora import Adapters, with_adapters
from fmjax.networks.layers.patches import patchify, unpatchify
from fmjax.networks.transformers.joint_blocks import VectorEmbedding, modulations_of
from fmjax.paths import VelocityNet
from fmjax.sharding import shard_batch

TIME_FEATURES = 256
"""Sines and cosines of a time, and of a guidance scale."""
Words: TypeAlias = Float[Array, "batch words width"]
Patches: TypeAlias = Float[Array, "batch tokens width"]
Vectors: TypeAlias = Float[Array, "batch width"]
"""One for each example: its time and the whole of its prompt."""
_XAVIER = nnx.initializers.xavier_uniform()
_ZEROS = nnx.initializers.zeros


class TextToImage(nnx.Module):
    """Embeddings of time, text and patches, blocks of a subclass's own, and patches out.

    The output is zero at the start.

    Args:
        config: Of the network, `patch_size`, `width` and `dtype` among it.
        event_shape: (height, width, channel) of the latents.
        text: Sizes of the condition.
        rngs: For the parameters.
    """

    def __init__(
        self,
        config: Any,
        event_shape: tuple[int, ...],
        text: TextShape,
        *,
        rngs: nnx.Rngs,
    ):
        height, width, channels = event_shape
        size, patch = config.patch_size, config.patch_size**2 * channels
        settings: dict[str, Any] = dict(dtype=compute_dtype(config.dtype), rngs=rngs)
        self.config, self.text = config, text
        self.grid = (height // size, width // size)
        self.time = VectorEmbedding(TIME_FEATURES, config.width, rngs=rngs)
        self.pooled = VectorEmbedding(text.pooled_width, config.width, rngs=rngs)
        self.tokens = Linear(text.width, config.width, kernel_init=_XAVIER, **settings)
        self.patches = Linear(patch, config.width, kernel_init=_XAVIER, **settings)
        self.add_blocks(rngs)
        self.modulation = Linear(config.width, 2 * config.width, kernel_init=_ZEROS, **settings)
        self.out = Linear(config.width, patch, kernel_init=_ZEROS, **settings)

    @abstractmethod
    def add_blocks(self, rngs: nnx.Rngs) -> None:
        """Make what is the subclass's own."""

    @abstractmethod
    def through_blocks(self, text: Words, image: Patches, c: Vectors) -> Patches:
        """What becomes of the image's tokens."""

    def embedded(self, t: Times, cond: Text) -> Vectors:
        """Time and the whole of the prompt as one vector for each example."""
        rule = "be None for a network without that input"
        require(cond.guidance is None, "cond.guidance", rule, "a scale")
        return self.time(ddpm_features(t, TIME_FEATURES)) + self.pooled(cond.pooled)

    def __call__(self, t: Times, x: Points, cond: Text | None) -> Points:
        """Give the prediction, float32, shaped like x."""
        cond = checked_text(cond, self.text)
        c = shard_batch(nnx.silu(self.embedded(t, cond)))
        size = self.config.patch_size
        text, image = self.tokens(cond.tokens), self.patches(patchify(x, size))
        image = self.through_blocks(text, image, c)
        shift, scale = modulations_of(self.modulation, c)
        tokens = at_least_float32(self.out(modulate(image, shift, scale)))
        return unpatchify(tokens, size, x.shape[1:])


def make_text_to_image(
    kind: type[TextToImage],
    config: Any,
    event_shape: tuple[int, ...],
    text: Conditions,
    adapters: Adapters | None,
    name: str,
) -> VelocityNet:
    """Such a network as pure functions.

    Args:
        kind: Which.
        config: Its sizes.
        event_shape: Of the latents.
        text: Sizes of its condition.
        adapters: Of its layers.
        name: In words, for messages: "an MM-DiT".

    Raises:
        ValueError: If the conditions are no text, the event is no image, or its sides are no
            multiples of the patch; when called, if the condition is not such a text.
    """
    shape = require_text(text, name)
    require(len(event_shape) == 3, "event_shape", "be (height, width, channel)", event_shape)
    (height, width, _), size = event_shape, config.patch_size
    divides = height % size == 0 and width % size == 0
    require(divides, "patch_size", f"divide the image size {height}x{width}", size)

    def build(rngs: nnx.Rngs) -> TextToImage:
        return kind(config, event_shape, shape, rngs=rngs)

    return VelocityNet(*functionalize(with_adapters(build, adapters)))


def require_text(conditions: Conditions, network: str) -> TextShape:
    """The sizes of a text; raise unless these are the conditions.

    Args:
        conditions: What a model is conditioned on.
        network: In words, for the message: "an MM-DiT".
    """
    if not isinstance(conditions, TextShape):
        raise ValueError(f"conditions must be text for {network} network, got {conditions}")
    return conditions


def checked_text(cond: Cond, shape: TextShape) -> Text:
    """The condition; raise unless it is a text of these sizes."""
    if not isinstance(cond, Text):
        raise ValueError(f"cond must be a Text for a network of text, got {type(cond)}")
    want = ((shape.num_tokens, shape.width), (shape.pooled_width,))
    got = (cond.tokens.shape[1:], cond.pooled.shape[1:])
    require(want == got, "cond", f"hold tokens and pooled of shapes {want}", got)
    return cond
