"""Stable Diffusion 3's network: a rectified-flow transformer on text and image tokens (MM-DiT).

In every block text and image have weights of their own and attend to each other; places are added
to the image's tokens at the start. The network takes time as it is given; released weights were
trained with t = 1 at the noise, and are turned around where they are read.

Source: Esser et al. 2024, arXiv:2403.03206, section 4 and figure 2. The second attention of some
blocks, of the image to itself: Stability AI, Stable Diffusion 3.5 medium (2024).
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import jax
from flax import nnx
from jaxtyping import Array, Float

from fmjax._arrays import Conditions
from fmjax._checks import require, require_at_least
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
    """Sizes and choices of an MM-DiT; the defaults are those of SD3 medium.

    Attributes:
        patch_size: Side of the square patches of latents that are one token.
        num_heads: Attention heads.
        head_width: Channels of each; a token has `num_heads * head_width`.
        num_layers: Blocks.
        dual_layers: Those, counted from 0, in which the image also attends to itself alone.
        qk_norm: RMS norm of each head's queries and keys (steadies large or bfloat16 nets).
        position_table: Side, in patches, of the table of positions that released models hold among
            their weights; its middle is used, and it is not trained. None computes sines and
            cosines of the picture's own rows and columns.
        dtype: Of the computation, "float32" or "bfloat16"; parameters are float32.
        unroll_layers: Write every layer into the program instead of scans.
        remat: What of a block is computed again in the backward pass, as of `DiTConfig`.
        attention: By which means, as of `DiTConfig`.
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
        known = set(self.dual_layers) <= set(range(self.num_layers))
        require(known, "dual_layers", f"be below num_layers {self.num_layers}", self.dual_layers)
        if self.position_table is None:
            require(self.width % 4 == 0, "width", "be a multiple of 4 for positions", self.width)
        else:
            require_at_least("position_table", self.position_table, 1)

    @property
    def sizes(self) -> Sizes:
        """What its blocks have in common."""
        return Sizes(self.num_heads, self.head_width, self.dtype, self.attention, self.qk_norm)

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.num_heads * self.head_width

    @property
    def runs(self) -> list[tuple[bool, bool, range]]:
        """Layers in a row that are alike, each run a scan: are they dual, the last, and which."""
        kinds = [(i in self.dual_layers, i == self.num_layers - 1) for i in range(self.num_layers)]
        alike = itertools.groupby(range(self.num_layers), key=lambda i: kinds[i])
        layers = [(kind, list(run)) for kind, run in alike]
        return [(*kind, range(run[0], run[-1] + 1)) for kind, run in layers]


SD3_MEDIUM = MMDiTConfig(position_table=192)
"""Stable Diffusion 3 medium."""
SD35_MEDIUM = MMDiTConfig(dual_layers=tuple(range(13)), qk_norm=True, position_table=384)
"""Stable Diffusion 3.5 medium."""
SD35_LARGE = MMDiTConfig(num_heads=38, num_layers=38, qk_norm=True, position_table=192)
"""Stable Diffusion 3.5 large, 8 billion parameters."""


class MMDiT(TextToImage):
    """Blocks in which every token has weights of its kind; see the module's docstring."""

    def add_blocks(self, rngs: nnx.Rngs) -> None:
        """Positions, and a stack for each run of blocks that are alike."""
        config, table = self.config, self.config.position_table
        self.positions = None if table is None else nnx.Param(_table(table, config.width))
        for run, (dual, last, layers) in enumerate(config.runs):
            build = _block_of(config.sizes, dual, last)
            setattr(self, f"blocks_{run}", stack_blocks(build, len(layers), rngs))

    def through_blocks(self, text: Words, image: Patches, c: Vectors) -> Patches:
        """What becomes of the image's tokens."""
        config = self.config
        h = (text, image + self._places().astype(image.dtype)[None])
        for run in range(len(config.runs)):
            blocks = getattr(self, f"blocks_{run}")
            h = run_blocks(blocks, h, c, unroll=config.unroll_layers, remat=config.remat)
        return h[1]

    def _places(self) -> Float[Array, "tokens width"]:
        """What is added to the image's tokens, row by row."""
        rows, columns = self.grid
        if self.positions is None:
            return sincos_positions(rows, columns, self.config.width)
        table = jax.lax.stop_gradient(all_gather_fsdp(self.positions[...]))
        top, left = (table.shape[0] - rows) // 2, (table.shape[1] - columns) // 2
        middle = table[top : top + rows, left : left + columns]
        return middle.reshape(rows * columns, -1)


def _block_of(sizes: Sizes, dual: bool, last: bool) -> Callable[[nnx.Rngs], DoubleBlock]:
    return lambda rngs: DoubleBlock(sizes, dual=dual, last=last, rngs=rngs)


def _table(side: int, width: int) -> Float[Array, "rows columns width"]:
    return sincos_positions(side, side, width).reshape(side, side, width)


def make_mmdit(
    config: MMDiTConfig,
    event_shape: tuple[int, ...],
    text: Conditions,
    adapters: Adapters | None = None,
) -> VelocityNet:
    """An MM-DiT for latents of `event_shape` = (height, width, channel), as pure functions.

    Its condition is a `Text` of the sizes `text`; its output is zero at the start.

    Args:
        config: Its sizes.
        event_shape: Of the latents.
        text: Sizes of the condition.
        adapters: Of its layers.

    Raises:
        ValueError: If the event is no image, its sides are no multiples of the patch or more than
            the table of positions holds, or it is given no text; when called, if the condition is
            not such a text.
    """
    net = make_text_to_image(MMDiT, config, event_shape, text, adapters, "an MM-DiT")
    if config.position_table is not None:
        most = config.position_table * config.patch_size
        rule = f"have sides of at most {most} for this table of positions"
        require(max(event_shape[:2]) <= most, "event_shape", rule, event_shape)
    return net
