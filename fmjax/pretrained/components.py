"""The parts of released models: which network a config.json means, and its weights."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from fmjax._arrays import Params, TextShape
from fmjax._progress import Progress, Silent
from fmjax.networks import (
    NetworkConfig,
    make_autoencoder,
    make_clip_text,
    make_flux,
    make_mmdit,
    make_t5_encoder,
)
from fmjax.pretrained.config_files import class_of, read_about
from fmjax.pretrained.families.autoencoder import autoencoder_config, autoencoder_views
from fmjax.pretrained.families.clip import BUFFERS, PREFIX, clip_text_config, clip_text_views
from fmjax.pretrained.families.flux import PATCH, flux_config, flux_views
from fmjax.pretrained.families.sd3 import sd3_config, sd3_views
from fmjax.pretrained.families.t5 import EMBEDDING, TIED, t5_config, t5_views
from fmjax.pretrained.files import TensorFiles, find_files
from fmjax.pretrained.lora.files import merge_lora
from fmjax.pretrained.weights import check_tensors, load_params
from fmjax.sharding import laid_out

FLUX_TRANSFORMER, SD3_TRANSFORMER = "FluxTransformer2DModel", "SD3Transformer2DModel"
"""Classes of transformers."""


class Component(NamedTuple):
    """A part of a released model, without its weights.

    Attributes:
        about: Its config.json.
        config: The same as fmjax has it.
        views: Its parameters as parts of tensors.
        init: `init(key) -> params`.
        tensor_axes: As of a `VelocityNet`.
        network: Its pure functions (`CLIPText`, `T5Encoder`, `Autoencoder`); of a transformer,
            which is made for latents of one size, `network(event_shape, text)` gives them.
        aliases: Tensors that may be copies of others, by name.
        buffers: Tensors that may be there, and are no parameters.
    """

    about: Mapping[str, Any]
    config: Any
    views: Any
    init: Callable[..., Params]
    tensor_axes: Mapping[str, int]
    network: Any
    aliases: Mapping[str, str] = {}
    buffers: tuple[str, ...] = ()


class Loaded(NamedTuple):
    """A part of a released model with its weights."""

    component: Component
    params: Params


def make_component(
    about: Mapping[str, Any], names: Sequence[str] = (), **settings: Any
) -> Component:
    """The network that a config.json describes.

    Args:
        about: The parsed file.
        names: Of the tensors of its files; some classes have two spellings of them.
        settings: Of how it is computed (dtype, remat, attention, ...), of networks that have them.

    Raises:
        ValueError: If it is of no class that is known here, or of one with sizes that are not.
    """
    found = class_of(about)
    make = _MAKERS.get(str(found))
    if make is None:
        raise ValueError(f"config.json must be of {', '.join(_MAKERS)}, got {found}")
    return make(about, names, settings)


def load_component(
    folder: Path,
    *,
    mesh: jax.sharding.Mesh,
    dtype: Any = None,
    compute: str = "float32",
    lora: Path | None = None,
    lora_scale: float = 1.0,
    progress: Progress = Silent(),
    **settings: Any,
) -> Loaded:
    """Read a part of a model: the folder with its config.json and safetensors.

    Args:
        folder: Of that part.
        mesh: Over which the weights are laid; each device reads its own part of the files.
        dtype: Of the weights; None keeps that of the files.
        compute: The dtype of the computation, "float32" or "bfloat16".
        lora: A LoRA file, whose adapters are added to the weights.
        lora_scale: How much of them.
        progress: Receives each parameter, and one line of what of a LoRA file is left out.
        settings: As of `make_component`.

    Raises:
        ValueError: If the folder lacks a file, or one is damaged, pickled or of something else; or
            the LoRA file is of another model.
        WeightsMismatch: If the tensors are not those of the config.json.
    """
    opened = _opened(folder, lora, lora_scale, progress, dtype=compute, **settings)
    with opened as (files, component):
        like = jax.eval_shape(component.init, jax.random.key(0))
        like = laid_out(like, mesh, component.tensor_axes)
        params = load_params(files, component.views, like, dtype=dtype, progress=progress)
    return Loaded(component, params)


def check_component(folder: Path, *, lora: Path | None = None) -> Component:
    """Look at the files of a part of a model, without reading weights.

    Raises:
        ValueError: As `load_component`.
        WeightsMismatch: As `load_component`.
    """
    with _opened(folder, lora, 1.0, Silent()) as (_, component):
        return component


@contextlib.contextmanager
def _opened(
    folder: Path, lora: Path | None, scale: float, progress: Progress, **settings: Any
) -> Iterator[tuple[TensorFiles, Component]]:
    """The tensors of a folder, with adapters added to them, and the part that they must be of."""
    about = read_about(folder / "config.json")
    try:
        with _tensors(folder, lora, scale, progress) as files:
            component = make_component(about, tuple(files.shapes), **settings)
            check_tensors(files, component.views, (*component.aliases, *component.buffers))
            yield files, component
    except ValueError as error:
        if any(str(path) in str(error) for path in (folder, lora) if path):
            raise
        raise ValueError(f"{folder}: {error}") from error


def _tensors(folder: Path, lora: Path | None, scale: float, progress: Progress) -> TensorFiles:
    files = TensorFiles(find_files(folder))
    if lora is None:
        return files
    with files:
        return merge_lora(files, lora, scale, progress)


def transformer_config(about: Mapping[str, Any], **settings: Any) -> NetworkConfig:
    """The network of a transformer's config.json.

    Args:
        about: The parsed file.
        settings: As of `make_component`.

    Raises:
        ValueError: If it is of something else, or lacks a size.
    """
    read = {FLUX_TRANSFORMER: flux_config, SD3_TRANSFORMER: sd3_config}
    found = str(class_of(about))
    if found not in read:
        raise ValueError(f"config.json must be of {' or '.join(read)}, got {found}")
    return read[found](about, **settings)


def _flux(about: Mapping[str, Any], _: Sequence[str], settings: dict[str, Any]) -> Component:
    return _transformer(about, flux_config(about, **settings), flux_views(about), make_flux)


def _sd3(about: Mapping[str, Any], _: Sequence[str], settings: dict[str, Any]) -> Component:
    return _transformer(about, sd3_config(about, **settings), sd3_views(about), make_mmdit)


def _transformer(about: Mapping[str, Any], config: Any, views: Any, make: Any) -> Component:
    """Its parameters do not depend on the sizes of latents; those of the smallest are as good."""
    event = (config.patch_size, config.patch_size, latent_channels(about))
    text = TextShape(1, about["joint_attention_dim"], about["pooled_projection_dim"])
    net = make(config, event, text)

    def network(event_shape: tuple[int, ...], text: TextShape) -> Any:
        return make(config, event_shape, text)

    return Component(about, config, views, net.init, net.tensor_axes, network)


def latent_channels(about: Mapping[str, Any]) -> int:
    """Channels of the latents of a transformer; FLUX's in_channels are those of a patch."""
    packed = class_of(about) == FLUX_TRANSFORMER
    return about["in_channels"] // PATCH**2 if packed else about["in_channels"]


