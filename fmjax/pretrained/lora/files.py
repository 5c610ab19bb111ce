"""Read LoRA files of the common trainers, and write them in the format of diffusers.

An adapter of a layer with weight W `[out, in]` consists of A `[rank, in]`, B `[out, rank]` and a
scale; the adapted weight is `W + scale B A`. The scale is `alpha / rank`. Alpha is stored in the
metadata of the file (diffusers), in adapter_config.json in the same folder (PEFT) or in a tensor of
the file (kohya). If it is missing or null, it equals the rank. `names.py` translates the names of
layers.
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
"""Name of a LoRA file in diffusers."""
_FILES = (LORA_FILE, "adapter_model.safetensors")
_METADATA = "lora_adapter_metadata"
_PART = re.compile(
    r"(?P<layer>.+?)\."
    r"(?:lora_(?P<part>A|B|down|up)(?:(?:\.\w+)?\.weight)?"
    r"|(?:(?:lora|lora_linear_layer)\.)?(?P<old>down|up)\.weight"
    r"|(?P<alpha>alpha))"
)
_PARTS = {"A": "down", "B": "up"}
# Unsupported additions to weights, biases and norms. Some trainers write them as zeros, which can
# be ignored.
_ADDITIONS = re.compile(r".+\.(?:diff|diff_b|lora_B(?:\.\w+)?\.bias)")
_DORA = re.compile(r".+\.(?:dora_scale|lora_magnitude_vector(?:\.\w+)*)")


class _PeftConfig(TypedDict, total=False):
    """Keys of a PEFT config that determine the scale; null means PEFT's default."""

    lora_alpha: float | None
    alpha_pattern: dict[str, float] | None
    use_rslora: bool | None
    use_dora: bool | None


class Adapter(NamedTuple):
    """A low-rank update `scale * up @ down` of the weight of a layer.

    Attributes:
        down: The matrix A, `[rank, in]`, float32. For a convolution, `in` is the product of
            `kernel`.
        up: The matrix B, `[out, rank]`, float32.
        scale: Factor of the update.
        kernel: Input channels, height and width of a convolution; () for a linear layer.
    """

    down: np.ndarray
    up: np.ndarray
    scale: float
    kernel: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the layer's weight."""
        return self.up.shape[0], *(self.kernel or self.down.shape[1:])

    def part(self, rows: slice, columns: slice) -> np.ndarray:
        """Compute the update of a part of the weight, as a matrix."""
        return (self.scale * self.up[rows]) @ self.down[:, columns]


def read_lora(file_or_folder: Path, progress: Progress = Silent()) -> dict[str, Adapter]:
    """Read the adapters of a transformer from a LoRA file, by layer name in diffusers.

    Args:
        file_or_folder: LoRA file, or folder of diffusers or PEFT that contains one.
        progress: Receives one line if adapters of text encoders are ignored.

    Raises:
        ValueError: If there is no LoRA file; if it holds no adapter of a transformer, an adapter
            of an unsupported kind, or a value that is infinite or NaN. The message names the layer.
    """
    file = _lora_file(file_or_folder)
    with TensorFiles([file]) as files:
        try:
            config = _peft_config(files, file)
            layers, ignored = _group_by_layer(files)
            if ignored and not layers:
                encoder = text_encoder_of(ignored[0])
                require(False, "adapters", "be for a transformer", f"{encoder} ({ignored[0]})")
            require(bool(layers), "the file", "hold adapters", "none")
            adapters = _to_diffusers(_adapters(layers, config))
        except ValueError as error:
            raise ValueError(f"LoRA file {file}: {error}") from error
    if ignored:
        encoders = ", ".join(sorted({str(text_encoder_of(name)) for name in ignored}))
        progress.say(
            f"LoRA file {file}: ignored {len(ignored)} tensors of text encoders ({encoders}); "
            "only adapters of the transformer are used"
        )
    return adapters


