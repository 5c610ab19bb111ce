"""A kill, a full disk and a broken disk at the writes of single functions."""

import errno
import os

import numpy as np
import pytest

from fmjax._files import read_npz, write_atomically, write_npz
from fmjax._locks import is_lock
from fmjax.data import (
    RecordField,
    RecordManifest,
    missing_shards,
    open_records,
    prepare_records,
    write_shard,
)
from fmjax.jobs.train.prepare import prepare
from fmjax.pretrained.weights import filling, require_new, write_tensors
from fmjax.runs.folder import RunFolder, read_config
from tests.faults.commands import hidden, tiny
from tests.faults.process import copying, failing, watching


@pytest.fixture
def folder(tmp_path):
    """A folder whose writes are heard of."""
    root = tmp_path / "root"
    root.mkdir()
    return root


def states(root, to, work):
    """Copies of the folder, as kills at each write of `work` leave it."""
    to.mkdir()
    with watching(root, copying(root, to)):
        work()
    return sorted(to.iterdir())


def config_of(folder):
    from fmjax.runs.load_config import load_config

    return load_config(tiny(folder))


@pytest.mark.parametrize("again", [True, False], ids=["overwrite", "plain"])
def test_a_kill_while_a_run_is_replaced_leaves_what_the_same_command_replaces(
    tmp_path, folder, again
):
    config, run = config_of(tmp_path), RunFolder(folder / "run")
    prepare(run, config, (2,), None)
    for name in ("checkpoints/4/state", "samples", "events"):
        (run.root / name).mkdir(parents=True)
        (run.root / name / "file").write_text("old")
    (run.root / "metrics.jsonl").write_text("old")
    prepare(RunFolder(tmp_path / "new"), config, (2,), None)
    found = states(
        folder, tmp_path / "states", lambda: prepare(run, config, (2,), None, overwrite=True)
    )
    assert len(found) > 10, "states between the first removal and the last write"
    assert not hidden(folder)
    for state in found:
        whole = (state / "run" / "config.json").is_file()
        prepare(RunFolder(state / "run"), config, (2,), None, overwrite=again)
        assert read_config(state / "run") == config
        if again or not whole:  # Else nothing was removed yet, or all was written.
            files = [path for path in (state / "run").rglob("*") if path.is_file()]
            assert sorted(path.name for path in files) == ["config.json", "model.json"]


def test_a_kill_while_numbers_are_written_leaves_the_old_or_the_new_ones(tmp_path, folder):
    path = folder / "a.npz"
    write_npz(path, x=np.zeros(3))
    found = states(folder, tmp_path / "states", lambda: write_npz(path, x=np.ones(3)))
    assert len(found) >= 2
    for state in found:
        assert read_npz(state / "a.npz")["x"].tolist() == [0, 0, 0]
        write_npz(state / "a.npz", x=np.ones(3))
        assert [each.name for each in state.iterdir()] == ["a.npz"]


@pytest.mark.parametrize("code", ["ENOSPC", "EIO"])
@pytest.mark.parametrize("at", [1, 2])
def test_a_disk_that_fails_keeps_the_old_numbers_and_nothing_else(folder, code, at):
    path, words = folder / "a.txt", os.strerror(getattr(errno, code))
    path.write_text("old")

    def write():
        with write_atomically(path) as temporary:
            temporary.write_text("new")

    with watching(folder, failing(at, getattr(errno, code))), pytest.raises(OSError, match=words):
        write()
    assert path.read_text() == "old"
    assert [each.name for each in folder.iterdir()] == ["a.txt"]


def test_a_kill_while_records_are_written_leaves_a_set_that_goes_on(tmp_path, folder):
    manifest = RecordManifest((RecordField("x", "float32", (2,)),), 5, 2, {"made": "here"})

    def make(root):
        prepare_records(root / "set", manifest)
        for number in missing_shards(root / "set", manifest):
            arrays = {"x": np.full((len(manifest.examples(number)), 2), number, np.float32)}
            write_shard(root / "set", manifest, number, arrays)

    found = states(folder, tmp_path / "states", lambda: make(folder))
    assert len(found) > 8
    for state in found:
        make(state)
        assert all(map(is_lock, hidden(state))), "that of the last shard, which nobody holds"
        x = open_records(state / "set").read(np.arange(5))["x"]
        assert x[:, 0].tolist() == [0, 0, 1, 1, 2]


def test_a_kill_while_a_model_is_exported_leaves_a_folder_that_is_new(tmp_path, folder):
    def export(root):
        require_new(root / "out", overwrite=False)
        with filling(root / "out"):
            for name in ("a.safetensors", "part/b.safetensors"):
                write_tensors(root / "out" / name, {"x": np.ones(2)}, {})

    found = states(folder, tmp_path / "states", lambda: export(folder))
    assert len(found) >= 6
    for state in found:
        export(state)
        assert not hidden(state)
        names = sorted(path.name for path in (state / "out").rglob("*.*"))
        assert names == ["a.safetensors", "b.safetensors"]
        with pytest.raises(ValueError, match="must be new or empty"):
            export(state)


@pytest.mark.parametrize("at", range(2, 6))
def test_an_export_that_finds_no_room_leaves_nothing(folder, at):
    def export():
        with filling(folder / "out"):
            for name in ("a.safetensors", "b.safetensors", "c.safetensors"):
                write_tensors(folder / "out" / name, {"x": np.ones(2)}, {})

    with watching(folder, failing(at, errno.ENOSPC)), pytest.raises(OSError, match="No space"):
        export()
    assert not [path for path in folder.rglob("*") if path.is_file()]
    export()
    assert len(list((folder / "out").iterdir())) == 3
