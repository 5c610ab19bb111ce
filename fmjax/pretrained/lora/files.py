"""LoRA files: written as diffusers writes them, and read with the names of any trainer.

An adapter of a layer W `[out, in]` is A `[rank, in]`, B `[out, rank]` and a scale; with it the
layer's weight is `W + scale B A`. The scale is `alpha / rank`; alpha is in the file's metadata
(diffusers), in an adapter_config.json in its folder (PEFT) or in a tensor of the file (kohya). An
alpha that is in none of these, or null, is the rank. `lora_names.py` knows the names of layers.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np

from fmjax._checks import require
from fmjax._json import check_json, parse_json, read_json
from fmjax._progress import Progress, Silent
from fmjax.pretrained.files import TensorFiles, require_finite
from fmjax.pretrained.lora.names import layer_of, text_encoder_of, without_prefix

LORA_FILE = "pytorch_lora_weights.safetensors"
"""How diffusers calls it."""
_FILES = (LORA_FILE, "adapter_model.safetensors")
_METADATA = "lora_adapter_metadata"
_PART = re.compile(
    r"(?P<layer>.+?)\."
    r"(?:lora_(?P<part>A|B|down|up)(?:(?:\.\w+)?\.weight)?"
    r"|(?:(?:lora|lora_linear_layer)\.)?(?P<old>down|up)\.weight"
    r"|(?P<alpha>alpha))"
)
_PARTS = {"A": "down", "B": "up"}
# Added to weights, biases and norms; nothing where they are zero, as some trainers leave them.
_ADDED = re.compile(r".+\.(?:diff|diff_b|lora_B(?:\.\w+)?\.bias)")
_DORA = re.compile(r".+\.(?:dora_scale|lora_magnitude_vector(?:\.\w+)*)")


class _About(TypedDict, total=False):
    """What PEFT's config states of alphas; other keys are ignored, null is what PEFT takes."""

    lora_alpha: float | None
    alpha_pattern: dict[str, float] | None
    use_rslora: bool | None
    use_dora: bool | None


class Adapter(NamedTuple):
    """What is added to a layer's weight: `scale * up @ down`.

    Attributes:
        down: A, `[rank, in]`, float32; of a convolution, `in` is the product of `kernel`.
        up: B, `[out, rank]`, float32.
        scale: A number.
        kernel: Of a convolution, its input channels, height and width; () of a linear layer.
    """

    down: np.ndarray
    up: np.ndarray
    scale: float
    kernel: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the layer's weight."""
        return self.up.shape[0], *(self.kernel or self.down.shape[1:])

    def part(self, rows: slice, columns: slice) -> np.ndarray:
        """What is added to a part of the weight."""
        return (self.scale * self.up[rows]) @ self.down[:, columns]


def read_lora(path: Path, progress: Progress = Silent()) -> dict[str, Adapter]:
    """The adapters of a transformer in a LoRA file, by the name of the layer in diffusers.

    Args:
        path: The file, or a folder of diffusers or PEFT with one.
        progress: Receives one line if the file has adapters of text encoders, which are left out.

    Raises:
        ValueError: If it is no such file, holds adapters of another kind or of no transformer, or
            numbers that are infinite or NaN; the layer is named.
    """
    path = _file_in(path)
    with TensorFiles([path]) as files:
        try:
            about = _about(files, path)
            found, others = _parts(files)
            if others and not found:
                encoder = text_encoder_of(others[0])
                require(False, "adapters", "be of a transformer", f"{encoder} ({others[0]})")
            require(bool(found), "the file", "hold adapters", "none")
            adapters = _in_diffusers(_adapters(found, about))
        except ValueError as error:
            raise ValueError(f"LoRA file {path}: {error}") from error
    if others:
        kinds = ", ".join(sorted({str(text_encoder_of(name)) for name in others}))
        progress.say(
            f"LoRA file {path}: left out {len(others)} tensors of text encoders ({kinds}); "
            "only adapters of the transformer are used"
        )
    return adapters


