"""MM-DiT, the network of Stable Diffusion 3: a rectified-flow transformer on text and image tokens.

Each block has separate weights for text and image, and joint attention. Position embeddings are
added to the image tokens before the first block. The network uses time as given. Released weights
were trained with t = 1 at the noise; the code that loads them reverses the time.

Reference: Esser et al. 2024, arXiv:2403.03206, section 4 and figure 2; Stability AI, Stable
Diffusion 3.5 medium (2024), for the additional self-attention of the image in some blocks.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import jax
from flax import nnx
from jaxtyping import Array, Float

from fmjax._checks import require, require_at_least
from fmjax._specs import CondSpec
from fmjax.networks.layers.computation import require_computable
from fmjax.networks.layers.functional import run_blocks, stack_blocks
from fmjax.networks.layers.lora import Adapters
from fmjax.networks.layers.patches import sincos_positions
from fmjax.networks.transformers.joint_blocks import DoubleBlock, Sizes
from fmjax.networks.transformers.text_to_image import (
    Patches,
    TextToImage,
    Vectors,
    Words,
    make_text_to_image,
)
from fmjax.paths import VelocityNet
from fmjax.sharding import all_gather_fsdp


@dataclass(frozen=True)
class MMDiTConfig:
    """Sizes and options of an MM-DiT; the defaults are those of SD3 medium.

    Attributes:
        patch_size: Side of the square patches of latents that form one token.
        num_heads: Number of attention heads.
        head_width: Channels of a head; a token has `num_heads * head_width` channels.
        num_layers: Number of blocks.
        dual_layers: Indices, from 0, of the blocks in which the image also has self-attention.
        qk_norm: Whether to apply RMS norm to the queries and keys of each head, which stabilizes
            the training of large or bfloat16 networks.
        position_table: Side, in patches, of the position table stored in released weights, which
            is cropped at its center and not trained. None computes sine-cosine embeddings of the
            rows and columns of the image instead.
        dtype: Type of the computation, "float32" or "bfloat16"; parameters are float32.
        unroll_layers: Unroll the loops over layers instead of using scans.
        remat: Part of each block that is recomputed in the backward pass: "none", "full",
            "save_matmuls" or "offload" (see `DiTConfig`).
        attention: Attention implementation, "auto", "xla", "splash" or "cudnn" (see `DiTConfig`).
    """

    patch_size: int = 2
    num_heads: int = 24
    head_width: int = 64
    num_layers: int = 24
    dual_layers: tuple[int, ...] = ()
    qk_norm: bool = False
    position_table: int | None = None
    dtype: str = "float32"
    unroll_layers: bool = False
    remat: str = "none"
    attention: str = "auto"

    def __post_init__(self):
        for name in ("patch_size", "num_heads", "head_width", "num_layers"):
            require_at_least(name, getattr(self, name), 1)
        require_computable(self)
        are_layers = set(self.dual_layers) <= set(range(self.num_layers))
        rule = f"contain indices from 0 to num_layers - 1 = {self.num_layers - 1}"
        require(are_layers, "dual_layers", rule, self.dual_layers)
        if self.position_table is None:
            require(self.width % 4 == 0, "width", "be a multiple of 4 for positions", self.width)
        else:
            require_at_least("position_table", self.position_table, 1)

    @property
    def sizes(self) -> Sizes:
        """Sizes and options shared by all blocks."""
        return Sizes(self.num_heads, self.head_width, self.dtype, self.attention, self.qk_norm)

    @property
    def width(self) -> int:
        """Number of channels of a token."""
        return self.num_heads * self.head_width

    @property
    def runs(self) -> list[tuple[bool, bool, range]]:
        """Runs of consecutive blocks of equal structure as (dual, last, layers).

        Each run is executed as one scan. `dual` tells whether the image also has self-attention,
        `last` whether the run is the last block, and `layers` are the indices of its blocks.
        """
        flags = [(i in self.dual_layers, i == self.num_layers - 1) for i in range(self.num_layers)]
        groups = itertools.groupby(range(self.num_layers), key=lambda i: flags[i])
        runs = [(dual, last, list(layers)) for (dual, last), layers in groups]
        return [(dual, last, range(layers[0], layers[-1] + 1)) for dual, last, layers in runs]


SD3_MEDIUM = MMDiTConfig(position_table=192)
"""Stable Diffusion 3 medium."""
SD35_MEDIUM = MMDiTConfig(dual_layers=tuple(range(13)), qk_norm=True, position_table=384)
"""Stable Diffusion 3.5 medium."""
SD35_LARGE = MMDiTConfig(num_heads=38, num_layers=38, qk_norm=True, position_table=192)
"""Stable Diffusion 3.5 large, 8 billion parameters."""


class MMDiT(TextToImage):
    """MM-DiT network of double blocks."""

    config: MMDiTConfig

    def add_blocks(self, rngs: nnx.Rngs) -> None:
        """Build the position table and a stack of blocks for each run of equal blocks."""
        config, side = self.config, self.config.position_table
        self.positions = None if side is None else nnx.Param(_position_table(side, config.width))
        for run, (dual, last, layers) in enumerate(config.runs):
            build = _block_builder(config.sizes, dual=dual, last=last)
            setattr(self, f"blocks_{run}", stack_blocks(build, len(layers), rngs))

    def apply_blocks(self, text: Words, image: Patches, c: Vectors) -> Patches:
        """Add positions to the image tokens, apply all blocks, and return the image tokens."""
        config = self.config
        h = (text, image + self._position_embeddings().astype(image.dtype)[None])
        for run in range(len(config.runs)):
            blocks = getattr(self, f"blocks_{run}")
            h = run_blocks(blocks, h, c, unroll=config.unroll_layers, remat=config.remat)
        return h[1]

    def _position_embeddings(self) -> Float[Array, "tokens width"]:
        """Return the position embeddings of the image tokens, row by row."""
        rows, columns = self.grid
        if self.positions is None:
            return sincos_positions(rows, columns, dim=self.config.width)
        table = jax.lax.stop_gradient(all_gather_fsdp(self.positions[...]))
        top, left = (table.shape[0] - rows) // 2, (table.shape[1] - columns) // 2
        center = table[top : top + rows, left : left + columns]
        return center.reshape(rows * columns, -1)


def _block_builder(sizes: Sizes, *, dual: bool, last: bool) -> Callable[[nnx.Rngs], DoubleBlock]:
    return lambda rngs: DoubleBlock(sizes, dual=dual, last=last, rngs=rngs)


def _position_table(side: int, width: int) -> Float[Array, "rows columns width"]:
    return sincos_positions(side, side, dim=width).reshape(side, side, width)


def make_mmdit(
    config: MMDiTConfig,
    event_shape: tuple[int, ...],
    text: CondSpec,
    adapters: Adapters | None = None,
) -> VelocityNet:
    """Build an MM-DiT as pure functions. Its output is zero at initialization.

    The condition is a `Text`.

    Args:
        config: Sizes and options of the network.
        event_shape: (height, width, channel) of the latents.
        text: Sizes of the condition, a `TextShape`.
        adapters: Low-rank adapters of the network's layers, or None.

    Raises:
        ValueError: If `event_shape` is not an image, its sides are not multiples of the patch size
            or exceed the position table, or `text` is not a `TextShape`. When called, if the
            condition is not a `Text` of these sizes.
    """
    net = make_text_to_image(MMDiT, config, event_shape, text, adapters, "an MM-DiT")
    if config.position_table is not None:
        max_side = config.position_table * config.patch_size
        rule = f"have sides of at most position_table * patch_size = {max_side}"
        require(max(event_shape[:2]) <= max_side, "event_shape", rule, event_shape)
    return net
