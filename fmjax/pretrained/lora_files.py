"""LoRA files: written as diffusers writes them, and read as diffusers, PEFT or kohya wrote them.

An adapter of a layer W `[out, in]` is A `[rank, in]`, B `[out, rank]` and a scale; with it the
layer's weight is `W + scale B A`. The scale is `alpha / rank`; alpha stands in the file's metadata
(diffusers), in an adapter_config.json beside it (PEFT) or in a tensor of its own (kohya), and is
the rank where it stands nowhere.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np

from fmjax._checks import require
from fmjax._json import check_json, parse_json, read_json
from fmjax.pretrained.files import TensorFiles
from fmjax.pretrained.kohya import plain_adapters

LORA_FILE = "pytorch_lora_weights.safetensors"
"""How diffusers calls it."""
_FILES = (LORA_FILE, "adapter_model.safetensors")
_METADATA = "lora_adapter_metadata"
_PREFIXES = ("transformer.", "base_model.model.", "diffusion_model.")
_OTHERS = ("text_encoder.", "text_encoder_2.", "text_encoder_3.", "unet.", "lora_te_", "lora_te1_",
           "lora_te2_", "lora_te3_", "lora_unet_down", "lora_unet_up")  # fmt: skip
_ENDINGS = {"lora_A.weight": "down", "lora_A.default.weight": "down", "lora_down.weight": "down",
            "lora.down.weight": "down", "lora_B.weight": "up", "lora_B.default.weight": "up",
            "lora_up.weight": "up", "lora.up.weight": "up", "alpha": "alpha"}  # fmt: skip


class _About(TypedDict, total=False):
    """What PEFT's config states of alphas; other keys are ignored, null is what PEFT takes."""

    lora_alpha: float | None
    alpha_pattern: dict[str, float] | None
    use_rslora: bool | None
    use_dora: bool | None


class Adapter(NamedTuple):
    """What is added to a layer's weight: `scale * up @ down`.

    Attributes:
        down: A, `[rank, in]`, float32.
        up: B, `[out, rank]`, float32.
        scale: A number.
    """

    down: np.ndarray
    up: np.ndarray
    scale: float

    @property
    def shape(self) -> tuple[int, int]:
        """Of the layer's weight."""
        return self.up.shape[0], self.down.shape[1]

    def part(self, rows: slice, columns: slice) -> np.ndarray:
        """What is added to a part of the weight."""
        return (self.scale * self.up[rows]) @ self.down[:, columns]


def read_lora(path: Path) -> dict[str, Adapter]:
    """The adapters of a transformer in a LoRA file, by the name of the layer in diffusers.

    Args:
        path: The file, or a folder of diffusers or PEFT with one.

    Raises:
        ValueError: If it is no such file, holds adapters of something else, or of another kind.
    """
    path = _file_in(path)
    with TensorFiles([path]) as files:
        try:
            about = _about(files, path)
            found: dict[str, dict[str, np.ndarray]] = {}
            for name in files.shapes:
                layer, part = _named(name)
                parts = found.setdefault(layer, {})
                require(part not in parts, f"layer {layer}", "have one adapter", f"two ({name})")
                parts[part] = np.asarray(files.read(name), np.float32)
            require(bool(found), "the file", "hold adapters", "none")
            return dict(plain_adapters(dict(_adapters(found, about))))
        except ValueError as error:
            raise ValueError(f"LoRA file {path}: {error}") from error


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


def _named(tensor: str) -> tuple[str, str]:
    """The layer that a tensor is an adapter of, and which part of that: down, up or alpha."""
    other = next((p for p in _OTHERS if tensor.startswith(p)), None)
    require(other is None, "adapters", "be of a transformer", f"{other and other[:-1]} ({tensor})")
    for ending, part in _ENDINGS.items():
        if tensor.endswith(f".{ending}"):
            layer = tensor.removesuffix(f".{ending}")
            for prefix in _PREFIXES:
                layer = layer.removeprefix(prefix)
            return layer, part
    raise ValueError(f"tensors must be lora_A and lora_B of linear layers, or alpha, got {tensor}")


