"""Folders of released models in the format of diffusers, with a `model_index.json`."""

import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.typing import DTypeLike

from fmjax._checks import require, require_unicode
from fmjax._files import is_hidden, require_exists, require_outside, walk, write_atomically
from fmjax._json import check_json, read_json
from fmjax._progress import Progress, Silent
from fmjax.pretrained.components import Loaded, load_component
from fmjax.pretrained.config_files import (
    ClassConfigJson,
    check_config_json,
    class_of,
    read_config_json,
)
from fmjax.pretrained.files import STEMS, WEIGHTS, TensorFiles, find_files, plain_name, weight_map
from fmjax.pretrained.weights import require_new, save_params

INDEX = "model_index.json"
SD3, FLUX = "StableDiffusion3Pipeline", "FluxPipeline"

# The components with weights of each pipeline class, and their classes.
_WEIGHTS: Mapping[str, Mapping[str, str]] = {
    SD3: {
        "transformer": "SD3Transformer2DModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModelWithProjection",
        "text_encoder_2": "CLIPTextModelWithProjection",
        "text_encoder_3": "T5EncoderModel",
    },
    FLUX: {
        "transformer": "FluxTransformer2DModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModel",
        "text_encoder_2": "T5EncoderModel",
    },
}
# File names that `find_files` may select: weights, shards and indexes of any precision.
_WEIGHT_FILE = re.compile(
    rf"({'|'.join(STEMS)})(-\d{{5}}-of-\d{{5}})?(\.\w+)?\.safetensors(\.index(\.\w+)?\.json)?"
)
_OPTIONAL = (SD3, "text_encoder_3")


@dataclass(frozen=True)
class ModelFolder:
    """A released model in the format of diffusers. Create it with `open_model`.

    Attributes:
        root: The folder.
        kind: Class of the pipeline, `SD3` or `FLUX`.
        parts: Names of the components that the model has, each with its class.
    """

    root: Path
    kind: str
    parts: Mapping[str, str]

    def has(self, part: str) -> bool:
        """Whether the model has a component; SD3 models may lack `text_encoder_3`."""
        return part in self.parts

    def config_json(self, part: str) -> dict[str, Any]:
        """Read the config.json of a component, or the scheduler_config.json of the scheduler."""
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        return read_config_json(self.root / part / name)

    def load(
        self,
        part: str,
        *,
        mesh: jax.sharding.Mesh,
        dtype: DTypeLike | None = None,
        compute: str = "float32",
        progress: Progress = Silent(),
        **settings: Any,
    ) -> Loaded:
        """Load a component with its weights; see `load_component`."""
        folder = self.root / part
        return load_component(
            folder, mesh=mesh, dtype=dtype, compute=compute, progress=progress, **settings
        )

    @property
    def encoders(self) -> tuple[str, ...]:
        """Names of the text encoders of the pipeline class, in order."""
        return tuple(part for part in _WEIGHTS[self.kind] if part.startswith("text_encoder"))


def tokenizer_part(encoder: str) -> str:
    """Return the name of the component that holds the tokenizer of a text encoder."""
    return encoder.replace("text_encoder", "tokenizer")


def is_model_folder(folder: Path) -> bool:
    """Whether a folder contains a `model_index.json`."""
    return (folder / INDEX).is_file()


def open_model(folder: Path) -> ModelFolder:
    """Open the folder of a released model and check its components; reads no weights.

    Raises:
        ValueError: If it is not a folder of a supported pipeline class, or a component is missing.
    """
    require_exists("model folder", folder)
    require_unicode("model folder", folder.absolute())  # The tokenizers package needs UTF-8 paths.
    rule, got = f"be a folder with a {INDEX}", "none" if folder.is_dir() else "a file"
    require(is_model_folder(folder), f"model {folder}", rule, got)
    index_file = str(folder / INDEX)
    index = read_json(folder / INDEX, dict[str, Any])
    kind = check_config_json(index, ClassConfigJson, index_file).get("_class_name")
    if kind is None or kind not in _WEIGHTS:
        raise ValueError(f"{index_file} must name the class {' or '.join(_WEIGHTS)}, got {kind}")
    listed = {name: entry for name, entry in index.items() if isinstance(entry, list)}
    listed = check_json(listed, dict[str, list[str | None]], index_file)
    # Entries are [library, class]; those of missing components are [null, null].
    parts = {name: entry[1] for name, entry in listed.items() if len(entry) == 2 and entry[1]}
    for name in parts:
        require(plain_name(name), index_file, "name folders next to it", repr(name))
    for name, expected in _WEIGHTS[kind].items():
        if name in parts or (kind, name) != _OPTIONAL:
            _require_part(folder, name, "config.json", parts)
            config_file = folder / name / "config.json"
            class_name, rule = class_of(read_config_json(config_file)), f"name the class {expected}"
            require(class_name == expected, str(config_file), rule, class_name)
        if name.startswith("text_encoder") and name in parts:
            _require_part(folder, tokenizer_part(name), "tokenizer_config.json", parts)
    _require_part(folder, "scheduler", "scheduler_config.json", parts)
    return ModelFolder(folder, kind, parts)