def _vae(about: Mapping[str, Any], _: Sequence[str], settings: dict[str, Any]) -> Component:
    config = _with(autoencoder_config(about), settings)
    network = make_autoencoder(config)
    views = autoencoder_views(config)
    return Component(about, config, views, network.init, network.tensor_axes, network)


def _clip(about: Mapping[str, Any], names: Sequence[str], settings: dict[str, Any]) -> Component:
    config = _with(clip_text_config(about), settings)
    prefix = PREFIX if any(name.startswith(PREFIX) for name in names) else ""
    network, views = make_clip_text(config), clip_text_views(config, prefix=prefix)
    return Component(
        about,
        config,
        views,
        network.init,
        network.tensor_axes,
        network,
        buffers=tuple(prefix + name for name in BUFFERS),
    )


def _t5(about: Mapping[str, Any], _: Sequence[str], settings: dict[str, Any]) -> Component:
    config = _with(t5_config(about), settings)
    network = make_t5_encoder(config)
    return Component(
        about,
        config,
        t5_views(config),
        network.init,
        network.tensor_axes,
        network,
        aliases={TIED: EMBEDDING},
    )


def _with(config: Any, settings: Mapping[str, Any]) -> Any:
    """The settings that such a config has."""
    fields = {field.name for field in dataclasses.fields(config)}
    return dataclasses.replace(config, **{k: v for k, v in settings.items() if k in fields})


_MAKERS: Mapping[str, Callable[..., Component]] = {
    FLUX_TRANSFORMER: _flux,
    SD3_TRANSFORMER: _sd3,
    "AutoencoderKL": _vae,
    "CLIPTextModel": _clip,
    "CLIPTextModelWithProjection": _clip,
    "T5EncoderModel": _t5,
}
