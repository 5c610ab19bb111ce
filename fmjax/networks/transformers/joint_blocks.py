"""Transformer blocks with joint attention over text and image tokens, used by MM-DiT and FLUX.

Reference: Esser et al. 2024, arXiv:2403.03206, figure 2 (double blocks); Dehghani et al. 2023,
arXiv:2302.05442, section 2 (single blocks, with parallel attention and MLP).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from fmjax.networks.layers.attention import attention
from fmjax.networks.layers.linear import (
    INPUTS,
    OUTPUTS,
    Linear,
    ToHeads,
    compute_dtype,
    modulate,
    rms_norm,
)
from fmjax.networks.layers.patches import rotate
from fmjax.sharding import shard_batch

_MLP_RATIO = 4
_XAVIER = nnx.initializers.xavier_uniform()
_ZEROS = nnx.initializers.zeros


class Sizes(NamedTuple):
    """Sizes and options shared by all blocks of a network.

    Attributes:
        num_heads: Number of attention heads.
        head_width: Channels of a head.
        dtype: Type of the computation, "float32" or "bfloat16".
        attention: Attention implementation (see `layers.attention.attention`).
        qk_norm: Whether to apply RMS norm to queries and keys.
    """

    num_heads: int
    head_width: int
    dtype: str
    attention: str
    qk_norm: bool = True

    @property
    def width(self) -> int:
        """Number of channels of a token."""
        return self.num_heads * self.head_width


class VectorEmbedding(nnx.Module):
    """Two-layer embedding `W2 silu(W1 x)` of one feature vector per sample."""

    def __init__(self, features: int, width: int, *, rngs: nnx.Rngs):
        normal = nnx.initializers.normal(0.02)
        self.hidden = Linear(features, width, kernel_init=normal, rngs=rngs)
        self.out = Linear(width, width, kernel_init=normal, rngs=rngs)

    def __call__(self, x: Float[Array, "batch features"]) -> Float[Array, "batch width"]:
        """Return one embedding vector per sample."""
        return self.out(nnx.silu(self.hidden(x)))


class Heads(nnx.Module):
    """Queries, keys and values of tokens, with optional RMS norm of queries and keys."""

    def __init__(self, sizes: Sizes, *, rngs: nnx.Rngs):
        dtype = compute_dtype(sizes.dtype)
        self.linear = ToHeads(
            sizes.width, sizes.num_heads, dtype=dtype, kernel_init=_XAVIER, rngs=rngs
        )
        self.q_scale = nnx.Param(jnp.ones(sizes.head_width)) if sizes.qk_norm else None
        self.k_scale = nnx.Param(jnp.ones(sizes.head_width)) if sizes.qk_norm else None

    def __call__(
        self, h: Float[Array, "batch tokens width"]
    ) -> tuple[Float[Array, "batch heads tokens dim"], ...]:
        """Return queries, keys and values."""
        q, k, v = self.linear.heads(h)
        if self.q_scale is None or self.k_scale is None:
            return q, k, v
        q = rms_norm(q, self.q_scale[...]).astype(v.dtype)
        return q, rms_norm(k, self.k_scale[...]).astype(v.dtype), v


class Attention(nnx.Module):
    """Multi-head self-attention within one stream of tokens."""

    def __init__(self, sizes: Sizes, *, rngs: nnx.Rngs):
        width, dtype = sizes.width, compute_dtype(sizes.dtype)
        self.sizes, self.to_heads = sizes, Heads(sizes, rngs=rngs)
        self.out = Linear(width, width, split=INPUTS, dtype=dtype, kernel_init=_XAVIER, rngs=rngs)

    def __call__(self, h: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        """Return the tokens after attention."""
        q, k, v = self.to_heads(h)
        return self.out(_attend(self.sizes, q, k, v))


class Stream(nnx.Module):
    """Weights of one stream of tokens, text or image, in a double block.

    Args:
        sizes: Sizes and options shared by all blocks.
        dual: Whether the stream also has self-attention in addition to the joint attention.
        rngs: Random keys of the parameters.
    """

    def __init__(self, sizes: Sizes, *, dual: bool = False, rngs: nnx.Rngs):
        width, hidden, parts = sizes.width, _MLP_RATIO * sizes.width, 9 if dual else 6
        settings: dict[str, Any] = dict(dtype=compute_dtype(sizes.dtype), rngs=rngs)
        self.modulation = Linear(
            width, parts * width, split=OUTPUTS, kernel_init=_ZEROS, **settings
        )
        settings |= dict(kernel_init=_XAVIER)
        self.to_heads = Heads(sizes, rngs=rngs)
        self.out = Linear(width, width, split=INPUTS, **settings)
        self.alone = Attention(sizes, rngs=rngs) if dual else None
        self.mlp_in = Linear(width, hidden, split=OUTPUTS, **settings)
        self.mlp_out = Linear(hidden, width, split=INPUTS, **settings)

    def modulations(self, c: Float[Array, "batch width"]) -> list[jax.Array]:
        """Return shift, scale and gate of joint attention, MLP and self-attention.

        Each is `[batch, 1, width]`.
        """
        return modulations_of(self.modulation, c)

    def update(
        self,
        h: Float[Array, "batch tokens width"],
        attended: Float[Array, "batch tokens width"],
        modulations: list[jax.Array],
    ) -> Float[Array, "batch tokens width"]:
        """Return the tokens after this block.

        Args:
            h: Tokens before this block.
            attended: Output of the joint attention for these tokens.
            modulations: Result of the method `modulations`.
        """
        _, _, gate_a, shift, scale, gate_m, *dual_modulations = modulations
        change = gate_a * shard_batch(self.out(attended))
        if self.alone is not None:
            shift_b, scale_b, gate_b = dual_modulations
            change = change + gate_b * shard_batch(self.alone(modulate(h, shift_b, scale_b)))
        h = h + change
        hidden = nnx.gelu(self.mlp_in(modulate(h, shift, scale)), approximate=True)
        return h + gate_m * shard_batch(self.mlp_out(hidden))


class LastText(nnx.Module):
    """Weights of the text stream in the last block, where only the image tokens are updated."""

    def __init__(self, sizes: Sizes, *, rngs: nnx.Rngs):
        self.modulation = Linear(
            sizes.width,
            2 * sizes.width,
            split=OUTPUTS,
            dtype=compute_dtype(sizes.dtype),
            kernel_init=_ZEROS,
            rngs=rngs,
        )
        self.to_heads = Heads(sizes, rngs=rngs)

    def modulations(self, c: Float[Array, "batch width"]) -> list[jax.Array]:
        """Return shift and scale of the joint attention, each `[batch, 1, width]`."""
        return modulations_of(self.modulation, c)


def modulations_of(layer: Linear, c: Float[Array, "batch width"]) -> list[jax.Array]:
    """Apply a linear layer to the condition and split it into parts `[batch, 1, width]`."""
    out = shard_batch(layer(c))[:, None, :]
    return jnp.split(out, out.shape[-1] // c.shape[-1], axis=-1)


class DoubleBlock(nnx.Module):
    """Block with separate weights for text and image, and attention over all tokens.

    Args:
        sizes: Sizes and options shared by all blocks.
        dual: Whether the image stream also has self-attention.
        last: Whether only the image tokens are updated, as in the last block of a network.
        rngs: Random keys of the parameters.
    """

    def __init__(self, sizes: Sizes, *, dual: bool = False, last: bool = False, rngs: nnx.Rngs):
        self.sizes = sizes
        self.text = LastText(sizes, rngs=rngs) if last else Stream(sizes, rngs=rngs)
        self.image = Stream(sizes, dual=dual, rngs=rngs)

    def __call__(
        self,
        h: tuple[jax.Array, jax.Array],
        c: Float[Array, "batch width"],
        angles: Float[np.ndarray, "tokens half_dim"] | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Return the text and image tokens after this block."""
        text, image = h
        text_modulations = self.text.modulations(c)
        image_modulations = self.image.modulations(c)
        heads = (
            self.text.to_heads(modulate(text, *text_modulations[:2])),
            self.image.to_heads(modulate(image, *image_modulations[:2])),
        )
        q, k, v = (jnp.concatenate(pair, axis=2) for pair in zip(*heads, strict=True))
        attended, num_text = _attend(self.sizes, q, k, v, angles), text.shape[1]
        if isinstance(self.text, Stream):
            text = self.text.update(text, attended[:, :num_text], text_modulations)
        return text, self.image.update(image, attended[:, num_text:], image_modulations)


