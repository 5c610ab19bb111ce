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

from fmjax._layout import rows_apart
from fmjax.networks.attention import attention
from fmjax.networks.layers import (
    INPUTS,
    OUTPUTS,
    Linear,
    ToHeads,
    compute_dtype,
    modulate,
    rms_norm,
)
from fmjax.networks.patches import rotate

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
    """

    num_heads: int
    head_width: int
    dtype: str
    attention: str

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.num_heads * self.head_width


class Heads(nnx.Module):
    """Queries, keys and values of tokens, the first two with their RMS normalised by head."""

    def __init__(self, sizes: Sizes, *, rngs: nnx.Rngs):
        dtype = compute_dtype(sizes.dtype)
        self.linear = ToHeads(
            sizes.width, sizes.num_heads, dtype=dtype, kernel_init=_XAVIER, rngs=rngs
        )
        self.q_scale = nnx.Param(jnp.ones(sizes.head_width))
        self.k_scale = nnx.Param(jnp.ones(sizes.head_width))

    def __call__(
        self, h: Float[Array, "batch tokens width"]
    ) -> tuple[Float[Array, "batch heads tokens dim"], ...]:
        """Give q, k and v."""
        q, k, v = self.linear.heads(h)
        q = rms_norm(q, self.q_scale[...]).astype(v.dtype)
        return q, rms_norm(k, self.k_scale[...]).astype(v.dtype), v


class Stream(nnx.Module):
    """What one kind of token has of its own in a block, around the attention to both kinds."""

    def __init__(self, sizes: Sizes, *, rngs: nnx.Rngs):
        width, hidden = sizes.width, _MLP_RATIO * sizes.width
        settings: dict[str, Any] = dict(dtype=compute_dtype(sizes.dtype), rngs=rngs)
        self.modulation = Linear(width, 6 * width, split=OUTPUTS, kernel_init=_ZEROS, **settings)
        settings |= dict(kernel_init=_XAVIER)
        self.to_heads = Heads(sizes, rngs=rngs)
        self.out = Linear(width, width, split=INPUTS, **settings)
        self.mlp_in = Linear(width, hidden, split=OUTPUTS, **settings)
        self.mlp_out = Linear(hidden, width, split=INPUTS, **settings)

    def modulations(self, c: Float[Array, "batch width"]) -> list[jax.Array]:
        """Shift, scale and gate of the attention, then of the MLP, each `[batch, 1, width]`."""
        return jnp.split(rows_apart(self.modulation(c))[:, None, :], 6, axis=-1)

    def after(
        self,
        h: Float[Array, "batch tokens width"],
        mixed: Float[Array, "batch tokens width"],
        modulations: list[jax.Array],
    ) -> Float[Array, "batch tokens width"]:
        """Give the tokens after attention, which gave `mixed`, and MLP."""
        _, _, gate_a, shift, scale, gate_m = modulations
        h = h + gate_a * rows_apart(self.out(mixed))
        hidden = nnx.gelu(self.mlp_in(modulate(h, shift, scale)), approximate=True)
        return h + gate_m * rows_apart(self.mlp_out(hidden))


class DoubleBlock(nnx.Module):
    """Text and image with weights of their own; all tokens attend to all."""

    def __init__(self, sizes: Sizes, *, rngs: nnx.Rngs):
        self.sizes = sizes
        self.text, self.image = Stream(sizes, rngs=rngs), Stream(sizes, rngs=rngs)

    def __call__(
        self,
        h: tuple[jax.Array, jax.Array],
        c: Float[Array, "batch width"],
        angles: Float[np.ndarray, "tokens half_dim"],
    ) -> tuple[jax.Array, jax.Array]:
        """Give text and image tokens after this block."""
        text, image = h
        of_text, of_image = self.text.modulations(c), self.image.modulations(c)
        parts = (
            self.text.to_heads(modulate(text, *of_text[:2])),
            self.image.to_heads(modulate(image, *of_image[:2])),
        )
        q, k, v = (jnp.concatenate(pair, axis=2) for pair in zip(*parts, strict=True))
        mixed = _mixed(self.sizes, q, k, v, angles)
        split = text.shape[1]
        return (
            self.text.after(text, mixed[:, :split], of_text),
            self.image.after(image, mixed[:, split:], of_image),
        )


class SingleBlock(nnx.Module):
    """All tokens alike, with attention and MLP side by side behind one norm."""

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
        shift, scale, gate = jnp.split(rows_apart(self.modulation(c))[:, None, :], 3, axis=-1)
        normed = modulate(h, shift, scale)
        q, k, v = self.to_heads(normed)
        mixed = _mixed(self.sizes, q, k, v, angles)
        hidden = nnx.gelu(self.mlp_in(normed), approximate=True)
        return h + gate * rows_apart(self.out(mixed) + self.mlp_out(hidden))


def _mixed(
    sizes: Sizes, q: jax.Array, k: jax.Array, v: jax.Array, angles: np.ndarray
) -> Float[Array, "batch tokens width"]:
    """Attention of all tokens to all, with their places turned into queries and keys."""
    mixed = attention(rotate(q, angles), rotate(k, angles), v, sizes.attention)
    return mixed.transpose(0, 2, 1, 3).reshape(mixed.shape[0], mixed.shape[2], -1)
