"""FLUX.1: a rectified-flow transformer on text and image tokens.

First come blocks in which text and image have weights of their own and attend to each other, then
blocks in which both are one sequence, with attention and MLP side by side. The network takes time
as it is given; released weights were trained with t = 1 at the noise, and are turned around where
they are read.

Source: Black Forest Labs, FLUX.1 (2024); its blocks are those of `networks/joint.py`.
"""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from fmjax._arrays import Conditions, Points, Text, TextShape, Times
from fmjax._checks import require, require_at_least, require_one_of
from fmjax._layout import rows_apart
from fmjax.networks.attention import ATTENTIONS
from fmjax.networks.joint import (
    DoubleBlock,
    SingleBlock,
    Sizes,
    VectorEmbedding,
    modulations_of,
)
from fmjax.networks.layers import (
    DTYPES,
    Linear,
    compute_dtype,
    ddpm_features,
    modulate,
    widened,
)
from fmjax.networks.lora import Adapters, with_adapters
from fmjax.networks.patches import axis_angles, patchify, unpatchify
from fmjax.networks.pure import REMAT, purify, run_blocks, stack_blocks
from fmjax.networks.text_cond import checked_text, require_patches, require_text
from fmjax.velocity import VelocityNet

_TIME_FEATURES = 256
_XAVIER = nnx.initializers.xavier_uniform()
_ZEROS = nnx.initializers.zeros


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
        even = all(size >= 0 and size % 2 == 0 for size in self.rotary_axes)
        fits = even and sum(self.rotary_axes) == self.head_width
        rule = f"be even numbers that add up to the head's {self.head_width} channels"
        require(fits, "rotary_axes", rule, self.rotary_axes)
        require_one_of("dtype", self.dtype, DTYPES)
        require_one_of("remat", self.remat, tuple(REMAT))
        require_one_of("attention", self.attention, ATTENTIONS)

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


class Flux(nnx.Module):
    """Text and patches in, blocks, patches out; see the module's docstring."""

    def __init__(
        self,
        config: FluxConfig,
        event_shape: tuple[int, ...],
        text: TextShape,
        *,
        rngs: nnx.Rngs,
    ):
        height, width, channels = event_shape
        size, patch = config.patch_size, config.patch_size**2 * channels
        settings: dict[str, Any] = dict(dtype=compute_dtype(config.dtype), rngs=rngs)
        self.config, self.text, self.grid = config, text, (height // size, width // size)
        self.time = VectorEmbedding(_TIME_FEATURES, config.width, rngs=rngs)
        self.pooled = VectorEmbedding(text.pooled_width, config.width, rngs=rngs)
        self.guidance = (
            None
            if config.guidance is None
            else VectorEmbedding(_TIME_FEATURES, config.width, rngs=rngs)
        )
        self.tokens = Linear(text.width, config.width, kernel_init=_XAVIER, **settings)
        self.patches = Linear(patch, config.width, kernel_init=_XAVIER, **settings)
        self.double = stack_blocks(
            lambda rngs: DoubleBlock(config.sizes, rngs=rngs), config.num_double, rngs
        )
        self.single = stack_blocks(
            lambda rngs: SingleBlock(config.sizes, rngs=rngs), config.num_single, rngs
        )
        self.modulation = Linear(config.width, 2 * config.width, kernel_init=_ZEROS, **settings)
        self.out = Linear(config.width, patch, kernel_init=_ZEROS, **settings)

    def __call__(self, t: Times, x: Points, cond: Text | None) -> Points:
        """Give the prediction, float32, shaped like x."""
        config, size = self.config, self.config.patch_size
        cond = checked_text(cond, self.text)
        has = self.guidance is None and cond.guidance is not None
        require(not has, "cond.guidance", "be None for a network without that input", "a scale")
        c = self._embedded(t, cond)
        text, image = self.tokens(cond.tokens), self.patches(patchify(x, size))
        how: dict[str, Any] = dict(unroll=config.unroll_layers, remat=config.remat)
        angles = _angles(config, text.shape[1], *self.grid)
        text, image = run_blocks(self.double, (text, image), c, angles, **how)
        h = run_blocks(self.single, jnp.concatenate([text, image], axis=1), c, angles, **how)
        shift, scale = modulations_of(self.modulation, c)
        tokens = self.out(modulate(h[:, text.shape[1] :], shift, scale))
        return unpatchify(widened(tokens), size, x.shape[1:])

    def _embedded(self, t: Times, cond: Text) -> Float[Array, "batch width"]:
        """Time, guidance and prompt as one vector for each example."""
        c = self.time(ddpm_features(t, _TIME_FEATURES)) + self.pooled(cond.pooled)
        if self.guidance is not None:
            usual = jnp.broadcast_to(jnp.asarray(self.config.guidance, t.dtype), t.shape)
            scale = usual if cond.guidance is None else cond.guidance
            c = c + self.guidance(ddpm_features(scale, _TIME_FEATURES))
        return rows_apart(nnx.silu(c))


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
    shape = require_text(text, "a FLUX")
    require_patches(event_shape, config.patch_size)

    def build(rngs: nnx.Rngs) -> Flux:
        return Flux(config, event_shape, shape, rngs=rngs)

    return VelocityNet(*purify(with_adapters(build, adapters)))


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
