"""Tests of record folders: reading, writing by shard and rejecting damaged files."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import grain
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax._arrays import Batch
from fmjax._locks import temporary_name
from fmjax.data import (
    BatchIterator,
    RecordField,
    RecordManifest,
    missing_shards,
    open_records,
    prepare_records,
    write_shard,
)

FIELDS = (
    RecordField("image", "float32", (4, 3, 1)),
    RecordField("latent", "float16", (5,)),
    RecordField("tokens", "bfloat16", (2, 3)),
    RecordField("label", "int32"),
    RecordField("kept", "bool"),
    RecordField("mask", "bool", (3,)),
    RecordField("pixels", "uint8", (2, 2)),
)
# The three shards have 4, 4 and 2 examples.
MANIFEST = RecordManifest(FIELDS, 10, 4, {"run": "runs/a", "step": 3, "solver": {"name": "heun"}})


def examples(manifest=MANIFEST):
    """Return random values of every field for all examples."""
    generator = np.random.default_rng(0)
    shapes = {field: (manifest.num_examples, *field.shape) for field in manifest.fields}
    integers = {field.name: generator.integers(0, 2**31, shape) for field, shape in shapes.items()}
    return {
        field.name: (
            integers[field.name] % 2 if field.dtype == "bool" else integers[field.name] % 251
        ).astype(jnp.dtype(field.dtype))
        for field in manifest.fields
    }


def write_shards(folder, manifest=MANIFEST, numbers=None):
    """Write all shards of the examples, or only those with the given `numbers`."""
    prepare_records(folder, manifest)
    arrays = examples(manifest)
    for number in range(manifest.num_shards) if numbers is None else numbers:
        part = slice(manifest.examples(number).start, manifest.examples(number).stop)
        write_shard(folder, manifest, number, {name: a[part] for name, a in arrays.items()})
    return arrays


def assert_arrays_equal(actual, expected):
    assert list(actual) == list(expected)
    for name, array in expected.items():
        assert actual[name].dtype == array.dtype
        np.testing.assert_array_equal(actual[name], array)


@pytest.mark.parametrize("indices", [[7, 0, 9, 3, 3, 8], [5], [], list(range(10))])
def test_examples_are_read_back_in_the_requested_order(tmp_path, indices):
    expected = write_shards(tmp_path)
    records = open_records(tmp_path)
    indices = np.array(indices, dtype=np.int64)
    assert_arrays_equal(records.read(indices), {name: a[indices] for name, a in expected.items()})
    assert (len(records), records.manifest) == (10, MANIFEST)


def test_a_record_is_the_concatenated_bytes_of_its_arrays(tmp_path):
    arrays = write_shards(tmp_path)
    reader = grain.sources.ArrayRecordDataSource([str(MANIFEST.shard(tmp_path, 0))])
    assert reader[2] == b"".join(array[2].tobytes() for array in arrays.values())
    assert MANIFEST.dtype.itemsize == len(reader[2])


def test_shards_can_be_written_in_any_order(tmp_path):
    write_shards(tmp_path, numbers=[1])
    assert missing_shards(tmp_path, MANIFEST) == [0, 2]
    # A killed process leaves its temporary file.
    temporary_file = temporary_name(MANIFEST.shard(tmp_path, 2))
    temporary_file.write_bytes(MANIFEST.shard(tmp_path, 1).read_bytes())
    assert missing_shards(tmp_path, MANIFEST) == [0, 2]
    expected = write_shards(tmp_path, numbers=[2, 0])
    assert missing_shards(tmp_path, MANIFEST) == []
    assert_arrays_equal(open_records(tmp_path).read(np.arange(10)), expected)
    names = [f"0000{number}-of-00003.array_record" for number in range(3)]
    assert sorted(file.name for file in tmp_path.iterdir()) == [*names, "records.json"]


@pytest.mark.parametrize(
    ("changes", "differences"),
    [
        ({"origin": {**MANIFEST.origin, "step": 4}}, "origin.step"),
        (
            {"origin": {"run": "runs/a", "step": 3, "solver": {"name": "euler"}}},
            "origin.solver.name",
        ),
        (
            {"origin": {**MANIFEST.origin, "seed": None}, "num_examples": 9},
            "num_examples, origin.seed",
        ),
        ({"fields": FIELDS[::-1]}, "fields"),
        ({"examples_per_shard": 5}, "examples_per_shard"),
    ],
)
def test_shards_with_different_settings_are_rejected(tmp_path, changes, differences):
    write_shards(tmp_path, numbers=[0])
    prepare_records(tmp_path, MANIFEST)
    settings = {
        "fields": FIELDS,
        "num_examples": 10,
        "examples_per_shard": 4,
        "origin": MANIFEST.origin,
    }
    message = f"folder .* records made with the same settings, got different {differences}"
    with pytest.raises(ValueError, match=message):
        prepare_records(tmp_path, RecordManifest(**{**settings, **changes}))


def test_shards_without_a_manifest_are_rejected(tmp_path):
    write_shards(tmp_path, numbers=[0])
    (tmp_path / "records.json").unlink()
    with pytest.raises(ValueError, match=r"same settings, got 1 shards without records.json"):
        prepare_records(tmp_path, MANIFEST)


def test_concurrent_reads_match_sequential_reads(tmp_path):
    expected = write_shards(tmp_path)
    records = open_records(tmp_path)

    def fetch(number):
        return Batch(records.read(np.random.default_rng(number).integers(0, 10, 6)))

    numbers = grain.MapDataset.range(sys.maxsize)
    iterator = BatchIterator(numbers.map(fetch), num_threads=2, read_ahead=4)
    for number in range(50):
        indices = np.random.default_rng(number).integers(0, 10, 6)
        assert_arrays_equal(
            next(iterator).x1, {name: array[indices] for name, array in expected.items()}
        )
    iterator.close()
    with ThreadPoolExecutor(8) as pool:
        for number, batch in enumerate(pool.map(fetch, range(200))):
            assert_arrays_equal(batch.x1, fetch(number).x1)


# The shards are large enough to be seen while they are written.
_WRITE_SHARDS = """
import sys
import time
from pathlib import Path
import numpy as np
from fmjax.data import *

