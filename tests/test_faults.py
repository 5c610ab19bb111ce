"""A kill, a full disk and a broken disk at the writes of commands; then the same command again."""

import errno
import json
import os
import shutil

import jax
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
from fmjax.runs.folder import RunFolder, open_run, read_config
from tests.faults import Faults, copying, failing, watching
from tests.tiny_run import CONFIG
from tests.training.checkpoints.test_full_disk import losses

RANDOM = {"seconds", "images_per_second", "teraflops_per_device", "share_of_peak"}


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


def tiny(folder, **settings):
    """A config of two data points' worth of work, from its file."""
    path = folder / "tiny.py"
    numbers = {"num_steps": 4, "log_every": 1, "checkpoint_every": 2} | settings
    path.write_text(CONFIG.format(**numbers))
    return path


def config_of(folder):
    from fmjax.runs.load_config import load_config

    return load_config(tiny(folder))


def hidden(root):
    return [path for path in root.rglob("*") if path.name.startswith(".") or "tmp" in path.name]


@pytest.mark.parametrize("again", [True, False], ids=["overwrite", "plain"])
def test_a_kill_while_a_run_is_replaced_leaves_what_the_same_command_replaces(
    tmp_path, folder, again
):
    config, run = config_of(tmp_path), RunFolder(folder / "run")
    prepare(run, config, (2,), None)
    for name in ("checkpoints/4/state", "samples", "events"):
        (run.path / name).mkdir(parents=True)
        (run.path / name / "file").write_text("old")
    (run.path / "metrics.jsonl").write_text("old")
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


# Whole commands.


@pytest.fixture(scope="module")
def faults():
    with Faults() as process:
        yield process


def number_every(found, most):
    """At most so many of them, evenly chosen."""
    places = np.unique(np.linspace(0, len(found) - 1, min(most, len(found))).round().astype(int))
    return [found[place] for place in places]


def assert_same_results(root, wanted):
    """The same files, and in them the same numbers but those that time decides."""
    assert not hidden(root)
    assert names(root) == names(wanted)
    for path in sorted(wanted.rglob("*")):
        here = root / path.relative_to(wanted)
        if path.suffix == ".npz":
            jax.tree.map(np.testing.assert_array_equal, read_npz(here), read_npz(path))
        elif path.name == "metrics.jsonl":
            assert losses(here.parent) == losses(path.parent)
        elif path.suffix == ".json" and "checkpoints" not in path.parts:
            assert plain(json.loads(here.read_text())) == plain(json.loads(path.read_text()))
        elif path.suffix == ".png" and path.parent.name != "figures":
            assert here.read_bytes() == path.read_bytes()


def names(root):
    """Of all files but those whose names are random or the time."""
    return {
        str(path.relative_to(root))
        for path in root.rglob("*")
        if path.is_file()
        and not {"events", "d"} & set(path.relative_to(root).parts)
        and "ocdbt" not in str(path)
    }


def plain(value):
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items() if key not in RANDOM}
    return [plain(each) for each in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def trained(faults, tmp_path_factory):
    """Root with a whole run that is not disturbed."""
    root = tmp_path_factory.mktemp("trained")
    config = tiny(tmp_path_factory.mktemp("configs"))
    outcome = faults.run("train", config, "--run", "run", root=root)
    assert (outcome.code, outcome.err) == (0, ""), outcome
    return root, config


# Which parts of the run they start with, what they do, how many states after a kill are tried.
COMMANDS = {
    "train": ((), ("train-only", "CONFIG", "--run", "run"), 30),
    "overwrite": (
        ("",),
        ("train-only", "CONFIG", "--run", "run", "--training.seed", "1", "--overwrite"),
        12,
    ),
    "results": (("checkpoints",), ("train", "CONFIG", "--run", "run"), 6),
    "sample": (("checkpoints",), ("sample", "run", "--num-samples", "8"), 10),
    "evaluate": (("checkpoints",), ("evaluate-only", "run"), 6),
    "compare": (("checkpoints",), ("compare-only", "run"), 4),
    "likelihood": (("checkpoints",), ("likelihood-only", "run", "--num-examples", "8"), 5),
    "reflow": (
        ("checkpoints",),
        (
            "reflow-only",
            "run",
            "--run",
            "next",
            "--reflow.num-pairs",
            "2048",
            "--reflow.sampling.solver",
            "euler",
            "--reflow.sampling.num-steps",
            "2",
        ),
        12,
    ),
}


def start_of(trained, parts, to):
    """A folder with some parts of the trained run: all for "", none for no part."""
    to.mkdir()
    for part in parts:
        if part == "":
            shutil.copytree(trained / "run", to / "run")
            continue
        shutil.copytree(trained / "run" / part, to / "run" / part)
        for name in ("config.json", "model.json", "metrics.jsonl"):
            shutil.copy(trained / "run" / name, to / "run")
    return to


def arguments_of(command, config):
    return [str(config) if word == "CONFIG" else word for word in COMMANDS[command][1]]


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_after_a_kill_at_any_write_the_same_command_ends_as_if_never_killed(
    faults, trained, tmp_path, command
):
    start, config = trained
    parts, _, most = COMMANDS[command]
    most = int(os.environ.get("FMJAX_TEST_KILLS", most))
    root, arguments = start_of(start, parts, tmp_path / "root"), arguments_of(command, config)
    copies = tmp_path / "copies"
    copies.mkdir()
    outcome = faults.run(*arguments, root=root, copies=copies)
    assert outcome.code == 0, outcome
    for state in number_every(sorted(copies.iterdir()), most):
        again = faults.run(*arguments, root=state)
        assert (again.code, again.err) == (0, ""), (state, again)
        assert_same_results(state, root)
        for run in ("run", "next"):
            if (root / run).is_dir():
                found, wanted = (open_run(each / run).params for each in (state, root))
                jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("code", ["ENOSPC", "EIO"])
@pytest.mark.parametrize("command", ["train", "overwrite", "sample", "evaluate", "reflow"])
def test_a_write_that_fails_is_one_line_and_the_same_command_goes_on(
    faults, trained, tmp_path, command, code
):
    start, config = trained
    parts, arguments = COMMANDS[command][0], arguments_of(command, config)
    root = start_of(start, parts, tmp_path / "root")
    writes = len(faults.run(*arguments, root=root).writes)
    rng = np.random.default_rng(len(command) + len(code))
    for at in sorted(rng.choice(np.arange(1, writes + 1), min(writes, 5), replace=False)):
        state = start_of(start, parts, tmp_path / f"{at}")
        failed = faults.run(*arguments, root=state, fault=code, at=int(at))
        assert failed.code in (0, 1, 2), (at, failed)
        assert failed.err.count("\n") == (failed.code != 0), (at, failed)
        assert failed.code == 0 or os.strerror(getattr(errno, code)) in failed.err, (at, failed)
        # What cannot be removed is left.
        stays = failed.writes[at - 1].startswith(("os.remove", "os.rmdir"))
        left = [path for path in hidden(state) if "orbax" not in path.name]
        assert stays or not left, (at, failed, left)
        again = faults.run(*arguments, root=state)
        assert (again.code, again.err) == (0, ""), (at, again)
        for path in left:  # Locks that the error kept from being removed.
            path.unlink(missing_ok=True)
        assert_same_results(state, root)
