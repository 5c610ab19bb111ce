"""UNet with attention, as in ADM and DDPM++.

Time and class scale and shift the second norm of each residual block. Attention is applied at
selected resolutions, and up- and downsampling are part of residual blocks.

Reference: Dhariwal and Nichol 2021, arXiv:2105.05233, section 3 and appendix A; Song et al. 2021
(DDPM++), arXiv:2011.13456, appendix H.
"""

import itertools
import math
from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from fmjax._arrays import Cond, Points, Times
from fmjax._checks import require, require_at_least
from fmjax._specs import CondSpec, FlowMapConditions
from fmjax.networks.layers.attention import attention
from fmjax.networks.layers.computation import require_computable
from fmjax.networks.layers.conditions import (
    ConditionEmbedding,
    join_conditions,
    joined_conditions,
)
from fmjax.networks.layers.convolution import Conv, Resample, conv_init, resample
from fmjax.networks.layers.dropout import dropout
from fmjax.networks.layers.functional import functionalize
from fmjax.networks.layers.linear import (
    INPUTS,
    OUTPUTS,
    Linear,
    ToHeads,
    at_least_float32,
    compute_dtype,
)
from fmjax.paths import VelocityNet


@dataclass(frozen=True)
class UNetConfig:
    """Sizes and options of a UNet.

    Attributes:
        width: Channels at full resolution.
        multipliers: Channels of each level divided by `width`; each level halves the resolution.
        num_blocks: Residual blocks per level of the encoder; the decoder has one more.
        attention_resolutions: Image heights, in pixels, at which attention follows each block.
        head_width: Channels of an attention head.
        num_groups: Maximum number of groups of the group norms; the actual number is the greatest
            common divisor with the channels.
        dropout: Probability in [0, 1) that training drops a feature before the second convolution
            of a residual block, as in DDPM (0.1 for CIFAR-10); sampling drops none.
        dtype: Type of the computation, "float32" or "bfloat16"; parameters are float32.
        attention: Attention implementation, "auto", "xla", "splash" or "cudnn" (see `DiTConfig`).
    """

    width: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    num_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (16,)
    head_width: int = 64
    num_groups: int = 32
    dropout: float = 0.0
    dtype: str = "float32"
    attention: str = "auto"

    def __post_init__(self):
        for name in ("width", "num_blocks", "head_width", "num_groups"):
            require_at_least(name, getattr(self, name), 1)
        is_valid = len(self.multipliers) > 0 and all(m >= 1 for m in self.multipliers)
        require(is_valid, "multipliers", "be one or more positive integers", self.multipliers)
        require(0.0 <= self.dropout < 1.0, "dropout", "lie in [0, 1)", self.dropout)
        require_computable(self)


class ResBlock(nnx.Module):
    """Residual block: norm, convolution, norm with scale and shift, dropout, convolution."""

    def __init__(
        self,
        config: UNetConfig,
        channels_in: int,
        channels_out: int,
        resample: Resample = "none",
        *,
        rngs: nnx.Rngs,
    ):
        dtype = compute_dtype(config.dtype)
        self.resample: Resample = resample
        self.dropout = config.dropout
        self.norm_in = group_norm(config, channels_in, rngs=rngs)
        self.conv_in = conv(channels_in, channels_out, 3, config, split=OUTPUTS, rngs=rngs)
        self.condition = Linear(4 * config.width, 2 * channels_out, dtype=dtype, rngs=rngs)
        self.norm_out = group_norm(config, channels_out, rngs=rngs)
        self.conv_out = conv(
            channels_out, channels_out, 3, config, zeros=True, split=INPUTS, rngs=rngs
        )
        self.skip = (
            None
            if channels_in == channels_out
            else conv(channels_in, channels_out, 1, config, rngs=rngs)
        )

    def __call__(
        self,
        h: Float[Array, "batch height width channel"],
        c: Float[Array, "batch embedding"],
        keys: Key[Array, " batch"] | None = None,
        index: int = 0,
    ) -> Float[Array, "batch _height _width _channel"]:
        """Return the output feature map; `index` is the block's number in the network."""
        inner = resample(nnx.silu(self.norm_in(h)), self.resample)
        inner = self.conv_in(inner)
        scale, shift = jnp.split(self.condition(c)[:, None, None, :], 2, axis=-1)
        inner = nnx.silu(self.norm_out(inner) * (1.0 + scale) + shift)
        inner = self.conv_out(dropout(inner, self.dropout, keys, index))
        h = resample(h, self.resample)
        return inner + (h if self.skip is None else self.skip(h))