def _group_by_layer(files: TensorFiles) -> tuple[dict[str, dict[str, np.ndarray]], list[str]]:
    """Read A, B and alpha of every layer of the transformer.

    Returns:
        The tensors of each layer by "down", "up" and "alpha"; the names of ignored tensors, which
        belong to text encoders.
    """
    layers: dict[str, dict[str, np.ndarray]] = {}
    ignored = []
    for name in files.shapes:
        if text_encoder_of(name) is not None:
            ignored.append(name)
            continue
        require(not _DORA.fullmatch(name), "adapters", "be plain LoRA", f"DoRA ({name})")
        with np.errstate(over="ignore"):  # float64 may overflow; `require_finite` reports it.
            array = np.asarray(files.read(name), np.float32)
        require_finite(f"tensor {name}", array)
        if _ADDITIONS.fullmatch(name) and not array.any():
            continue
        match = _PART.fullmatch(name)
        rule = "be lora_A and lora_B of linear layers, or alpha"
        require(match is not None, "tensors", rule, name)
        assert match is not None
        part = match["part"] or match["old"] or match["alpha"]
        layer = without_prefix(match["layer"])
        parts, part = layers.setdefault(layer, {}), _PARTS.get(part, part)
        require(part not in parts, f"layer {layer}", "have one adapter", f"two ({name})")
        parts[part] = array
    return layers, ignored


def _lora_file(location: Path) -> Path:
    if location.is_dir():
        files = [location / name for name in _FILES if (location / name).is_file()]
        rule = f"be a LoRA file, or a folder with {' or '.join(_FILES)}"
        require(bool(files), str(location), rule, "a folder without one")
        return files[0]
    require(location.is_file(), str(location), "be a LoRA file", "no such file")
    rule = "be a .safetensors file, because other formats can run code when they are opened"
    require(
        location.suffix == ".safetensors",
        f"LoRA file {location}",
        rule,
        location.suffix or "no suffix",
    )
    return location


def _peft_config(files: TensorFiles, file: Path) -> _PeftConfig:
    """Read the PEFT config from the metadata of the file or from the file next to it."""
    text = files.metadata(file).get(_METADATA)
    if text is not None:
        metadata = check_json(parse_json(text, "metadata"), dict[str, Any], "metadata")
        keys = {key.removeprefix("transformer."): value for key, value in metadata.items()}
        config = check_json(keys, _PeftConfig, "metadata", extra=True)
    else:
        config_file = file.with_name("adapter_config.json")
        exists = config_file.is_file()
        config = read_json(config_file, _PeftConfig, extra=True) if exists else _PeftConfig()
    require(not config.get("use_dora"), "adapters", "be plain LoRA", "DoRA")
    return config


def _adapters(
    layers: Mapping[str, Mapping[str, np.ndarray]], config: _PeftConfig
) -> Iterator[tuple[str, Adapter]]:
    """Iterate over the layers with their adapters, by layer name in the file."""
    for layer, parts in layers.items():
        missing = [factor for factor, part in _PARTS.items() if part not in parts]
        rule = "have both A and B"
        require(not missing, f"layer {layer}", rule, f"no {' and no '.join(missing)}")
        down, up = parts["down"], parts["up"]
        kernel: tuple[int, ...] = ()
        if down.ndim == 4 and up.shape[2:] == (1, 1):
            kernel, down, up = down.shape[1:], down.reshape(len(down), -1), up[:, :, 0, 0]
        valid = all(part.ndim == 2 for part in (down, up)) and down.shape[0] == up.shape[1] > 0
        rule = "have A [rank, in] and B [out, rank]"
        require(valid, f"layer {layer}", rule, f"{down.shape} and {up.shape}")
        rank = down.shape[0]
        if "alpha" in parts:
            size = parts["alpha"].size
            require(size == 1, f"layer {layer}", "have one alpha", size)
            alpha = parts["alpha"].item()
        else:
            alpha = _alpha_of(config, layer, rank)
        divisor = math.sqrt(rank) if config.get("use_rslora") else rank
        yield layer, Adapter(down, up, alpha / divisor, kernel)


