"""Residual blocks, attention and resolution levels of the autoencoder."""

from typing import Any, NamedTuple

import jax
from flax import nnx
from jaxtyping import Array, Float

from fmjax.networks.layers.attention import attention
from fmjax.networks.layers.convolution import Conv, Resample, conv_init, resample
from fmjax.networks.layers.linear import Linear, compute_dtype


class Sizes(NamedTuple):
    """Sizes and options shared by all blocks of an autoencoder.

    Attributes:
        num_groups: Number of groups of the group norms.
        dtype: Type of the computation, "float32" or "bfloat16"; parameters are float32.
        attention: Attention implementation (see `layers.attention.attention`).
    """

    num_groups: int
    dtype: str
    attention: str

    def conv(
        self, channels_in: int, channels_out: int, size: int = 3, *, stride: int = 1, rngs: nnx.Rngs
    ) -> Conv:
        """Build a convolution with a `size` x `size` kernel."""
        settings: dict[str, Any] = dict(dtype=compute_dtype(self.dtype), kernel_init=conv_init)
        return Conv(channels_in, channels_out, size, stride=stride, rngs=rngs, **settings)

    def norm(self, channels: int, *, rngs: nnx.Rngs) -> nnx.GroupNorm:
        """Build a float32 group norm.

        The variance is computed from centered values, because `E[x^2] - E[x]^2` loses precision
        for the large means of these features.
        """
        return nnx.GroupNorm(
            channels, self.num_groups, epsilon=1e-6, use_fast_variance=False, rngs=rngs
        )


class ResBlock(nnx.Module):
    """Residual block of two norms, SiLU activations and convolutions."""

    def __init__(self, sizes: Sizes, channels_in: int, channels_out: int, *, rngs: nnx.Rngs):
        self.norm_in = sizes.norm(channels_in, rngs=rngs)
        self.conv_in = sizes.conv(channels_in, channels_out, rngs=rngs)
        self.norm_out = sizes.norm(channels_out, rngs=rngs)
        self.conv_out = sizes.conv(channels_out, channels_out, rngs=rngs)
        self.skip = (
            None
            if channels_in == channels_out
            else sizes.conv(channels_in, channels_out, 1, rngs=rngs)
        )

    def __call__(
        self, h: Float[Array, "batch height width channels_in"]
    ) -> Float[Array, "batch height width channels_out"]:
        """Return the output feature map."""
        inner = self.conv_in(nnx.silu(self.norm_in(h)))
        inner = self.conv_out(nnx.silu(self.norm_out(inner)))
        return inner + (h if self.skip is None else self.skip(h))


class AttentionBlock(nnx.Module):
    """Residual single-head self-attention over all pixels, with a group norm before it."""

    def __init__(self, sizes: Sizes, channels: int, *, rngs: nnx.Rngs):
        self.implementation = sizes.attention
        self.norm = sizes.norm(channels, rngs=rngs)

        def linear() -> Linear:
            return Linear(channels, channels, dtype=compute_dtype(sizes.dtype), rngs=rngs)

        self.query, self.key, self.value, self.out = linear(), linear(), linear(), linear()

    def __call__(
        self, h: Float[Array, "batch height width channel"]
    ) -> Float[Array, "batch height width channel"]:
        """Return the output feature map."""
        batch, height, width, channels = h.shape
        tokens = self.norm(h).reshape(batch, 1, height * width, channels)
        q, k, v = self.query(tokens), self.key(tokens), self.value(tokens)
        return h + self.out(attention(q, k, v, self.implementation)).reshape(h.shape)


class Middle(nnx.Module):
    """Blocks at the lowest resolution: two residual blocks with optional attention between them."""

    def __init__(self, sizes: Sizes, channels: int, *, attend: bool, rngs: nnx.Rngs):
        self.first = ResBlock(sizes, channels, channels, rngs=rngs)
        self.attention = AttentionBlock(sizes, channels, rngs=rngs) if attend else None
        self.last = ResBlock(sizes, channels, channels, rngs=rngs)

    def __call__(
        self, h: Float[Array, "batch height width channel"]
    ) -> Float[Array, "batch height width channel"]:
        """Return the output feature map."""
        h = self.first(h)
        return self.last(h if self.attention is None else self.attention(h))


class Level(nnx.Module):
    """Residual blocks of one resolution, followed by a change to the next resolution."""

    def __init__(
        self,
        sizes: Sizes,
        channels_in: int,
        channels_out: int,
        num_blocks: int,
        change: Resample,
        *,
        rngs: nnx.Rngs,
    ):
        blocks = {
            f"block{i}": ResBlock(
                sizes, channels_out if i else channels_in, channels_out, rngs=rngs
            )
            for i in range(num_blocks)
        }
        self.blocks, self.order = nnx.Dict(blocks), tuple(blocks)  # nnx.Dict sorts its keys.
        self.change: Resample = change
        stride = 2 if change == "down" else 1
        self.resample = (
            None
            if change == "none"
            else sizes.conv(channels_out, channels_out, stride=stride, rngs=rngs)
        )

    def __call__(self, h: Float[Array, "batch height width channels_in"]) -> jax.Array:
        """Return the feature map of the next level."""
        for name in self.order:
            h = self.blocks[name](h)
        if self.resample is None:
            return h
        return self.resample(resample(h, "up") if self.change == "up" else h)