def _parts(files: TensorFiles) -> tuple[dict[str, dict[str, np.ndarray]], list[str]]:
    """A, B and alpha of every layer of a transformer, and the names of text encoders' tensors."""
    found: dict[str, dict[str, np.ndarray]] = {}
    others = []
    for name in files.shapes:
        if text_encoder_of(name) is not None:
            others.append(name)
            continue
        require(not _DORA.fullmatch(name), "adapters", "be plain ones", f"DoRA ({name})")
        with np.errstate(over="ignore"):  # Of float64: what follows says so by name.
            array = np.asarray(files.read(name), np.float32)
        require_finite(f"tensor {name}", array)
        if _ADDED.fullmatch(name) and not array.any():
            continue
        matched = _PART.fullmatch(name)
        rule = "be lora_A and lora_B of linear layers, or alpha"
        require(matched is not None, "tensors", rule, name)
        assert matched is not None
        part = matched["part"] or matched["old"] or matched["alpha"]
        layer = without_prefix(matched["layer"])
        parts, part = found.setdefault(layer, {}), _PARTS.get(part, part)
        require(part not in parts, f"layer {layer}", "have one adapter", f"two ({name})")
        parts[part] = array
    return found, others


def _file_in(path: Path) -> Path:
    if path.is_dir():
        files = [path / name for name in _FILES if (path / name).is_file()]
        rule = f"be a LoRA file, or a folder with {' or '.join(_FILES)}"
        require(bool(files), str(path), rule, "a folder without")
        return files[0]
    require(path.is_file(), str(path), "be a LoRA file", "no such file")
    rule = "be a .safetensors file; others can run any code when they are opened"
    require(path.suffix == ".safetensors", f"LoRA file {path}", rule, path.suffix or "no ending")
    return path


def _about(files: TensorFiles, path: Path) -> _About:
    """What the file says of alphas, as PEFT's config has it; nothing if it says nothing."""
    text = files.metadata(path).get(_METADATA)
    if text is not None:
        stated = check_json(parse_json(text, "metadata"), dict[str, Any], "metadata")
        plain = {key.removeprefix("transformer."): value for key, value in stated.items()}
        about = check_json(plain, _About, "metadata", extra=True)
    else:
        config = path.with_name("adapter_config.json")
        about = read_json(config, _About, extra=True) if config.is_file() else _About()
    require(not about.get("use_dora"), "adapters", "be plain ones", "DoRA")
    return about


def _adapters(
    found: Mapping[str, Mapping[str, np.ndarray]], about: _About
) -> Iterator[tuple[str, Adapter]]:
    """The adapter of each layer, by the layer's name in the file."""
    for layer, parts in found.items():
        missing = {"down", "up"} - parts.keys()
        require(
            not missing, f"layer {layer}", "have both A and B", f"no {'/'.join(sorted(missing))}"
        )
        down, up = parts["down"], parts["up"]
        kernel: tuple[int, ...] = ()
        if down.ndim == 4 and up.shape[2:] == (1, 1):
            kernel, down, up = down.shape[1:], down.reshape(len(down), -1), up[:, :, 0, 0]
        flat = all(part.ndim == 2 for part in (down, up)) and down.shape[0] == up.shape[1] > 0
        rule = "have A [rank, in] and B [out, rank]"
        require(flat, f"layer {layer}", rule, f"{down.shape} and {up.shape}")
        rank = down.shape[0]
        if "alpha" in parts:
            size = parts["alpha"].size
            require(size == 1, f"layer {layer}", "have one alpha", f"{size} of them")
            alpha = parts["alpha"].item()
        else:
            alpha = _alpha_of(about, layer, rank)
        root = bool(about.get("use_rslora"))
        yield layer, Adapter(down, up, alpha / (math.sqrt(rank) if root else rank), kernel)


