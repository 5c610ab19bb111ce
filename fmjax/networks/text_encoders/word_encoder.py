"""Small text encoder that is trained together with the network that it conditions.

It is a bidirectional pre-norm transformer on word embeddings with learned positions. Padding is not
masked, so that the null condition, all padding, needs no special case. The output is one vector per
word and one pooled vector per caption.

Reference: Vaswani et al. 2017, arXiv:1706.03762; Xiong et al. 2020, arXiv:2002.04745 (pre-norm);
Nichol et al. 2021, arXiv:2112.10741, section 3 (GLIDE: joint training of the text encoder).
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PyTree

from fmjax._arrays import Cond, Params, Points, PRNGKey, Text, TextShape, Times
from fmjax._checks import require, require_at_least, require_numbers, require_one_of
from fmjax._inputs import describe
from fmjax._specs import Spec
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
    """Sizes of the text encoder for captions.

    Attributes:
        width: Channels of a word.
        num_layers: Number of transformer blocks; with 0, words are only embedded.
        num_heads: Number of attention heads; must divide `width`.
        dtype: Type of the computation, "float32" or "bfloat16"; parameters are float32.
        unroll_layers: Unroll the loop over layers instead of using a scan.
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

    def shape(self, tokens: Spec) -> TextShape:
        """Return the sizes of the `Text` that the encoder computes from captions of these sizes."""
        return TextShape(tokens.shape[0], self.width, self.width)


class TextBlock(nnx.Module):
    """Pre-norm transformer block with attention over all words and an MLP."""

    def __init__(self, config: TextEncoderConfig, *, rngs: nnx.Rngs):
        width, hidden = config.width, _MLP_RATIO * config.width
        settings: dict[str, Any] = dict(dtype=compute_dtype(config.dtype), rngs=rngs)
        self.to_heads = ToHeads(width, config.num_heads, kernel_init=_XAVIER, **settings)
        self.out = Linear(width, width, split=INPUTS, kernel_init=_XAVIER, **settings)
        self.mlp_in = Linear(width, hidden, split=OUTPUTS, kernel_init=_XAVIER, **settings)
        self.mlp_out = Linear(hidden, width, split=INPUTS, kernel_init=_XAVIER, **settings)

    def __call__(self, h: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        """Return the words after this block."""
        q, k, v = self.to_heads.heads(layer_norm(h))
        # For few tokens, plain matrix products are fastest on all devices.
        attended = attention(q, k, v, "xla")
        h = h + shard_batch(self.out(attended.transpose(0, 2, 1, 3).reshape(h.shape)))
        hidden = nnx.gelu(self.mlp_in(layer_norm(h)), approximate=True)
        return h + shard_batch(self.mlp_out(hidden))


class TextEncoder(nnx.Module):
    """Text encoder that maps the word IDs of captions to a `Text`."""

    def __init__(self, config: TextEncoderConfig, shape: Spec, *, rngs: nnx.Rngs):
        normal = nnx.initializers.normal(0.02)
        self.config, self.shape = config, shape
        self.words = nnx.Embed(
            shape.num_values or 0, config.width, embedding_init=normal, rngs=rngs
        )
        table = (shape.shape[0], config.width)
        self.positions = nnx.Param(0.02 * jax.random.normal(rngs.params(), table))
        self.blocks = (
            stack_blocks(lambda rngs: TextBlock(config, rngs=rngs), config.num_layers, rngs)
            if config.num_layers
            else None
        )

    def __call__(self, cond: Cond) -> Text:
        """Return one vector per word, and the mean over the words that are not padding."""
        tokens = self._require_tokens(cond)
        # `self.words(tokens)` would round float64 parameters to float32.
        table = all_gather_fsdp(self.words.embedding[...])
        h = jnp.take(table, tokens, axis=0) + all_gather_fsdp(self.positions[...])[None]
        h = shard_batch(layer_norm(h))
        if self.blocks is not None:
            h = run_blocks(self.blocks, h, unroll=self.config.unroll_layers)
        h = layer_norm(h)
        is_word = (tokens > 0).astype(h.dtype)[:, :, None]
        pooled = jnp.sum(is_word * h, axis=1) / jnp.maximum(jnp.sum(is_word, axis=1), 1.0)
        return Text(at_least_float32(h), at_least_float32(pooled))

    def _require_tokens(self, cond: PyTree) -> jax.Array:
        """Return `cond` if it holds token IDs of the expected shape; raise otherwise."""
        num_tokens = self.shape.shape[0]
        is_integer = hasattr(cond, "dtype") and jnp.issubdtype(cond.dtype, jnp.integer)
        is_valid = is_integer and cond.shape[1:] == (num_tokens,)
        rule = f"be integer token IDs [batch, {num_tokens}] for a network with captions"
        require(is_valid, "cond", rule, describe(cond))
        return cond


def make_text_encoder(config: TextEncoderConfig, shape: Spec) -> PureModule:
    """Build the text encoder as pure functions, with `apply(params, tokens) -> Text`."""

    def build(rngs: nnx.Rngs) -> TextEncoder:
        return TextEncoder(config, shape, rngs=rngs)

    return functionalize(build)


def with_encoder(encoder: PureModule, image: VelocityNet) -> VelocityNet:
    """Combine a text encoder and a text-to-image network into a network conditioned on tokens.

    The parameters are `{"encoder": ..., "image": ...}`; both are trained.

    Args:
        encoder: Text encoder, built by `make_text_encoder`.
        image: Network conditioned on the `Text` that the encoder returns.
    """

    def init(key: PRNGKey) -> Params:
        keys = jax.random.split(key)
        return {"encoder": encoder.init(keys[0]), "image": image.init(keys[1])}

    def apply(params: Params, t: Times, x: Points, cond: Cond = None, **keys: jax.Array) -> Points:
        text = encoder.apply(params["encoder"], cond)
        return image.apply(params["image"], t, x, text, **keys)

    parts = {"encoder": encoder.tensor_axes, "image": image.tensor_axes}
    axes = {f"{part}.{name}": axis for part, axes in parts.items() for name, axis in axes.items()}
    return VelocityNet(jax.jit(init), apply, axes, image.takes_keys)
