"""Layers shared by the text encoders: attention with a bias, embedding tables, activations."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, PyTree

from fmjax._arrays import Params, PRNGKey
from fmjax.networks.layers.attention import attention
from fmjax.networks.layers.linear import INPUTS, OUTPUTS, Linear
from fmjax.sharding import all_gather_fsdp

_XAVIER = nnx.initializers.xavier_uniform()


def quick_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Sigmoid approximation of GELU, `x sigmoid(1.702 x)`.

    Reference: Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2.
    """
    return x * nnx.sigmoid(1.702 * x)


ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = MappingProxyType(
    {
        "gelu": lambda x: nnx.gelu(x, approximate=False),
        "gelu_tanh": lambda x: nnx.gelu(x, approximate=True),
        "quick_gelu": quick_gelu,
        "relu": nnx.relu,
        "silu": nnx.silu,
    }
)
"""Activations by name; "gelu" is exact, "gelu_tanh" and "quick_gelu" are approximations of it."""


class TextEncoder(NamedTuple):
    """Text encoder as pure functions; its parameters are a nested dict of float32 arrays.

    Attributes:
        init: Function `init(key) -> params`.
        apply: Function `apply(params, tokens)` of int32 token IDs `[batch, tokens]`.
        tensor_axes: Maps the dotted name of a parameter to the axis that is split over the mesh
            axis `tensor`. Other parameters are not split.
    """

    init: Callable[[PRNGKey], Params]
    apply: Callable[..., PyTree]
    tensor_axes: Mapping[str, int] = MappingProxyType({})


class Table(nnx.Module):
    """Embedding table with one vector for each index below `size`."""

    def __init__(self, size: int, width: int, *, rngs: nnx.Rngs):
        self.table = nnx.Param(0.02 * jax.random.normal(rngs.params(), (size, width)))

    def __call__(self, indices: Int[Array | np.ndarray, "*shape"]) -> Float[Array, "*shape width"]:
        """Return the vectors at these indices."""
        return all_gather_fsdp(self.table[...])[indices]


class BiasedAttention(nnx.Module):
    """Multi-head self-attention with a bias for each pair of positions.

    The columns of queries, keys and values are ordered by head, so that tensor parallelism splits
    them between heads.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        head_width: int,
        *,
        use_bias: bool = True,
        dtype: str | None = None,
        rngs: nnx.Rngs,
    ):
        settings: dict[str, Any] = dict(
            use_bias=use_bias, dtype=dtype, kernel_init=_XAVIER, rngs=rngs
        )
        inner = num_heads * head_width
        self.num_heads = num_heads
        self.q = Linear(width, inner, split=OUTPUTS, **settings)
        self.k = Linear(width, inner, split=OUTPUTS, **settings)
        self.v = Linear(width, inner, split=OUTPUTS, **settings)
        self.out = Linear(inner, width, split=INPUTS, **settings)

    def __call__(
        self,
        h: Float[Array, "batch tokens width"],
        bias: Float[Array, "bias_heads tokens tokens"],
        scale: float = 1.0,
    ) -> Float[Array, "batch tokens width"]:
        """Return the tokens after attention.

        Args:
            h: Tokens before attention.
            bias: Bias added to the logits, for each head or (`bias_heads` = 1) for all heads.
            scale: Factor of the logits before the bias, in addition to `1 / sqrt(head_width)`.
        """
        batch, tokens, _ = h.shape
        q, k, v = (
            layer(h).reshape(batch, tokens, self.num_heads, -1).transpose(0, 2, 1, 3)
            for layer in (self.q, self.k, self.v)
        )
        attended = attention(scale * q, k, v, "xla", bias)
        return self.out(attended.transpose(0, 2, 1, 3).reshape(batch, tokens, -1))
