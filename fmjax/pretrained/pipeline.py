"""A released model as a velocity field: its conventions turned into fmjax's, once, here.

Released models count noise, sigma = 1 - t, and their velocity points from data to noise; what they
take for an image are latents, shifted and scaled.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from fmjax._arrays import Cond, Params, Points, Text, TextShape, Times
from fmjax._checks import require
from fmjax._progress import Progress, Silent
from fmjax.paths import VelocityNet, reversed_time
from fmjax.pretrained.components import Loaded, latent_channels, transformer_config
from fmjax.pretrained.families.autoencoder import autoencoder_config
from fmjax.pretrained.folder import FLUX, ModelFolder
from fmjax.pretrained.time_grid import released_sigmas


class Kind(NamedTuple):
    """What is usual for a model.

    Attributes:
        steps: Of Euler.
        guidance: Its scale; None for a model that was distilled to do without.
        distilled: Whether guidance is an input of the network, instead of a second evaluation.
    """

    steps: int
    guidance: float | None
    distilled: bool


def kind_of(model: ModelFolder) -> Kind:
    """What is usual for a model, as diffusers has it."""
    if model.kind != FLUX:
        return Kind(steps=28, guidance=7.0, distilled=False)
    guided = bool(model.about("transformer").get("guidance_embeds", False))
    return Kind(28, 3.5, True) if guided else Kind(4, None, True)


class Latents(NamedTuple):
    """What a model's images are to it.

    Attributes:
        event_shape: Of one image's latents, (height, width, channel).
        patch: Side of a token's square of latents.
        factor: Pixels of an image's side for each of its latents'.
    """

    event_shape: tuple[int, int, int]
    patch: int
    factor: int

    @property
    def num_tokens(self) -> int:
        """Tokens of an image."""
        height, width, _ = self.event_shape
        return (height // self.patch) * (width // self.patch)


def latents_of(model: ModelFolder, height: int | None = None, width: int | None = None) -> Latents:
    """The latents of images of a size, in pixels; None takes the size the model was made for.

    Raises:
        ValueError: If a side is no multiple of the patch times the autoencoder's factor.
    """
    about = model.about("transformer")
    config: Any = transformer_config(about)
    factor, patch = autoencoder_config(model.about("vae")).downsampling, config.patch_size
    usual = factor * about.get("sample_size", 128)
    sides = {"height": height or usual, "width": width or usual}
    for name, side in sides.items():
        rule = f"be a multiple of {factor * patch} (the autoencoder's {factor} times the patch)"
        require(side % (factor * patch) == 0, name, rule, side)
    table = getattr(config, "position_table", None)
    if table is not None:
        rule = f"be at most {table * patch * factor} for this model"
        require(max(sides.values()) <= table * patch * factor, "size", rule, max(sides.values()))
    channels = latent_channels(about)
    return Latents((sides["height"] // factor, sides["width"] // factor, channels), patch, factor)


def released_times(model: ModelFolder, latents: Latents, num_steps: int) -> np.ndarray:
    """The times of a model's own grid, rising from 0 to 1, float32.

    Raises:
        ValueError: If its scheduler is of another kind.
    """
    about, equal = model.about("scheduler"), model.kind == FLUX
    sigmas = released_sigmas(about, num_steps, latents.num_tokens, to_one_step=equal)
    return (1.0 - sigmas).astype(np.float32)


def velocity_net(loaded: Loaded, event_shape: tuple[int, ...], text: Text) -> VelocityNet:
    """A transformer as any network of fmjax: noise at t = 0, its velocity towards the data.

    Args:
        loaded: The transformer.
        event_shape: Of latents.
        text: Prompts, of the sizes that it will be called with.
    """
    (_, num_tokens, width), pooled_width = text.tokens.shape, text.pooled.shape[-1]
    shape = TextShape(num_tokens, width, pooled_width)
    return reverse_network_time(loaded.component.network(event_shape, shape))


def reverse_network_time(net: VelocityNet) -> VelocityNet:
    """A network that was trained with t = 1 at the noise, in fmjax's time."""

    def apply(params: Params, t: Times, x: Points, cond: Cond = None) -> Points:
        return reversed_time(partial(net.apply, params))(t, x, cond)

    return net._replace(apply=apply)


def read_latents(arrays: Mapping[str, np.ndarray], latents: Latents, packed: bool) -> np.ndarray:
    """Noise that diffusers made, as fmjax has it: `init_latents` of an .npz file.

    Args:
        arrays: By name.
        latents: The sizes wanted.
        packed: Whether a row is a patch, `[channel, row, column]` (FLUX); else it is an image
            `[channel, height, width]`.

    Raises:
        ValueError: If there is no such array, or it has other sizes.
    """
    require("init_latents" in arrays, "latents", "hold an array init_latents", sorted(arrays))
    found = np.asarray(arrays["init_latents"], np.float32)
    height, width, channels = latents.event_shape
    size = latents.patch
    want = (channels, height, width)
    if packed:
        want = (latents.num_tokens, channels * size**2)
    right = found.shape[1:] == want and len(found) > 0
    require(right, "init_latents", f"be of shape {('images', *want)}", found.shape)
    if not packed:
        return found.transpose(0, 2, 3, 1)
    x = found.reshape(-1, height // size, width // size, channels, size, size)
    return x.transpose(0, 1, 4, 2, 5, 3).reshape(-1, height, width, channels)


def load_transformer(
    model: ModelFolder,
    *,
    mesh: jax.sharding.Mesh,
    dtype: str,
    progress: Progress = Silent(),
    **settings: Any,
) -> Loaded:
    """The transformer, with weights and computation of one type."""
    return model.load(
        "transformer", mesh=mesh, dtype=dtype, compute=dtype, progress=progress, **settings
    )
