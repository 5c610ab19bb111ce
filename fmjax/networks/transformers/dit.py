"""DiT: a transformer on image patches, conditioned through adaptive layer norms (adaLN-zero).

Reference: Peebles and Xie 2023, arXiv:2212.09748; Ma et al. 2024 (SiT), arXiv:2401.08740, as a
velocity network.
"""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fmjax._arrays import Cond, Points, Times
from fmjax._checks import require, require_at_least, require_one_of, require_positive
from fmjax._specs import CondSpec, FlowMapConditions
from fmjax.networks.layers.attention import attention
from fmjax.networks.layers.computation import require_computable
from fmjax.networks.layers.conditions import (
    ConditionEmbedding,
    Joined,
    join_conditions,
    joined_conditions,
)
from fmjax.networks.layers.functional import functionalize, run_blocks, stack_blocks
from fmjax.networks.layers.linear import (
    INPUTS,
    OUTPUTS,
    Linear,
    ToHeads,
    at_least_float32,
    compute_dtype,
    modulate,
    rms_norm,
)
from fmjax.networks.layers.patches import (
    patchify,
    rotary_angles,
    rotate,
    sincos_positions,
    unpatchify,
)
from fmjax.paths import VelocityNet
from fmjax.sharding import all_gather_fsdp, shard_batch

POSITIONS = ("learned", "sincos", "rotary")


def require_transformer(config: "TransformerConfig", num_axes: int) -> None:
    """Raise unless the fields that DiT and the sequence transformer share are valid.

    Args:
        config: Config of the network.
        num_axes: Number of axes of the grid of tokens: 2 for an image, 1 for a sequence.

    Raises:
        ValueError: If an option is unknown, or the sizes do not fit each other or the positions.
    """
    for name in ("width", "num_layers", "num_heads"):
        require_at_least(name, getattr(config, name), 1)
    require_positive("mlp_ratio", config.mlp_ratio)
    require_one_of("positions", config.positions, POSITIONS)
    width, num_heads, multiple = config.width, config.num_heads, 2 * num_axes
    require(width % num_heads == 0, "num_heads", f"divide the width {width}", num_heads)
    if config.positions == "sincos":
        rule = f"be a multiple of {multiple} for sincos"
        require(width % multiple == 0, "width", rule, width)
    if config.positions == "rotary":
        rule, head = f"be a multiple of {multiple} for rotary", width // num_heads
        require(head % multiple == 0, "width / num_heads", rule, head)


@dataclass(frozen=True)
class DiTConfig:
    """Sizes and options of a DiT.

    Attributes:
        patch_size: Side of the square patches, in pixels.
        width: Channels of a token.
        num_layers: Number of transformer blocks.
        num_heads: Number of attention heads; must divide `width`.
        mlp_ratio: Hidden channels of the MLP of a block, divided by `width`.
        positions: Position embeddings: "sincos" (fixed) or "learned", added to the tokens, or
            "rotary", applied to queries and keys.
        qk_norm: Whether to apply RMS norm to the queries and keys of each head, which stabilizes
            the training of large or bfloat16 networks.
        dtype: Type of the computation, "float32" or "bfloat16"; parameters are float32.
        unroll_layers: Unroll the loop over layers instead of using a scan: faster on the CPU,
            slower to compile.
        remat: Part of each block that is recomputed in the backward pass to save memory: "none",
            "full" (everything, a third more computation), "save_matmuls" (everything except linear
            layers) or "offload" (everything, with block inputs in host memory; TPU and GPU).
        attention: Attention implementation: "auto" (splash on TPU and cuDNN on GPU if they support
            the sizes and types), "xla" (supports forward-mode differentiation), "splash" or
            "cudnn".
    """

    patch_size: int = 2
    width: int = 384
    num_layers: int = 12
    num_heads: int = 6
    mlp_ratio: float = 4.0
    positions: str = "sincos"
    qk_norm: bool = False
    dtype: str = "float32"
    unroll_layers: bool = False
    remat: str = "none"
    attention: str = "auto"

    def __post_init__(self):
        require_at_least("patch_size", self.patch_size, 1)
        require_transformer(self, num_axes=2)
        require_computable(self)


DIT_S = DiTConfig(width=384, num_layers=12, num_heads=6)
"""DiT-S: 33 million parameters with patches of 2 (`dataclasses.replace` changes a field)."""
DIT_B = DiTConfig(width=768, num_layers=12, num_heads=12)
"""DiT-B: 130 million parameters."""
DIT_L = DiTConfig(width=1024, num_layers=24, num_heads=16)
"""DiT-L: 458 million parameters."""
DIT_XL = DiTConfig(width=1152, num_layers=28, num_heads=16)
"""DiT-XL: 675 million parameters."""


