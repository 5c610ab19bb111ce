"""The autoencoder whose latents SD3 and FLUX work on: images to Gaussians of latents, and back.

Residual blocks of convolutions, with attention of all pixels to all at the lowest resolution. It is
diffusers' `AutoencoderKL`.

Source: Kingma and Welling 2013, arXiv:1312.6114, section 3; Rombach et al. 2021,
arXiv:2112.10752, section 3.1 and appendix G.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

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

_LEAST_LOG_VARIANCE, _MOST_LOG_VARIANCE = -30.0, 20.0


@dataclass(frozen=True)
class AutoencoderConfig:
    """Sizes and choices of an autoencoder; its default sizes are those of SD3 and FLUX.

    Attributes:
        channels_in: Of the images that are encoded.
        channels_out: Of the images that are decoded.
        latent_channels: Of the latents.
        widths: Channels of each level, from full resolution down; each halves the resolution.
        num_blocks: Residual blocks of each level of the encoder (one more in the decoder).
        num_groups: Groups of the group norms.
        attend: Whether the middle has attention.
        quant: Whether a 1x1 convolution follows the encoder.
        post_quant: Whether a 1x1 convolution comes before the decoder.
        scale: Of latents to about unit variance, see `scaled`.
        shift: Subtracted before that.
        dtype: Of the computation, "float32" or "bfloat16"; parameters are float32.
        attention: By which means, as of `DiTConfig`.
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
        ok = len(self.widths) > 0 and all(w >= 1 and w % self.num_groups == 0 for w in self.widths)
        rule = f"be one or more positive multiples of num_groups = {self.num_groups}"
        require(ok, "widths", rule, self.widths)
        require_positive("scale", self.scale)
        require_computable(self)

    @property
    def downsampling(self) -> int:
        """Pixels of an image along one side of a pixel of its latents."""
        return 2 ** (len(self.widths) - 1)

    @property
    def sizes(self) -> Sizes:
        """What its blocks have in common."""
        return Sizes(self.num_groups, self.dtype, self.attention)

    def scaled(self, latents: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Latents of about unit variance, which flow models are trained on."""
        return (latents - self.shift) * self.scale

    def unscaled(self, latents: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """The inverse of `scaled`: latents as the decoder takes them."""
        return latents / self.scale + self.shift


class Autoencoder(NamedTuple):
    """An autoencoder as pure functions.

    Params are `{"encoder": ..., "decoder": ...}`; each function reads its own half alone.

    Attributes:
        init: `init(key) -> params`.
        encode: `encode(params, images) -> (mean, log_variance)` of the latents.
        decode: `decode(params, latents) -> images`.
        tensor_axes: As of `VelocityNet`.
    """

    init: Callable[[PRNGKey], Params]
    encode: Callable[[Params, Array], tuple[Array, Array]]
    decode: Callable[[Params, Array], Array]
    tensor_axes: Mapping[str, int]


class Encoder(nnx.Module):
    """Down level by level, through the middle, to means and log-variances."""

    def __init__(self, config: AutoencoderConfig, *, rngs: nnx.Rngs):
        self.config, sizes, widths = config, config.sizes, config.widths
        moments, last = 2 * config.latent_channels, len(widths) - 1
        self.inputs = sizes.conv(config.channels_in, widths[0], rngs=rngs)
        down, before = {}, widths[0]
        for i, after in enumerate(widths):
            change = "down" if i < last else "none"
            down[f"level{i}"] = Level(sizes, before, after, config.num_blocks, change, rngs=rngs)
            before = after
        self.down, self.way_down = nnx.Dict(down), tuple(down)  # nnx.Dict sorts its keys
        self.middle = Middle(sizes, before, attend=config.attend, rngs=rngs)
        self.norm = sizes.norm(before, rngs=rngs)
        self.out = sizes.conv(before, moments, rngs=rngs)
        self.quant = sizes.conv(moments, moments, 1, rngs=rngs) if config.quant else None

    def __call__(
        self, images: Float[Array, "batch height width channel"]
    ) -> tuple[Float[Array, "batch _h _w latent"], Float[Array, "batch _h _w latent"]]:
        """Give the mean and the log-variance of the latents, float32."""
        (_, height, width, channels), factor = images.shape, self.config.downsampling
        divides = height % factor == 0 and width % factor == 0
        require(divides, "image size", f"be a multiple of {factor}", f"{height}x{width}")
        require(
            channels == self.config.channels_in,
            "images",
            f"have {self.config.channels_in} channels",
            channels,
        )
        h = self.inputs(images)
        for name in self.way_down:
            h = self.down[name](h)
        h = self.out(nnx.silu(self.norm(self.middle(h))))
        h = at_least_float32(h if self.quant is None else self.quant(h))
        mean, log_variance = jnp.split(h, 2, axis=-1)
        return mean, jnp.clip(log_variance, _LEAST_LOG_VARIANCE, _MOST_LOG_VARIANCE)


class Decoder(nnx.Module):
    """From latents through the middle, and up level by level."""

    def __init__(self, config: AutoencoderConfig, *, rngs: nnx.Rngs):
        self.config, sizes, latent = config, config.sizes, config.latent_channels
        self.quant = sizes.conv(latent, latent, 1, rngs=rngs) if config.post_quant else None
        before = config.widths[-1]
        self.inputs = sizes.conv(latent, before, rngs=rngs)
        self.middle = Middle(sizes, before, attend=config.attend, rngs=rngs)
        up, num_blocks = {}, config.num_blocks + 1
        for i, after in reversed(list(enumerate(config.widths))):
            change = "up" if i > 0 else "none"
            up[f"level{i}"] = Level(sizes, before, after, num_blocks, change, rngs=rngs)
            before = after
        self.up, self.way_up = nnx.Dict(up), tuple(up)
        self.norm = sizes.norm(before, rngs=rngs)
        self.out = sizes.conv(before, config.channels_out, rngs=rngs)

    def __call__(
        self, latents: Float[Array, "batch height width latent"]
    ) -> Float[Array, "batch _height _width channel"]:
        """Give the images, float32."""
        channels = self.config.latent_channels
        right = latents.shape[-1] == channels
        require(right, "latents", f"have {channels} channels", latents.shape[-1])
        h = self.inputs(latents if self.quant is None else self.quant(latents))
        h = self.middle(h)
        for name in self.way_up:
            h = self.up[name](h)
        return at_least_float32(self.out(nnx.silu(self.norm(h))))


def make_autoencoder(config: AutoencoderConfig) -> Autoencoder:
    """An autoencoder as pure functions, for images and latents of any size.

    Images are `[batch, height, width, channel]` in [-1, 1], latents the same with sides smaller by
    `config.downsampling`. What the functions give is float32. Latents are those of the decoder;
    flow models see `config.scaled(latents)`.

    Raises:
        ValueError: When called, if an image's sides are no multiples of `config.downsampling`, or
            images or latents have other channels than the config says.
    """
    encoder = functionalize(lambda rngs: Encoder(config, rngs=rngs))
    decoder = functionalize(lambda rngs: Decoder(config, rngs=rngs))

    def init(key: PRNGKey) -> Params:
        of_encoder, of_decoder = jax.random.split(key)
        return {"encoder": encoder.init(of_encoder), "decoder": decoder.init(of_decoder)}

    def encode(params: Params, images: Array) -> tuple[Array, Array]:
        return encoder.apply(params["encoder"], images)

    def decode(params: Params, latents: Array) -> Any:
        return decoder.apply(params["decoder"], latents)

    halves = {"encoder": encoder.tensor_axes, "decoder": decoder.tensor_axes}
    axes = {f"{half}.{name}": axis for half, all_ in halves.items() for name, axis in all_.items()}
    return Autoencoder(init, encode, decode, axes)
