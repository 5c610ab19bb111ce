"""Convolutional variational autoencoder of SD3 and FLUX, `AutoencoderKL` in diffusers.

It consists of residual blocks with self-attention at the lowest resolution.

Reference: Kingma and Welling 2013, arXiv:1312.6114, section 3; Rombach et al. 2021,
arXiv:2112.10752, section 3.1 and appendix G.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fmjax._arrays import Params, PRNGKey
from fmjax._checks import require, require_at_least, require_positive
from fmjax.networks.autoencoder.blocks import Level, Middle, Sizes
from fmjax.networks.layers.computation import require_computable
from fmjax.networks.layers.functional import functionalize
from fmjax.networks.layers.linear import at_least_float32

_MIN_LOG_VARIANCE, _MAX_LOG_VARIANCE = -30.0, 20.0


@dataclass(frozen=True)
class AutoencoderConfig:
    """Sizes and options of an autoencoder; the default sizes are those of SD3 and FLUX.

    Attributes:
        channels_in: Channels of the images that are encoded.
        channels_out: Channels of the decoded images.
        latent_channels: Channels of the latents.
        widths: Channels of each level, from full resolution down; each further level halves the
            resolution.
        num_blocks: Residual blocks per level of the encoder; the decoder has one more.
        num_groups: Number of groups of the group norms.
        attend: Whether the lowest resolution has self-attention.
        quant: Whether a 1x1 convolution follows the encoder.
        post_quant: Whether a 1x1 convolution precedes the decoder.
        scale: Factor that gives shifted latents about unit variance (see `scaled`).
        shift: Value subtracted from latents before scaling.
        dtype: Type of the computation, "float32" or "bfloat16"; parameters are float32.
        attention: Attention implementation, "auto", "xla", "splash" or "cudnn" (see `DiTConfig`).
    """

    channels_in: int = 3
    channels_out: int = 3
    latent_channels: int = 16
    widths: tuple[int, ...] = (128, 256, 512, 512)
    num_blocks: int = 2
    num_groups: int = 32
    attend: bool = True
    quant: bool = False
    post_quant: bool = False
    scale: float = 1.0
    shift: float = 0.0
    dtype: str = "float32"
    attention: str = "auto"

    def __post_init__(self):
        names = ("channels_in", "channels_out", "latent_channels", "num_blocks", "num_groups")
        for name in names:
            require_at_least(name, getattr(self, name), 1)
        are_multiples = all(w >= 1 and w % self.num_groups == 0 for w in self.widths)
        rule = f"be one or more positive multiples of num_groups = {self.num_groups}"
        require(len(self.widths) > 0 and are_multiples, "widths", rule, self.widths)
        require_positive("scale", self.scale)
        require_computable(self)

    @property
    def downsampling(self) -> int:
        """Factor between the sides of images and latents, in pixels."""
        return 2 ** (len(self.widths) - 1)

    @property
    def sizes(self) -> Sizes:
        """Sizes and options shared by all blocks."""
        return Sizes(self.num_groups, self.dtype, self.attention)

    def scaled(self, latents: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Shift and scale latents to about unit variance, as used by flow models."""
        return (latents - self.shift) * self.scale

    def unscaled(self, latents: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Invert `scaled`, to get the latents that the decoder takes."""
        return latents / self.scale + self.shift


class Autoencoder(NamedTuple):
    """Autoencoder as pure functions.

    The parameters are `{"encoder": ..., "decoder": ...}`; `encode` and `decode` each use only their
    half.

    Attributes:
        init: Function `init(key) -> params`.
        encode: Function `encode(params, images) -> (mean, log_variance)` of the latents.
        decode: Function `decode(params, latents) -> images`.
        tensor_axes: Maps the dotted name of a parameter to the axis that is split over the mesh
            axis `tensor`. Other parameters are not split.
    """

    init: Callable[[PRNGKey], Params]
    encode: Callable[[Params, Array], tuple[Array, Array]]
    decode: Callable[[Params, Array], Array]
    tensor_axes: Mapping[str, int]


class Encoder(nnx.Module):
    """Encoder of images to the means and log-variances of latents."""

    def __init__(self, config: AutoencoderConfig, *, rngs: nnx.Rngs):
        self.config, sizes, widths = config, config.sizes, config.widths
        moments, last_level = 2 * config.latent_channels, len(widths) - 1
        self.inputs = sizes.conv(config.channels_in, widths[0], rngs=rngs)
        down, current = {}, widths[0]
        for i, width in enumerate(widths):
            change = "down" if i < last_level else "none"
            down[f"level{i}"] = Level(sizes, current, width, config.num_blocks, change, rngs=rngs)
            current = width
        self.down, self.down_order = nnx.Dict(down), tuple(down)  # nnx.Dict sorts its keys.
        self.middle = Middle(sizes, current, attend=config.attend, rngs=rngs)
        self.norm = sizes.norm(current, rngs=rngs)
        self.out = sizes.conv(current, moments, rngs=rngs)
        self.quant = sizes.conv(moments, moments, 1, rngs=rngs) if config.quant else None

    def __call__(
        self, images: Float[Array, "batch height width channel"]
    ) -> tuple[Float[Array, "batch _h _w latent"], Float[Array, "batch _h _w latent"]]:
        """Return the mean and the log-variance of the latents, float32."""
        (_, height, width, channels), factor = images.shape, self.config.downsampling
        divisible = height % factor == 0 and width % factor == 0
        require(divisible, "image size", f"be a multiple of {factor}", f"{height}x{width}")
        require(
            channels == self.config.channels_in,
            "images",
            f"have {self.config.channels_in} channels",
            channels,
        )
        h = self.inputs(images)
        for name in self.down_order:
            h = self.down[name](h)
        h = self.out(nnx.silu(self.norm(self.middle(h))))
        h = at_least_float32(h if self.quant is None else self.quant(h))
        mean, log_variance = jnp.split(h, 2, axis=-1)
        return mean, jnp.clip(log_variance, _MIN_LOG_VARIANCE, _MAX_LOG_VARIANCE)


class Decoder(nnx.Module):
    """Decoder of latents to images."""

    def __init__(self, config: AutoencoderConfig, *, rngs: nnx.Rngs):
        self.config, sizes, latent = config, config.sizes, config.latent_channels
        self.quant = sizes.conv(latent, latent, 1, rngs=rngs) if config.post_quant else None
        current = config.widths[-1]
        self.inputs = sizes.conv(latent, current, rngs=rngs)
        self.middle = Middle(sizes, current, attend=config.attend, rngs=rngs)
        up, num_blocks = {}, config.num_blocks + 1
        for i, width in reversed(list(enumerate(config.widths))):
            change = "up" if i > 0 else "none"
            up[f"level{i}"] = Level(sizes, current, width, num_blocks, change, rngs=rngs)
            current = width
        self.up, self.up_order = nnx.Dict(up), tuple(up)  # nnx.Dict sorts its keys.
        self.norm = sizes.norm(current, rngs=rngs)
        self.out = sizes.conv(current, config.channels_out, rngs=rngs)

    def __call__(
        self, latents: Float[Array, "batch height width latent"]
    ) -> Float[Array, "batch _height _width channel"]:
        """Return the images, float32."""
        channels = self.config.latent_channels
        matches = latents.shape[-1] == channels
        require(matches, "latents", f"have {channels} channels", latents.shape[-1])
        h = self.inputs(latents if self.quant is None else self.quant(latents))
        h = self.middle(h)
        for name in self.up_order:
            h = self.up[name](h)
        return at_least_float32(self.out(nnx.silu(self.norm(h))))


def make_autoencoder(config: AutoencoderConfig) -> Autoencoder:
    """Build an autoencoder as pure functions, for images and latents of any size.

    Images are `[batch, height, width, channel]` in [-1, 1]. The sides of latents are smaller by the
    factor `config.downsampling`. All outputs are float32. Latents are not scaled; flow models use
    `config.scaled(latents)`.

    Raises:
        ValueError: When called, if the sides of an image are not multiples of
            `config.downsampling`, or the channels of images or latents do not match the config.
    """
    encoder = functionalize(lambda rngs: Encoder(config, rngs=rngs))
    decoder = functionalize(lambda rngs: Decoder(config, rngs=rngs))

    def init(key: PRNGKey) -> Params:
        encoder_key, decoder_key = jax.random.split(key)
        return {"encoder": encoder.init(encoder_key), "decoder": decoder.init(decoder_key)}

    def encode(params: Params, images: Array) -> tuple[Array, Array]:
        return encoder.apply(params["encoder"], images)

    def decode(params: Params, latents: Array) -> Array:
        return decoder.apply(params["decoder"], latents)

    parts = {"encoder": encoder.tensor_axes, "decoder": decoder.tensor_axes}
    axes = {f"{part}.{name}": axis for part, axes in parts.items() for name, axis in axes.items()}
    return Autoencoder(init, encode, decode, axes)