def _about(files: TensorFiles, path: Path) -> _About:
    """What the file says of alphas, as PEFT's config has it; nothing if it says nothing."""
    text = files.metadata(path).get(_METADATA)
    if text is not None:
        stated = check_json(parse_json(text, "metadata"), dict[str, Any], "metadata")
        plain = {key.removeprefix("transformer."): value for key, value in stated.items()}
        about = check_json(plain, _About, "metadata", extra=True)
    else:
        beside = path.with_name("adapter_config.json")
        about = read_json(beside, _About, extra=True) if beside.is_file() else _About()
    require(not about.get("use_dora"), "adapters", "be plain ones", "DoRA")
    return about


def _adapters(
    found: Mapping[str, Mapping[str, np.ndarray]], about: _About
) -> Iterator[tuple[str, Adapter]]:
    for layer, parts in found.items():
        missing = {"down", "up"} - parts.keys()
        require(not missing, f"layer {layer}", "have both A and B", f"no {'/'.join(missing)}")
        down, up = parts["down"], parts["up"]
        flat = all(part.ndim == 2 for part in (down, up)) and down.shape[0] == up.shape[1]
        rule = "have A [rank, in] and B [out, rank]"
        require(flat, f"layer {layer}", rule, f"{down.shape} and {up.shape}")
        rank = down.shape[0]
        alpha = parts["alpha"].item() if "alpha" in parts else _alpha_of(about, layer, rank)
        root = bool(about.get("use_rslora"))
        yield layer, Adapter(down, up, alpha / (math.sqrt(rank) if root else rank))


def _alpha_of(about: _About, layer: str, rank: int) -> float:
    """PEFT's patterns are the last words of a layer's name."""
    for pattern, alpha in (about.get("alpha_pattern") or {}).items():
        # As PEFT has it, but for expressions that are no plain names: a file may hold any.
        plain = re.fullmatch(r"[\w.^$\\]+", pattern) is not None
        require(plain, "alpha_pattern", "name layers", repr(pattern))
        name = pattern.replace("\\.", ".").lstrip("^").rstrip("$")
        if layer == name or layer.endswith(f".{name}"):
            return float(alpha)
    alpha = about.get("lora_alpha")
    return float(rank if alpha is None else alpha)


class MergedFiles(TensorFiles):
    """The tensors of a model's files with adapters added, each part of one when it is read."""

    def __init__(self, files: TensorFiles, adapters: Mapping[str, Adapter], scale: float) -> None:
        super().__init__(files.paths)
        self._adapters = {f"{layer}.weight": adapter._replace(scale=scale * adapter.scale)
                          for layer, adapter in adapters.items()}  # fmt: skip

    def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
        """Part of a tensor, float32 where something was added."""
        part, adapter = super().read(name, index), self._adapters.get(name)
        if adapter is None:
            return part
        rows, columns = index or (slice(None), slice(None))
        return part.astype(np.float32) + adapter.part(rows, columns)


def merge_lora(files: TensorFiles, path: Path, scale: float = 1.0) -> MergedFiles:
    """A transformer's files with the adapters of a LoRA file added.

    Args:
        files: Opened; these are opened once more.
        path: As of `read_lora`.
        scale: How much of the adapters; 0 is none of them.

    Raises:
        ValueError: As of `read_lora`, and if the file is of another model: all layers that are not
            known are named.
    """
    adapters = read_lora(path)
    wrong = [
        f"{layer} {list(adapter.shape)}"
        for layer, adapter in sorted(adapters.items())
        if files.shapes.get(f"{layer}.weight") != adapter.shape
    ]
    if wrong:
        some = ", ".join(wrong[:8]) + (", ..." if len(wrong) > 8 else "")
        raise ValueError(f"LoRA file {path} must be of layers of {files.paths[0].parent}, got "
                         f"{len(wrong)} others of {len(adapters)} ({some})")  # fmt: skip
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
    tensors = {f"transformer.{name}": scale * array if ".lora_B." in name else array
               for name, array in sorted(found.items())}  # fmt: skip
    layers = sorted({name.rpartition(".lora_")[0] for name in found})
    about = {"r": rank, "lora_alpha": rank, "target_modules": layers}
    stated = {f"transformer.{key}": value for key, value in about.items()}
    return tensors, {"format": "pt", _METADATA: json.dumps(stated, indent=2, sort_keys=True)}
