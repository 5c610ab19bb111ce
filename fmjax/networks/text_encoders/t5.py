"""T5's encoder: a transformer whose attention knows how far apart tokens are.

Source: Raffel et al. 2019, arXiv:1910.10683, section 2.1; version 1.1, with gated MLPs: Shazeer
2020, arXiv:2002.05202, section 2.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from fmjax._checks import require, require_at_least, require_one_of, require_positive
from fmjax.networks.layers.computation import require_computable
from fmjax.networks.layers.functional import functionalize, run_blocks, stack_blocks
from fmjax.networks.layers.linear import (
    INPUTS,
    OUTPUTS,
    Linear,
    at_least_float32,
    compute_dtype,
    rms_norm,
)
from fmjax.networks.text_encoders.layers import ACTIVATIONS, BiasedAttention, Table, TextEncoder
from fmjax.sharding import all_gather_fsdp, shard_batch


@dataclass(frozen=True)
class T5Config:
    """Sizes and choices of a T5 encoder; the defaults are those of T5 v1.1 XXL.

    Attributes:
        vocab_size: Tokens that there are.
        width: Channels of a token.
        num_layers: Blocks.
        num_heads: Attention heads.
        head_width: Channels of each.
        mlp_width: Hidden channels of a block's MLP.
        activation: Of the MLP, one of `ACTIVATIONS`.
        gated: Whether the MLP multiplies it by a second linear function of its input.
        num_buckets: Kinds of distances between tokens; half of them are of tokens further on.
        max_distance: From which on all distances are of one kind.
        epsilon: Of the norms.
        dtype: Of the computation, "float32" or "bfloat16"; parameters, norms and the sum that runs
            through the blocks are float32.
    """

    vocab_size: int = 32128
    width: int = 4096
    num_layers: int = 24
    num_heads: int = 64
    head_width: int = 64
    mlp_width: int = 10240
    activation: str = "gelu_tanh"
    gated: bool = True
    num_buckets: int = 32
    max_distance: int = 128
    epsilon: float = 1e-6
    dtype: str = "float32"

    def __post_init__(self):
        sizes = ("vocab_size", "width", "num_layers", "num_heads", "head_width", "mlp_width")
        for name in sizes:
            require_at_least(name, getattr(self, name), 1)
        even = self.num_buckets >= 4 and self.num_buckets % 2 == 0
        require(even, "num_buckets", "be an even number of at least 4", self.num_buckets)
        require_at_least("max_distance", self.max_distance, self.num_buckets // 4 + 1)
        require_one_of("activation", self.activation, ACTIVATIONS)
        require_positive("epsilon", self.epsilon)
        require_computable(self)


T5_XXL = T5Config()
"""The encoder of T5 v1.1 XXL, of SD3 and FLUX: 4.8 billion parameters."""


def distance_buckets(num: int, num_buckets: int, max_distance: int) -> Int[np.ndarray, "num num"]:
    """Which kind of distance lies between each token (row) and each that it sees (column).

    One half of the kinds is for tokens before and at one's own place, one for those after it. Of
    each half one half is for short distances, each by itself; further away the kinds grow wider,
    as powers do, up to `max_distance`.

    Source: Raffel et al. 2019, arXiv:1910.10683, section 2.1.
    """
    offsets = np.arange(num)[None, :] - np.arange(num)[:, None]
    half, distances = num_buckets // 2, np.abs(offsets)
    short = half // 2
    # In float32, as the weights were trained: where a kind ends hangs on the rounding.
    far = np.log(np.maximum(distances, 1).astype(np.float32) / np.float32(short))
    far = far / np.float32(math.log(max_distance / short)) * np.float32(half - short)
    far = np.minimum(short + far.astype(np.int32), half - 1)
    kinds = np.where(distances < short, distances, far)
    return (kinds + half * (offsets > 0)).astype(np.int32)


class RMSNorm(nnx.Module):
    """`rms_norm` with its scale."""

    def __init__(self, width: int, epsilon: float):
        self.epsilon, self.scale = epsilon, nnx.Param(jnp.ones(width))

    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        """Give the normalised tokens, float32."""
        return rms_norm(x, all_gather_fsdp(self.scale[...]), self.epsilon)


class T5Block(nnx.Module):
    """Attention of all tokens to all, then an MLP, each behind a norm."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        width, hidden = config.width, config.mlp_width
        settings: dict[str, Any] = dict(
            use_bias=False, dtype=compute_dtype(config.dtype), rngs=rngs
        )
        self.config = config
        self.attention_norm = RMSNorm(width, config.epsilon)
        self.attention = BiasedAttention(width, config.num_heads, config.head_width, **settings)
        self.mlp_norm = RMSNorm(width, config.epsilon)
        settings |= dict(kernel_init=nnx.initializers.xavier_uniform())
        self.mlp_in = Linear(width, hidden, split=OUTPUTS, **settings)
        self.mlp_gate = Linear(width, hidden, split=OUTPUTS, **settings) if config.gated else None
        self.mlp_out = Linear(hidden, width, split=INPUTS, **settings)

    def __call__(
        self,
        h: Float[Array, "batch tokens width"],
        bias: Float[Array, "heads tokens tokens"],
    ) -> Float[Array, "batch tokens width"]:
        """Give the tokens after this block."""
        # The logits are not scaled: the weights were drawn, and trained, small instead.
        unscaled = math.sqrt(self.config.head_width)
        h = h + shard_batch(self.attention(self.attention_norm(h), bias, unscaled))
        normed = self.mlp_norm(h)
        hidden = ACTIVATIONS[self.config.activation](self.mlp_in(normed))
        if self.mlp_gate is not None:
            hidden = hidden * self.mlp_gate(normed)
        return h + shard_batch(self.mlp_out(hidden))


class T5Encoder(nnx.Module):
    """Tokens in, blocks, states out; see the module's docstring."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.config = config
        self.tokens = Table(config.vocab_size, config.width, rngs=rngs)
        self.distances = Table(config.num_buckets, config.num_heads, rngs=rngs)
        self.blocks = stack_blocks(lambda rngs: T5Block(config, rngs=rngs), config.num_layers, rngs)
        self.norm = RMSNorm(config.width, config.epsilon)

    def __call__(self, tokens: Int[Array, "batch tokens"]) -> Float[Array, "batch tokens width"]:
        """Give the states of these prompts; padding is seen like any other token."""
        config = self.config
        h = at_least_float32(shard_batch(self.tokens(tokens)))
        buckets = distance_buckets(tokens.shape[1], config.num_buckets, config.max_distance)
        bias = self.distances(buckets).transpose(2, 0, 1)
        return self.norm(run_blocks(self.blocks, h, bias))


def make_t5_encoder(config: T5Config) -> TextEncoder:
    """A T5 encoder as pure functions; `apply(params, tokens)` gives states of float32."""

    def build(rngs: nnx.Rngs) -> T5Encoder:
        return T5Encoder(config, rngs=rngs)

    return TextEncoder(*functionalize(build))
