"""Components of released models: build the network of a config.json and load its weights."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
from jax.typing import DTypeLike

from fmjax._arrays import Params, PRNGKey, TextShape
from fmjax._progress import Progress, Silent
from fmjax.networks import (
    AutoencoderConfig,
    CLIPTextConfig,
    FluxConfig,
    MMDiTConfig,
    T5Config,
    make_autoencoder,
    make_clip_text,
    make_flux,
    make_mmdit,
    make_t5_encoder,
)
from fmjax.paths import VelocityNet
from fmjax.pretrained.config_files import class_of, read_config_json
from fmjax.pretrained.families.autoencoder import autoencoder_config, autoencoder_layouts
from fmjax.pretrained.families.clip import BUFFERS, PREFIX, clip_text_config, clip_text_layouts
from fmjax.pretrained.families.flux import PATCH, flux_config, flux_layouts
from fmjax.pretrained.families.sd3 import sd3_config, sd3_layouts
from fmjax.pretrained.families.t5 import EMBEDDING, TIED, t5_config, t5_layouts
from fmjax.pretrained.files import TensorFiles, find_files
from fmjax.pretrained.layouts import Layouts
from fmjax.pretrained.lora.files import merge_lora
from fmjax.pretrained.weights import check_tensors, load_params
from fmjax.sharding import with_shardings

FLUX_TRANSFORMER, SD3_TRANSFORMER = "FluxTransformer2DModel", "SD3Transformer2DModel"
"""Class names of the supported transformers in diffusers."""

_ConfigT = TypeVar("_ConfigT", AutoencoderConfig, CLIPTextConfig, T5Config)


class Component(NamedTuple):
    """A component of a released model, without its weights.

    Attributes:
        config_json: Contents of its config.json.
        config: The corresponding config of fmjax; its class depends on the component.
        layouts: Layouts of its parameters in the tensors of its files.
        init: `init(key) -> params`.
        tensor_axes: Axis of each parameter that tensor parallelism splits, by dotted name.
        network: Pure functions of the network (`CLIPText`, `T5Encoder`, `Autoencoder`). For a
            transformer, which depends on the size of the latents, a function
            `network(event_shape, text)` that returns a `VelocityNet`.
        aliases: Names of optional tensors that are copies of other tensors, with the names of those
            tensors.
        buffers: Names of optional tensors that are not parameters.
    """

    config_json: Mapping[str, Any]
    config: Any
    layouts: Layouts
    init: Callable[[PRNGKey], Params]
    tensor_axes: Mapping[str, int]
    network: Any
    aliases: Mapping[str, str] = {}
    buffers: tuple[str, ...] = ()


class Loaded(NamedTuple):
    """A component of a released model with its weights.

    Attributes:
        component: The component.
        params: Parameters of the component, nested dicts of arrays.
    """

    component: Component
    params: Params


def make_component(
    config_json: Mapping[str, Any], names: Sequence[str] = (), **settings: Any
) -> Component:
    """Build the network that a config.json describes.

    Args:
        config_json: Contents of the file.
        names: Names of the tensors in the component's files. CLIP files name their tensors with or
            without a prefix.
        settings: Config fields that determine the computation (dtype, remat, attention, ...).
            Text encoders and autoencoders ignore fields that their config lacks.

    Raises:
        ValueError: If the class is not supported, or the network has unsupported sizes or options.
    """
    class_name = class_of(config_json)
    make = _MAKERS.get(str(class_name))
    if make is None:
        rule = f"name one of the classes {', '.join(_MAKERS)}"
        raise ValueError(f"config.json must {rule}, got {class_name}")
    return make(config_json, names, settings)


def load_component(
    folder: Path,
    *,
    mesh: jax.sharding.Mesh,
    dtype: DTypeLike | None = None,
    compute: str = "float32",
    lora: Path | None = None,
    lora_scale: float = 1.0,
    progress: Progress = Silent(),
    **settings: Any,
) -> Loaded:
    """Load a component of a released model from its config.json and safetensors files.

    Args:
        folder: Folder of the component.
        mesh: Device mesh that holds the weights. Each device reads only its shards.
        dtype: Dtype of the weights; None keeps the dtype of the files.
        compute: Dtype of the computation, "float32" or "bfloat16".
        lora: LoRA file whose adapters are added to the weights.
        lora_scale: Additional factor of the adapters.
        progress: Receives one step per parameter, and a line if adapters of the LoRA file are
            ignored.
        settings: Config fields that determine the computation, see `make_component`.

    Raises:
        ValueError: If a file is missing, damaged, pickled or of an unsupported class, or if the
            LoRA file is for another model.
        WeightsMismatch: If the tensors do not match the config.json.
    """
    opened = _open_component(folder, lora, lora_scale, progress, dtype=compute, **settings)
    with opened as (files, component):
        like = jax.eval_shape(component.init, jax.random.key(0))
        like = with_shardings(like, mesh, component.tensor_axes)
        params = load_params(files, component.layouts, like, dtype=dtype, progress=progress)
    return Loaded(component, params)


def check_component(folder: Path, *, lora: Path | None = None) -> Component:
    """Check the files of a component of a released model without reading its weights.

    Args:
        folder: Folder of the component.
        lora: LoRA file for the component; its adapters are read and checked.

    Raises:
        ValueError: If a file is missing, damaged, pickled or of an unsupported class, or if the
            LoRA file is for another model.
        WeightsMismatch: If the tensors do not match the config.json.
    """
    with _open_component(folder, lora, 1.0, Silent()) as (_, component):
        return component


@contextlib.contextmanager
def _open_component(
    folder: Path, lora: Path | None, scale: float, progress: Progress, **settings: Any
) -> Iterator[tuple[TensorFiles, Component]]:
    """Open the files of a component, with adapters added, and check them against its config."""
    config_json = read_config_json(folder / "config.json")
    try:
        with _open_tensors(folder, lora, scale, progress) as files:
            component = make_component(config_json, tuple(files.shapes), **settings)
            check_tensors(files, component.layouts, (*component.aliases, *component.buffers))
            yield files, component
    except ValueError as error:
        # Do not repeat a folder or file that the message names already.
        if any(str(location) in str(error) for location in (folder, lora) if location):
            raise
        raise ValueError(f"{folder}: {error}") from error


def _open_tensors(folder: Path, lora: Path | None, scale: float, progress: Progress) -> TensorFiles:
    files = TensorFiles(find_files(folder))
    if lora is None:
        return files
    with files:
        return merge_lora(files, lora, scale, progress)


def transformer_config(config_json: Mapping[str, Any], **settings: Any) -> FluxConfig | MMDiTConfig:
    """Return the network config that corresponds to the config.json of a transformer.

    Args:
        config_json: Contents of the file.
        settings: Config fields that determine the computation (dtype, remat, attention, ...).

    Raises:
        ValueError: If the class is not a supported transformer, or a size is missing.
    """
    readers = {FLUX_TRANSFORMER: flux_config, SD3_TRANSFORMER: sd3_config}
    class_name = str(class_of(config_json))
    if class_name not in readers:
        rule = f"name the class {' or '.join(readers)}"
        raise ValueError(f"config.json must {rule}, got {class_name}")
    return readers[class_name](config_json, **settings)


def _flux(config_json: Mapping[str, Any], _: Sequence[str], settings: dict[str, Any]) -> Component:
    return _transformer(
        config_json, flux_config(config_json, **settings), flux_layouts(config_json), make_flux
    )


def _sd3(config_json: Mapping[str, Any], _: Sequence[str], settings: dict[str, Any]) -> Component:
    return _transformer(
        config_json, sd3_config(config_json, **settings), sd3_layouts(config_json), make_mmdit
    )


def _transformer(
    config_json: Mapping[str, Any],
    config: FluxConfig | MMDiTConfig,
    layouts: Layouts,
    make: Callable[..., VelocityNet],
) -> Component:
    # The parameters do not depend on the size of the latents, so use the smallest size.
    event_shape = (config.patch_size, config.patch_size, latent_channels(config_json))
    text = TextShape(1, config_json["joint_attention_dim"], config_json["pooled_projection_dim"])
    net = make(config, event_shape, text)

    def network(event_shape: tuple[int, ...], text: TextShape) -> VelocityNet:
        return make(config, event_shape, text)

    return Component(config_json, config, layouts, net.init, net.tensor_axes, network)


def latent_channels(config_json: Mapping[str, Any]) -> int:
    """Return the number of latent channels that a transformer takes.

    Args:
        config_json: Contents of the transformer's config.json. For FLUX, its `in_channels` are the
            channels of a patch.
    """
    packed = class_of(config_json) == FLUX_TRANSFORMER
    return config_json["in_channels"] // PATCH**2 if packed else config_json["in_channels"]


def _vae(config_json: Mapping[str, Any], _: Sequence[str], settings: dict[str, Any]) -> Component:
    config = _with_settings(autoencoder_config(config_json), settings)
    network = make_autoencoder(config)
    layouts = autoencoder_layouts(config)
    return Component(config_json, config, layouts, network.init, network.tensor_axes, network)


def _clip(
    config_json: Mapping[str, Any], names: Sequence[str], settings: dict[str, Any]
) -> Component:
    config = _with_settings(clip_text_config(config_json), settings)
    prefix = PREFIX if any(name.startswith(PREFIX) for name in names) else ""
    network, layouts = make_clip_text(config), clip_text_layouts(config, prefix=prefix)
    return Component(
        config_json,
        config,
        layouts,
        network.init,
        network.tensor_axes,
        network,
        buffers=tuple(prefix + name for name in BUFFERS),
    )


def _t5(config_json: Mapping[str, Any], _: Sequence[str], settings: dict[str, Any]) -> Component:
    config = _with_settings(t5_config(config_json), settings)
    network = make_t5_encoder(config)
    return Component(
        config_json,
        config,
        t5_layouts(config),
        network.init,
        network.tensor_axes,
        network,
        aliases={TIED: EMBEDDING},
    )


def _with_settings(config: _ConfigT, settings: Mapping[str, Any]) -> _ConfigT:
    """Replace the fields of a config, ignoring settings that are not among its fields."""
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
