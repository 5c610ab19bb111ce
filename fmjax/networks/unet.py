"""UNet with attention, of the ADM and DDPM++ kind.

Residual blocks whose second norm is scaled and shifted by time and class, attention at
chosen resolutions, and up- and downsampling inside residual blocks.

Source: Dhariwal and Nichol 2021, arXiv:2105.05233, section 3 and appendix A; Song et al. 2021
(DDPM++), arXiv:2011.13456, appendix H.
"""

import math
from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fmjax._arrays import Cond, FlowMapConditions, Points, Times
from fmjax._checks import require, require_at_least
from fmjax.networks.layers.attention import attention
from fmjax.networks.layers.computation import require_computable
from fmjax.networks.layers.convolution import Conv, Resample, conv_init, resample
from fmjax.networks.layers.functional import functionalize
from fmjax.networks.layers.linear import (
    INPUTS,
    OUTPUTS,
    ConditionEmbedding,
    Linear,
    ToHeads,
    at_least_float32,
    compute_dtype,
)
from fmjax.paths import VelocityNet


@dataclass(frozen=True)
class UNetConfig:
    """Sizes and choices of a UNet.

    Attributes:
        width: Channels at full resolution.
        multipliers: Channels of each level over `width`; each level halves the resolution.
        num_blocks: Residual blocks of each level on the way down (one more on the way up).
        attention_resolutions: Image heights, in pixels, at which attention follows each block.
        head_width: Channels of an attention head.
        num_groups: Groups of the group norms, at most (as many as divide the channels).
        dtype: Of the computation, "float32" or "bfloat16"; parameters are float32.
        attention: As of `DiTConfig`.
    """

    width: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    num_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (16,)
    head_width: int = 64
    num_groups: int = 32
    dtype: str = "float32"
    attention: str = "auto"

    def __post_init__(self):
        for name in ("width", "num_blocks", "head_width", "num_groups"):
            require_at_least(name, getattr(self, name), 1)
        ok = len(self.multipliers) > 0 and all(m >= 1 for m in self.multipliers)
        require(ok, "multipliers", "be one or more positive integers", self.multipliers)
        require_computable(self)


class ResBlock(nnx.Module):
    """Norm, convolution, norm with scale and shift, convolution; a skip around all of it."""

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
        self, h: Float[Array, "batch height width channel"], c: Float[Array, "batch embedding"]
    ) -> Float[Array, "batch _height _width _channel"]:
        """Give the next feature map."""
        inner = resample(nnx.silu(self.norm_in(h)), self.resample)
        inner = self.conv_in(inner)
        scale, shift = jnp.split(self.condition(c)[:, None, None, :], 2, axis=-1)
        inner = self.conv_out(nnx.silu(self.norm_out(inner) * (1.0 + scale) + shift))
        h = resample(h, self.resample)
        return inner + (h if self.skip is None else self.skip(h))


class AttentionBlock(nnx.Module):
    """Attention of all pixels to all, with a norm before and a skip around."""

    def __init__(self, config: UNetConfig, channels: int, *, rngs: nnx.Rngs):
        self.num_heads = max(1, channels // config.head_width)
        ok = channels % self.num_heads == 0
        require(ok, "head_width", f"divide the {channels} channels", config.head_width)
        zeros, self.kind = nnx.initializers.zeros, config.attention
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
        """Give the feature map, each pixel having seen all others."""
        batch, height, width, channels = h.shape
        tokens = self.norm(h).reshape(batch, height * width, channels)
        q, k, v = self.to_heads.heads(tokens)
        mixed = attention(q, k, v, self.kind).transpose(0, 2, 1, 3)
        return h + self.out(mixed.reshape(batch, height, width, channels))


class Stage(nnx.Module):
    """One residual block, then attention where the resolution has it."""

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
        self, h: Float[Array, "batch height width channel"], c: Float[Array, "batch embedding"]
    ) -> Float[Array, "batch _height _width _channel"]:
        """Give the next feature map."""
        h = self.block(h, c)
        return h if self.attention is None else self.attention(h)


