"""Tests of runs on a disk that fills up, with a small file system."""

import json
import os
import re
import resource
import signal
import socket
import subprocess
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from fmjax.runs.folder import open_run
from fmjax.training import Checkpoints, CheckpointWriteError, RunLogger
from tests.tiny_run import command, environment, write_config
from tests.training.child import run
from tests.training.test_loop import NUM_STEPS, assert_same_run
from tests.training.test_train_processes import finish, wait_for
from tests.training.tiny import Points

# TensorStore threads use an event loop that Orbax has closed. The command ignores these errors.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

MESSAGE = re.compile(
    r"fmjax: error: No space left on device: (\S+); free some space and run the same command again "
    r"to resume from step (\d+)\n"
)


@pytest.fixture
def disk(tmp_path):
    """Mount a file system of one MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs permission to mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path, free_bytes: int) -> Path:
    """Write a file that leaves `free_bytes` of free space."""
    filler = disk / "filler"
    available = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, available - free_bytes)
    return filler


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    return folder, run(folder, NUM_STEPS)


class DiskFillingPoints(Points):
    """Fill the disk after step 7, when the checkpoint of step 4 is complete."""

    def __init__(self, disk, free_bytes):
        super().__init__(
            before_batch=lambda position: position == 7 and self.fill(disk, free_bytes)
        )

    def fill(self, disk, free_bytes):
        wait_for(lambda: (disk / "run" / "checkpoints" / "4").is_dir())
        fill(disk, free_bytes)


@pytest.mark.slow
@pytest.mark.parametrize("free_bytes", [0, 2**16, 2**17])
def test_run_resumes_from_the_last_checkpoint_after_a_full_disk(disk, uninterrupted, free_bytes):
    folder = disk / "run"
    # Metrics are logged at steps 3, 6, 9 and 12, checkpoints saved at steps 4, 8 and 12.
    with pytest.raises(
        CheckpointWriteError, match="No space left on device: .*; free some space and run"
    ) as error:
        run(folder, NUM_STEPS, batches=DiskFillingPoints(disk, free_bytes))
    assert error.value.step == 4
    assert str(folder) in str(error.value)
    assert str(error.value).endswith("to resume from step 4")
    (disk / "filler").unlink()
    with Checkpoints(folder / "checkpoints") as checkpoints:
        assert checkpoints.latest_step() == 4
    assert_same_run(folder, run(folder, NUM_STEPS), uninterrupted)


def test_failed_log_write_raises_checkpoint_write_error(disk):
    folder, checkpoint_folder = disk / "run", disk.with_name("kept")
    # The checkpoints are on another disk.
    checkpoint_folder.mkdir()
    folder.mkdir()
    (folder / "checkpoints").symlink_to(checkpoint_folder)
    settings = {"batches": DiskFillingPoints(disk, 0), "log_every": 1}
    with pytest.raises(
        CheckpointWriteError, match=f"{folder}/(metrics.jsonl|events); .* from step \\d+"
    ):
        run(folder, 1000, **settings)


def test_failed_event_write_raises_and_does_not_hang(disk):
    logger = RunLogger(disk / "run")
    logger.log(1, {"loss": 1.0})
    # The metrics are on another disk: only the events find no space.
    logger.metrics = disk.with_name("metrics.jsonl")
    fill(disk, 0)

    def log_and_close():
        for step in range(2, 1000):
            logger.log(step, {"loss": 1.0, "grad_norm": 2.0, "learning_rate": 3.0})
        logger.close()

    with pytest.raises(OSError, match=f"No space left on device: '{disk}/run/events'"):
        log_and_close()


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_config(tmp_path_factory.mktemp("configs"))


@pytest.fixture(scope="module")
def reference_run(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference") / "run"
    subprocess.run(command(config, folder), env=environment(), check=True, capture_output=True)
    return folder


def losses(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["loss"], line["grad_norm"]) for line in lines]


def assert_same_result(folder, reference_run):
    assert losses(folder) == losses(reference_run)
    a, b = open_run(folder), open_run(reference_run)
    assert a.step == b.step
    jax.tree.map(np.testing.assert_array_equal, a.params, b.params)
    assert (folder / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(("num_files", "step"), [(40, 0), (75, 8), (115, 16)])
def test_command_reports_a_full_disk_in_one_line_and_resumes(
    disk, config, reference_run, num_files, step
):
    """The disk has enough bytes for the command to start, but too few inodes."""
    subprocess.run(["mount", "-o", f"remount,size=8m,nr_inodes={num_files}", disk], check=True)
    folder = disk / "run"
    child = subprocess.run(
        command(config, folder),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert child.returncode == 1, child
    match = MESSAGE.fullmatch(child.stderr)
    assert match, child.stderr
    assert match[1].startswith(str(folder))
    assert int(match[2]) == step
    subprocess.run(["mount", "-o", "remount,nr_inodes=1000", disk], check=True)
    child = subprocess.run(
        command(config, folder),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (child.returncode, child.stderr) == (0, "")
    assert (f"resumed from step {step}\n" in child.stdout) == (step > 0)
    assert_same_result(folder, reference_run)


@pytest.mark.slow
def test_too_small_disk_is_reported_before_training(disk, config):
    subprocess.run(["mount", "-o", "remount,size=100k", disk], check=True)
    child = subprocess.run(
        command(config, disk / "run"),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert child.returncode == 2, child
    message = (
        rf"fmjax: error: disk of {disk}/run must have [\d.]+ MB of free space for 3 checkpoints, "
    )
    assert re.fullmatch(message + r"got [\d.]+ kB\n", child.stderr)
    assert not (disk / "run").exists()


def limit_file_size():
    """Limit the files of this process to 60 kB, as if its disk were full."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))


@pytest.mark.slow
@pytest.mark.parametrize("failing", [0, 1])
def test_failed_write_in_one_process_ends_all_processes(config, tmp_path, failing):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    start_time = time.monotonic()
    processes = [
        subprocess.Popen(
            command(
                config,
                tmp_path / "run",
                "--coordinator",
                coordinator,
                "--num-processes",
                "2",
                "--process-index",
                str(index),
            ),
            env=environment(JAX_NUM_CPU_DEVICES="1"),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=limit_file_size if index == failing else None,
        )
        for index in range(2)
    ]
    codes, outputs = finish(processes, timeout=120)
    assert time.monotonic() - start_time < 90
    assert codes[failing] == 1
    assert codes[1 - failing] == 2
    error, peer_error = outputs[failing][1], outputs[1 - failing][1]
    message = r"fmjax: error: File too large: \S+checkpoints/8; .* from step 0\n"
    assert re.fullmatch(message, error)
    assert f"an error in process {failing} (see its output)" in peer_error
    assert peer_error.count("\n") == 1