class AttentionBlock(nnx.Module):
    """Residual self-attention over all pixels, with a group norm before it."""

    def __init__(self, config: UNetConfig, channels: int, *, rngs: nnx.Rngs):
        self.num_heads = max(1, channels // config.head_width)
        divisible = channels % self.num_heads == 0
        require(divisible, "head_width", f"divide the {channels} channels", config.head_width)
        zeros, self.implementation = nnx.initializers.zeros, config.attention
        self.norm = group_norm(config, channels, rngs=rngs)
        dtype = compute_dtype(config.dtype)
        lecun = nnx.initializers.lecun_normal()
        self.to_heads = ToHeads(channels, self.num_heads, dtype=dtype, kernel_init=lecun, rngs=rngs)
        self.out = Linear(
            channels, channels, split=INPUTS, dtype=dtype, kernel_init=zeros, rngs=rngs
        )

    def __call__(
        self, h: Float[Array, "batch height width channel"]
    ) -> Float[Array, "batch height width channel"]:
        """Return the output feature map."""
        batch, height, width, channels = h.shape
        tokens = self.norm(h).reshape(batch, height * width, channels)
        q, k, v = self.to_heads.heads(tokens)
        attended = attention(q, k, v, self.implementation).transpose(0, 2, 1, 3)
        return h + self.out(attended.reshape(batch, height, width, channels))


class Stage(nnx.Module):
    """Residual block, optionally followed by attention."""

    def __init__(
        self,
        config: UNetConfig,
        channels_in: int,
        channels_out: int,
        *,
        attend: bool,
        resample: Resample = "none",
        rngs: nnx.Rngs,
    ):
        self.block = ResBlock(config, channels_in, channels_out, resample, rngs=rngs)
        self.attention = AttentionBlock(config, channels_out, rngs=rngs) if attend else None

    def __call__(
        self,
        h: Float[Array, "batch height width channel"],
        c: Float[Array, "batch embedding"],
        keys: Key[Array, " batch"] | None = None,
        index: int = 0,
    ) -> Float[Array, "batch _height _width _channel"]:
        """Return the output feature map; `index` is the block's number in the network."""
        h = self.block(h, c, keys, index)
        return h if self.attention is None else self.attention(h)


class UNet(nnx.Module):
    """UNet with skip connections from each encoder block to the decoder."""

    def __init__(
        self,
        config: UNetConfig,
        event_shape: tuple[int, ...],
        conditions: CondSpec | FlowMapConditions | int,
        *,
        rngs: nnx.Rngs,
    ):
        height, _, channels = event_shape
        widths = [config.width * m for m in config.multipliers]
        attends = [height >> level in config.attention_resolutions for level in range(len(widths))]

        def stage(
            channels_in: int, channels_out: int, level: int, resample: Resample = "none"
        ) -> Stage:
            attend = attends[level] and resample == "none"
            return Stage(
                config, channels_in, channels_out, attend=attend, resample=resample, rngs=rngs
            )

        self.joined, num_joined = joined_conditions("a UNet", event_shape, conditions, num_axes=2)
        self.embed = ConditionEmbedding(4 * config.width, conditions, self.joined, rngs=rngs)
        self.inputs = conv(channels + num_joined, config.width, 3, config, rngs=rngs)
        down, up, skips, current = {}, {}, [config.width], config.width
        for level, width in enumerate(widths):
            for i in range(config.num_blocks):
                down[f"level{level}_block{i}"] = stage(current, width, level)
                current = width
                skips.append(current)
            if level < len(widths) - 1:
                down[f"level{level}_down"] = stage(current, current, level, "down")
                skips.append(current)
        self.middle_in = Stage(config, current, current, attend=True, rngs=rngs)
        self.middle_out = Stage(config, current, current, attend=False, rngs=rngs)
        for level, width in reversed(list(enumerate(widths))):
            for i in range(config.num_blocks + 1):
                up[f"level{level}_block{i}"] = stage(current + skips.pop(), width, level)
                current = width
            if level > 0:
                up[f"level{level}_up"] = stage(current, current, level, "up")
        self.down, self.up = nnx.Dict(down), nnx.Dict(up)
        self.down_order, self.up_order = tuple(down), tuple(up)  # nnx.Dict sorts its keys.
        self.norm = group_norm(config, current, rngs=rngs)
        self.out = conv(current, channels, 3, config, zeros=True, rngs=rngs)

    def __call__(
        self, t: Times, x: Points, cond: Cond, keys: Key[Array, " batch"] | None = None
    ) -> Points:
        """Return the prediction, float32, shaped like x; with keys, as in training."""
        numbers = itertools.count()
        c = nnx.silu(self.embed(t, cond))
        h = self.inputs(join_conditions(x, cond, self.joined))
        skips = [h]
        for name in self.down_order:
            h = self.down[name](h, c, keys, next(numbers))
            skips.append(h)
        h = self.middle_in(h, c, keys, next(numbers))
        h = self.middle_out(h, c, keys, next(numbers))
        for name in self.up_order:
            h = h if name.endswith("_up") else jnp.concatenate([h, skips.pop()], axis=-1)
            h = self.up[name](h, c, keys, next(numbers))
        return at_least_float32(self.out(nnx.silu(self.norm(h))))


def make_unet(
    config: UNetConfig,
    event_shape: tuple[int, ...],
    conditions: CondSpec | FlowMapConditions | int = None,
) -> VelocityNet:
    """Build a UNet as pure functions. Its output is zero at initialization.

    Args:
        config: Sizes and options of the UNet.
        event_shape: (height, width, channel) of an image.
        conditions: Description of the condition: labels (or their number), vectors, sequences,
            images of the same height and width, or a dict of these; conditions of a flow map, or
            None. Images are joined to the sample on the channels.

    Raises:
        ValueError: If `event_shape` is not an image, its sides are not divisible by
            2^(levels - 1), an attention resolution is not the height of a level, or the network
            does not take one of the conditions. When called, if the condition is not as described.
    """
    require(len(event_shape) == 3, "event_shape", "be (height, width, channel)", event_shape)
    factor = 2 ** (len(config.multipliers) - 1)
    divisible = event_shape[0] % factor == 0 and event_shape[1] % factor == 0
    rule = f"be a multiple of {factor} for {len(config.multipliers)} levels"
    require(divisible, "image size", rule, f"{event_shape[0]}x{event_shape[1]}")
    heights = tuple(event_shape[0] // 2**level for level in range(len(config.multipliers)))
    known = set(config.attention_resolutions) <= set(heights)
    rule = f"be among the heights of the levels, {heights}"
    require(known, "attention_resolutions", rule, config.attention_resolutions)

    def build(rngs: nnx.Rngs) -> UNet:
        return UNet(config, event_shape, conditions, rngs=rngs)

    return VelocityNet(*functionalize(build), takes_keys=config.dropout > 0.0)


def conv(
    channels_in: int,
    channels_out: int,
    size: int,
    config: UNetConfig,
    *,
    zeros: bool = False,
    split: int | None = None,
    rngs: nnx.Rngs,
) -> Conv:
    """Build a convolution with a `size` x `size` kernel that keeps the resolution."""
    return Conv(
        channels_in,
        channels_out,
        size,
        split=split,
        dtype=compute_dtype(config.dtype),
        kernel_init=nnx.initializers.zeros if zeros else conv_init,
        rngs=rngs,
    )


def group_norm(config: UNetConfig, channels: int, *, rngs: nnx.Rngs) -> nnx.GroupNorm:
    """Build a float32 group norm with `gcd(channels, num_groups)` groups."""
    num_groups = math.gcd(channels, config.num_groups)
    return nnx.GroupNorm(channels, num_groups, epsilon=1e-5, rngs=rngs)