@runtime_checkable
class TransformerConfig(Protocol):
    """Fields that the configs of `DiT` and `SequenceTransformer` share; see `DiTConfig`."""

    @property
    def width(self) -> int:
        """Number of channels of a token."""
        ...

    @property
    def num_layers(self) -> int:
        """Number of transformer blocks."""
        ...

    @property
    def num_heads(self) -> int:
        """Number of attention heads."""
        ...

    @property
    def mlp_ratio(self) -> float:
        """Hidden channels of the MLP of a block, divided by `width`."""
        ...

    @property
    def positions(self) -> str:
        """Position embeddings: "sincos", "learned" or "rotary"."""
        ...

    @property
    def qk_norm(self) -> bool:
        """Whether to apply RMS norm to queries and keys."""
        ...

    @property
    def dtype(self) -> str:
        """Type of the computation, "float32" or "bfloat16"."""
        ...

    @property
    def unroll_layers(self) -> bool:
        """Whether to unroll the loop over layers."""
        ...

    @property
    def remat(self) -> str:
        """Rematerialization policy of the blocks."""
        ...

    @property
    def attention(self) -> str:
        """Attention implementation."""
        ...


class SelfAttention(nnx.Module):
    """Multi-head self-attention over all tokens, with optional QK norm and rotary positions."""

    def __init__(self, config: TransformerConfig, grid: tuple[int, ...], *, rngs: nnx.Rngs):
        width, head = config.width, config.width // config.num_heads
        xavier = nnx.initializers.xavier_uniform()
        self.config, self.grid = config, grid
        dtype = compute_dtype(config.dtype)
        self.to_heads = ToHeads(width, config.num_heads, dtype=dtype, kernel_init=xavier, rngs=rngs)
        self.out = Linear(width, width, split=INPUTS, dtype=dtype, kernel_init=xavier, rngs=rngs)
        self.q_scale = nnx.Param(jnp.ones(head)) if config.qk_norm else None
        self.k_scale = nnx.Param(jnp.ones(head)) if config.qk_norm else None

    def __call__(self, h: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        """Return the tokens after attention."""
        batch, tokens, width = h.shape
        heads = self.config.num_heads
        q, k, v = self.to_heads.heads(h)
        if self.q_scale is not None and self.k_scale is not None:
            q = rms_norm(q, self.q_scale[...]).astype(v.dtype)
            k = rms_norm(k, self.k_scale[...]).astype(v.dtype)
        if self.config.positions == "rotary":
            angles = rotary_angles(*self.grid, dim=width // heads)
            q, k = rotate(q, angles), rotate(k, angles)
        attended = attention(q, k, v, self.config.attention).transpose(0, 2, 1, 3)
        return self.out(attended.reshape(batch, tokens, width))


class DiTBlock(nnx.Module):
    """Attention and MLP with adaptive layer norm; the condition sets scale, shift and gate.

    The gates are zero at initialization, so that the block is the identity.
    """

    def __init__(self, config: TransformerConfig, grid: tuple[int, ...], *, rngs: nnx.Rngs):
        width, hidden = config.width, int(config.width * config.mlp_ratio)
        xavier, zeros = nnx.initializers.xavier_uniform(), nnx.initializers.zeros
        dtype = compute_dtype(config.dtype)
        self.attention = SelfAttention(config, grid, rngs=rngs)
        mlp = dict(dtype=dtype, kernel_init=xavier, rngs=rngs)
        self.mlp_in = Linear(width, hidden, split=OUTPUTS, **mlp)
        self.mlp_out = Linear(hidden, width, split=INPUTS, **mlp)
        self.modulation = Linear(
            width, 6 * width, split=OUTPUTS, dtype=dtype, kernel_init=zeros, rngs=rngs
        )

    def __call__(
        self, h: Float[Array, "batch tokens width"], c: Float[Array, "batch width"]
    ) -> Float[Array, "batch tokens width"]:
        """Return the tokens after this block."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = jnp.split(
            shard_batch(self.modulation(c))[:, None, :], 6, axis=-1
        )
        h = h + gate_a * shard_batch(self.attention(modulate(h, shift_a, scale_a)))
        hidden = nnx.gelu(self.mlp_in(modulate(h, shift_m, scale_m)), approximate=True)
        return h + gate_m * shard_batch(self.mlp_out(hidden))


class TokenTransformer(nnx.Module):
    """Transformer that maps tokens on a grid to tokens, conditioned by adaptive layer norms.

    The output is zero at initialization.

    Args:
        config: Sizes and options of the transformer.
        grid: Lengths of the axes of the grid of tokens: (rows, columns), or one length.
        features: Numbers of channels of an input token and of an output token.
        conditions: Description of the condition, or conditions of a flow map.
        joined: Arrays of the condition that are joined to the sample on the channels.
        rngs: Random keys of the parameters.
    """

    def __init__(
        self,
        config: TransformerConfig,
        grid: tuple[int, ...],
        features: tuple[int, int],
        conditions: CondSpec | FlowMapConditions | int,
        joined: Joined,
        *,
        rngs: nnx.Rngs,
    ):
        (features_in, features_out), width = features, config.width
        dtype = compute_dtype(config.dtype)
        xavier, zeros = nnx.initializers.xavier_uniform(), nnx.initializers.zeros
        self.config, self.grid, self.joined = config, grid, joined
        self.embed = ConditionEmbedding(width, conditions, joined, rngs=rngs)
        self.patches = Linear(features_in, width, dtype=dtype, kernel_init=xavier, rngs=rngs)
        self.positions = (
            nnx.Param(0.02 * jax.random.normal(rngs.params(), (math.prod(grid), width)))
            if config.positions == "learned"
            else None
        )
        self.blocks = stack_blocks(
            lambda rngs: DiTBlock(config, grid, rngs=rngs), config.num_layers, rngs
        )
        self.modulation = Linear(width, 2 * width, dtype=dtype, kernel_init=zeros, rngs=rngs)
        self.out = Linear(width, features_out, dtype=dtype, kernel_init=zeros, rngs=rngs)

    def transform(
        self, c: Float[Array, "batch width"], tokens: Float[Array, "batch tokens _in"]
    ) -> Float[Array, "batch tokens _out"]:
        """Return the output tokens, float32, for embeddings `c` of time and condition."""
        config, c = self.config, nnx.silu(c)
        h = self.patches(tokens)
        if self.positions is not None:
            h = h + all_gather_fsdp(self.positions[...].astype(h.dtype))[None]
        elif config.positions == "sincos":
            h = h + sincos_positions(*self.grid, dim=config.width)[None].astype(h.dtype)
        h = run_blocks(self.blocks, h, c, unroll=config.unroll_layers, remat=config.remat)
        shift, scale = jnp.split(self.modulation(c)[:, None, :], 2, axis=-1)
        return at_least_float32(self.out(modulate(h, shift, scale)))


class DiT(TokenTransformer):
    """Diffusion transformer (DiT) on image patches."""

    config: DiTConfig

    def __init__(
        self,
        config: DiTConfig,
        event_shape: tuple[int, ...],
        conditions: CondSpec | FlowMapConditions | int,
        *,
        rngs: nnx.Rngs,
    ):
        height, width, channels = event_shape
        size, area = config.patch_size, config.patch_size**2
        joined, num_joined = joined_conditions("a DiT", event_shape, conditions, num_axes=2)
        features = (area * (channels + num_joined), area * channels)
        grid = (height // size, width // size)
        super().__init__(config, grid, features, conditions, joined, rngs=rngs)

    def __call__(self, t: Times, x: Points, cond: Cond) -> Points:
        """Return the prediction, float32, shaped like x."""
        size, c = self.config.patch_size, self.embed(t, cond)
        tokens = patchify(join_conditions(x, cond, self.joined), size)
        return unpatchify(self.transform(c, tokens), size, x.shape[1:])


def make_dit(
    config: DiTConfig,
    event_shape: tuple[int, ...],
    conditions: CondSpec | FlowMapConditions | int = None,
) -> VelocityNet:
    """Build a DiT as pure functions. Its output is zero at initialization.

    Args:
        config: Sizes and options of the DiT.
        event_shape: (height, width, channel) of an image.
        conditions: Description of the condition: labels (or their number), vectors, sequences,
            images of the same height and width, or a dict of these; conditions of a flow map, or
            None. Images are joined to the sample on the channels.

    Raises:
        ValueError: If `event_shape` is not an image, or its sides are not multiples of the patch
            size, or the network does not take one of the conditions. When called, if the condition
            is not as described.
    """
    require(len(event_shape) == 3, "event_shape", "be (height, width, channel)", event_shape)
    height, width, _ = event_shape
    require(
        height % config.patch_size == 0 and width % config.patch_size == 0,
        "patch_size",
        f"divide the image size {height}x{width}",
        config.patch_size,
    )

    def build(rngs: nnx.Rngs) -> DiT:
        return DiT(config, event_shape, conditions, rngs=rngs)

    return VelocityNet(*functionalize(build))
