"""FLUX.1: a rectified-flow transformer on text and image tokens.

First come blocks in which text and image have weights of their own and attend to each other, then
blocks in which both are one sequence, with attention and MLP side by side. The network takes time
as it is given; released weights were trained with t = 1 at the noise, and are turned around where
they are read.

Reference: Black Forest Labs, FLUX.1 (2024). The blocks are defined in `joint_blocks.py`.
"""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from fmjax._arrays import Conditions, Text, Times
from fmjax._checks import require, require_at_least
from fmjax.networks.layers.computation import require_computable
from fmjax.networks.layers.functional import run_blocks, stack_blocks
from fmjax.networks.layers.linear import ddpm_features
from fmjax.networks.layers.lora import Adapters
from fmjax.networks.layers.patches import axis_angles
from fmjax.networks.transformers.joint_blocks import (
    DoubleBlock,
    SingleBlock,
    Sizes,
    VectorEmbedding,
)
from fmjax.networks.transformers.text_to_image import (
    TIME_FEATURES,
    Patches,
    TextToImage,
    Vectors,
    Words,
    make_text_to_image,
)
from fmjax.paths import VelocityNet


@dataclass(frozen=True)
class FluxConfig:
    """Sizes and choices of a FLUX.1 network; the defaults are those of its 12 B models.

    Attributes:
        patch_size: Side of the square patches of latents that are one token.
        num_heads: Attention heads.
        head_width: Channels of each; a token has `num_heads * head_width`.
        num_double: Blocks in which text and image have weights of their own.
        num_single: Blocks after them, in which they share them.
        rotary_axes: Channels of a head that turn with the picture's number (always 0), with the
            row and with the column.
        guidance: Asked for where a condition names no scale, of networks that take it as an input
            (dev); None for a network without that input (schnell).
        dtype: Of the computation, "float32" or "bfloat16"; parameters are float32.
        unroll_layers: Write every layer into the program instead of two scans.
        remat: What of a block is computed again in the backward pass, as of `DiTConfig`.
        attention: By which means, as of `DiTConfig`.
    """

    patch_size: int = 2
    num_heads: int = 24
    head_width: int = 128
    num_double: int = 19
    num_single: int = 38
    rotary_axes: tuple[int, int, int] = (16, 56, 56)
    guidance: float | None = 3.5
    dtype: str = "float32"
    unroll_layers: bool = False
    remat: str = "none"
    attention: str = "auto"

    def __post_init__(self):
        for name in ("patch_size", "num_heads", "head_width", "num_double", "num_single"):
            require_at_least(name, getattr(self, name), 1)
        require_computable(self)
        even = all(size >= 0 and size % 2 == 0 for size in self.rotary_axes)
        fits = even and sum(self.rotary_axes) == self.head_width
        rule = f"be even numbers that add up to the head's {self.head_width} channels"
        require(fits, "rotary_axes", rule, self.rotary_axes)
        if self.guidance is not None:
            require_at_least("guidance", self.guidance, 0.0)

    @property
    def sizes(self) -> Sizes:
        """What its blocks have in common."""
        return Sizes(self.num_heads, self.head_width, self.dtype, self.attention)

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.sizes.width


FLUX_DEV = FluxConfig()
"""FLUX.1-dev: 11.9 billion parameters, with the guidance scale as an input."""
FLUX_SCHNELL = FluxConfig(guidance=None)
"""FLUX.1-schnell: the same without that input."""


class Flux(TextToImage):
    """Blocks of two kinds; see the module's docstring."""

    def add_blocks(self, rngs: nnx.Rngs) -> None:
        """Two stacks, and what embeds the guidance scale."""
        config, sizes = self.config, self.config.sizes
        self.double = stack_blocks(
            lambda rngs: DoubleBlock(sizes, rngs=rngs), config.num_double, rngs
        )
        self.single = stack_blocks(
            lambda rngs: SingleBlock(sizes, rngs=rngs), config.num_single, rngs
        )
        self.guidance = (
            None
            if config.guidance is None
            else VectorEmbedding(TIME_FEATURES, config.width, rngs=rngs)
        )

    def embedded(self, t: Times, cond: Text) -> Vectors:
        """Time, guidance and the whole of the prompt as one vector for each example."""
        if self.guidance is None:
            return super().embedded(t, cond)
        usual = jnp.broadcast_to(jnp.asarray(self.config.guidance, t.dtype), t.shape)
        scale = usual if cond.guidance is None else cond.guidance
        guidance = self.guidance(ddpm_features(scale, TIME_FEATURES))
        return super().embedded(t, cond._replace(guidance=None)) + guidance

    def through_blocks(self, text: Words, image: Patches, c: Vectors) -> Patches:
        """What becomes of the image's tokens."""
        config, num_text = self.config, text.shape[1]
        how: dict[str, Any] = dict(unroll=config.unroll_layers, remat=config.remat)
        angles = _angles(config, num_text, *self.grid)
        text, image = run_blocks(self.double, (text, image), c, angles, **how)
        h = run_blocks(self.single, jnp.concatenate([text, image], axis=1), c, angles, **how)
        return h[:, num_text:]


def make_flux(
    config: FluxConfig,
    event_shape: tuple[int, ...],
    text: Conditions,
    adapters: Adapters | None = None,
) -> VelocityNet:
    """A FLUX network for latents of `event_shape` = (height, width, channel), as pure functions.

    Its condition is a `Text` of the sizes `text`; its output is zero at the start.

    Args:
        config: Its sizes.
        event_shape: Of the latents.
        text: Sizes of the condition.
        adapters: Of its layers.

    Raises:
        ValueError: If the event is no image, its sides are no multiples of the patch, or it is
            given no text; when called, if the condition is not such a text.
    """
    return make_text_to_image(Flux, config, event_shape, text, adapters, "a FLUX")


def _angles(config: FluxConfig, num_text: int, rows: int, columns: int) -> np.ndarray:
    """Rotary angles of all tokens, `[tokens, head_width / 2]`; those of text are zero."""
    by_picture, by_row, by_column = (channels // 2 for channels in config.rotary_axes)
    image = [
        np.zeros((rows * columns, by_picture)),
        axis_angles(rows, columns, by_row)[0],
        axis_angles(rows, columns, by_column)[1],
    ]
    text = np.zeros((num_text, config.head_width // 2))
    return np.concatenate([text, np.concatenate(image, axis=-1)]).astype(np.float32)
