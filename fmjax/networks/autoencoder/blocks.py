"""Blocks of the autoencoder in `networks/autoencoder/autoencoder.py`."""

from typing import Any, NamedTuple

import jax
from flax import nnx
from jaxtyping import Array, Float

from fmjax.networks.layers.attention import attention
from fmjax.networks.layers.convolution import Conv, Resample, conv_init, resample
from fmjax.networks.layers.linear import Linear, compute_dtype


class Sizes(NamedTuple):
    """What all blocks of an autoencoder have in common.

    Attributes:
        num_groups: As of `AutoencoderConfig`, and so the others.
        dtype: See `num_groups`.
        attention: See `num_groups`.
    """

    num_groups: int
    dtype: str
    attention: str

    def conv(
        self, before: int, after: int, size: int = 3, *, stride: int = 1, rngs: nnx.Rngs
    ) -> Conv:
        """A convolution of `size` x `size` pixels."""
        settings: dict[str, Any] = dict(dtype=compute_dtype(self.dtype), kernel_init=conv_init)
        return Conv(before, after, size, stride=stride, rngs=rngs, **settings)

    def norm(self, channels: int, *, rngs: nnx.Rngs) -> nnx.GroupNorm:
        """Group norm, float32 as its parameters.

        The variance is that of centred values: as a difference of squares it would lose digits to
        the large means that these features have.
        """
        return nnx.GroupNorm(
            channels, self.num_groups, epsilon=1e-6, use_fast_variance=False, rngs=rngs
        )


class ResBlock(nnx.Module):
    """Norm, silu and convolution, twice; a skip around all of it."""

    def __init__(self, sizes: Sizes, before: int, after: int, *, rngs: nnx.Rngs):
        self.norm_in = sizes.norm(before, rngs=rngs)
        self.conv_in = sizes.conv(before, after, rngs=rngs)
        self.norm_out = sizes.norm(after, rngs=rngs)
        self.conv_out = sizes.conv(after, after, rngs=rngs)
        self.skip = None if before == after else sizes.conv(before, after, 1, rngs=rngs)

    def __call__(
        self, h: Float[Array, "batch height width before"]
    ) -> Float[Array, "batch height width after"]:
        """Give the next feature map."""
        inner = self.conv_in(nnx.silu(self.norm_in(h)))
        inner = self.conv_out(nnx.silu(self.norm_out(inner)))
        return inner + (h if self.skip is None else self.skip(h))


class AttentionBlock(nnx.Module):
    """Attention of all pixels to all, of one head, with a norm before and a skip around."""

    def __init__(self, sizes: Sizes, channels: int, *, rngs: nnx.Rngs):
        self.kind = sizes.attention
        self.norm = sizes.norm(channels, rngs=rngs)

        def linear() -> Linear:
            return Linear(channels, channels, dtype=compute_dtype(sizes.dtype), rngs=rngs)

        self.query, self.key, self.value, self.out = linear(), linear(), linear(), linear()

    def __call__(
        self, h: Float[Array, "batch height width channel"]
    ) -> Float[Array, "batch height width channel"]:
        """Give the feature map, each pixel having seen all others."""
        batch, height, width, channels = h.shape
        tokens = self.norm(h).reshape(batch, 1, height * width, channels)
        q, k, v = self.query(tokens), self.key(tokens), self.value(tokens)
        return h + self.out(attention(q, k, v, self.kind)).reshape(h.shape)


class Middle(nnx.Module):
    """Two residual blocks, attention between them."""

    def __init__(self, sizes: Sizes, channels: int, *, attend: bool, rngs: nnx.Rngs):
        self.first = ResBlock(sizes, channels, channels, rngs=rngs)
        self.attention = AttentionBlock(sizes, channels, rngs=rngs) if attend else None
        self.last = ResBlock(sizes, channels, channels, rngs=rngs)

    def __call__(
        self, h: Float[Array, "batch height width channel"]
    ) -> Float[Array, "batch height width channel"]:
        """Give the next feature map."""
        h = self.first(h)
        return self.last(h if self.attention is None else self.attention(h))


class Level(nnx.Module):
    """Residual blocks of one resolution, and the change to the next."""

    def __init__(
        self,
        sizes: Sizes,
        before: int,
        after: int,
        num_blocks: int,
        change: Resample,
        *,
        rngs: nnx.Rngs,
    ):
        blocks = {
            f"block{i}": ResBlock(sizes, after if i else before, after, rngs=rngs)
            for i in range(num_blocks)
        }
        self.blocks, self.order = nnx.Dict(blocks), tuple(blocks)  # nnx.Dict sorts its keys
        self.change: Resample = change
        stride = 2 if change == "down" else 1
        same = change == "none"
        self.resample = None if same else sizes.conv(after, after, stride=stride, rngs=rngs)

    def __call__(self, h: Float[Array, "batch height width before"]) -> jax.Array:
        """Give the feature map of the next level."""
        for name in self.order:
            h = self.blocks[name](h)
        if self.resample is None:
            return h
        return self.resample(resample(h, "up") if self.change == "up" else h)
