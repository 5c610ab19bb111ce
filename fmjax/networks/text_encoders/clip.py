"""CLIP's text encoder: a transformer in which a token sees those before it.

Source: Radford et al. 2021, arXiv:2103.00020, section 2.4.
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
    """Sizes and choices of a CLIP text encoder; the defaults are those of CLIP ViT-L/14.

    Attributes:
        vocab_size: Tokens that there are.
        max_tokens: Of a prompt, at most.
        width: Channels of a token.
        num_layers: Blocks.
        num_heads: Attention heads; they share `width` evenly.
        mlp_width: Hidden channels of a block's MLP.
        activation: Of the MLP, "quick_gelu" or "gelu" (the exact one), or another of
            `ACTIVATIONS`.
        projection: Channels that the pooled state is projected to, None for no projection.
        end_token: Whose first place in a prompt gives the pooled state; None takes the largest
            token instead.
        epsilon: Of the norms.
        dtype: Of the computation, "float32" or "bfloat16"; parameters, norms and the sum that runs
            through the blocks are float32.
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
"""CLIP ViT-L/14, of FLUX: 123 million parameters. SD3's has a projection to 768 channels."""
CLIP_G = CLIPTextConfig(
    width=1280, num_layers=32, num_heads=20, mlp_width=5120, activation="gelu", projection=1280
)
"""OpenCLIP ViT-bigG/14, SD3's second: 695 million parameters."""


class CLIPOutput(NamedTuple):
    """What a CLIP text encoder gives, float32.

    Attributes:
        hidden: The tokens before the last block, `[batch, tokens, width]`, without a norm: what
            SD3 is conditioned on.
        last: The tokens after it, normalised.
        pooled: The end token of `last`, `[batch, width]`, or projected, `[batch, projection]`.
    """

    hidden: jax.Array
    last: jax.Array
    pooled: jax.Array


class LayerNorm(nnx.Module):
    """`scale * layer_norm(x) + bias`, in float32."""

    def __init__(self, width: int, epsilon: float):
        self.epsilon = epsilon
        self.scale, self.bias = nnx.Param(jnp.ones(width)), nnx.Param(jnp.zeros(width))

    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        """Give the normalised tokens."""
        scale, bias = all_gather_fsdp(self.scale[...]), all_gather_fsdp(self.bias[...])
        return layer_norm(x, self.epsilon) * scale[None, None] + bias[None, None]


class CLIPBlock(nnx.Module):
    """Attention to the tokens before, then an MLP, each behind a norm."""

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
        """Give the tokens before and after this block, of those before and after the last one."""
        _, before = h
        after = before + shard_batch(self.attention(self.attention_norm(before), mask))
        hidden = ACTIVATIONS[self.config.activation](self.mlp_in(self.mlp_norm(after)))
        return before, after + shard_batch(self.mlp_out(hidden))


class CLIPText(nnx.Module):
    """Tokens in, blocks, states out; see the module's docstring."""

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
        """Give the states of these prompts."""
        num, most = tokens.shape[1], self.config.max_tokens
        require(num <= most, "tokens", f"be at most {most} for this encoder", num)
        h = self.tokens(tokens) + self.positions(np.arange(num))[None]
        h = at_least_float32(shard_batch(h))
        mask = jnp.asarray(np.triu(np.full((1, num, num), -np.inf, np.float32), 1))
        hidden, last = run_blocks(self.blocks, (h, h), mask)
        last = self.norm(last)
        ends = jnp.argmax(
            tokens if self.config.end_token is None else tokens == self.config.end_token, axis=-1
        )
        pooled = jnp.take_along_axis(last, ends[:, None, None], axis=1)[:, 0]
        if self.projection is not None:
            pooled = at_least_float32(self.projection(pooled))
        return CLIPOutput(hidden, last, pooled)


def make_clip_text(config: CLIPTextConfig) -> TextEncoder:
    """A CLIP text encoder as pure functions; `apply(params, tokens)` gives a `CLIPOutput`.

    Raises:
        ValueError: When called, if there are more tokens than the encoder has places for.
    """

    def build(rngs: nnx.Rngs) -> CLIPText:
        return CLIPText(config, rngs=rngs)

    return TextEncoder(*functionalize(build))
