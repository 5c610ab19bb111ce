"""Layers that text encoders share: attention with a bias, activations."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from fmjax._arrays import Params
from fmjax.networks.layers.attention import attention
from fmjax.networks.layers.linear import INPUTS, OUTPUTS, Linear
from fmjax.sharding import all_gather_fsdp

_XAVIER = nnx.initializers.xavier_uniform()


def quick_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`x sigmoid(1.702 x)`: the quick one of the two approximations of GELU.

    Source: Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2.
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
"""By name; "gelu" is the exact one, "gelu_tanh" and "quick_gelu" are two approximations of it."""


class TextEncoder(NamedTuple):
    """An encoder of text as pure functions; `params` is a nested dict of float32 arrays.

    Attributes:
        init: `init(key) -> params`.
        apply: `apply(params, tokens)`, tokens int32 `[batch, tokens]`.
        tensor_axes: By the dotted name of a parameter, the axis of it that the mesh axis
            `tensor` splits; those that are not named are not split.
    """

    init: Callable[[Any], Params]
    apply: Callable[..., Any]
    tensor_axes: Mapping[str, int] = MappingProxyType({})


class Table(nnx.Module):
    """One vector for each whole number below `size`."""

    def __init__(self, size: int, width: int, *, rngs: nnx.Rngs):
        self.table = nnx.Param(0.02 * jax.random.normal(rngs.params(), (size, width)))

    def __call__(self, numbers: Int[Any, "*shape"]) -> Float[Array, "*shape width"]:
        """Give the vectors of these numbers."""
        return all_gather_fsdp(self.table[...])[numbers]


class BiasedAttention(nnx.Module):
    """Multi-head attention of tokens to one another, with a bias for each pair of places.

    The queries', keys' and values' columns are those of the first head, then of the second, and
    so on: a device that holds some of them holds whole heads.
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
        bias: Float[Array, "some tokens tokens"],
        scale: float = 1.0,
    ) -> Float[Array, "batch tokens width"]:
        """Give the tokens, each a mixture of all.

        Args:
            h: Tokens.
            bias: Of the logits, as `attention` takes it.
            scale: Of the logits before the bias, over the usual `1 / sqrt(head_width)`.
        """
        batch, tokens, _ = h.shape
        q, k, v = (
            layer(h).reshape(batch, tokens, self.num_heads, -1).transpose(0, 2, 1, 3)
            for layer in (self.q, self.k, self.v)
        )
        mixed = attention(scale * q, k, v, "xla", bias)
        return self.out(mixed.transpose(0, 2, 1, 3).reshape(batch, tokens, -1))
