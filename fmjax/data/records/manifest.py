"""Manifest of a set of records: its arrays, shards and origin."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from fmjax._checks import require, require_at_least, require_one_of
from fmjax._files import write_atomically
from fmjax._json import Size, check_json, read_json
from fmjax._locks import lock_file

_VERSION = 1
_RULE = "be new or hold records made with the same settings"
_MANIFEST, _SUFFIX = "records.json", ".array_record"
# A reader keeps all shards open; most systems let a process open 1024 files.
_MAX_SHARDS = 512
_BITS = {"int": (8, 16, 32, 64), "uint": (8, 16, 32, 64), "float": (16, 32, 64)}
_DTYPES = ("bool", "bfloat16", *(f"{family}{n}" for family, bits in _BITS.items() for n in bits))


@dataclass(frozen=True)
class RecordField:
    """One array of an example.

    Attributes:
        name: Name of the array, a Python identifier.
        dtype: "bool", "bfloat16", or NumPy's name of an integer or floating-point type.
        shape: Shape of one example; `()` is a scalar.
    """

    name: str
    dtype: str
    shape: tuple[Size, ...] = ()

    def __post_init__(self) -> None:
        is_identifier = isinstance(self.name, str) and self.name.isidentifier()
        require(is_identifier, "name", "be a Python identifier", repr(self.name))
        require_one_of("dtype", self.dtype, _DTYPES)
        is_positive = all(_is_integer(size) and size > 0 for size in self.shape)
        require(is_positive, "shape", "hold positive sizes", self.shape)
        fits = math.prod(self.shape) < 2**31
        require(fits, "shape", "have a product below 2**31", self.shape)


@dataclass(frozen=True)
class RecordManifest:
    """Contents and origin of a set of records.

    Attributes:
        fields: Arrays of an example, in the order of their bytes in a record.
        num_examples: Number of examples in the set.
        examples_per_shard: Number of examples in each shard; the last one may have fewer. There
            are at most 512 shards, and each has an overhead of up to 128 KiB.
        origin: Origin of the set as JSON values, such as the run, its step, the solver and the
            seed. Shards are only added to a set with the same origin.
    """

    fields: tuple[RecordField, ...]
    num_examples: int
    examples_per_shard: int
    origin: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        names = [field.name for field in self.fields]
        require(len(names) > 0, "fields", "hold at least one field", "none")
        require(len(set(names)) == len(names), "fields", "have different names", names)
        for name, count in (
            ("num_examples", self.num_examples),
            ("examples_per_shard", self.examples_per_shard),
        ):
            require(_is_integer(count), name, "be an integer", repr(count))
            require_at_least(name, count, 1)
        fits = self.num_shards <= _MAX_SHARDS
        minimum = math.ceil(self.num_examples / _MAX_SHARDS)
        require(fits, "examples_per_shard", f"be at least {minimum}", self.examples_per_shard)
        try:
            is_json = json.loads(json.dumps(self.origin, allow_nan=False)) == dict(self.origin)
        except (TypeError, ValueError):
            is_json = False
        require(is_json, "origin", "be a dict of JSON values", self.origin)

    @property
    def dtype(self) -> np.dtype:
        """Data type of a record, a structured type without padding."""
        return np.dtype([(f.name, jnp.dtype(f.dtype), f.shape) for f in self.fields])

    @property
    def num_shards(self) -> int:
        """Number of shards of the set."""
        return -(-self.num_examples // self.examples_per_shard)

    def examples(self, number: int) -> range:
        """Return the indices of the examples in shard `number`."""
        require(0 <= number < self.num_shards, "number", f"lie in [0, {self.num_shards})", number)
        first = number * self.examples_per_shard
        return range(first, min(first + self.examples_per_shard, self.num_examples))

    def num_bytes(self, numbers: Iterable[int]) -> int:
        """Return the size of the records of the given shards in bytes."""
        return self.dtype.itemsize * sum(len(self.examples(number)) for number in numbers)

    def shard(self, folder: Path, number: int) -> Path:
        """Return the file of shard `number`."""
        return folder / f"{number:05d}-of-{self.num_shards:05d}{_SUFFIX}"


def has_records(folder: Path) -> bool:
    """Return whether a folder holds the manifest of a set."""
    return (folder / _MANIFEST).is_file()


def prepare_records(folder: Path, manifest: RecordManifest) -> None:
    """Create the folder of a set, or check that an existing folder holds the same set.

    Raises:
        ValueError: If the folder holds another set, or shards without a manifest.
    """
    if has_records(folder):
        _require_same(folder, manifest)
        return
    with lock_file(folder / _MANIFEST, "file", on_wait=lambda _: None):
        if has_records(folder):  # Another process created it.
            _require_same(folder, manifest)
            return
        shards = sorted(folder.glob(f"[0-9]*{_SUFFIX}"))
        require(not shards, f"folder {folder}", _RULE, f"{len(shards)} shards without {_MANIFEST}")
        with write_atomically(folder / _MANIFEST) as temporary:
            document = {"version": _VERSION, **asdict(manifest)}
            temporary.write_text(json.dumps(document, indent=2) + "\n")


def _require_same(folder: Path, manifest: RecordManifest) -> None:
    """Raise unless the folder holds a set with this manifest; the message names the differences."""
    stored, new = (_flatten(asdict(each)) for each in (read_manifest(folder), manifest))
    changed = sorted(key for key in stored | new if stored.get(key, ...) != new.get(key, ...))
    require(not changed, f"folder {folder}", _RULE, f"different {', '.join(changed)}")


def missing_shards(folder: Path, manifest: RecordManifest) -> list[int]:
    """Return the numbers of the shards without a file. Delete a damaged shard to rewrite it."""
    numbers = range(manifest.num_shards)
    return [number for number in numbers if not manifest.shard(folder, number).exists()]


def read_manifest(folder: Path) -> RecordManifest:
    """Read the manifest of a set.

    Raises:
        ValueError: If the manifest is missing, damaged or of another version.
    """
    file = folder / _MANIFEST
    require(file.is_file(), f"folder {folder}", f"hold {_MANIFEST}", "none")
    document = read_json(file, dict[str, Any])
    version = document.pop("version", None)
    require(version == _VERSION, f"version of {file}", f"be {_VERSION}", version)
    if "about" in document:  # The name in older versions.
        document["origin"] = document.pop("about")
    return check_json(document, RecordManifest, str(file))


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _flatten(value: object, name: str = "") -> dict[str, Any]:
    """Flatten nested dicts to dotted names: `{"origin": {"step": 3}}` to `{"origin.step": 3}`.

    Unlike `fmjax._trees.flatten_dict`, this keeps empty dicts.
    """
    if not isinstance(value, Mapping) or not value:
        return {name: value}
    parts = (_flatten(item, f"{name}.{key}" if name else key) for key, item in value.items())
    return {key: item for part in parts for key, item in part.items()}