def _in_diffusers(found: Iterable[tuple[str, Adapter]]) -> dict[str, Adapter]:
    """The same adapters by the names of diffusers' layers."""
    adapters: dict[str, Adapter] = {}
    for given, adapter in found:
        layer = layer_of(given)
        up = adapter.up
        if layer.shift_first and len(up) == 2 * adapter.down.shape[1]:
            up = np.roll(up, len(up) // 2, axis=0)
        try:
            rows = list(layer.rows(len(up), adapter.down.shape[1]))
        except ValueError as error:
            raise ValueError(f"layer {given} {error}") from error
        for name, part in rows:
            require(name not in adapters, f"layer {name}", "have one adapter", f"two ({given})")
            adapters[name] = adapter._replace(up=up[part])
    return adapters


def _alpha_of(about: _About, layer: str, rank: int) -> float:
    """PEFT's patterns are the last words of a layer's name."""
    for pattern, alpha in (about.get("alpha_pattern") or {}).items():
        # As PEFT has it, but for expressions that are no plain names: a file may hold any.
        plain = re.fullmatch(r"[\w.^$\\]+", pattern) is not None
        require(plain, "alpha_pattern", "name layers", repr(pattern))
        name = without_prefix(pattern.replace("\\.", ".").lstrip("^").rstrip("$"))
        if layer == name or layer.endswith(f".{name}"):
            return float(alpha)
    alpha = about.get("lora_alpha")
    return float(rank if alpha is None else alpha)


class MergedFiles(TensorFiles):
    """The tensors of a model's files with adapters added, each part of one when it is read."""

    def __init__(self, files: TensorFiles, adapters: Mapping[str, Adapter], scale: float) -> None:
        super().__init__(files.paths)
        self._adapters = {
            f"{layer}.weight": adapter._replace(scale=scale * adapter.scale)
            for layer, adapter in adapters.items()
        }

    def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
        """Part of a tensor, float32 where something was added."""
        part, adapter = super().read(name, index), self._adapters.get(name)
        if adapter is None:
            return part
        rows, *inner = index or (slice(None),)
        columns = slice(None) if adapter.kernel or not inner else inner[0]
        added = adapter.part(rows, columns)
        if adapter.kernel:
            added = added.reshape(-1, *adapter.kernel)[:, *inner]
        return part.astype(np.float32) + added


def merge_lora(
    files: TensorFiles, path: Path, scale: float = 1.0, progress: Progress = Silent()
) -> MergedFiles:
    """A transformer's files with the adapters of a LoRA file added.

    Args:
        files: Opened; these are opened once more.
        path: As of `read_lora`.
        scale: How much of the adapters; 0 is none of them.
        progress: As of `read_lora`.

    Raises:
        ValueError: As of `read_lora`, and if the file is of another model: all layers that are not
            known are named.
    """
    adapters = read_lora(path, progress)
    wrong = [
        f"{layer} {list(adapter.shape)}"
        for layer, adapter in sorted(adapters.items())
        if files.shapes.get(f"{layer}.weight") != adapter.shape
    ]
    if wrong:
        some = ", ".join(wrong[:8]) + (", ..." if len(wrong) > 8 else "")
        raise ValueError(
            f"LoRA file {path} must be of layers of {files.paths[0].parent}, got "
            f"{len(wrong)} others of {len(adapters)} ({some})"
        )
    return MergedFiles(files, adapters, scale)


def lora_tensors(
    found: Mapping[str, np.ndarray], rank: int, scale: float
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors and metadata of a LoRA file, as diffusers and PEFT read it.

    The scale goes into B, and alpha is the rank: so every reader finds the same adapters, also
    one that looks for alpha elsewhere or nowhere.

    Args:
        found: A and B by name: the layer's in diffusers, with `.lora_A.weight` or `.lora_B.weight`.
        rank: Of all.
        scale: Of all.
    """
    tensors = {
        f"transformer.{name}": scale * array if ".lora_B." in name else array
        for name, array in sorted(found.items())
    }
    layers = sorted({name.rpartition(".lora_")[0] for name in found})
    about = {"r": rank, "lora_alpha": rank, "target_modules": layers}
    stated = {f"transformer.{key}": value for key, value in about.items()}
    return tensors, {"format": "pt", _METADATA: json.dumps(stated, indent=2, sort_keys=True)}
