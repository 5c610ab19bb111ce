"""Files of tensors: safetensors, single or in shards, opened without reading them whole.

Files of pickled weights can run any code of their maker's when they are opened: they are refused.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypedDict

import numpy as np

from fmjax._checks import require
from fmjax._json import read_json
from fmjax.pretrained.layouts import Index

STEMS = ("diffusion_pytorch_model", "model")
"""How diffusers and transformers call the weights of a part of a model."""
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
WEIGHTS = (".safetensors", *_PICKLES)
"""Endings of files of weights."""
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
    """The tensors of some safetensors files, by name. Use it as a context manager.

    Attributes:
        paths: The files.
        shapes: Of every tensor.
        dtypes: Of every tensor, as NumPy names them.
        file_of: Which of the files holds a tensor.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self.file_of: dict[str, Path] = {}
        self._open: dict[Path, Any] = {}
        for path in paths:
            self._open[path] = _opened(path)
            for name in self._open[path].keys():  # noqa: SIM118 (it is no dict)
                require(name not in self.shapes, f"tensor {name}", "stand in one file", path.name)
                part = self._open[path].get_slice(name)
                self.shapes[name] = tuple(part.get_shape())
                found = part.get_dtype()
                require(found in _DTYPES, f"tensor {name}", f"be of {', '.join(_DTYPES)}", found)
                self.dtypes[name], self.file_of[name] = _DTYPES[found], path

    def __enter__(self) -> "TensorFiles":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._open.clear()

    def read(self, name: str, index: Index = ()) -> np.ndarray:
        """Part of a tensor; slices without steps read no more of the file than that.

        Raises:
            ValueError: If a number in it is NaN or infinite.
        """
        part = self._open[self.file_of[name]].get_slice(name)
        if not self.shapes[name] or 0 in self.shapes[name]:  # safetensors slices no such tensor.
            found = np.asarray(self._open[self.file_of[name]].get_tensor(name))
        else:
            whole = tuple(slice(s.start, s.stop) for s in index) or (slice(None),)
            found = np.asarray(part[whole])[tuple(slice(None, None, s.step) for s in index)]
        require_finite(f"tensor {name} in {self.file_of[name].name}", found)
        return found

    def metadata(self, path: Path) -> Mapping[str, str]:
        """What a file says of itself."""
        return self._open[path].metadata() or {}


def require_finite(name: str, array: np.ndarray) -> None:
    """Raise if a number of a tensor is NaN or infinite: then all bits of its exponent are set.

    As integers, because NumPy has no fast test of bfloat16. It costs about as much as a copy.
    """
    exponent = _EXPONENTS.get(array.dtype.name)
    if exponent is None or not array.size:
        return
    mask = np.array(exponent, f"u{array.dtype.itemsize}")
    finite = (array.view(mask.dtype) & mask).max() != mask
    require(bool(finite), name, "be finite", "NaN or infinity")


def find_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors of a part of a model: one file, or all that its index names.

    Raises:
        ValueError: If there are none, or only pickled ones; or the index names what is not there
            or not in this folder.
    """
    for stem in STEMS:
        index, single = folder / f"{stem}.safetensors.index.json", folder / f"{stem}.safetensors"
        if index.is_file():
            return _indexed(index)
        if single.is_file():
            return (single,)
    # Of another precision: model.fp16.safetensors, or model.safetensors.index.fp16.json.
    indexes = [path for stem in STEMS for path in folder.glob(f"{stem}.safetensors.index.*.json")]
    singles = [path for stem in STEMS for path in folder.glob(f"{stem}.*.safetensors")]
    if len(indexes) == 1:
        return _indexed(indexes[0])
    if len(indexes) == 0 and len(singles) == 1:
        return (singles[0],)
    variants = sorted(path.name for path in (*indexes, *singles))
    require(not variants, str(folder), "hold weights of one precision", ", ".join(variants))
    pickles = sorted(path.name for path in folder.glob("*") if path.suffix in _PICKLES)
    if pickles:
        raise ValueError(
            f"{folder} must hold safetensors, got {pickles[0]}: a pickle, which can run any code "
            "when it is opened"
        )
    raise ValueError(
        f"{folder} must hold {STEMS[0]}.safetensors or {STEMS[1]}.safetensors, got neither"
    )


def plain_name(name: Any) -> bool:
    """Whether it is the name of a file in a folder, and no way out of it."""
    return isinstance(name, str) and name not in ("", ".", "..") and Path(name).name == name


class _Index(TypedDict):
    """What the index of shards must hold."""

    weight_map: dict[str, str]


def weight_map(index: Path) -> dict[str, str]:
    """Which file each tensor is in, as the index of shards has it."""
    return read_json(index, _Index, extra=True)["weight_map"]


def _indexed(index: Path) -> tuple[Path, ...]:
    places = weight_map(index)
    wrong = next((name for name in places.values() if not plain_name(name)), None)
    right = bool(places) and wrong is None
    require(right, str(index), "map tensors to files beside it", repr(wrong or places))
    paths = tuple(index.with_name(name) for name in sorted(set(places.values())))
    for path in paths:
        require(
            path.is_file(),
            f"{index.parent}",
            f"hold {path.name}, which its index names",
            "no such file",
        )
    return paths


def _opened(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        said = str(error).partition("\n")[0]
        raise ValueError(f"{path} must be a whole safetensors file, got {said}") from error
