"""Text encoder of CLIP: a transformer with causal attention.

Reference: Radford et al. 2021, arXiv:2103.00020, section 2.4.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
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
    layer_norm,
)
from fmjax.networks.text_encoders.layers import ACTIVATIONS, BiasedAttention, Table, TextEncoder
from fmjax.sharding import all_gather_fsdp, shard_batch

_XAVIER = nnx.initializers.xavier_uniform()


@dataclass(frozen=True)
class CLIPTextConfig:
    """Sizes and options of a CLIP text encoder; the defaults are those of CLIP ViT-L/14.

    Attributes:
        vocab_size: Number of tokens in the vocabulary.
        max_tokens: Maximum number of tokens of a prompt.
        width: Channels of a token.
        num_layers: Number of transformer blocks.
        num_heads: Number of attention heads; must divide `width`.
        mlp_width: Hidden channels of the MLP of a block.
        activation: Activation of the MLP, one of `ACTIVATIONS`; CLIP models use "quick_gelu" or
            "gelu" (exact).
        projection: Channels of the projected pooled state, or None for no projection.
        end_token: ID of the end token; the state at its first position is the pooled state. None
            uses the position of the largest ID instead.
        epsilon: Constant added to the variance in the norms.
        dtype: Type of the computation, "float32" or "bfloat16"; parameters, norms and the residual
            stream are float32.
    """

    vocab_size: int = 49408
    max_tokens: int = 77
    width: int = 768
    num_layers: int = 12
    num_heads: int = 12
    mlp_width: int = 3072
    activation: str = "quick_gelu"
    projection: int | None = None
    end_token: int | None = None
    epsilon: float = 1e-5
    dtype: str = "float32"

    def __post_init__(self):
        sizes = ("vocab_size", "max_tokens", "width", "num_layers", "num_heads", "mlp_width")
        for name in sizes:
            require_at_least(name, getattr(self, name), 1)
        if self.projection is not None:
            require_at_least("projection", self.projection, 1)
        divides = self.width % self.num_heads == 0
        require(divides, "num_heads", f"divide the width {self.width}", self.num_heads)
        require_one_of("activation", self.activation, ACTIVATIONS)
        require_positive("epsilon", self.epsilon)
        require_computable(self)


CLIP_L = CLIPTextConfig()
"""CLIP ViT-L/14 as in FLUX: 123 million parameters. SD3 adds a projection to 768 channels."""
CLIP_G = CLIPTextConfig(
    width=1280, num_layers=32, num_heads=20, mlp_width=5120, activation="gelu", projection=1280
)
"""OpenCLIP ViT-bigG/14, the second text encoder of SD3: 695 million parameters."""


class CLIPOutput(NamedTuple):
    """Output of a CLIP text encoder, float32.

    Attributes:
        hidden: Token states before the last block, without a norm, `[batch, tokens, width]`; the
            condition of SD3.
        last: Token states after the last block and the final norm, `[batch, tokens, width]`.
        pooled: State of the end token in `last`, `[batch, width]`, or its projection,
            `[batch, projection]`.
    """

    hidden: jax.Array
    last: jax.Array
    pooled: jax.Array


class LayerNorm(nnx.Module):
    """Layer norm with scale and bias, in float32."""

    def __init__(self, width: int, epsilon: float):
        self.epsilon = epsilon
        self.scale, self.bias = nnx.Param(jnp.ones(width)), nnx.Param(jnp.zeros(width))

    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        """Return the normalized tokens."""
        scale, bias = all_gather_fsdp(self.scale[...]), all_gather_fsdp(self.bias[...])
        return layer_norm(x, self.epsilon) * scale[None, None] + bias[None, None]


class CLIPBlock(nnx.Module):
    """Pre-norm transformer block with causal attention and an MLP."""

    def __init__(self, config: CLIPTextConfig, *, rngs: nnx.Rngs):
        width, hidden = config.width, config.mlp_width
        settings: dict[str, Any] = dict(dtype=compute_dtype(config.dtype), rngs=rngs)
        self.config = config
        self.attention_norm = LayerNorm(width, config.epsilon)
        self.attention = BiasedAttention(
            width, config.num_heads, width // config.num_heads, **settings
        )
        self.mlp_norm = LayerNorm(width, config.epsilon)
        settings |= dict(kernel_init=_XAVIER)
        self.mlp_in = Linear(width, hidden, split=OUTPUTS, **settings)
        self.mlp_out = Linear(hidden, width, split=INPUTS, **settings)

    def __call__(
        self, h: tuple[jax.Array, jax.Array], mask: Float[Array, "1 tokens tokens"]
    ) -> tuple[jax.Array, jax.Array]:
        """Return the tokens before and after this block.

        Args:
            h: Result of the previous block, or a pair of the input tokens.
            mask: Additive causal mask of the attention logits.
        """
        _, inputs = h
        attended = inputs + shard_batch(self.attention(self.attention_norm(inputs), mask))
        hidden = ACTIVATIONS[self.config.activation](self.mlp_in(self.mlp_norm(attended)))
        return inputs, attended + shard_batch(self.mlp_out(hidden))


class CLIPText(nnx.Module):
    """CLIP text encoder."""

    def __init__(self, config: CLIPTextConfig, *, rngs: nnx.Rngs):
        width, projection = config.width, config.projection
        self.config = config
        self.tokens = Table(config.vocab_size, width, rngs=rngs)
        self.positions = Table(config.max_tokens, width, rngs=rngs)
        self.blocks = stack_blocks(
            lambda rngs: CLIPBlock(config, rngs=rngs), config.num_layers, rngs
        )
        self.norm = LayerNorm(width, config.epsilon)
        settings: dict[str, Any] = dict(dtype=compute_dtype(config.dtype), rngs=rngs)
        settings |= dict(kernel_init=_XAVIER, use_bias=False)
        self.projection = None if projection is None else Linear(width, projection, **settings)

    def __call__(self, tokens: Int[Array, "batch tokens"]) -> CLIPOutput:
        """Return the token states and pooled states of prompts, given as token IDs."""
        num, max_tokens = tokens.shape[1], self.config.max_tokens
        rule = f"be at most max_tokens = {max_tokens}"
        require(num <= max_tokens, "number of tokens", rule, num)
        h = self.tokens(tokens) + self.positions(np.arange(num))[None]
        h = at_least_float32(shard_batch(h))
        mask = jnp.asarray(np.triu(np.full((1, num, num), -np.inf, np.float32), 1))
        hidden, last = run_blocks(self.blocks, (h, h), mask)
        last = self.norm(last)
        end_token = self.config.end_token
        ends = jnp.argmax(tokens if end_token is None else tokens == end_token, axis=-1)
        pooled = jnp.take_along_axis(last, ends[:, None, None], axis=1)[:, 0]
        if self.projection is not None:
            pooled = at_least_float32(self.projection(pooled))
        return CLIPOutput(hidden, last, pooled)


def make_clip_text(config: CLIPTextConfig) -> TextEncoder:
    """Build a CLIP text encoder as pure functions; `apply(params, tokens)` returns a `CLIPOutput`.

    Raises:
        ValueError: When called, if a prompt has more than `config.max_tokens` tokens.
    """

    def build(rngs: nnx.Rngs) -> CLIPText:
        return CLIPText(config, rngs=rngs)

    return TextEncoder(*functionalize(build))
