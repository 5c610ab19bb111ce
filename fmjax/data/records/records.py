"""Sets of examples on disk as ArrayRecord shards, a format for random access.

They store the output of models: pairs of noise and image for reflow, latents, prompt embeddings.
One record is one example: the raw bytes of its arrays in the order of the manifest, so that a batch
is parsed in one step and nothing is unpickled. A folder holds the manifest `records.json` and
shards such as `00003-of-00016.array_record`. Shards are written atomically: an interrupted job
continues with the missing shards, in one or several processes.
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
from fmjax._inputs import describe
from fmjax._locks import lock_file
from fmjax.data.dataset import require_finite
from fmjax.data.records.manifest import RecordManifest, read_manifest

# One record per group allows random access. Noise does not compress, and compression slows reads.
_WRITER_OPTIONS = "group_size:1,uncompressed"
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"


def write_shard(
    folder: Path, manifest: RecordManifest, number: int, arrays: Mapping[str, np.ndarray]
) -> None:
    """Write one shard of a set, atomically.

    Args:
        folder: Folder of the set, created by `prepare_records`.
        manifest: Manifest of the set.
        number: Number of the shard.
        arrays: Array of each field by name, `[len(manifest.examples(number)), *shape]`.

    Raises:
        ValueError: If the arrays do not match the manifest or hold NaN or infinity, or another
            process is writing this shard.
        OSError: If the file cannot be written, for example because the disk is full.
    """
    records = _pack(manifest, len(manifest.examples(number)), arrays)
    for name, array in arrays.items():
        require_finite(f"folder {folder}: {name}", array, np.array(manifest.examples(number)))
    file = manifest.shard(folder, number)
    with lock_file(file, "shard"), write_atomically(file) as temporary:
        _write(temporary, records)


class Records:
    """A set of records with random access, safe to read from several threads.

    Attributes:
        manifest: Manifest of the set.
    """

    def __init__(self, folder: Path, manifest: RecordManifest) -> None:
        """Open all shards. Call `open_records` instead, which reads the manifest."""
        self.manifest = manifest
        self._dtype = manifest.dtype
        numbers = range(manifest.num_shards)
        self._files = [manifest.shard(folder, number) for number in numbers]
        sizes = [len(manifest.examples(number)) for number in numbers]
        self._readers = [_open(file, size) for file, size in zip(self._files, sizes, strict=True)]
        for number in numbers:
            # Read one record to check that the shard is readable and the length of its records.
            self._read_raw(number, np.zeros(1, np.int64))

    def __len__(self) -> int:
        return self.manifest.num_examples

    def read(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Read the examples at `indices`, integers `[n]`, in this order: each field `[n, *shape]`.

        Raises:
            ValueError: If an index is out of range, or a record is damaged or holds NaN or
                infinity.
        """
        indices = np.asarray(indices)
        is_valid = indices.ndim == 1 and indices.dtype.kind in "iu"
        require(is_valid, "indices", "be integers [n]", describe(indices))
        outside = indices[(indices < 0) | (indices >= len(self))]
        require(len(outside) == 0, "indices", f"lie in [0, {len(self)})", outside)
        shards, offsets = np.divmod(indices, self.manifest.examples_per_shard)
        raw = (self._read_raw(int(n), offsets[shards == n]) for n in np.unique(shards))
        records = np.frombuffer(b"".join(itertools.chain(*raw)), self._dtype)
        # `records` are sorted by shard; `order` restores the order of `indices`.
        order = np.argsort(np.argsort(shards, kind="stable"))
        arrays = {field.name: records[field.name][order] for field in self.manifest.fields}
        folder = self._files[0].parent
        for name, values in arrays.items():
            require_finite(f"folder {folder}: {name}", values, indices)
        return arrays

    def _read_raw(self, number: int, offsets: np.ndarray) -> list[bytes]:
        """Read the bytes of the records at `offsets` in shard `number`."""
        size, file = self._dtype.itemsize, self._files[number]
        try:
            records = self._readers[number].read(offsets.tolist())
        except RuntimeError as error:
            raise _damaged(file, len(self.manifest.examples(number)), error) from error
        wrong_sizes = sorted({len(record) for record in records} - {size})
        require(not wrong_sizes, f"file {file}", f"hold records of {size} bytes", wrong_sizes)
        return records


def open_records(folder: Path) -> Records:
    """Open a complete set of records.

    Raises:
        ValueError: If the manifest or a shard is missing, damaged or does not match the set. The
            checksums of records are checked when they are read.
    """
    return Records(folder, read_manifest(folder))


def _pack(manifest: RecordManifest, count: int, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Pack the arrays of `count` examples into records, after checking them."""
    names = [field.name for field in manifest.fields]
    require(set(arrays) == set(names), "arrays", f"hold {', '.join(names)}", ", ".join(arrays))
    records = np.empty(count, manifest.dtype)
    for field in manifest.fields:
        array, shape = arrays[field.name], (count, *field.shape)
        matches = array.dtype == jnp.dtype(field.dtype) and array.shape == shape
        rule = f"be {field.dtype} of shape {shape}"
        require(matches, field.name, rule, describe(array))
        records[field.name] = array
    return records


def _write(file: Path, records: np.ndarray) -> None:
    # Imported on use: the package does not exist for Windows, where other data sets still work.
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(file), _WRITER_OPTIONS)
    try:
        for record in records:
            writer.write(record.tobytes())
        writer.close()
    except RuntimeError as error:
        # The message contains the text of the system's error, such as that of a full disk.
        numbers = (number for number in errno.errorcode if os.strerror(number) in str(error))
        number = next(numbers, errno.EIO)
        raise OSError(number, os.strerror(number)) from error


def _open(file: Path, num_records: int) -> Any:
    """Open a shard and check its number of records."""
    from array_record.python.array_record_module import ArrayRecordReader

    if not file.is_file():
        raise _damaged(file, num_records, "no file")
    file.open("rb").close()  # Raises an OSError with the file name if it cannot be opened.
    reader = ArrayRecordReader(str(file), _READER_OPTIONS)
    actual = reader.num_records()  # A truncated file has none, because the index is at its end.
    if actual != num_records:
        raise _damaged(file, num_records, f"{actual} records")
    return reader


def _damaged(file: Path, num_records: int, reason: object) -> ValueError:
    first_line = str(reason).partition("\n")[0]
    return ValueError(
        f"file {file} must be a complete shard of {num_records} records, got {first_line}"
    )
