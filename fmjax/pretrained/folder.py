"""A released model: a folder of diffusers with its parts, as `model_index.json` lists them."""

import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from fmjax._checks import require, require_unicode
from fmjax._files import is_hidden, require_exists, walk, write_atomically
from fmjax._json import check_json, read_json
from fmjax._progress import Progress, Silent
from fmjax.pretrained.components import Loaded, load_component
from fmjax.pretrained.config_files import ClassAbout, checked, class_of, read_about
from fmjax.pretrained.files import (
    STEMS,
    WEIGHTS,
    TensorFiles,
    find_files,
    plain_name,
    weight_map,
)
from fmjax.pretrained.weights import require_new, save_params

INDEX = "model_index.json"
SD3, FLUX = "StableDiffusion3Pipeline", "FluxPipeline"

# Of each kind of pipeline its parts of weights, and their classes.
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
# Weights, their index and shards, of any precision.
_FOUND = re.compile(
    rf"({'|'.join(STEMS)})(-\d{{5}}-of-\d{{5}})?(\.\w+)?\.safetensors(\.index(\.\w+)?\.json)?"
)
_OPTIONAL = (SD3, "text_encoder_3")


@dataclass(frozen=True)
class ModelFolder:
    """A folder that `open_model` has looked through.

    Attributes:
        path: The folder.
        kind: The class of its pipeline, `SD3` or `FLUX`.
        parts: Those that are there, each with the class that the index gives it.
    """

    path: Path
    kind: str
    parts: Mapping[str, str]

    def has(self, part: str) -> bool:
        """Whether it has a part; some models come without their third text encoder."""
        return part in self.parts

    def about(self, part: str) -> dict[str, Any]:
        """The config.json of a part, or the scheduler's file."""
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        return read_about(self.path / part / name)

    def load(
        self,
        part: str,
        *,
        mesh: jax.sharding.Mesh,
        dtype: Any = None,
        compute: str = "float32",
        progress: Progress = Silent(),
        **settings: Any,
    ) -> Loaded:
        """A part with its weights (`load_component`)."""
        where = self.path / part
        return load_component(
            where, mesh=mesh, dtype=dtype, compute=compute, progress=progress, **settings
        )

    @property
    def encoders(self) -> tuple[str, ...]:
        """Its text encoders, in order."""
        return tuple(part for part in _WEIGHTS[self.kind] if part.startswith("text_encoder"))


def tokenizer_part(encoder: str) -> str:
    """The part that holds the tokenizer of a text encoder."""
    return encoder.replace("text_encoder", "tokenizer")


def is_model_folder(path: Path) -> bool:
    """Whether a folder says it is a model of diffusers."""
    return (path / INDEX).is_file()


def open_model(path: Path) -> ModelFolder:
    """Look through a folder of diffusers; no weights are read.

    Raises:
        ValueError: If it is no such folder, of a model that is not known here, or lacks a part.
    """
    require_exists("model folder", path)
    require_unicode("model folder", path.absolute())  # Readers of tokenizers take no other name.
    need = f"be a folder with a {INDEX}"
    require(is_model_folder(path), f"model {path}", need, "none" if path.is_dir() else "a file")
    index = read_json(path / INDEX, dict[str, Any])
    kind = checked(index, ClassAbout, str(path / INDEX)).get("_class_name")
    if kind is None or kind not in _WEIGHTS:
        raise ValueError(f"{path / INDEX} must be of {' or '.join(_WEIGHTS)}, got {kind}")
    listed = {name: found for name, found in index.items() if isinstance(found, list)}
    listed = check_json(listed, dict[str, list[str | None]], str(path / INDEX))
    # A part that the model does without is listed as [null, null].
    parts = {name: found[1] for name, found in listed.items() if len(found) == 2 and found[1]}
    for name in parts:
        require(plain_name(name), str(path / INDEX), "name folders beside it", repr(name))
    for name, wanted in _WEIGHTS[kind].items():
        if name in parts or (kind, name) != _OPTIONAL:
            _require_part(path, name, "config.json", parts)
            found = class_of(read_about(path / name / "config.json"))
            require(found == wanted, str(path / name), f"hold a {wanted}", found)
        if name.startswith("text_encoder") and name in parts:
            _require_part(path, tokenizer_part(name), "tokenizer_config.json", parts)
    _require_part(path, "scheduler", "scheduler_config.json", parts)
    return ModelFolder(path, kind, parts)


