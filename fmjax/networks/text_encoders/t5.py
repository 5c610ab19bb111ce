"""Encoder of T5: a transformer with relative position biases.

Reference: Raffel et al. 2019, arXiv:1910.10683, section 2.1; Shazeer 2020, arXiv:2002.05202,
section 2 (the gated MLPs of version 1.1).
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
    """Sizes and options of a T5 encoder; the defaults are those of T5 v1.1 XXL.

    Attributes:
        vocab_size: Number of tokens in the vocabulary.
        width: Channels of a token.
        num_layers: Number of transformer blocks.
        num_heads: Number of attention heads.
        head_width: Channels of a head.
        mlp_width: Hidden channels of the MLP of a block.
        activation: Activation of the MLP, one of `ACTIVATIONS`.
        gated: Whether the MLP multiplies the activation by a second linear function of its input.
        num_buckets: Number of buckets of relative positions, even; half of them are for later
            tokens.
        max_distance: Distance from which on all relative positions share one bucket.
        epsilon: Constant added to the mean square in the norms.
        dtype: Type of the computation, "float32" or "bfloat16"; parameters, norms and the residual
            stream are float32.
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
        is_valid = self.num_buckets >= 4 and self.num_buckets % 2 == 0
        require(is_valid, "num_buckets", "be an even number of at least 4", self.num_buckets)
        require_at_least("max_distance", self.max_distance, self.num_buckets // 4 + 1)
        require_one_of("activation", self.activation, ACTIVATIONS)
        require_positive("epsilon", self.epsilon)
        require_computable(self)


T5_XXL = T5Config()
"""Encoder of T5 v1.1 XXL, used by SD3 and FLUX: 4.8 billion parameters."""


def distance_buckets(num: int, num_buckets: int, max_distance: int) -> Int[np.ndarray, "num num"]:
    """Assign each pair of query token (row) and key token (column) to a relative position bucket.

    The first half of the buckets is for keys at or before the query, the second half for keys after
    it. In each half, the first half of the buckets holds one short distance each; the others hold
    logarithmically growing ranges of distances up to `max_distance`.

    Args:
        num: Number of tokens.
        num_buckets: Number of buckets.
        max_distance: Distance from which on all relative positions share one bucket.

    Reference: Raffel et al. 2019, arXiv:1910.10683, section 2.1.
    """
    offsets = np.arange(num)[None, :] - np.arange(num)[:, None]
    half, distances = num_buckets // 2, np.abs(offsets)
    num_exact = half // 2
    # float32, as in the training of released weights: rounding affects the ends of the buckets.
    log_ratio = np.log(np.maximum(distances, 1).astype(np.float32) / np.float32(num_exact))
    log_ratio = log_ratio / np.float32(math.log(max_distance / num_exact))
    log_index = (log_ratio * np.float32(half - num_exact)).astype(np.int32)
    log_buckets = np.minimum(num_exact + log_index, half - 1)
    buckets = np.where(distances < num_exact, distances, log_buckets)
    return (buckets + half * (offsets > 0)).astype(np.int32)


class RMSNorm(nnx.Module):
    """RMS norm with a scale, in float32."""

    def __init__(self, width: int, epsilon: float):
        self.epsilon, self.scale = epsilon, nnx.Param(jnp.ones(width))

    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        """Return the normalized tokens, float32."""
        return rms_norm(x, all_gather_fsdp(self.scale[...]), self.epsilon)


class T5Block(nnx.Module):
    """Pre-norm transformer block with biased attention over all tokens and an MLP."""

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
        """Return the tokens after this block."""
        # T5 does not scale the logits by 1 / sqrt(head_width): its initialization accounts for it.
        unscaled = math.sqrt(self.config.head_width)
        h = h + shard_batch(self.attention(self.attention_norm(h), bias, unscaled))
        normed = self.mlp_norm(h)
        hidden = ACTIVATIONS[self.config.activation](self.mlp_in(normed))
        if self.mlp_gate is not None:
            hidden = hidden * self.mlp_gate(normed)
        return h + shard_batch(self.mlp_out(hidden))


class T5Encoder(nnx.Module):
    """T5 encoder."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.config = config
        self.tokens = Table(config.vocab_size, config.width, rngs=rngs)
        self.distances = Table(config.num_buckets, config.num_heads, rngs=rngs)
        self.blocks = stack_blocks(lambda rngs: T5Block(config, rngs=rngs), config.num_layers, rngs)
        self.norm = RMSNorm(config.width, config.epsilon)

    def __call__(self, tokens: Int[Array, "batch tokens"]) -> Float[Array, "batch tokens width"]:
        """Return the token states of prompts, given as token IDs; padding is not masked."""
        config = self.config
        h = at_least_float32(shard_batch(self.tokens(tokens)))
        buckets = distance_buckets(tokens.shape[1], config.num_buckets, config.max_distance)
        bias = self.distances(buckets).transpose(2, 0, 1)
        return self.norm(run_blocks(self.blocks, h, bias))


def make_t5_encoder(config: T5Config) -> TextEncoder:
    """Build a T5 encoder as pure functions; `apply(params, tokens)` returns the token states."""

    def build(rngs: nnx.Rngs) -> T5Encoder:
        return T5Encoder(config, rngs=rngs)

    return TextEncoder(*functionalize(build))
