"""Tests of functions that are killed, or fail on a full or broken disk, at a write."""

import dataclasses
import errno
import os
import shutil

import numpy as np
import pytest

from fmjax._files import read_npz, write_atomically, write_npz
from fmjax._locks import is_lock
from fmjax.config import Sampling
from fmjax.data import (
    RecordField,
    RecordManifest,
    missing_shards,
    open_records,
    prepare_records,
    write_shard,
)
from fmjax.jobs.train.prepare import prepare
from fmjax.pretrained.weights import mark_unfinished, require_new, write_tensors
from fmjax.runs.extensions import Extension, read_extensions
from fmjax.runs.folder import RunFolder, read_config
from tests.faults.commands import temporary_files, tiny_config
from tests.faults.process import copy_before_writes, fail_at_write, observe_writes


@pytest.fixture
def folder(tmp_path):
    """Folder whose writes are observed."""
    root = tmp_path / "root"
    root.mkdir()
    return root


def states_after_kills(root, to, write):
    """Return copies of the folder as kills at each write of `write()` leave it."""
    to.mkdir()
    with observe_writes(root, copy_before_writes(root, to)):
        write()
    return sorted(to.iterdir())


def load_tiny_config(folder):
    from fmjax.runs.load_config import load_config

    return load_config(tiny_config(folder))


@pytest.mark.parametrize("overwrite", [True, False], ids=["overwrite", "plain"])
def test_prepare_succeeds_after_a_killed_overwrite(tmp_path, folder, overwrite):
    config, run = load_tiny_config(tmp_path), RunFolder(folder / "run")
    prepare(run, config, (2,), None)
    for name in ("checkpoints/4/state", "samples", "events"):
        (run.root / name).mkdir(parents=True)
        (run.root / name / "file").write_text("old")
    (run.root / "metrics.jsonl").write_text("old")
    prepare(RunFolder(tmp_path / "new"), config, (2,), None)
    states = states_after_kills(
        folder, tmp_path / "states", lambda: prepare(run, config, (2,), None, overwrite=True)
    )
    assert len(states) > 10, "states between the first removal and the last write"
    assert not temporary_files(folder)
    for state in states:
        has_config = (state / "run" / "config.json").is_file()
        prepare(RunFolder(state / "run"), config, (2,), None, overwrite=overwrite)
        assert read_config(state / "run") == config
        # A config.json exists only before the first removal and after the last write.
        if overwrite or not has_config:
            files = [file for file in (state / "run").rglob("*") if file.is_file()]
            assert sorted(file.name for file in files) == ["config.json", "model.json"]


@pytest.mark.slow
def test_a_killed_extension_is_repeated_and_recorded_once(tmp_path, folder):
    config, run = load_tiny_config(tmp_path), RunFolder(folder / "run")
    prepare(run, config, (2,), None)
    (run.checkpoints / "4").mkdir(parents=True)
    run.samples.mkdir()
    for file in (run.sample_grid, run.evaluation):
        file.write_text("old")
    training = dataclasses.replace(config.training, num_steps=6)
    longer = dataclasses.replace(config, training=training)
    other = dataclasses.replace(config, sampling=Sampling.of(num_samples=5))
    for name, changed, extensions in (
        ("longer", longer, (Extension(4, 4, 6),)),
        ("other", other, ()),
    ):
        copy = tmp_path / name / "run"
        shutil.copytree(run.root, copy)
        states = states_after_kills(
            copy.parent,
            tmp_path / f"{name}-states",
            lambda copy=copy, changed=changed: prepare(RunFolder(copy), changed, (2,), None),
        )
        assert len(states) >= 2
        for state in states:
            interrupted = RunFolder(state / "run")
            assert read_config(interrupted.root) in (config, changed)
            prepare(interrupted, changed, (2,), None)
            assert read_config(interrupted.root) == changed
            num_steps = changed.training.num_steps
            assert read_extensions(interrupted, num_steps) == extensions
            assert interrupted.evaluation.exists() == (name == "longer")


def test_killed_write_npz_keeps_the_old_arrays(tmp_path, folder):
    file = folder / "a.npz"
    write_npz(file, x=np.zeros(3))
    states = states_after_kills(folder, tmp_path / "states", lambda: write_npz(file, x=np.ones(3)))
    assert len(states) >= 2
    for state in states:
        assert read_npz(state / "a.npz")["x"].tolist() == [0, 0, 0]
        write_npz(state / "a.npz", x=np.ones(3))
        assert [f.name for f in state.iterdir()] == ["a.npz"]


@pytest.mark.parametrize("code_name", ["ENOSPC", "EIO"])
@pytest.mark.parametrize("at", [1, 2])
def test_failed_atomic_write_leaves_only_the_old_file(folder, code_name, at):
    file, code = folder / "a.txt", getattr(errno, code_name)
    file.write_text("old")

    def write():
        with write_atomically(file) as temporary:
            temporary.write_text("new")

    message = os.strerror(code)
    with observe_writes(folder, fail_at_write(at, code)), pytest.raises(OSError, match=message):
        write()
    assert file.read_text() == "old"
    assert [f.name for f in folder.iterdir()] == ["a.txt"]


def test_killed_write_of_records_can_be_continued(tmp_path, folder):
    manifest = RecordManifest((RecordField("x", "float32", (2,)),), 5, 2, {"made": "here"})

    def make(root):
        prepare_records(root / "set", manifest)
        for number in missing_shards(root / "set", manifest):
            arrays = {"x": np.full((len(manifest.examples(number)), 2), number, np.float32)}
            write_shard(root / "set", manifest, number, arrays)

    states = states_after_kills(folder, tmp_path / "states", lambda: make(folder))
    assert len(states) > 8
    for state in states:
        make(state)
        assert all(map(is_lock, temporary_files(state))), "only the unused lock of the last shard"
        x = open_records(state / "set").read(np.arange(5))["x"]
        assert x[:, 0].tolist() == [0, 0, 1, 1, 2]


def test_killed_export_can_be_repeated(tmp_path, folder):
    def export(root):
        require_new(root / "out", overwrite=False)
        with mark_unfinished(root / "out"):
            for name in ("a.safetensors", "part/b.safetensors"):
                write_tensors(root / "out" / name, {"x": np.ones(2)}, {})

    states = states_after_kills(folder, tmp_path / "states", lambda: export(folder))
    assert len(states) >= 6
    for state in states:
        export(state)
        assert not temporary_files(state)
        names = sorted(file.name for file in (state / "out").rglob("*.*"))
        assert names == ["a.safetensors", "b.safetensors"]
        with pytest.raises(ValueError, match="must be new or empty"):
            export(state)


@pytest.mark.parametrize("at", range(2, 6))
def test_export_on_a_full_disk_leaves_no_files(folder, at):
    def export():
        with mark_unfinished(folder / "out"):
            for name in ("a.safetensors", "b.safetensors", "c.safetensors"):
                write_tensors(folder / "out" / name, {"x": np.ones(2)}, {})

    with (
        observe_writes(folder, fail_at_write(at, errno.ENOSPC)),
        pytest.raises(OSError, match="No space"),
    ):
        export()
    assert not [file for file in folder.rglob("*") if file.is_file()]
    export()
    assert len(list((folder / "out").iterdir())) == 3
