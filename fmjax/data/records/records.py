"""Sets of examples on disk as ArrayRecord shards, the format that grain reads at random.

For sets that a model made: pairs of noise and image for reflow, latents, embeddings of prompts.
One record is one example, the raw bytes of its arrays in the order that the manifest states, so a
batch is parsed at once and nothing is unpickled. A folder holds `records.json`, the manifest, and
shards such as `00003-of-00016.array_record`. A shard is there whole or not at all, so making a set
can be killed and goes on with the shards that are missing, in one process or several.
"""

import errno
import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from fmjax._checks import require
from fmjax._files import write_atomically
from fmjax._locks import lock_file
from fmjax.data.dataset import require_finite
from fmjax.data.records.manifest import RecordManifest, read_manifest

# Each record can be read alone, and raw: noise does not compress, and compressed it reads slower.
_WRITER_OPTIONS = "group_size:1,uncompressed"
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"


def write_shard(
    folder: Path, manifest: RecordManifest, number: int, arrays: Mapping[str, np.ndarray]
) -> None:
    """Write one shard; it is there whole or not at all.

    Args:
        folder: That `prepare_records` made.
        manifest: Of the set.
        number: Of the shard.
        arrays: By the names of the fields, each `[len(manifest.examples(number)), *shape]`.

    Raises:
        ValueError: If the arrays are not those that the manifest states, or hold NaN or infinity,
            or another process is writing this shard.
        OSError: If the disk does not take it.
    """
    records = _pack(manifest, len(manifest.examples(number)), arrays)
    for name, array in arrays.items():
        require_finite(f"folder {folder}: {name}", array, np.array(manifest.examples(number)))
    path = manifest.shard(folder, number)
    with lock_file(path, "shard"), write_atomically(path) as temporary:
        _write(temporary, records)


class Records:
    """A set of records, read at random; any number of threads may read at once.

    Attributes:
        manifest: What the set holds.
    """

    def __init__(self, folder: Path, manifest: RecordManifest) -> None:
        """Open every shard; `open_records` is the way to call this."""
        self.manifest = manifest
        self._dtype = manifest.dtype
        numbers = range(manifest.num_shards)
        self._paths = [manifest.shard(folder, number) for number in numbers]
        sizes = [len(manifest.examples(number)) for number in numbers]
        self._readers = [_open(p, n) for p, n in zip(self._paths, sizes, strict=True)]
        for number in numbers:
            self._raw(number, np.zeros(1, np.int64))  # Their length, and that they can be read.

    def __len__(self) -> int:
        return self.manifest.num_examples

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The examples at `indices`, integers `[n]`, in that order: each field `[n, *shape]`.

        Raises:
            ValueError: If an index is not that of an example, a record is damaged, or it holds
                NaN or infinity.
        """
        indices = np.asarray(indices)
        right = indices.ndim == 1 and indices.dtype.kind in "iu"
        require(right, "indices", "be integers [n]", f"{indices.dtype} of shape {indices.shape}")
        outside = indices[(indices < 0) | (indices >= len(self))]
        require(len(outside) == 0, "indices", f"lie in [0, {len(self)})", outside)
        shards, places = np.divmod(indices, self.manifest.examples_per_shard)
        raw = (self._raw(int(one), places[shards == one]) for one in np.unique(shards))
        records = np.frombuffer(b"".join(itertools.chain(*raw)), self._dtype)
        # They come shard by shard; the n-th asked for came as number back[n].
        back = np.argsort(np.argsort(shards, kind="stable"))
        found = {one.name: records[one.name][back] for one in self.manifest.fields}
        folder = self._paths[0].parent
        for name, values in found.items():
            require_finite(f"folder {folder}: {name}", values, indices)
        return found

    def _raw(self, number: int, places: np.ndarray) -> list[bytes]:
        size, path = self._dtype.itemsize, self._paths[number]
        try:
            records = self._readers[number].read(places.tolist())
        except RuntimeError as error:
            raise _damaged(path, len(self.manifest.examples(number)), error) from error
        wrong = {len(record) for record in records} - {size}
        require(not wrong, f"file {path}", f"hold records of {size} bytes", sorted(wrong))
        return records


def open_records(folder: Path) -> Records:
    """Open a set that is whole.

    Raises:
        ValueError: If the manifest or a shard is missing, damaged or something else. What a shard
            holds is checked by its own checksums as it is read.
    """
    return Records(folder, read_manifest(folder))


def _pack(manifest: RecordManifest, count: int, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    names = [one.name for one in manifest.fields]
    known = set(arrays) == set(names)
    require(known, "arrays", f"hold {', '.join(names)}", ", ".join(arrays))
    records = np.empty(count, manifest.dtype)
    for one in manifest.fields:
        array, shape = arrays[one.name], (count, *one.shape)
        right = array.dtype == jnp.dtype(one.dtype) and array.shape == shape
        found = f"{array.dtype} of shape {array.shape}"
        require(right, one.name, f"be {one.dtype} of shape {shape}", found)
        records[one.name] = array
    return records


def _write(path: Path, records: np.ndarray) -> None:
    # Imported where it is used: Windows has no such package, and the other sources do without.
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), _WRITER_OPTIONS)
    try:
        for record in records:
            writer.write(record.tobytes())
        writer.close()
    except RuntimeError as error:
        # It says only in words what the system said, a full disk among them.
        said = (number for number in errno.errorcode if os.strerror(number) in str(error))
        number = next(said, errno.EIO)
        raise OSError(number, os.strerror(number)) from error


def _open(path: Path, num_records: int) -> Any:
    from array_record.python.array_record_module import ArrayRecordReader

    if not path.is_file():
        raise _damaged(path, num_records, "no file")
    path.open("rb").close()  # What may not be opened is the system's error, which has a name.
    reader = ArrayRecordReader(str(path), _READER_OPTIONS)
    found = reader.num_records()  # None in a file that is cut: the index stands at its end.
    if found != num_records:
        raise _damaged(path, num_records, f"{found} records")
    return reader


def _damaged(path: Path, num_records: int, found: Any) -> ValueError:
    said = str(found).partition("\n")[0]
    return ValueError(f"file {path} must be a whole shard of {num_records} records, got {said}")
