"""A small text encoder, trained along with the network that draws what the text says.

Words are embedded, and a transformer without causality lets each see all: places are learned, norms
come first, and padding is a word like any other, so that no condition, all padding, needs no rule
of its own. The network that draws sees a vector for each word and one for the whole text.

Source: Vaswani et al. 2017, arXiv:1706.03762; norms first: Xiong et al. 2020, arXiv:2002.04745;
that the text encoder is trained along: Nichol et al. 2021, arXiv:2112.10741, section 3 (GLIDE).
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fmjax._arrays import Cond, Params, Points, PRNGKey, Text, TextShape, Times, TokenShape
from fmjax._checks import require, require_at_least, require_numbers, require_one_of
from fmjax.networks.layers.attention import attention
from fmjax.networks.layers.functional import PureModule, functionalize, run_blocks, stack_blocks
from fmjax.networks.layers.linear import (
    DTYPES,
    INPUTS,
    OUTPUTS,
    Linear,
    ToHeads,
    at_least_float32,
    compute_dtype,
    layer_norm,
)
from fmjax.paths import VelocityNet
from fmjax.sharding import all_gather_fsdp, shard_batch

_MLP_RATIO = 4
_XAVIER = nnx.initializers.xavier_uniform()


@dataclass(frozen=True)
class TextEncoderConfig:
    """Sizes of a text encoder.

    Attributes:
        width: Channels of a word.
        num_layers: Blocks; 0 leaves the words as they are embedded.
        num_heads: Attention heads; they share `width` evenly.
        dtype: Of the computation, "float32" or "bfloat16"; parameters are float32.
        unroll_layers: Write every layer into the program instead of a scan.
    """

    width: int = 128
    num_layers: int = 2
    num_heads: int = 4
    dtype: str = "float32"
    unroll_layers: bool = False

    def __post_init__(self):
        require_numbers(self, "text_encoder.")
        for name in ("width", "num_heads"):
            require_at_least(f"text_encoder.{name}", getattr(self, name), 1)
        require_at_least("text_encoder.num_layers", self.num_layers, 0)
        require_one_of("text_encoder.dtype", self.dtype, DTYPES)
        divides = self.width % self.num_heads == 0
        rule = f"divide the width {self.width}"
        require(divides, "text_encoder.num_heads", rule, self.num_heads)

    def shape(self, tokens: TokenShape) -> TextShape:
        """Sizes of what it makes of such tokens."""
        return TextShape(tokens.num_tokens, self.width, self.width)


class TextBlock(nnx.Module):
    """Attention and MLP, each behind a norm."""

    def __init__(self, config: TextEncoderConfig, *, rngs: nnx.Rngs):
        width, hidden = config.width, _MLP_RATIO * config.width
        settings: dict[str, Any] = dict(dtype=compute_dtype(config.dtype), rngs=rngs)
        self.to_heads = ToHeads(width, config.num_heads, kernel_init=_XAVIER, **settings)
        self.out = Linear(width, width, split=INPUTS, kernel_init=_XAVIER, **settings)
        self.mlp_in = Linear(width, hidden, split=OUTPUTS, kernel_init=_XAVIER, **settings)
        self.mlp_out = Linear(hidden, width, split=INPUTS, kernel_init=_XAVIER, **settings)

    def __call__(self, h: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        """Give the words after this block."""
        # So few tokens are fastest as plain products, on any device.
        q, k, v = self.to_heads.heads(layer_norm(h))
        mixed = attention(q, k, v)
        h = h + shard_batch(self.out(mixed.transpose(0, 2, 1, 3).reshape(h.shape)))
        hidden = nnx.gelu(self.mlp_in(layer_norm(h)), approximate=True)
        return h + shard_batch(self.mlp_out(hidden))


class TextEncoder(nnx.Module):
    """Numbers of words in, a `Text` out; see the module's docstring."""

    def __init__(self, config: TextEncoderConfig, shape: TokenShape, *, rngs: nnx.Rngs):
        normal = nnx.initializers.normal(0.02)
        self.config, self.shape = config, shape
        self.words = nnx.Embed(shape.vocab_size, config.width, embedding_init=normal, rngs=rngs)
        places = (shape.num_tokens, config.width)
        self.positions = nnx.Param(0.02 * jax.random.normal(rngs.params(), places))
        self.blocks = (
            stack_blocks(lambda rngs: TextBlock(config, rngs=rngs), config.num_layers, rngs)
            if config.num_layers
            else None
        )

    def __call__(self, cond: Cond) -> Text:
        """Give a vector for each word, and the mean over those that are not padding."""
        tokens = self._checked(cond)
        # Not `self.words(tokens)`: that would round float64 params to float32.
        table = all_gather_fsdp(self.words.embedding[...])
        h = jnp.take(table, tokens, axis=0) + all_gather_fsdp(self.positions[...])[None]
        h = shard_batch(layer_norm(h))
        if self.blocks is not None:
            h = run_blocks(self.blocks, h, unroll=self.config.unroll_layers)
        h = layer_norm(h)
        says = (tokens > 0).astype(h.dtype)[:, :, None]
        pooled = jnp.sum(says * h, axis=1) / jnp.maximum(jnp.sum(says, axis=1), 1.0)
        return Text(at_least_float32(h), at_least_float32(pooled))

    def _checked(self, cond: Any) -> jax.Array:
        rule = f"be token ids [batch, {self.shape.num_tokens}] for a network of captions"
        array = hasattr(cond, "dtype") and jnp.issubdtype(cond.dtype, jnp.integer)
        right = array and cond.shape[1:] == (self.shape.num_tokens,)
        require(right, "cond", rule, cond.shape if array else type(cond).__name__)
        return cond


def make_text_encoder(config: TextEncoderConfig, shape: TokenShape) -> PureModule:
    """The encoder as pure functions: `apply(params, tokens) -> Text`."""

    def build(rngs: nnx.Rngs) -> TextEncoder:
        return TextEncoder(config, shape, rngs=rngs)

    return functionalize(build)


def with_encoder(encoder: PureModule, image: VelocityNet) -> VelocityNet:
    """A network of text, conditioned on tokens by an encoder that is trained along.

    Its parameters are `{"encoder": .., "image": ..}`.
    """

    def init(key: PRNGKey) -> Params:
        keys = jax.random.split(key)
        return {"encoder": encoder.init(keys[0]), "image": image.init(keys[1])}

    def apply(params: Params, t: Times, x: Points, cond: Cond = None) -> Points:
        return image.apply(params["image"], t, x, encoder.apply(params["encoder"], cond))

    parts = {"encoder": encoder.tensor_axes, "image": image.tensor_axes}
    axes = {f"{part}.{n}": axis for part, named in parts.items() for n, axis in named.items()}
    return VelocityNet(jax.jit(init), apply, axes)
