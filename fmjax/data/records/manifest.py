"""What a set of records holds: its arrays, its shards and what made it; the file that states it."""

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
_RULE = "be new or hold records made the same way"
_MANIFEST, _SUFFIX = "records.json", ".array_record"
# Every shard of a set stays open while it is read; most systems let a process open 1024 files.
_MOST_SHARDS = 512
_WIDTHS = {"int": (8, 16, 32, 64), "uint": (8, 16, 32, 64), "float": (16, 32, 64)}
_DTYPES = ("bool", "bfloat16", *(f"{kind}{n}" for kind, widths in _WIDTHS.items() for n in widths))


@dataclass(frozen=True)
class RecordField:
    """One array of an example.

    Attributes:
        name: A Python name.
        dtype: "bool", "bfloat16", or NumPy's name of an integer or floating type.
        shape: Of one example; `()` is a scalar.
    """

    name: str
    dtype: str
    shape: tuple[Size, ...] = ()

    def __post_init__(self) -> None:
        named = isinstance(self.name, str) and self.name.isidentifier()
        require(named, "name", "be a Python name", repr(self.name))
        require_one_of("dtype", self.dtype, _DTYPES)
        sizes = all(_is_count(size) and size > 0 for size in self.shape)
        require(sizes, "shape", "hold positive sizes", self.shape)
        fits = math.prod(self.shape) < 2**31
        require(fits, "shape", "have a product below 2**31", self.shape)


@dataclass(frozen=True)
class RecordManifest:
    """What a set of records holds and what made it.

    Attributes:
        fields: The arrays of an example, in the order of their bytes in a record.
        num_examples: In the whole set.
        examples_per_shard: In each shard but the last, which has the rest. There are at most
            512 shards, and each takes up to 128 KiB besides its records.
        about: What made the set, as JSON has it: say the run, its step, the solver and the seed.
            Shards are only added to a set that is about the same.
    """

    fields: tuple[RecordField, ...]
    num_examples: int
    examples_per_shard: int
    about: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        names = [one.name for one in self.fields]
        require(len(names) > 0, "fields", "hold at least one field", "none")
        require(len(set(names)) == len(names), "fields", "have names of their own", names)
        for name, count in (
            ("num_examples", self.num_examples),
            ("examples_per_shard", self.examples_per_shard),
        ):
            require(_is_count(count), name, "be an integer", repr(count))
            require_at_least(name, count, 1)
        few = self.num_shards <= _MOST_SHARDS
        least = math.ceil(self.num_examples / _MOST_SHARDS)
        require(few, "examples_per_shard", f"be at least {least}", self.examples_per_shard)
        try:
            same = json.loads(json.dumps(self.about, allow_nan=False)) == dict(self.about)
        except (TypeError, ValueError):
            same = False
        require(same, "about", "be a dict that JSON gives back as it is", self.about)

    @property
    def dtype(self) -> np.dtype:
        """Of a record: a structured type without gaps."""
        return np.dtype([(one.name, jnp.dtype(one.dtype), one.shape) for one in self.fields])

    @property
    def num_shards(self) -> int:
        """How many shards the set has."""
        return -(-self.num_examples // self.examples_per_shard)

    def examples(self, number: int) -> range:
        """Which examples of the set shard `number` holds."""
        require(0 <= number < self.num_shards, "number", f"lie in [0, {self.num_shards})", number)
        first = number * self.examples_per_shard
        return range(first, min(first + self.examples_per_shard, self.num_examples))

    def num_bytes(self, numbers: Iterable[int]) -> int:
        """Bytes of the records of some shards."""
        return self.dtype.itemsize * sum(len(self.examples(number)) for number in numbers)

    def shard(self, folder: Path, number: int) -> Path:
        """The file of shard `number`."""
        return folder / f"{number:05d}-of-{self.num_shards:05d}{_SUFFIX}"


def has_records(folder: Path) -> bool:
    """Whether a folder holds the manifest of a set."""
    return (folder / _MANIFEST).is_file()


def prepare_records(folder: Path, manifest: RecordManifest) -> None:
    """Make the folder of a set, or see that it holds this one already.

    Raises:
        ValueError: If the folder holds another set, by its manifest, or shards without one.
    """
    if has_records(folder):
        _require_same(folder, manifest)
        return
    with lock_file(folder / _MANIFEST, "file", on_wait=lambda _: None):
        if has_records(folder):  # Another process was first.
            _require_same(folder, manifest)
            return
        stray = sorted(folder.glob(f"[0-9]*{_SUFFIX}"))
        require(not stray, f"folder {folder}", _RULE, f"{len(stray)} shards without {_MANIFEST}")
        with write_atomically(folder / _MANIFEST) as temporary:
            whole = {"version": _VERSION, **asdict(manifest)}
            temporary.write_text(json.dumps(whole, indent=2) + "\n")


def _require_same(folder: Path, manifest: RecordManifest) -> None:
    found, wanted = (_flat(asdict(each)) for each in (read_manifest(folder), manifest))
    other = sorted(key for key in found | wanted if found.get(key, ...) != wanted.get(key, ...))
    require(not other, f"folder {folder}", _RULE, f"another {', '.join(other)}")


def missing_shards(folder: Path, manifest: RecordManifest) -> list[int]:
    """The numbers of the shards that are not written yet; one found damaged may be deleted."""
    numbers = range(manifest.num_shards)
    return [number for number in numbers if not manifest.shard(folder, number).exists()]


def read_manifest(folder: Path) -> RecordManifest:
    """The manifest of a set.

    Raises:
        ValueError: If it is missing, damaged or of another version.
    """
    path = folder / _MANIFEST
    require(path.is_file(), f"folder {folder}", f"hold {_MANIFEST}", "none")
    found = read_json(path, dict[str, Any])
    version = found.pop("version", None)
    require(version == _VERSION, f"version of {path}", f"be {_VERSION}", version)
    return check_json(found, RecordManifest, str(path))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    # {"about": {"step": 3}} as {"about.step": 3}: names for what differs.
    if not isinstance(value, Mapping) or not value:
        return {name: value}
    parts = (_flat(part, f"{name}.{key}" if name else key) for key, part in value.items())
    return {key: part for flat in parts for key, part in flat.items()}
