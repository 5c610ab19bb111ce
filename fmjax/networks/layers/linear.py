"""Layers that several networks share: linear layers, embeddings, norms.

Compute may run in bfloat16; norms, softmax and embeddings stay in float32, as do all parameters.
Given float64 parameters, times and points (a reference solve), a float32 network computes in
float64 throughout.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from fmjax._arrays import Cond, FlowMapCond, FlowMapConditions, PRNGKey, Times
from fmjax._checks import require
from fmjax.sharding import all_gather_fsdp, shard_batch

DTYPES = ("float32", "bfloat16")
_TIME_FEATURES = 256
_FASTEST, _SLOWEST = 30.0, 0.1  # Frequencies of the time embedding, in radians.


def compute_dtype(name: str) -> str | None:
    """What a config's `dtype` is to a Flax layer: None lets float32 rise to float64 inputs."""
    return None if name == "float32" else name


def at_least_float32(x: jax.Array) -> jax.Array:
    """`x` in float32, or in float64 if it is that already."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


OUTPUTS, INPUTS = -1, -2
"""Which axis of a layer's kernel the mesh axis `tensor` splits.

A layer whose outputs are split and, after it, one whose inputs are, need one sum over devices.
"""


def tensor_axes_of(layer: Any) -> dict[str, int]:
    """By a parameter's name, the axis of it that `tensor` splits."""
    if layer.split is None:
        return {}
    biased = layer.split == OUTPUTS and layer.bias is not None
    return {"kernel": layer.split} | ({"bias": -1} if biased else {})


