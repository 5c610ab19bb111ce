"""Base class of text-to-image transformers: embeddings of the inputs, and the output layer."""

from abc import abstractmethod
from typing import Any, Protocol, TypeAlias, runtime_checkable

from flax import nnx
from jaxtyping import Array, Float

from fmjax._arrays import Cond, Points, Text, TextShape, Times
from fmjax._checks import require
from fmjax._inputs import describe
from fmjax._specs import CondSpec
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
"""Number of sine and cosine features of a time or a guidance scale."""
Words: TypeAlias = Float[Array, "batch words width"]
Patches: TypeAlias = Float[Array, "batch tokens width"]
Vectors: TypeAlias = Float[Array, "batch width"]
"""One embedding vector per sample, of its time and pooled prompt."""
_XAVIER = nnx.initializers.xavier_uniform()
_ZEROS = nnx.initializers.zeros


@runtime_checkable
class TextToImageConfig(Protocol):
    """Config of a text-to-image transformer, such as `FluxConfig`."""

    @property
    def patch_size(self) -> int:
        """Side of the square patches of latents that form one token."""
        ...

    @property
    def width(self) -> int:
        """Number of channels of a token."""
        ...

    @property
    def dtype(self) -> str:
        """Type of the computation, "float32" or "bfloat16"."""
        ...


class TextToImage(nnx.Module):
    """Embeddings of time, text and image patches, blocks of a subclass, and the output layer.

    The output is zero at initialization.

    Args:
        config: Config of the network.
        event_shape: (height, width, channel) of the latents.
        text: Sizes of the condition.
        rngs: Random keys of the parameters.
    """

    config: TextToImageConfig

    def __init__(
        self,
        config: TextToImageConfig,
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
        """Build the blocks and other parameters of the subclass."""

    @abstractmethod
    def apply_blocks(self, text: Words, image: Patches, c: Vectors) -> Patches:
        """Apply all blocks and return the image tokens."""

    def embed_condition(self, t: Times, cond: Text) -> Vectors:
        """Embed time and pooled prompt as one vector per sample."""
        rule = "be None for a network without a guidance input"
        require(cond.guidance is None, "cond.guidance", rule, "a scale")
        return self.time(ddpm_features(t, TIME_FEATURES)) + self.pooled(cond.pooled)

    def __call__(self, t: Times, x: Points, cond: Text | None) -> Points:
        """Return the prediction, float32, shaped like x."""
        cond = checked_text(cond, self.text)
        c = shard_batch(nnx.silu(self.embed_condition(t, cond)))
        size = self.config.patch_size
        text, image = self.tokens(cond.tokens), self.patches(patchify(x, size))
        image = self.apply_blocks(text, image, c)
        shift, scale = modulations_of(self.modulation, c)
        tokens = at_least_float32(self.out(modulate(image, shift, scale)))
        return unpatchify(tokens, size, x.shape[1:])


def make_text_to_image(
    module_class: type[TextToImage],
    config: TextToImageConfig,
    event_shape: tuple[int, ...],
    text: CondSpec,
    adapters: Adapters | None,
    name: str,
) -> VelocityNet:
    """Build a text-to-image transformer as pure functions.

    Args:
        module_class: Class of the network.
        config: Config of the network.
        event_shape: (height, width, channel) of the latents.
        text: Sizes of the condition, a `TextShape`.
        adapters: Low-rank adapters of the network's layers, or None.
        name: Name of the network in error messages, such as "an MM-DiT".

    Raises:
        ValueError: If `text` is not a `TextShape`, `event_shape` is not an image, or its sides are
            not multiples of the patch size. When called, if the condition is not a `Text` of these
            sizes.
    """
    shape = require_text(text, name)
    require(len(event_shape) == 3, "event_shape", "be (height, width, channel)", event_shape)
    (height, width, _), size = event_shape, config.patch_size
    divides = height % size == 0 and width % size == 0
    require(divides, "patch_size", f"divide the image size {height}x{width}", size)

    def build(rngs: nnx.Rngs) -> TextToImage:
        return module_class(config, event_shape, shape, rngs=rngs)

    return VelocityNet(*functionalize(with_adapters(build, adapters)))


def require_text(conditions: CondSpec, network: str) -> TextShape:
    """Return `conditions` if they are the sizes of a text; raise otherwise.

    Args:
        conditions: Description of the condition of a model.
        network: Name of the network in the message, such as "an MM-DiT".
    """
    if not isinstance(conditions, TextShape):
        raise ValueError(
            f"conditions must be text (a TextShape) for {network} network, got {conditions}"
        )
    return conditions


def checked_text(cond: Cond, shape: TextShape) -> Text:
    """Return `cond` if it is a `Text` of these sizes; raise otherwise."""
    if not isinstance(cond, Text):
        raise ValueError(f"cond must be a Text for a text-to-image network, got {describe(cond)}")
    expected = ((shape.num_tokens, shape.width), (shape.pooled_width,))
    shapes = (cond.tokens.shape[1:], cond.pooled.shape[1:])
    rule = f"have tokens and pooled of shapes {expected} per sample"
    require(shapes == expected, "cond", rule, shapes)
    return cond
