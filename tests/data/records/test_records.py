"""Sets on disk: read back as written, made shard by shard, refused when damaged."""

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
# Three shards of 4, 4 and 2 examples.
MANIFEST = RecordManifest(FIELDS, 10, 4, {"run": "runs/a", "step": 3, "solver": {"name": "heun"}})


def examples(manifest=MANIFEST):
    """Random values of every field, for the whole set."""
    generator = np.random.default_rng(0)
    shapes = {one: (manifest.num_examples, *one.shape) for one in manifest.fields}
    draws = {one.name: generator.integers(0, 2**31, shape) for one, shape in shapes.items()}
    return {
        one.name: (draws[one.name] % 2 if one.dtype == "bool" else draws[one.name] % 251).astype(
            jnp.dtype(one.dtype)
        )
        for one in manifest.fields
    }


def write(folder, manifest=MANIFEST, numbers=None):
    """Write all shards of the examples, or those of the numbers."""
    prepare_records(folder, manifest)
    arrays = examples(manifest)
    for number in range(manifest.num_shards) if numbers is None else numbers:
        part = slice(manifest.examples(number).start, manifest.examples(number).stop)
        write_shard(folder, manifest, number, {name: a[part] for name, a in arrays.items()})
    return arrays


def assert_same(found, wanted):
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("indices", [[7, 0, 9, 3, 3, 8], [5], [], list(range(10))])
def test_any_examples_are_read_back_as_written_in_the_order_asked(tmp_path, indices):
    wanted = write(tmp_path)
    records = open_records(tmp_path)
    indices = np.array(indices, dtype=np.int64)
    assert_same(records.read(indices), {name: a[indices] for name, a in wanted.items()})
    assert (len(records), records.manifest) == (10, MANIFEST)


def test_a_record_is_the_bytes_of_its_arrays_and_nothing_else(tmp_path):
    wanted = write(tmp_path)
    reader = grain.sources.ArrayRecordDataSource([str(MANIFEST.shard(tmp_path, 0))])
    assert reader[2] == b"".join(array[2].tobytes() for array in wanted.values())
    assert MANIFEST.dtype.itemsize == len(reader[2])


def test_a_set_is_made_shard_by_shard(tmp_path):
    write(tmp_path, numbers=[1])
    assert missing_shards(tmp_path, MANIFEST) == [0, 2]
    # As a killed process leaves it.
    left = temporary_name(MANIFEST.shard(tmp_path, 2))
    left.write_bytes(MANIFEST.shard(tmp_path, 1).read_bytes())
    assert missing_shards(tmp_path, MANIFEST) == [0, 2]
    wanted = write(tmp_path, numbers=[2, 0])
    assert missing_shards(tmp_path, MANIFEST) == []
    assert_same(open_records(tmp_path).read(np.arange(10)), wanted)
    names = [f"0000{number}-of-00003.array_record" for number in range(3)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*names, "records.json"]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"about": {**MANIFEST.about, "step": 4}}, "about.step"),
        ({"about": {"run": "runs/a", "step": 3, "solver": {"name": "euler"}}}, "about.solver.name"),
        ({"about": {**MANIFEST.about, "seed": None}, "num_examples": 9}, "about.seed, num_exa"),
        ({"fields": FIELDS[::-1]}, "fields"),
        ({"examples_per_shard": 5}, "examples_per_shard"),
    ],
)
def test_shards_made_another_way_are_not_mixed(tmp_path, changed, named):
    write(tmp_path, numbers=[0])
    prepare_records(tmp_path, MANIFEST)
    asked = {
        "fields": FIELDS,
        "num_examples": 10,
        "examples_per_shard": 4,
        "about": MANIFEST.about,
    }
    rule = f"folder .* records made with the same settings, got different {named}"
    with pytest.raises(ValueError, match=rule):
        prepare_records(tmp_path, RecordManifest(**{**asked, **changed}))


def test_shards_of_which_nothing_is_known_are_not_taken(tmp_path):
    write(tmp_path, numbers=[0])
    (tmp_path / "records.json").unlink()
    with pytest.raises(ValueError, match=r"same settings, got 1 shards without records.json"):
        prepare_records(tmp_path, MANIFEST)


