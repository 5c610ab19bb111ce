"""Transformer blocks on tokens of two kinds, text and image, that attend to one another.

Source: the joint blocks: Esser et al. 2024, arXiv:2403.03206, figure 2; the parallel ones:
Dehghani et al. 2023, arXiv:2302.05442, section 2.
"""

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
    """What the blocks of a network have in common.

    Attributes:
        num_heads: Attention heads.
        head_width: Channels of each.
        dtype: Of the computation.
        attention: By which means, as of `attention`.
        qk_norm: Whether the RMS of queries and keys is normalised.
    """

    num_heads: int
    head_width: int
    dtype: str
    attention: str
    qk_norm: bool = True

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.num_heads * self.head_width


class VectorEmbedding(nnx.Module):
    """`W2 silu(W1 x)`: a vector for each example from its features."""

    def __init__(self, features: int, width: int, *, rngs: nnx.Rngs):
        normal = nnx.initializers.normal(0.02)
        self.hidden = Linear(features, width, kernel_init=normal, rngs=rngs)
        self.out = Linear(width, width, kernel_init=normal, rngs=rngs)

    def __call__(self, x: Float[Array, "batch features"]) -> Float[Array, "batch width"]:
        """Give one vector for each example."""
        return self.out(nnx.silu(self.hidden(x)))


class Heads(nnx.Module):
    """Queries, keys and values of tokens, the first two with their RMS normalised by head."""

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
        """Give q, k and v."""
        q, k, v = self.linear.heads(h)
        if self.q_scale is None or self.k_scale is None:
            return q, k, v
        q = rms_norm(q, self.q_scale[...]).astype(v.dtype)
        return q, rms_norm(k, self.k_scale[...]).astype(v.dtype), v


class Attention(nnx.Module):
    """Attention of one kind of token to itself."""

    def __init__(self, sizes: Sizes, *, rngs: nnx.Rngs):
        width, dtype = sizes.width, compute_dtype(sizes.dtype)
        self.sizes, self.to_heads = sizes, Heads(sizes, rngs=rngs)
        self.out = Linear(width, width, split=INPUTS, dtype=dtype, kernel_init=_XAVIER, rngs=rngs)

    def __call__(self, h: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        """Give the tokens, each a mixture of all."""
        q, k, v = self.to_heads(h)
        return self.out(_mixed(self.sizes, q, k, v))


class Stream(nnx.Module):
    """What one kind of token has of its own in a block, around the attention to both kinds.

    In some blocks it also attends to itself alone, beside that (`dual`).
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
        """Shift, scale and gate, `[batch, 1, width]`: of attention, MLP and attention to itself."""
        return modulations_of(self.modulation, c)

    def after(
        self,
        h: Float[Array, "batch tokens width"],
        mixed: Float[Array, "batch tokens width"],
        modulations: list[jax.Array],
    ) -> Float[Array, "batch tokens width"]:
        """Give the tokens after attention, which gave `mixed`, and MLP."""
        _, _, gate_a, shift, scale, gate_m, *of_alone = modulations
        attended = gate_a * shard_batch(self.out(mixed))
        if self.alone is not None:
            shift_b, scale_b, gate_b = of_alone
            attended = attended + gate_b * shard_batch(self.alone(modulate(h, shift_b, scale_b)))
        h = h + attended
        hidden = nnx.gelu(self.mlp_in(modulate(h, shift, scale)), approximate=True)
        return h + gate_m * shard_batch(self.mlp_out(hidden))


class LastText(nnx.Module):
    """The text's part in the last block: the image attends to it, and nothing comes of it."""

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
        """Shift and scale, each `[batch, 1, width]`."""
        return modulations_of(self.modulation, c)


def modulations_of(layer: Linear, c: Float[Array, "batch width"]) -> list[jax.Array]:
    """What a linear layer makes of the condition, in parts as wide as that, `[batch, 1, width]`."""
    out = shard_batch(layer(c))[:, None, :]
    return jnp.split(out, out.shape[-1] // c.shape[-1], axis=-1)


class DoubleBlock(nnx.Module):
    """Text and image with weights of their own; all tokens attend to all.

    Of the last block of a network nothing but the image may be wanted (`last`).
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
        """Give text and image tokens after this block."""
        text, image = h
        of_text, of_image = self.text.modulations(c), self.image.modulations(c)
        parts = (
            self.text.to_heads(modulate(text, *of_text[:2])),
            self.image.to_heads(modulate(image, *of_image[:2])),
        )
        q, k, v = (jnp.concatenate(pair, axis=2) for pair in zip(*parts, strict=True))
        mixed, split = _mixed(self.sizes, q, k, v, angles), text.shape[1]
        if isinstance(self.text, Stream):
            text = self.text.after(text, mixed[:, :split], of_text)
        return text, self.image.after(image, mixed[:, split:], of_image)


class SingleBlock(nnx.Module):
    """All tokens alike, with attention and MLP side by side behind one norm.

    Attributes:
        lora: An adapter of `out` and `mlp_out`, which are one layer of both their inputs.
    """

    lora: Any = None

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
        """Give the tokens after this block."""
        shift, scale, gate = modulations_of(self.modulation, c)
        normed = modulate(h, shift, scale)
        q, k, v = self.to_heads(normed)
        mixed = _mixed(self.sizes, q, k, v, angles)
        hidden = nnx.gelu(self.mlp_in(normed), approximate=True)
        out = self.out(mixed) + self.mlp_out(hidden)
        out = out if self.lora is None else out + self.lora(mixed, hidden)
        return h + gate * shard_batch(out)


def _mixed(
    sizes: Sizes, q: jax.Array, k: jax.Array, v: jax.Array, angles: np.ndarray | None = None
) -> Float[Array, "batch tokens width"]:
    """Attention of all tokens to all; with angles, these tell the places of the tokens."""
    if angles is not None:
        q, k = rotate(q, angles), rotate(k, angles)
    mixed = attention(q, k, v, sizes.attention)
    return mixed.transpose(0, 2, 1, 3).reshape(mixed.shape[0], mixed.shape[2], -1)