def _require_part(path: Path, part: str, file: str, parts: Mapping[str, str]) -> None:
    require(part in parts, f"{path / INDEX}", f"name a {part}", ", ".join(sorted(parts)))
    require((path / part / file).is_file(), str(path), f"hold {part}/{file}", "no such file")


def save_model(
    source: ModelFolder,
    folder: Path,
    parts: Mapping[str, Loaded],
    *,
    dtype: Any = None,
    overwrite: bool = False,
    progress: Progress = Silent(),
) -> None:
    """Write a model as a folder of diffusers: its source, with the weights of some parts.

    All other files of its parts, and those beside them that are no weights, are copied as they are.
    The index is written last: a folder without one is no model.

    Args:
        source: Where it came from.
        folder: The new one.
        parts: Those with weights of their own, by name.
        dtype: Of these weights in the files, as of `save_params`.
        overwrite: Write into a folder that holds files.
        progress: Hears of each file.

    Raises:
        ValueError: If the folder is the source or one of it, or holds files.
    """
    require_apart(source.path, folder)
    require_new(folder, overwrite)
    if jax.process_index() == 0:
        (folder / INDEX).unlink(missing_ok=True)
    for part, loaded in parts.items():
        save_component(source.path / part, folder / part, loaded, dtype=dtype, progress=progress)
    if jax.process_index() != 0:
        return
    _copy_plain(source.path, folder, skip=INDEX)
    for part in sorted(set(source.parts) - set(parts)):
        for path in walk(source.path / part).files:
            _copy(source.path / part / path, folder / part / path)
        _remove_other_weights(folder / part, {path.name for path in (source.path / part).glob("*")})
    _copy(source.path / INDEX, folder / INDEX)


def require_apart(source: Path, folder: Path) -> None:
    """Raise if what is to be written would lie in what it is made of."""
    inside = folder.resolve().is_relative_to(source.resolve())
    require(not inside, "folder", "be another than the source", folder)


def _copy(path: Path, to: Path) -> None:
    with write_atomically(to) as temporary:
        shutil.copyfile(path, temporary)


def _of_weights(path: Path) -> bool:
    return path.suffix in WEIGHTS or ".safetensors.index" in path.name


def _remove_other_weights(folder: Path, kept: Collection[str]) -> None:
    """What was in a folder before, and `find_files` could take for what was written; its shards."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if _FOUND.fullmatch(path.name) and path.name not in kept:
            path.unlink()


def _copy_plain(source: Path, folder: Path, skip: str = "") -> None:
    """The files of a folder that are no weights and no index of them, whatever their precision."""
    for path in sorted(source.iterdir()):
        plain = path.is_file() and not _of_weights(path) and not is_hidden(Path(path.name))
        if plain and path.name != skip:
            _copy(path, folder / path.name)


def save_component(
    source: Path,
    folder: Path,
    loaded: Loaded,
    *,
    dtype: Any = None,
    progress: Progress = Silent(),
) -> None:
    """Write one part of a model: its weights, and the other files of its source.

    Args:
        source: The folder that it came from.
        folder: The new one.
        loaded: The part.
        dtype: As of `save_params`.
        progress: Hears of each file.
    """
    require_apart(source, folder)
    component, params = loaded
    with TensorFiles(find_files(source)) as files:
        save_params(
            params,
            component.views,
            files,
            folder,
            aliases=component.aliases,
            dtype=dtype,
            progress=progress,
        )
    if jax.process_index() == 0:
        _copy_plain(source, folder)
        kept = {file.name for file in files.paths}
        indexes = [
            path
            for path in source.glob("*.safetensors.index*.json")
            if set(weight_map(path).values()) == kept
        ]
        for path in indexes:
            _copy(path, folder / path.name)
        _remove_other_weights(folder, kept | {path.name for path in indexes})