class UNet(nnx.Module):
    """Down to the lowest resolution and up again, with every feature map of the way down joined."""

    def __init__(
        self,
        config: UNetConfig,
        event_shape: tuple[int, ...],
        conditions: int | FlowMapConditions | None,
        *,
        rngs: nnx.Rngs,
    ):
        height, _, channels = event_shape
        widths = [config.width * m for m in config.multipliers]
        attends = [height >> level in config.attention_resolutions for level in range(len(widths))]

        def stage(before: int, after: int, level: int, resample: Resample = "none") -> Stage:
            attend = attends[level] and resample == "none"
            return Stage(config, before, after, attend=attend, resample=resample, rngs=rngs)

        self.embed = ConditionEmbedding(4 * config.width, conditions, rngs=rngs)
        self.inputs = conv(channels, config.width, 3, config, rngs=rngs)
        down, up, skips, current = {}, {}, [config.width], config.width
        for level, after in enumerate(widths):
            for i in range(config.num_blocks):
                down[f"level{level}_block{i}"] = stage(current, after, level)
                current = after
                skips.append(current)
            if level < len(widths) - 1:
                down[f"level{level}_down"] = stage(current, current, level, "down")
                skips.append(current)
        self.middle_in = Stage(config, current, current, attend=True, rngs=rngs)
        self.middle_out = Stage(config, current, current, attend=False, rngs=rngs)
        for level, after in reversed(list(enumerate(widths))):
            for i in range(config.num_blocks + 1):
                up[f"level{level}_block{i}"] = stage(current + skips.pop(), after, level)
                current = after
            if level > 0:
                up[f"level{level}_up"] = stage(current, current, level, "up")
        self.down, self.up = nnx.Dict(down), nnx.Dict(up)
        self.way_down, self.way_up = tuple(down), tuple(up)  # nnx.Dict sorts its keys
        self.norm = group_norm(config, current, rngs=rngs)
        self.out = conv(current, channels, 3, config, zeros=True, rngs=rngs)

    def __call__(self, t: Times, x: Points, cond: Cond) -> Points:
        """Give the prediction, float32, shaped like x."""
        c = nnx.silu(self.embed(t, cond))
        h = self.inputs(x)
        skips = [h]
        for name in self.way_down:
            h = self.down[name](h, c)
            skips.append(h)
        h = self.middle_out(self.middle_in(h, c), c)
        for name in self.way_up:
            joined = h if name.endswith("_up") else jnp.concatenate([h, skips.pop()], axis=-1)
            h = self.up[name](joined, c)
        return at_least_float32(self.out(nnx.silu(self.norm(h))))


def make_unet(
    config: UNetConfig,
    event_shape: tuple[int, ...],
    conditions: int | FlowMapConditions | None = None,
) -> VelocityNet:
    """A UNet for images of `event_shape` = (height, width, channel) as pure functions.

    Its output is zero at the start. With classes, label `num_classes` is the null class.

    Raises:
        ValueError: If the event is no image, its sides cannot be halved between all levels, or
            no level has the height of one of the attention resolutions; if a label comes to a
            network without classes, or none to one with classes.
    """
    require(len(event_shape) == 3, "event_shape", "be (height, width, channel)", event_shape)
    factor = 2 ** (len(config.multipliers) - 1)
    ok = event_shape[0] % factor == 0 and event_shape[1] % factor == 0
    rule = f"be a multiple of {factor} for {len(config.multipliers)} levels"
    require(ok, "image size", rule, f"{event_shape[0]}x{event_shape[1]}")
    heights = tuple(event_shape[0] // 2**level for level in range(len(config.multipliers)))
    known = set(config.attention_resolutions) <= set(heights)
    rule = f"be among the heights of the levels, {heights}"
    require(known, "attention_resolutions", rule, config.attention_resolutions)

    def build(rngs: nnx.Rngs) -> UNet:
        return UNet(config, event_shape, conditions, rngs=rngs)

    return VelocityNet(*functionalize(build))


def conv(
    before: int,
    after: int,
    size: int,
    config: UNetConfig,
    *,
    zeros: bool = False,
    split: int | None = None,
    rngs: nnx.Rngs,
) -> Conv:
    """Convolution of `size` x `size` pixels that keeps the resolution."""
    return Conv(
        before,
        after,
        size,
        split=split,
        dtype=compute_dtype(config.dtype),
        kernel_init=nnx.initializers.zeros if zeros else conv_init,
        rngs=rngs,
    )


def group_norm(config: UNetConfig, channels: int, *, rngs: nnx.Rngs) -> nnx.GroupNorm:
    """Group norm, float32 as its parameters, with the most groups that divide the channels."""
    groups = math.gcd(channels, config.num_groups)
    return nnx.GroupNorm(channels, groups, epsilon=1e-5, rngs=rngs)