manifest = RecordManifest((RecordField("x", "float32", (1568,)),), 8 * 1000, 1000)
folder = Path(sys.argv[1])
prepare_records(folder, manifest)
for number in missing_shards(folder, manifest):
    write_shard(folder, manifest, number, {"x": np.full((1000, 1568), number, np.float32)})
    time.sleep(0.1)  # Leaves time to kill the process on a busy machine.
"""


@pytest.mark.slow
def test_a_killed_process_leaves_complete_shards_and_another_resumes(tmp_path):
    command = [sys.executable, "-c", _WRITE_SHARDS, str(tmp_path)]
    process = subprocess.Popen(command)
    pattern = "[0-9]*.array_record"
    while not (list(tmp_path.glob(pattern)) and list(tmp_path.glob(".0*.array_record"))):
        assert process.poll() is None
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    modified_times = {file: file.stat().st_mtime_ns for file in tmp_path.glob(pattern)}
    assert 1 <= len(modified_times) < 8
    with pytest.raises(ValueError, match=r"must be a complete shard of 1000 records, got no file"):
        open_records(tmp_path)
    subprocess.run(command, check=True)
    assert {file: file.stat().st_mtime_ns for file in modified_times} == modified_times
    assert not list(tmp_path.glob(".*"))
    result = open_records(tmp_path).read(np.arange(8000))["x"]
    np.testing.assert_array_equal(result[:, 1567], np.repeat(np.arange(8.0), 1000))


_WRITE_SHARDS_TO_FULL_DISK = (
    """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
