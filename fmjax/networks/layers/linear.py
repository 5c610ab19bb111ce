"""Linear layers, embeddings and norms shared by the networks.

Linear layers can compute in bfloat16; norms, softmax, embeddings and all parameters are float32.
A float32 network computes entirely in float64 if its parameters, times and points are float64, as
in a reference solve.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from fmjax._arrays import PRNGKey, Times
from fmjax.sharding import all_gather_fsdp

DTYPES = ("float32", "bfloat16")
_TIME_FEATURES = 256
# Range of frequencies of the time embedding, in radians per unit of time.
_MAX_FREQUENCY, _MIN_FREQUENCY = 30.0, 0.1


def compute_dtype(name: str) -> str | None:
    """Convert the `dtype` of a config to that of a Flax layer.

    float32 becomes None, with which Flax computes in float64 for float64 inputs.
    """
    return None if name == "float32" else name


def at_least_float32(x: jax.Array) -> jax.Array:
    """Cast `x` to float32; float64 stays float64."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


OUTPUTS, INPUTS = -1, -2
"""Axes of a layer's kernel that the mesh axis `tensor` can split.

A layer with split outputs followed by a layer with split inputs needs one sum over devices.
"""


def tensor_axes_of(layer: nnx.Linear | nnx.Conv, split: int | None) -> dict[str, int]:
    """Return the axis of each parameter that the mesh axis `tensor` splits, by parameter name.

    Args:
        layer: Layer with a kernel and possibly a bias.
        split: Axis of the kernel that is split: OUTPUTS, INPUTS or None.
    """
    if split is None:
        return {}
    splits_bias = split == OUTPUTS and layer.bias is not None
    return {"kernel": split} | ({"bias": -1} if splits_bias else {})


