"""Released models as velocity fields: convert the conventions of diffusers to those of fmjax.

Released models use sigma = 1 - t, and their velocity points from data to noise. Their samples are
shifted and scaled latents of an autoencoder.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from fmjax._arrays import Cond, Params, Points, Text, TextShape, Times
from fmjax._checks import require
from fmjax._progress import Progress, Silent
from fmjax.networks import MMDiTConfig
from fmjax.paths import VelocityNet, reversed_time
from fmjax.pretrained.components import Loaded, latent_channels, transformer_config
from fmjax.pretrained.families.autoencoder import autoencoder_config
from fmjax.pretrained.folder import FLUX, ModelFolder
from fmjax.pretrained.time_grid import released_sigmas


class Kind(NamedTuple):
    """Default sampling settings of a released model.

    Attributes:
        num_steps: Number of Euler steps.
        guidance: Guidance scale; None for a model that was distilled to sample without guidance.
        distilled: Whether sampling needs one network evaluation per step, because guidance is an
            input of the network or not used.
    """

    num_steps: int
    guidance: float | None
    distilled: bool


def pipeline_kind(model: ModelFolder) -> Kind:
    """Return the default sampling settings of a model, equal to those of diffusers."""
    if model.kind != FLUX:
        return Kind(num_steps=28, guidance=7.0, distilled=False)
    guided = bool(model.config_json("transformer").get("guidance_embeds", False))
    return Kind(28, 3.5, True) if guided else Kind(4, None, True)


class Latents(NamedTuple):
    """Sizes of the latents of one image.

    Attributes:
        event_shape: Shape of the latents, (height, width, channel).
        patch: Side of the square of latents that is one token.
        factor: Downsampling factor of the autoencoder, pixels per latent along a side.
    """

    event_shape: tuple[int, int, int]
    patch: int
    factor: int

    @property
    def num_tokens(self) -> int:
        """Number of tokens of the image."""
        height, width, _ = self.event_shape
        return (height // self.patch) * (width // self.patch)


def latents_of(model: ModelFolder, height: int | None = None, width: int | None = None) -> Latents:
    """Return the sizes of the latents of an image.

    Args:
        model: Released model.
        height: Height in pixels; None takes the default of the model.
        width: Width in pixels; None takes the default of the model.

    Raises:
        ValueError: If a side is not divisible by the downsampling factor times the patch size, or
            too large for the model's table of positions.
    """
    config_json = model.config_json("transformer")
    config = transformer_config(config_json)
    factor, patch = autoencoder_config(model.config_json("vae")).downsampling, config.patch_size
    default = factor * config_json.get("sample_size", 128)
    sides = {"height": height or default, "width": width or default}
    for name, side in sides.items():
        rule = f"be divisible by {factor * patch}, the autoencoder's {factor} times the patch size"
        require(side % (factor * patch) == 0, name, rule, side)
    if isinstance(config, MMDiTConfig) and config.position_table is not None:
        largest, limit = max(sides.values()), config.position_table * patch * factor
        require(largest <= limit, "size", f"be at most {limit} for this model", largest)
    channels = latent_channels(config_json)
    return Latents((sides["height"] // factor, sides["width"] // factor, channels), patch, factor)


def released_times(model: ModelFolder, latents: Latents, num_steps: int) -> np.ndarray:
    """Return the default time grid of a model, increasing from 0 to 1, `[num_steps + 1]` float32.

    Args:
        model: Released model.
        latents: Sizes of the latents, on which the grid may depend.
        num_steps: Number of steps.

    Raises:
        ValueError: If the scheduler of the model is not supported.
    """
    config_json, is_flux = model.config_json("scheduler"), model.kind == FLUX
    sigmas = released_sigmas(config_json, num_steps, latents.num_tokens, to_one_step=is_flux)
    return (1.0 - sigmas).astype(np.float32)


def velocity_net(loaded: Loaded, event_shape: tuple[int, ...], text: Text) -> VelocityNet:
    """Convert a released transformer to a velocity network with noise at t = 0.

    Args:
        loaded: The transformer.
        event_shape: Shape of the latents of one image.
        text: Encoded prompts with the sizes of those that the network will be called with.
    """
    (_, num_tokens, width), pooled_width = text.tokens.shape, text.pooled.shape[-1]
    shape = TextShape(num_tokens, width, pooled_width)
    return reverse_network_time(loaded.component.network(event_shape, shape))


def reverse_network_time(net: VelocityNet) -> VelocityNet:
    """Convert a network with noise at t = 1 to one with noise at t = 0."""

    def apply(params: Params, t: Times, x: Points, cond: Cond = None) -> Points:
        return reversed_time(partial(net.apply, params))(t, x, cond)

    return net._replace(apply=apply)


def read_latents(arrays: Mapping[str, np.ndarray], latents: Latents, packed: bool) -> np.ndarray:
    """Convert initial noise from the layout of diffusers to `[images, height, width, channel]`.

    Args:
        arrays: Arrays of an .npz file, by name; the noise is `init_latents`.
        latents: Expected sizes of the latents.
        packed: Whether the noise is `[images, patches, channel * row * column]` (FLUX) instead of
            `[images, channel, height, width]`.

    Raises:
        ValueError: If the array is missing or has another shape.
    """
    require("init_latents" in arrays, "latents", "hold an array init_latents", sorted(arrays))
    noise = np.asarray(arrays["init_latents"], np.float32)
    height, width, channels = latents.event_shape
    size = latents.patch
    expected = (channels, height, width)
    if packed:
        expected = (latents.num_tokens, channels * size**2)
    valid = noise.shape[1:] == expected and len(noise) > 0
    rule = f"have shape (images, {', '.join(map(str, expected))})"
    require(valid, "init_latents", rule, noise.shape)
    if not packed:
        return noise.transpose(0, 2, 3, 1)
    patches = noise.reshape(-1, height // size, width // size, channels, size, size)
    return patches.transpose(0, 1, 4, 2, 5, 3).reshape(-1, height, width, channels)


def load_transformer(
    model: ModelFolder,
    *,
    mesh: jax.sharding.Mesh,
    dtype: str,
    progress: Progress = Silent(),
    **settings: Any,
) -> Loaded:
    """Load the transformer of a model, with the same dtype for weights and computation.

    Args:
        model: Released model.
        mesh: Device mesh that holds the weights.
        dtype: Dtype of the weights and the computation, "float32" or "bfloat16".
        progress: Receives progress reports.
        settings: Further arguments of `load_component`.
    """
    return model.load(
        "transformer", mesh=mesh, dtype=dtype, compute=dtype, progress=progress, **settings
    )