def _to_diffusers(named_adapters: Iterable[tuple[str, Adapter]]) -> dict[str, Adapter]:
    """Split and rename adapters to those of the layers of diffusers."""
    adapters: dict[str, Adapter] = {}
    for file_name, adapter in named_adapters:
        layer = layer_of(file_name)
        up = adapter.up
        if layer.shift_first and len(up) == 2 * adapter.down.shape[1]:
            up = np.roll(up, len(up) // 2, axis=0)
        try:
            rows = list(layer.rows(len(up), adapter.down.shape[1]))
        except ValueError as error:
            raise ValueError(f"layer {file_name} {error}") from error
        for name, part in rows:
            require(name not in adapters, f"layer {name}", "have one adapter", f"two ({file_name})")
            adapters[name] = adapter._replace(up=up[part])
    return adapters


def _alpha_of(config: _PeftConfig, layer: str, rank: int) -> float:
    """Return the alpha of a layer. PEFT's patterns match the end of the name of a layer."""
    for pattern, alpha in (config.get("alpha_pattern") or {}).items():
        # PEFT accepts any regular expression. Only names are accepted here, because the file is
        # untrusted and could hold an expression that takes forever to match.
        is_name = re.fullmatch(r"[\w.^$\\]+", pattern) is not None
        require(is_name, "alpha_pattern", "hold names of layers", repr(pattern))
        name = without_prefix(pattern.replace("\\.", ".").lstrip("^").rstrip("$"))
        if layer == name or layer.endswith(f".{name}"):
            return float(alpha)
    alpha = config.get("lora_alpha")
    return float(rank if alpha is None else alpha)


class MergedFiles(TensorFiles):
    """Tensor files of a model that add LoRA adapters to each part of a tensor when it is read."""

    def __init__(self, files: TensorFiles, adapters: Mapping[str, Adapter], scale: float) -> None:
        super().__init__(files.files)
        self._adapters = {
            f"{layer}.weight": adapter._replace(scale=scale * adapter.scale)
            for layer, adapter in adapters.items()
        }

    def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
        """Read part of a tensor; the result is float32 if the tensor has an adapter."""
        part, adapter = super().read(name, index), self._adapters.get(name)
        if adapter is None:
            return part
        rows, *inner = index or (slice(None),)
        columns = slice(None) if adapter.kernel or not inner else inner[0]
        update = adapter.part(rows, columns)
        if adapter.kernel:
            update = update.reshape(-1, *adapter.kernel)[:, *inner]
        return part.astype(np.float32) + update


def merge_lora(
    files: TensorFiles, file: Path, scale: float = 1.0, progress: Progress = Silent()
) -> MergedFiles:
    """Open the files of a transformer again, with the adapters of a LoRA file added.

    Args:
        files: Open files of the transformer.
        file: LoRA file, or folder of diffusers or PEFT that contains one.
        scale: Additional factor of all adapters; 0 disables them.
        progress: Receives one line if adapters of text encoders are ignored.

    Raises:
        ValueError: If `read_lora` fails, or if the transformer lacks a layer of the LoRA file or
            has it in another shape. The message lists such layers.
    """
    adapters = read_lora(file, progress)
    unknown = [
        f"{layer} {list(adapter.shape)}"
        for layer, adapter in sorted(adapters.items())
        if files.shapes.get(f"{layer}.weight") != adapter.shape
    ]
    if unknown:
        listed = ", ".join(unknown[:8]) + (", ..." if len(unknown) > 8 else "")
        raise ValueError(
            f"LoRA file {file} must have adapters for layers of {files.files[0].parent}, got "
            f"{len(unknown)} unknown layers of {len(adapters)} ({listed})"
        )
    return MergedFiles(files, adapters, scale)


def lora_tensors(
    factors: Mapping[str, np.ndarray], rank: int, scale: float
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Build the tensors and metadata of a LoRA file for diffusers and PEFT.

    B is multiplied by the scale, and alpha equals the rank. All readers then get the same adapters,
    including those that ignore alpha or expect it elsewhere.

    Args:
        factors: A and B of each layer, named by the layer in diffusers and `.lora_A.weight` or
            `.lora_B.weight`.
        rank: Rank of all adapters.
        scale: Scale of all adapters.
    """
    tensors = {
        f"transformer.{name}": scale * array if ".lora_B." in name else array
        for name, array in sorted(factors.items())
    }
    layers = sorted({name.rpartition(".lora_")[0] for name in factors})
    config = {"r": rank, "lora_alpha": rank, "target_modules": layers}
    metadata = {f"transformer.{key}": value for key, value in config.items()}
    return tensors, {"format": "pt", _METADATA: json.dumps(metadata, indent=2, sort_keys=True)}