class SingleBlock(nnx.Module):
    """Block with shared weights for text and image, and parallel attention and MLP.

    Attributes:
        lora: Low-rank adapter of `out` and `mlp_out`, which act as one layer on their concatenated
            inputs, or None.
    """

    lora: Callable[..., Array] | None = None

    def __init__(self, sizes: Sizes, *, rngs: nnx.Rngs):
        width, hidden = sizes.width, _MLP_RATIO * sizes.width
        settings: dict[str, Any] = dict(dtype=compute_dtype(sizes.dtype), rngs=rngs)
        self.sizes = sizes
        self.modulation = Linear(width, 3 * width, split=OUTPUTS, kernel_init=_ZEROS, **settings)
        settings |= dict(kernel_init=_XAVIER)
        self.to_heads = Heads(sizes, rngs=rngs)
        self.mlp_in = Linear(width, hidden, split=OUTPUTS, **settings)
        self.out = Linear(width, width, split=INPUTS, **settings)
        self.mlp_out = Linear(hidden, width, split=INPUTS, use_bias=False, **settings)

    def __call__(
        self,
        h: Float[Array, "batch tokens width"],
        c: Float[Array, "batch width"],
        angles: Float[np.ndarray, "tokens half_dim"],
    ) -> Float[Array, "batch tokens width"]:
        """Return the tokens after this block."""
        shift, scale, gate = modulations_of(self.modulation, c)
        normed = modulate(h, shift, scale)
        q, k, v = self.to_heads(normed)
        attended = _attend(self.sizes, q, k, v, angles)
        hidden = nnx.gelu(self.mlp_in(normed), approximate=True)
        out = self.out(attended) + self.mlp_out(hidden)
        out = out if self.lora is None else out + self.lora(attended, hidden)
        return h + gate * shard_batch(out)


def _attend(
    sizes: Sizes, q: jax.Array, k: jax.Array, v: jax.Array, angles: np.ndarray | None = None
) -> Float[Array, "batch tokens width"]:
    """Compute attention over all tokens and merge the heads, with optional rotary angles."""
    if angles is not None:
        q, k = rotate(q, angles), rotate(k, angles)
    attended = attention(q, k, v, sizes.attention)
    return attended.transpose(0, 2, 1, 3).reshape(attended.shape[0], attended.shape[2], -1)
