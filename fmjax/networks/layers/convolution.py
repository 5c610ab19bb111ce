"""What networks of convolutions share: the layer, its start, and changes of resolution."""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fmjax._arrays import PRNGKey
from fmjax.networks.layers.linear import gathered_as, tensor_axes_of

Resample = Literal["none", "down", "up"]


def conv_init(
    key: PRNGKey, shape: tuple[int, ...], dtype: Any = jnp.float32, **_: Any
) -> Float[Array, "*shape"]:
    """Random convolution kernel, variance one over the fan in.

    Drawn as a matrix and reshaped: XLA compiles the same draw on four axes three times as
    long, and a UNet has dozens.
    """
    matrix = (math.prod(shape[:-1]), shape[-1])
    return nnx.initializers.lecun_normal()(key, matrix, dtype).reshape(shape)


class Conv(nnx.Conv):
    """A convolution that keeps the resolution, or gives every `stride`-th pixel of it.

    Attributes:
        split: As of `Linear`.
        stride: Pixels from one output to the next. The padding is as little as there can be, the
            odd pixel of it at the bottom and on the right.
    """

    def __init__(
        self,
        before: int,
        after: int,
        size: int,
        *,
        split: int | None = None,
        stride: int = 1,
        **settings: Any,
    ):
        super().__init__(before, after, (size, size), **settings)
        self.split, self.stride = split, stride

    tensor_axes = property(tensor_axes_of)

    def __call__(
        self, inputs: Float[Array, "batch height width _in"]
    ) -> Float[Array, "batch _height _width _out"]:
        """Give the feature map."""
        x, kernel, bias = gathered_as(self, inputs)
        strides = (self.stride, self.stride)
        out = jax.lax.conv_general_dilated(
            x, kernel, strides, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return out if bias is None else out + bias[None, None, None]


def resample(
    h: Float[Array, "batch height width channel"], how: Resample
) -> Float[Array, "batch _height _width channel"]:
    """Average 2x2 pixels ("down"), repeat each pixel 2x2 times ("up"), or leave it ("none")."""
    if how == "none":
        return h
    batch, height, width, channels = h.shape
    if how == "down":
        return h.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))
    repeated = jnp.broadcast_to(h[:, :, None, :, None, :], (batch, height, 2, width, 2, channels))
    return repeated.reshape(batch, 2 * height, 2 * width, channels)