def gathered_as(
    layer: nnx.Linear | nnx.Conv, inputs: jax.Array, split: int | None
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Cast inputs, kernel and bias to the layer's computation type and gather the weights.

    Weights are cast before they are gathered, so that less data is transferred.

    Args:
        layer: Layer with a kernel and possibly a bias.
        inputs: Inputs of the layer.
        split: Axis of the kernel that the mesh axis `tensor` splits: OUTPUTS, INPUTS or None.
    """
    kernel, bias = layer.kernel[...], None if layer.bias is None else layer.bias[...]
    dtype = layer.dtype or jnp.result_type(inputs, kernel)
    kernel = all_gather_fsdp(kernel.astype(dtype), split)
    if bias is not None:
        bias = all_gather_fsdp(bias.astype(dtype), -1 if split == OUTPUTS else None)
    return inputs.astype(dtype), kernel, bias


class Linear(nnx.Linear):
    """Linear layer over the last axis, computed as one product of two matrices.

    The leading axes are flattened because otherwise XLA on the CPU writes a transposed copy of the
    input for the gradient of the weights, which takes a quarter of the training step of a DiT.

    Attributes:
        split: Axis of the kernel that the mesh axis `tensor` splits: OUTPUTS, INPUTS or None.
        lora: Low-rank adapter whose output is added (`networks/layers/lora.py`), or None.
    """

    lora: Callable[..., Array] | None = None

    def __init__(
        self, in_features: int, out_features: int, *, split: int | None = None, **settings: Any
    ):
        super().__init__(in_features, out_features, **settings)
        self.split = split

    @property
    def tensor_axes(self) -> dict[str, int]:
        """Axis of each parameter that the mesh axis `tensor` splits, by parameter name."""
        return tensor_axes_of(self, self.split)

    def __call__(self, inputs: Float[Array, "*shape _in"]) -> Float[Array, "*shape _out"]:
        """Return `inputs @ kernel + bias`, plus the output of the adapter."""
        x, kernel, bias = gathered_as(self, inputs.reshape(-1, inputs.shape[-1]), self.split)
        out = x @ kernel if bias is None else x @ kernel + bias[None]
        out = out.reshape(*inputs.shape[:-1], out.shape[-1])
        return out if self.lora is None else out + self.lora(inputs)


def timestep_features(t: Times, num_features: int) -> Float[Array, "batch features"]:
    """Embed times as cosines and sines of frequencies from 30 to 0.1 rad, geometrically spaced.

    The embedding of DDPM reaches 1,000 rad. In a velocity field such frequencies force an adaptive
    ODE solver to take short steps: on the digits model, at equal loss, Tsit5 with a tolerance of
    1e-4 needs 260 evaluations with 1,000 rad and 86 with 30 rad.

    Reference: Vaswani et al. 2017, arXiv:1706.03762, section 3.5, with other frequencies.
    """
    half = num_features // 2
    # float32 even if t is float64, so that both precisions use the same frequencies.
    decay = np.exp(
        -math.log(_MAX_FREQUENCY / _MIN_FREQUENCY) * np.arange(half, dtype=np.float32) / half
    )
    angles = _MAX_FREQUENCY * at_least_float32(t)[:, None] * decay[None, :]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def ddpm_features(t: Times, num_features: int) -> Float[Array, "batch features"]:
    """Embed times as cosines and sines of frequencies from 1,000 to 0.1 rad, as in released models.

    Reference: Ho et al. 2020, arXiv:2006.11239, appendix B, with 1,000 t for the step index.
    """
    half = num_features // 2
    exponents = -math.log(10_000.0) * np.arange(half, dtype=np.float32) / half
    # float64, because an error in the last bit of a frequency would change the angle by 1e-3 rad
    # at a guidance scale of 5.
    decay = np.exp(exponents, dtype=np.float64).astype(np.float32)
    angles = (1000.0 * at_least_float32(t))[:, None] * decay[None, :]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def guidance_features(guidance: Float[Array, "batch 3"]) -> Float[Array, "batch features"]:
    """Embed a guidance scale and the first and last time at which it applies.

    The scale is embedded as `1 - 1 / scale`, which is bounded for large scales.
    """
    scale, first, last = jnp.split(guidance, 3, axis=-1)
    values = (1.0 - 1.0 / scale, first, last)
    return jnp.concatenate([timestep_features(v[:, 0], _TIME_FEATURES) for v in values], axis=-1)


def layer_norm(
    x: Float[Array, "*shape width"], epsilon: float = 1e-6
) -> Float[Array, "*shape width"]:
    """Normalize the last axis to zero mean and unit variance, in float32, without parameters."""
    x = at_least_float32(x)
    centered = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centered), axis=-1, keepdims=True)
    return centered * jax.lax.rsqrt(variance + epsilon)


def rms_norm(
    x: Float[Array, "*shape dim"], scale: Float[Array, " dim"], epsilon: float = 1e-6
) -> Float[Array, "*shape dim"]:
    """RMS norm, `scale * x / sqrt(mean(x^2) + epsilon)` over the last axis, in float32.

    Reference: Zhang and Sennrich 2019, arXiv:1910.07467, equation 4.
    """
    x = at_least_float32(x)
    mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(mean_square + epsilon) * scale.reshape((1,) * (x.ndim - 1) + (-1,))


def modulate(
    h: Float[Array, "batch tokens width"],
    shift: Float[Array, "batch 1 width"],
    scale: Float[Array, "batch 1 width"],
) -> Float[Array, "batch tokens width"]:
    """Apply adaptive layer norm, `layer_norm(h) (1 + scale) + shift`.

    Reference: Peebles and Xie 2023, arXiv:2212.09748, section 3.2 (adaLN).
    """
    return layer_norm(h) * (1.0 + scale) + shift


HEADS = ("q", "k", "v")
"""Outputs of `ToHeads`, in the order of its columns."""


class ToHeads(Linear):
    """Linear layer that computes queries, keys and values of all heads.

    The columns are ordered by head, then by queries, keys and values, so that tensor parallelism
    splits them between heads.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        kernel_init: Callable[..., Array],
        dtype: str | None = None,
        rngs: nnx.Rngs,
    ):

        def init(key: PRNGKey, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
            # Sampled as thirds, so that a key still gives the same network as with the earlier
            # column order, in which all queries came before all keys and all values.
            thirds = kernel_init(key, shape, dtype).reshape(width, 3, num_heads, -1)
            return thirds.transpose(0, 2, 1, 3).reshape(shape)

        settings = dict(dtype=dtype, kernel_init=init, rngs=rngs)
        super().__init__(width, 3 * width, split=OUTPUTS, **settings)
        self.num_heads = num_heads

    def heads(
        self, h: Float[Array, "batch tokens width"]
    ) -> tuple[Float[Array, "batch heads tokens dim"], ...]:
        """Compute queries, keys and values in the layout of `attention`."""
        batch, tokens, _ = h.shape
        qkv = self(h).reshape(batch, tokens, self.num_heads, 3, -1)
        q, k, v = (qkv[:, :, :, i].transpose(0, 2, 1, 3) for i in range(3))
        return q, k, v