def gathered_as(layer: Any, inputs: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Inputs, kernel and bias in the type that the layer computes in, gathered in that type."""
    kernel, bias = layer.kernel[...], None if layer.bias is None else layer.bias[...]
    dtype = layer.dtype or jnp.result_type(inputs, kernel)
    kernel = all_gather_fsdp(kernel.astype(dtype), layer.split)
    if bias is not None:
        bias = all_gather_fsdp(bias.astype(dtype), -1 if layer.split == OUTPUTS else None)
    return inputs.astype(dtype), kernel, bias


class Linear(nnx.Linear):
    """A linear layer over the last axis, computed as one product of two matrices.

    With the leading axes flattened, so is the product that gives the weights' gradient. Left
    apart, they make XLA on the CPU write a transposed copy of its operand, fused with whatever
    computes it: a quarter of the training step of a DiT.

    Attributes:
        split: Which axis of the kernel `tensor` splits: OUTPUTS, INPUTS or None.
        lora: An adapter, whose output is added (`networks/layers/lora.py`).
    """

    lora: Any = None

    def __init__(self, before: int, after: int, *, split: int | None = None, **settings: Any):
        super().__init__(before, after, **settings)
        self.split = split

    tensor_axes = property(tensor_axes_of)

    def __call__(self, inputs: Float[Array, "*shape _in"]) -> Float[Array, "*shape _out"]:
        """Give `inputs @ kernel + bias`."""
        x, kernel, bias = gathered_as(self, inputs.reshape(-1, inputs.shape[-1]))
        out = x @ kernel if bias is None else x @ kernel + bias[None]
        out = out.reshape(*inputs.shape[:-1], out.shape[-1])
        return out if self.lora is None else out + self.lora(inputs)


def timestep_features(t: Times, num_features: int) -> Float[Array, "batch features"]:
    """Cosines and sines of t at frequencies from 30 rad down to 0.1, geometrically spaced.

    DDPM's embedding reaches 1,000 rad, one for each of its steps. In a velocity field that an
    ODE solver follows, each of those wiggles costs steps: on the digits model, at equal loss,
    Tsit5 at a tolerance of 1e-4 took 260 evaluations with 1,000 rad and takes 86 with 30.

    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.5, with other frequencies.
    """
    half = num_features // 2
    # Rounded to float32 also where t is float64, so that both are one function.
    decay = np.exp(-math.log(_FASTEST / _SLOWEST) * np.arange(half, dtype=np.float32) / half)
    angles = _FASTEST * at_least_float32(t)[:, None] * decay[None, :]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def ddpm_features(t: Times, num_features: int) -> Float[Array, "batch features"]:
    """Cosines and sines of t at frequencies from 1,000 rad down to 0.1, as released models have.

    Source: Ho et al. 2020, arXiv:2006.11239, appendix B, with 1,000 t for the number of a step.
    """
    half = num_features // 2
    exponents = -math.log(10_000.0) * np.arange(half, dtype=np.float32) / half
    # An error in the last bit of a frequency would be 1e-3 rad at a guidance scale of 5.
    decay = np.exp(exponents, dtype=np.float64).astype(np.float32)
    angles = (1000.0 * at_least_float32(t))[:, None] * decay[None, :]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def guidance_features(guidance: Float[Array, "batch 3"]) -> Float[Array, "batch features"]:
    """Features of `1 - 1 / scale`, which grows no further at large scales, and of its times."""
    scale, first, last = jnp.split(guidance, 3, axis=-1)
    numbers = (1.0 - 1.0 / scale, first, last)
    return jnp.concatenate([timestep_features(n[:, 0], _TIME_FEATURES) for n in numbers], axis=-1)


class ConditionEmbedding(nnx.Module):
    """Embeds time and, if there are classes, the class: `mlp(timestep_features(t)) + table[c]`.

    The table has one row more than there are classes, the null class: `c = num_classes`. In a
    flow map the MLP also sees how far to go, `r - t`, and the guidance. These inputs start at
    zero: with a velocity network's other weights it starts as its velocity, wherever it goes.
    """

    def __init__(self, width: int, conditions: int | FlowMapConditions | None, *, rngs: nnx.Rngs):
        normal, zeros = nnx.initializers.normal(0.02), nnx.initializers.zeros
        maps = isinstance(conditions, FlowMapConditions)
        num_classes = conditions.num_classes if maps else conditions
        self.hidden = Linear(_TIME_FEATURES, width, kernel_init=normal, rngs=rngs)
        self.out = Linear(width, width, kernel_init=normal, rngs=rngs)
        self.labels = (
            None
            if num_classes is None
            else nnx.Embed(num_classes + 1, width, embedding_init=normal, rngs=rngs)
        )
        more: dict[str, Any] = dict(use_bias=False, kernel_init=zeros, rngs=rngs)
        self.span = Linear(_TIME_FEATURES, width, **more) if maps else None
        guided = maps and conditions.guided
        self.guidance = Linear(3 * _TIME_FEATURES, width, **more) if guided else None

    def __call__(self, t: Times, cond: Cond) -> Float[Array, "batch width"]:
        """Give one vector per example, float32."""
        hidden = self.hidden(timestep_features(t, _TIME_FEATURES))
        if self.span is not None:
            if not isinstance(cond, FlowMapCond):
                raise ValueError(f"cond must be a FlowMapCond for a flow map, got {type(cond)}")
            hidden = hidden + self.span(timestep_features(cond.end - t, _TIME_FEATURES))
            if self.guidance is not None:
                hidden = hidden + self.guidance(guidance_features(cond.guidance))
            cond = cond.cond
        if self.labels is None:
            require(cond is None, "cond", "be None for a network without classes", "labels")
        else:
            rule = "be class labels for a network with classes"
            require(cond is not None, "cond", rule, None)
            whole = cond is None or jnp.issubdtype(jnp.result_type(cond), jnp.integer)
            require(whole, "cond", f"{rule}, integers", getattr(cond, "dtype", None))
        embedding = self.out(nnx.silu(hidden))
        if self.labels is not None and cond is not None:
            # Not `self.labels(cond)`: that would round float64 params to float32.
            table = all_gather_fsdp(self.labels.embedding[...])
            embedding = embedding + jnp.take(table, cond, axis=0)
        return shard_batch(embedding)


def layer_norm(
    x: Float[Array, "*shape width"], epsilon: float = 1e-6
) -> Float[Array, "*shape width"]:
    """Zero mean and unit variance over the last axis, without parameters, in float32."""
    x = at_least_float32(x)
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + epsilon)


def rms_norm(
    x: Float[Array, "*shape dim"], scale: Float[Array, " dim"], epsilon: float = 1e-6
) -> Float[Array, "*shape dim"]:
    """`scale * x / sqrt(mean(x^2) + epsilon)` over the last axis, in float32.

    Source: Zhang and Sennrich 2019, arXiv:1910.07467, equation 4.
    """
    x = at_least_float32(x)
    mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(mean_square + epsilon) * scale.reshape((1,) * (x.ndim - 1) + (-1,))


def modulate(
    h: Float[Array, "batch tokens width"],
    shift: Float[Array, "batch 1 width"],
    scale: Float[Array, "batch 1 width"],
) -> Float[Array, "batch tokens width"]:
    """`norm(h) (1 + scale) + shift`: a norm whose scale and shift come from the condition.

    Source: Peebles and Xie 2023, arXiv:2212.09748, section 3.2 (adaLN).
    """
    return layer_norm(h) * (1.0 + scale) + shift


HEADS = ("q", "k", "v")
"""What `ToHeads` gives, in the order of its columns."""


class ToHeads(Linear):
    """Queries, keys and values of all heads.

    The columns are those of the first head's queries, keys and values, then the second's, and so
    on: a device that holds some of the columns holds whole heads.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        kernel_init: Any,
        dtype: str | None = None,
        rngs: nnx.Rngs,
    ):

        def init(key: PRNGKey, shape: tuple[int, ...], dtype: Any) -> jax.Array:
            # Drawn as thirds, so that a key starts the same network as before heads were apart.
            thirds = kernel_init(key, shape, dtype).reshape(width, 3, num_heads, -1)
            return thirds.transpose(0, 2, 1, 3).reshape(shape)

        settings = dict(dtype=dtype, kernel_init=init, rngs=rngs)
        super().__init__(width, 3 * width, split=OUTPUTS, **settings)
        self.num_heads = num_heads

    def heads(
        self, h: Float[Array, "batch tokens width"]
    ) -> tuple[Float[Array, "batch heads tokens dim"], ...]:
        """Queries, keys and values as `attention` takes them."""
        batch, tokens, _ = h.shape
        qkv = self(h).reshape(batch, tokens, self.num_heads, 3, -1)
        q, k, v = (qkv[:, :, :, i].transpose(0, 2, 1, 3) for i in range(3))
        return q, k, v
