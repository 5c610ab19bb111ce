"""FLUX.1: a rectified-flow transformer on text and image tokens.

Double blocks, with separate weights for text and image and joint attention, are followed by single
blocks, with shared weights and parallel attention and MLP. The network uses time as given. Released
weights were trained with t = 1 at the noise; the code that loads them reverses the time.

Reference: Black Forest Labs, FLUX.1 (2024). The blocks are defined in `joint_blocks.py`.
"""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from fmjax._arrays import Text, Times
from fmjax._checks import require, require_at_least
from fmjax._specs import CondSpec
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
    """Sizes and options of a FLUX.1 network; the defaults are those of the 12 B models.

    Attributes:
        patch_size: Side of the square patches of latents that form one token.
        num_heads: Number of attention heads.
        head_width: Channels of a head; a token has `num_heads * head_width` channels.
        num_double: Number of double blocks, with separate weights for text and image.
        num_single: Number of single blocks, with shared weights for text and image.
        rotary_axes: Channels of a head that are rotated by the image index (always 0), by the row
            and by the column; even numbers that sum to `head_width`.
        guidance: Default guidance scale of a network with a guidance input (dev), used if the
            condition has no scale; None for a network without this input (schnell).
        dtype: Type of the computation, "float32" or "bfloat16"; parameters are float32.
        unroll_layers: Unroll the loops over layers instead of using scans.
        remat: Part of each block that is recomputed in the backward pass: "none", "full",
            "save_matmuls" or "offload" (see `DiTConfig`).
        attention: Attention implementation, "auto", "xla", "splash" or "cudnn" (see `DiTConfig`).
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
        are_even = all(size >= 0 and size % 2 == 0 for size in self.rotary_axes)
        is_valid = are_even and sum(self.rotary_axes) == self.head_width
        rule = f"be even numbers that sum to head_width = {self.head_width}"
        require(is_valid, "rotary_axes", rule, self.rotary_axes)
        if self.guidance is not None:
            require_at_least("guidance", self.guidance, 0.0)

    @property
    def sizes(self) -> Sizes:
        """Sizes and options shared by all blocks."""
        return Sizes(self.num_heads, self.head_width, self.dtype, self.attention)

    @property
    def width(self) -> int:
        """Number of channels of a token."""
        return self.sizes.width


FLUX_DEV = FluxConfig()
"""FLUX.1-dev: 11.9 billion parameters, with the guidance scale as an input."""
FLUX_SCHNELL = FluxConfig(guidance=None)
"""FLUX.1-schnell: the network of FLUX.1-dev without the guidance input."""


class Flux(TextToImage):
    """FLUX.1 network of double blocks and single blocks."""

    config: FluxConfig

    def add_blocks(self, rngs: nnx.Rngs) -> None:
        """Build the stacks of double and single blocks, and the embedding of the guidance scale."""
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

    def embed_condition(self, t: Times, cond: Text) -> Vectors:
        """Embed time, guidance scale and pooled prompt as one vector per sample."""
        if self.guidance is None:
            return super().embed_condition(t, cond)
        default = jnp.broadcast_to(jnp.asarray(self.config.guidance, t.dtype), t.shape)
        scale = default if cond.guidance is None else cond.guidance
        guidance = self.guidance(ddpm_features(scale, TIME_FEATURES))
        return super().embed_condition(t, cond._replace(guidance=None)) + guidance

    def apply_blocks(self, text: Words, image: Patches, c: Vectors) -> Patches:
        """Apply the double and single blocks and return the image tokens."""
        config, num_text = self.config, text.shape[1]
        settings: dict[str, Any] = dict(unroll=config.unroll_layers, remat=config.remat)
        angles = _rotary_angles(config, num_text, *self.grid)
        text, image = run_blocks(self.double, (text, image), c, angles, **settings)
        h = jnp.concatenate([text, image], axis=1)
        return run_blocks(self.single, h, c, angles, **settings)[:, num_text:]


def make_flux(
    config: FluxConfig,
    event_shape: tuple[int, ...],
    text: CondSpec,
    adapters: Adapters | None = None,
) -> VelocityNet:
    """Build a FLUX.1 network as pure functions. Its output is zero at initialization.

    The condition is a `Text`.

    Args:
        config: Sizes and options of the network.
        event_shape: (height, width, channel) of the latents.
        text: Sizes of the condition, a `TextShape`.
        adapters: Low-rank adapters of the network's layers, or None.

    Raises:
        ValueError: If `event_shape` is not an image, its sides are not multiples of the patch
            size, or `text` is not a `TextShape`. When called, if the condition is not a `Text` of
            these sizes.
    """
    return make_text_to_image(Flux, config, event_shape, text, adapters, "a FLUX")


def _rotary_angles(config: FluxConfig, num_text: int, rows: int, columns: int) -> np.ndarray:
    """Compute the rotary angles of all tokens, `[tokens, head_width / 2]`; zero for text."""
    by_index, by_row, by_column = (channels // 2 for channels in config.rotary_axes)
    image = [
        np.zeros((rows * columns, by_index)),
        axis_angles(rows, columns, num_frequencies=by_row)[0],
        axis_angles(rows, columns, num_frequencies=by_column)[1],
    ]
    text = np.zeros((num_text, config.head_width // 2))
    return np.concatenate([text, np.concatenate(image, axis=-1)]).astype(np.float32)