"""
    + _WRITE_SHARDS
)


def test_a_full_disk_raises_os_error(tmp_path):
    command = [sys.executable, "-c", _WRITE_SHARDS_TO_FULL_DISK, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "OSError: [Errno 27] File too large" in result.stderr
    assert "00000-of-00008.array_record" in result.stderr.splitlines()[-1]
    assert [file.name for file in tmp_path.iterdir()] == ["records.json"]


def read_errors(folder, expected):
    """Return the error of reading all examples; without one, compare them with `expected`."""
    try:
        result = open_records(folder).read(np.arange(10))
    except ValueError as error:
        return [str(error)]
    assert_arrays_equal(result, expected)
    return []


def test_a_damaged_shard_is_rejected_or_reads_unchanged(tmp_path):
    expected = write_shards(tmp_path)
    file = MANIFEST.shard(tmp_path, 1)
    content = file.read_bytes()
    pattern = (
        r"file .*00001-of-00003.array_record must be a complete shard of 4 records, got [^\n]+\Z"
    )
    for size in (0, 1, 100, 65535, 65536, 65537, len(content) - 65536, len(content) - 1):
        file.write_bytes(content[:size])
        with pytest.raises(ValueError, match=pattern):
            open_records(tmp_path)
    start = content.index(examples()["image"][4].tobytes())
    # Offsets in the data, the headers of chunks and blocks, the index and the padding.
    generator = np.random.default_rng(0)
    offsets = [start, start + 40, 70, 65536, 65540, 65600, *generator.integers(0, len(content), 15)]
    errors = []
    for offset in offsets:
        damaged = bytearray(content)
        damaged[offset] ^= 4
        file.write_bytes(damaged)
        errors += read_errors(tmp_path, expected)
    assert len(errors) >= 3
    assert all(re.match(pattern, message) for message in errors)


def test_a_shard_truncated_while_open_is_rejected(tmp_path):
    manifest = RecordManifest((RecordField("x", "float32", (4000,)),), 20, 20)
    write_shards(tmp_path, manifest)
    records = open_records(tmp_path)
    file = manifest.shard(tmp_path, 0)
    file.write_bytes(file.read_bytes()[:70_000])
    with pytest.raises(ValueError, match=r"file .*00000-of-00001.array_record must "):
        records.read(np.arange(20))


def test_shards_of_other_records_are_rejected(tmp_path):
    manifest = RecordManifest((RecordField("x", "float32", (3,)),), 4, 4)
    for name, field, count in (("wider", "float64", 4), ("longer", "float32", 5)):
        other = RecordManifest((RecordField("x", field, (3,)),), count, count)
        write_shards(tmp_path / name, other)
        prepare_records(tmp_path, manifest)
        shutil.copy(other.shard(tmp_path / name, 0), manifest.shard(tmp_path, 0))
        messages = {
            "wider": r"must hold records of 12 bytes, got \[24\]",
            "longer": "must be a complete shard of 4 records, got 5 records",
        }
        with pytest.raises(ValueError, match=messages[name]):
            open_records(tmp_path)


def test_arrays_that_differ_from_the_manifest_are_rejected(tmp_path):
    manifest = RecordManifest((RecordField("x", "float32", (3,)), RecordField("y", "int32")), 5, 4)
    prepare_records(tmp_path, manifest)
    x, y = np.zeros((4, 3), np.float32), np.zeros(4, np.int32)
    requirement = r"must be float32 of shape \(4, 3\), got"
    for number, arrays, message in (
        (0, {"x": x}, r"arrays must hold x, y, got x"),
        (0, {"x": x, "y": y, "z": y}, r"arrays must hold x, y, got x, y, z"),
        (0, {"x": x.astype(float), "y": y}, rf"x {requirement} float64 of shape \(4, 3\)"),
        (0, {"x": x[:3], "y": y}, rf"x {requirement} float32 of shape \(3, 3\)"),
        (1, {"x": x, "y": y}, r"x must be float32 of shape \(1, 3\), got"),
        (2, {"x": x, "y": y}, r"number must lie in \[0, 2\), got 2"),
    ):
        with pytest.raises(ValueError, match=message):
            write_shard(tmp_path, manifest, number, arrays)
    assert missing_shards(tmp_path, manifest) == [0, 1]


def test_invalid_indices_are_rejected(tmp_path):
    write_shards(tmp_path)
    records = open_records(tmp_path)
    for indices, message in (
        (np.array([0, 10]), r"indices must lie in \[0, 10\), got \[10\]"),
        (np.array([-1]), r"indices must lie in \[0, 10\), got \[-1\]"),
        (np.array([0.5]), r"indices must be integers \[n\], got float64 of shape \(1,\)"),
        (np.zeros((2, 2), int), r"indices must be integers \[n\], got int64 of shape \(2, 2\)"),
    ):
        with pytest.raises(ValueError, match=message):
            records.read(indices)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RecordField("../x", "int32"), r"name must be a Python identifier, got '../x'"),
        (lambda: RecordField("x", "object"), r"dtype must be one of bool, .* got 'object'"),
        (lambda: RecordField("x", "int32", (0,)), r"shape must hold positive sizes, got \(0,\)"),
        (lambda: RecordManifest((), 1, 1), r"fields must hold at least one field, got none"),
        (lambda: RecordManifest(FIELDS[:1] * 2, 1, 1), r"fields must have different names"),
        (lambda: RecordManifest(FIELDS, 0, 1), r"num_examples must be at least 1, got 0"),
        (lambda: RecordManifest(FIELDS, 1, True), r"examples_per_shard must be an integer, got T"),
        (lambda: RecordManifest(FIELDS, 1025, 2), r"examples_per_shard must be at least 3, got 2"),
        (lambda: RecordManifest(FIELDS, 1, 1, {"x": (1,)}), r"origin must be a dict of JSON"),
        (lambda: RecordManifest(FIELDS, 1, 1, {"x": np.nan}), r"origin must be a dict of JSON"),
        (lambda: RecordManifest(FIELDS, 1, 1, {"x": object()}), r"origin must be a dict of JSON"),
    ],
)
def test_invalid_fields_and_manifests_are_rejected(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_missing_or_damaged_manifest_is_rejected(tmp_path):
    with pytest.raises(ValueError, match=r"folder .* must hold records.json, got none"):
        open_records(tmp_path)
    write_shards(tmp_path)
    file = tmp_path / "records.json"
    manifest = json.loads(file.read_text())
    assert manifest["version"] == 1
    for text in (
        "",
        "{",
        "3",
        "[]",
        "{}",
        json.dumps({**manifest, "version": 2}),
        json.dumps({**manifest, "num_examples": "10"}),
        json.dumps({**manifest, "fields": [{"name": "x"}]}),
        json.dumps({**manifest, "shards": ["/etc/passwd"]}),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"records\.json must (hold|be) [^\n]+, got [^\n]+"):
            open_records(tmp_path)


@pytest.mark.parametrize(
    ("field", "bad"), [("image", np.nan), ("latent", np.inf), ("tokens", np.nan)]
)
def test_non_finite_values_are_reported_with_folder_and_index(tmp_path, field, bad, monkeypatch):
    expected = examples()
    expected[field][6].reshape(-1)[1] = bad
    message = rf"folder {tmp_path}: {field} must hold finite numbers, got {bad} in example 6$"
    prepare_records(tmp_path, MANIFEST)
    for number in range(3):
        part = slice(MANIFEST.examples(number).start, MANIFEST.examples(number).stop)
        arrays = {name: array[part] for name, array in expected.items()}
        if number == 1:
            with pytest.raises(ValueError, match=message):
                write_shard(tmp_path, MANIFEST, number, arrays)
        # Write the shard as a version without the check did.
        with monkeypatch.context() as patch:
            patch.setattr("fmjax.data.records.records.require_finite", lambda *_: None)
            write_shard(tmp_path, MANIFEST, number, arrays)
    records = open_records(tmp_path)
    indices = np.array([5, 9, 0])
    assert_arrays_equal(records.read(indices), {name: a[indices] for name, a in expected.items()})
    with pytest.raises(ValueError, match=message):
        records.read(np.array([9, 6, 0]))