def test_threads_read_what_one_reads(tmp_path):
    wanted = write(tmp_path)
    records = open_records(tmp_path)

    def fetch(number):
        return Batch(records.read(np.random.default_rng(number).integers(0, 10, 6)))

    numbers = grain.MapDataset.range(sys.maxsize)
    iterator = BatchIterator(numbers.map(fetch), num_threads=2, read_ahead=4)
    for number in range(50):
        indices = np.random.default_rng(number).integers(0, 10, 6)
        assert_same(next(iterator).x1, {name: array[indices] for name, array in wanted.items()})
    iterator.close()
    with ThreadPoolExecutor(8) as pool:
        for number, found in enumerate(pool.map(fetch, range(200))):
            assert_same(found.x1, fetch(number).x1)


# Shards large enough that one is seen while it is written.
_MAKE = """
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
    time.sleep(0.1)  # It is not done before it can be killed, however busy the machine.
"""


@pytest.mark.slow
def test_a_killed_process_leaves_whole_shards_and_another_goes_on(tmp_path):
    command = [sys.executable, "-c", _MAKE, str(tmp_path)]
    process = subprocess.Popen(command)
    shard = "[0-9]*.array_record"
    while not (list(tmp_path.glob(shard)) and list(tmp_path.glob(".0*.array_record"))):
        assert process.poll() is None
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    whole = {path: path.stat().st_mtime_ns for path in tmp_path.glob(shard)}
    assert 1 <= len(whole) < 8
    with pytest.raises(ValueError, match=r"must be a complete shard of 1000 records, got no file"):
        open_records(tmp_path)
    subprocess.run(command, check=True)
    assert {path: path.stat().st_mtime_ns for path in whole} == whole
    assert not list(tmp_path.glob(".*"))
    found = open_records(tmp_path).read(np.arange(8000))["x"]
    np.testing.assert_array_equal(found[:, 1567], np.repeat(np.arange(8.0), 1000))


_FILL = (
    """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
"""
    + _MAKE
)


