"""Convolution layer, its initializer, and resampling by a factor of two."""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from fmjax._arrays import PRNGKey
from fmjax.networks.layers.linear import gathered_as, tensor_axes_of

Resample = Literal["none", "down", "up"]


def conv_init(
    key: PRNGKey, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32, **_: Any
) -> Float[Array, "*shape"]:
    """Initialize a convolution kernel with LeCun normal values, of variance 1 / fan-in.

    The kernel is sampled as a matrix and reshaped: XLA takes three times as long to compile
    sampling with four axes, and a UNet has dozens of kernels.
    """
    matrix = (math.prod(shape[:-1]), shape[-1])
    return nnx.initializers.lecun_normal()(key, matrix, dtype).reshape(shape)


class Conv(nnx.Conv):
    """Convolution with "SAME" padding and a square kernel.

    Attributes:
        split: Axis of the kernel that the mesh axis `tensor` splits: OUTPUTS, INPUTS or None.
        stride: Pixels between outputs; 1 keeps the resolution. The padding is minimal, with an odd
            pixel at the bottom and on the right.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        size: int,
        *,
        split: int | None = None,
        stride: int = 1,
        **settings: Any,
    ):
        super().__init__(in_features, out_features, (size, size), **settings)
        self.split, self.stride = split, stride

    @property
    def tensor_axes(self) -> dict[str, int]:
        """Axis of each parameter that the mesh axis `tensor` splits, by parameter name."""
        return tensor_axes_of(self, self.split)

    def __call__(
        self, inputs: Float[Array, "batch height width _in"]
    ) -> Float[Array, "batch _height _width _out"]:
        """Return the output feature map."""
        x, kernel, bias = gathered_as(self, inputs, self.split)
        strides = (self.stride, self.stride)
        out = jax.lax.conv_general_dilated(
            x, kernel, strides, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return out if bias is None else out + bias[None, None, None]


def resample(
    h: Float[Array, "batch height width channel"], direction: Resample
) -> Float[Array, "batch _height _width channel"]:
    """Average 2x2 pixels ("down"), repeat each pixel 2x2 times ("up"), or return `h` ("none")."""
    if direction == "none":
        return h
    batch, height, width, channels = h.shape
    if direction == "down":
        return h.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))
    repeated = jnp.broadcast_to(h[:, :, None, :, None, :], (batch, height, 2, width, 2, channels))
    return repeated.reshape(batch, 2 * height, 2 * width, channels)
