"""Access to safetensors files, single or in shards, that reads parts of tensors on demand.

Pickled weights are refused, because they can run arbitrary code when they are opened.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from fmjax._checks import require
from fmjax._json import read_json
from fmjax.pretrained.layouts import Index

if TYPE_CHECKING:
    import safetensors

STEMS = ("diffusion_pytorch_model", "model")
"""File names, without suffix, of weights in diffusers and transformers."""
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
WEIGHTS = (".safetensors", *_PICKLES)
"""Suffixes of weight files."""
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}

_EXPONENTS = {
    "float64": 0x7FF0 << 48,
    "float32": 0x7F80 << 16,
    "float16": 0x7C00,
    "bfloat16": 0x7F80,
}


class TensorFiles:
    """Open safetensors files with their tensors by name. Use it as a context manager.

    Attributes:
        files: The files.
        shapes: Shape of every tensor, by name.
        dtypes: NumPy dtype name of every tensor, by name.
        file_of: File that holds each tensor, by name.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = tuple(files)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self.file_of: dict[str, Path] = {}
        self._open: dict[Path, safetensors.safe_open] = {}
        for file in files:
            self._open[file] = _open(file)
            for name in self._open[file].keys():  # noqa: SIM118 (not a dict)
                rule = "be in one file only"
                require(name not in self.shapes, f"tensor {name}", rule, f"a copy in {file.name}")
                part = self._open[file].get_slice(name)
                self.shapes[name] = tuple(part.get_shape())
                dtype, rule = part.get_dtype(), f"have one of the dtypes {', '.join(_DTYPES)}"
                require(dtype in _DTYPES, f"tensor {name}", rule, dtype)
                self.dtypes[name], self.file_of[name] = _DTYPES[dtype], file

    def __enter__(self) -> "TensorFiles":
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._open.clear()

    def read(self, name: str, index: Index = ()) -> np.ndarray:
        """Read part of a tensor. Slices with a step read their entire range from the file.

        Raises:
            ValueError: If a value in it is NaN or infinite.
        """
        part = self._open[self.file_of[name]].get_slice(name)
        # safetensors cannot slice scalars and empty tensors.
        if not self.shapes[name] or 0 in self.shapes[name]:
            array = np.asarray(self._open[self.file_of[name]].get_tensor(name))
        else:
            ranges = tuple(slice(s.start, s.stop) for s in index) or (slice(None),)
            array = np.asarray(part[ranges])[tuple(slice(None, None, s.step) for s in index)]
        require_finite(f"tensor {name} in {self.file_of[name].name}", array)
        return array

    def metadata(self, file: Path) -> Mapping[str, str]:
        """Return the metadata of a file; empty if it has none."""
        return self._open[file].metadata() or {}


def require_finite(name: str, array: np.ndarray) -> None:
    """Raise a `ValueError` if a value of a tensor is NaN or infinite.

    Such values have all bits of the exponent set. The test runs on integers, because NumPy has no
    fast one for bfloat16; it costs about as much as a copy.
    """
    exponent = _EXPONENTS.get(array.dtype.name)
    if exponent is None or not array.size:
        return
    mask = np.array(exponent, f"u{array.dtype.itemsize}")
    finite = (array.view(mask.dtype) & mask).max() != mask
    require(bool(finite), name, "be finite", "NaN or infinity")


def find_files(folder: Path) -> tuple[Path, ...]:
    """Find the safetensors files of a model component: one file, or the shards in its index.

    Raises:
        ValueError: If there are none, or only pickles; if there are weights of several precisions;
            or if the index names files that do not exist or are outside of the folder.
    """
    for stem in STEMS:
        index, single = folder / f"{stem}.safetensors.index.json", folder / f"{stem}.safetensors"
        if index.is_file():
            return _indexed(index)
        if single.is_file():
            return (single,)
    # Files of another precision: model.fp16.safetensors, or model.safetensors.index.fp16.json.
    indexes = [file for stem in STEMS for file in folder.glob(f"{stem}.safetensors.index.*.json")]
    singles = [file for stem in STEMS for file in folder.glob(f"{stem}.*.safetensors")]
    if len(indexes) == 1:
        return _indexed(indexes[0])
    if len(indexes) == 0 and len(singles) == 1:
        return (singles[0],)
    variants = sorted(file.name for file in (*indexes, *singles))
    require(not variants, str(folder), "hold weights of one precision", ", ".join(variants))
    pickles = sorted(file.name for file in folder.glob("*") if file.suffix in _PICKLES)
    if pickles:
        raise ValueError(
            f"{folder} must hold safetensors, got {pickles[0]}: a pickle, which can run arbitrary "
            "code when it is opened"
        )
    raise ValueError(
        f"{folder} must hold {STEMS[0]}.safetensors or {STEMS[1]}.safetensors, got neither"
    )


def plain_name(name: object) -> bool:
    """Whether a value is a file name without folders, so that it cannot lead out of a folder."""
    return isinstance(name, str) and name not in ("", ".", "..") and Path(name).name == name


class _Index(TypedDict):
    """Required keys of the index of a sharded model."""

    weight_map: dict[str, str]


def weight_map(index: Path) -> dict[str, str]:
    """Read the index of a sharded model: the file name of each tensor."""
    return read_json(index, _Index, extra=True)["weight_map"]


def _indexed(index: Path) -> tuple[Path, ...]:
    names = weight_map(index)
    invalid = next((name for name in names.values() if not plain_name(name)), None)
    valid = bool(names) and invalid is None
    require(valid, str(index), "map tensors to files in the same folder", repr(invalid or names))
    files = tuple(index.with_name(name) for name in sorted(set(names.values())))
    for file in files:
        rule = f"hold {file.name}, which its index names"
        require(file.is_file(), str(index.parent), rule, "no such file")
    return files


def _open(file: Path) -> "safetensors.safe_open":
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(file, framework="numpy")
    except (SafetensorError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{file} must be a complete safetensors file, got {reason}") from error