def test_a_disk_that_takes_no_more_is_an_error_of_the_system(tmp_path):
    command = [sys.executable, "-c", _FILL, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "OSError: [Errno 27] File too large" in result.stderr
    assert "00000-of-00008.array_record" in result.stderr.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["records.json"]


def refusals(folder, wanted):
    """Why the set cannot be read; nothing if it reads as written."""
    try:
        found = open_records(folder).read(np.arange(10))
    except ValueError as error:
        return [str(error)]
    assert_same(found, wanted)
    return []


def test_a_damaged_shard_is_refused_or_reads_the_same(tmp_path):
    wanted = write(tmp_path)
    path = MANIFEST.shard(tmp_path, 1)
    whole = path.read_bytes()
    rule = r"file .*00001-of-00003.array_record must be a complete shard of 4 records, got [^\n]+\Z"
    for size in (0, 1, 100, 65535, 65536, 65537, len(whole) - 65536, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=rule):
            open_records(tmp_path)
    start = whole.index(examples()["image"][4].tobytes())
    # Into the data, the heads of chunks and blocks, the index and the padding.
    generator = np.random.default_rng(0)
    places = [start, start + 40, 70, 65536, 65540, 65600, *generator.integers(0, len(whole), 15)]
    refused = []
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 4
        path.write_bytes(damaged)
        refused += refusals(tmp_path, wanted)
    assert len(refused) >= 3
    assert all(re.match(rule, message) for message in refused)


def test_a_shard_cut_while_it_is_open_is_refused(tmp_path):
    manifest = RecordManifest((RecordField("x", "float32", (4000,)),), 20, 20)
    write(tmp_path, manifest)
    records = open_records(tmp_path)
    path = manifest.shard(tmp_path, 0)
    path.write_bytes(path.read_bytes()[:70_000])
    with pytest.raises(ValueError, match=r"file .*00000-of-00001.array_record must "):
        records.read(np.arange(20))


def test_shards_of_another_set_are_refused(tmp_path):
    one = RecordManifest((RecordField("x", "float32", (3,)),), 4, 4)
    for name, field, count in (("wider", "float64", 4), ("longer", "float32", 5)):
        other = RecordManifest((RecordField("x", field, (3,)),), count, count)
        write(tmp_path / name, other)
        prepare_records(tmp_path, one)
        shutil.copy(other.shard(tmp_path / name, 0), one.shard(tmp_path, 0))
        found = {
            "wider": r"must hold records of 12 bytes, got \[24\]",
            "longer": "must be a complete shard of 4 records, got 5 records",
        }
        with pytest.raises(ValueError, match=found[name]):
            open_records(tmp_path)


def test_arrays_that_are_not_the_stated_ones_are_refused(tmp_path):
    manifest = RecordManifest((RecordField("x", "float32", (3,)), RecordField("y", "int32")), 5, 4)
    prepare_records(tmp_path, manifest)
    x, y = np.zeros((4, 3), np.float32), np.zeros(4, np.int32)
    rule = r"must be float32 of shape \(4, 3\), got"
    for number, arrays, message in (
        (0, {"x": x}, r"arrays must hold x, y, got x"),
        (0, {"x": x, "y": y, "z": y}, r"arrays must hold x, y, got x, y, z"),
        (0, {"x": x.astype(float), "y": y}, rf"x {rule} float64 of shape \(4, 3\)"),
        (0, {"x": x[:3], "y": y}, rf"x {rule} float32 of shape \(3, 3\)"),
        (1, {"x": x, "y": y}, r"x must be float32 of shape \(1, 3\), got"),
        (2, {"x": x, "y": y}, r"number must lie in \[0, 2\), got 2"),
    ):
        with pytest.raises(ValueError, match=message):
            write_shard(tmp_path, manifest, number, arrays)
    assert missing_shards(tmp_path, manifest) == [0, 1]


def test_indices_of_no_example_are_refused(tmp_path):
    write(tmp_path)
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
        (lambda: RecordManifest(FIELDS, 1, 1, {"x": (1,)}), r"about must be a dict of JSON"),
        (lambda: RecordManifest(FIELDS, 1, 1, {"x": np.nan}), r"about must be a dict of JSON"),
        (lambda: RecordManifest(FIELDS, 1, 1, {"x": object()}), r"about must be a dict of JSON"),
    ],
)
def test_a_manifest_that_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_missing_or_damaged_manifest_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"folder .* must hold records.json, got none"):
        open_records(tmp_path)
    write(tmp_path)
    path = tmp_path / "records.json"
    whole = json.loads(path.read_text())
    assert whole["version"] == 1
    for text in (
        "",
        "{",
        "3",
        "[]",
        "{}",
        json.dumps({**whole, "version": 2}),
        json.dumps({**whole, "num_examples": "10"}),
        json.dumps({**whole, "fields": [{"name": "x"}]}),
        json.dumps({**whole, "shards": ["/etc/passwd"]}),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"records\.json must (hold|be) [^\n]+, got [^\n]+"):
            open_records(tmp_path)


@pytest.mark.parametrize(
    ("field", "bad"), [("image", np.nan), ("latent", np.inf), ("tokens", np.nan)]
)
def test_numbers_that_are_not_finite_are_reported_with_folder_and_index(
    tmp_path, field, bad, monkeypatch
):
    wanted = examples()
    wanted[field][6].reshape(-1)[1] = bad
    message = rf"folder {tmp_path}: {field} must hold finite numbers, got {bad} in example 6$"
    prepare_records(tmp_path, MANIFEST)
    for number in range(3):
        part = slice(MANIFEST.examples(number).start, MANIFEST.examples(number).stop)
        arrays = {name: array[part] for name, array in wanted.items()}
        if number == 1:
            with pytest.raises(ValueError, match=message):
                write_shard(tmp_path, MANIFEST, number, arrays)
        with monkeypatch.context() as patch:  # As a version without the check wrote it.
            patch.setattr("fmjax.data.records.records.require_finite", lambda *_: None)
            write_shard(tmp_path, MANIFEST, number, arrays)
    records = open_records(tmp_path)
    indices = np.array([5, 9, 0])
    assert_same(records.read(indices), {name: a[indices] for name, a in wanted.items()})
    with pytest.raises(ValueError, match=message):
        records.read(np.array([9, 6, 0]))