def _require_part(folder: Path, part: str, file: str, parts: Mapping[str, str]) -> None:
    listed = ", ".join(sorted(parts))
    require(part in parts, str(folder / INDEX), f"list the component {part}", listed)
    require((folder / part / file).is_file(), str(folder), f"hold {part}/{file}", "no such file")


def save_model(
    original: ModelFolder,
    folder: Path,
    parts: Mapping[str, Loaded],
    *,
    dtype: DTypeLike | None = None,
    overwrite: bool = False,
    progress: Progress = Silent(),
) -> None:
    """Write a copy of a released model in which some components have new weights.

    Other components are copied, as are all files at the top level except weights. The index is
    written last, so that an incomplete folder is not a valid model.

    Args:
        original: Model that is copied.
        folder: Folder to write.
        parts: Components with new weights, by name.
        dtype: Dtype of the new weights in the files; see `save_params` for None.
        overwrite: Whether to write into a folder that already contains files.
        progress: Receives one step per written weight file.

    Raises:
        ValueError: If `folder` is the original folder or inside it, or contains files and
            `overwrite` is False.
    """
    require_outside(folder, original.root, "folder")
    require_new(folder, overwrite)
    if jax.process_index() == 0:
        (folder / INDEX).unlink(missing_ok=True)
    for part, loaded in parts.items():
        save_component(original.root / part, folder / part, loaded, dtype=dtype, progress=progress)
    if jax.process_index() != 0:
        return
    _copy_other_files(original.root, folder, skip=INDEX)
    for part in sorted(set(original.parts) - set(parts)):
        for file in walk(original.root / part).files:
            _copy(original.root / part / file, folder / part / file)
        _remove_other_weights(
            folder / part, {file.name for file in (original.root / part).glob("*")}
        )
    _copy(original.root / INDEX, folder / INDEX)


def _copy(file: Path, destination: Path) -> None:
    with write_atomically(destination) as temporary:
        shutil.copyfile(file, temporary)


def _holds_weights(file: Path) -> bool:
    return file.suffix in WEIGHTS or ".safetensors.index" in file.name


def _remove_other_weights(folder: Path, kept: Collection[str]) -> None:
    """Delete earlier weight files that `find_files` could select instead of the new ones."""
    for file in folder.iterdir() if folder.is_dir() else ():
        if _WEIGHT_FILE.fullmatch(file.name) and file.name not in kept:
            file.unlink()


def _copy_other_files(original: Path, folder: Path, skip: str = "") -> None:
    """Copy the files of a folder except weights, their indexes and hidden files."""
    for file in sorted(original.iterdir()):
        copied = file.is_file() and not _holds_weights(file) and not is_hidden(Path(file.name))
        if copied and file.name != skip:
            _copy(file, folder / file.name)


def save_component(
    original: Path,
    folder: Path,
    loaded: Loaded,
    *,
    dtype: DTypeLike | None = None,
    progress: Progress = Silent(),
) -> None:
    """Write the weights of a component, and copy the other files of its original folder.

    Args:
        original: Folder from which the component was loaded.
        folder: Folder to write.
        loaded: Component with its weights.
        dtype: Dtype of the weights in the files; see `save_params` for None.
        progress: Receives one step per written weight file.
    """
    require_outside(folder, original, "folder")
    component, params = loaded
    with TensorFiles(find_files(original)) as files:
        save_params(
            params,
            component.layouts,
            files,
            folder,
            aliases=component.aliases,
            dtype=dtype,
            progress=progress,
        )
    if jax.process_index() == 0:
        _copy_other_files(original, folder)
        kept = {file.name for file in files.files}
        indexes = [
            index
            for index in original.glob("*.safetensors.index*.json")
            if set(weight_map(index).values()) == kept
        ]
        for index in indexes:
            _copy(index, folder / index.name)
        _remove_other_weights(folder, kept | {index.name for index in indexes})
