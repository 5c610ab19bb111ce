"""Tests of `fmjax train` in several processes over loopback, as on the hosts of a pod."""

import json
import re
import signal
import socket
import subprocess
import time

import numpy as np
import pytest

from tests.tiny_run import command, environment, write_config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_config(tmp_path_factory.mktemp("configs"))


def start(config, run, num_processes, *options):
    """Start the processes of a run with one device each; a single process has two devices."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    devices = "2" if num_processes == 1 else "1"
    addresses = ["--coordinator", f"localhost:{port}", "--num-processes", str(num_processes)]
    return [
        subprocess.Popen(
            command(config, run, *options)
            + ([*addresses, "--process-index", str(index)] if num_processes > 1 else []),
            env=environment(JAX_NUM_CPU_DEVICES=devices),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for index in range(num_processes)
    ]


def finish(processes, timeout=240):
    """Return the exit codes and the outputs of all processes."""
    outputs = [process.communicate(timeout=timeout) for process in processes]
    return [process.returncode for process in processes], outputs


def losses(run):
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: (line["loss"], line["grad_norm"]) for line in lines}


def wait_for(condition, seconds=90):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert condition()


@pytest.fixture(scope="module")
def reference_losses(config, tmp_path_factory):
    run = tmp_path_factory.mktemp("one_process") / "run"
    codes, outputs = finish(start(config, run, 1))
    assert codes == [0], outputs
    return losses(run)


def assert_same_losses(run, expected):
    actual = losses(run)
    assert actual.keys() == expected.keys()
    np.testing.assert_allclose(list(actual.values()), list(expected.values()), rtol=1e-5)


@pytest.mark.parametrize("num_processes", [2, 4])
def test_several_processes_match_one_and_only_process_0_prints(
    config, reference_losses, tmp_path, num_processes
):
    run = tmp_path / "run"
    codes, outputs = finish(start(config, run, num_processes))
    assert codes == [0] * num_processes, outputs
    assert_same_losses(run, reference_losses)
    prints = ["training" in out for out, _ in outputs]
    assert prints == [True] + [False] * (num_processes - 1)
    assert (run / "report.html").is_file()


def test_sigterm_stops_all_processes_and_one_process_resumes(config, reference_losses, tmp_path):
    run = tmp_path / "run"
    processes = start(config, run, 2, "--training.num-steps", "2000")
    wait_for(lambda: (run / "metrics.jsonl").exists())
    processes[1].send_signal(signal.SIGTERM)
    codes, outputs = finish(processes)
    assert codes == [128 + signal.SIGTERM] * 2, outputs
    messages = {re.search(r"stopped by SIGTERM after step \d+", err)[0] for _, err in outputs}
    assert len(messages) == 1
    step = int(messages.pop().split()[-1])
    assert (run / "checkpoints" / str(step)).is_dir()
    # One process with two devices resumes the run and its data.
    codes, outputs = finish(start(config, run, 1, "--training.num-steps", "2000"))
    assert codes == [0], outputs
    assert f"resumed from step {step}" in outputs[0][0]
    uninterrupted = tmp_path / "uninterrupted"
    codes, outputs = finish(start(config, uninterrupted, 1, "--training.num-steps", "2000"))
    assert codes == [0], outputs
    assert_same_losses(run, losses(uninterrupted))


@pytest.mark.parametrize("index", [0, 1])
def test_ctrl_c_to_one_process_saves_the_same_step_in_all(config, tmp_path, index):
    run = tmp_path / "run"
    processes = start(config, run, 2, "--training.num-steps", "100000")
    wait_for(lambda: (run / "metrics.jsonl").exists())
    processes[index].send_signal(signal.SIGINT)
    codes, outputs = finish(processes)
    assert codes == [128 + signal.SIGINT] * 2, outputs
    assert outputs[0][1] == outputs[1][1]
    step = re.fullmatch(
        r"fmjax: stopped by SIGINT after step (\d+); its checkpoint is saved; "
        r"run the same command again to resume\n",
        outputs[0][1],
    )[1]
    assert (run / "checkpoints" / step).is_dir()


@pytest.mark.parametrize("index", [0, 1])
def test_ctrl_c_before_the_first_step_ends_all_processes(config, tmp_path, index):
    """The folder is created after the data are read and before the step is compiled."""
    run = tmp_path / "run"
    processes = start(config, run, 2, "--training.num-steps", "100000")
    wait_for((run / "config.json").exists)
    processes[index].send_signal(signal.SIGINT)
    start_time = time.monotonic()
    codes, outputs = finish(processes)
    assert time.monotonic() - start_time < 10
    assert codes == [128 + signal.SIGINT] * 2, outputs
    line = "fmjax: stopped by SIGINT; run the same command again to resume\n"
    assert [error for _, error in outputs] == [line, line]


@pytest.mark.parametrize("pattern", ["checkpoints/24*", "evaluation.json", "comparison.json"])
def test_sigterm_after_the_last_step_ends_all_processes(
    config, reference_losses, tmp_path, pattern
):
    """The signal is sent during the last save, the comparison or the report."""
    run = tmp_path / "run"
    processes = start(config, run, 2)
    wait_for(lambda: any(run.glob(pattern)))
    processes[1].send_signal(signal.SIGTERM)
    start_time = time.monotonic()
    codes, outputs = finish(processes)
    assert codes == [128 + signal.SIGTERM] * 2, outputs
    assert time.monotonic() - start_time < 20
    for _, error in outputs:
        assert error.rstrip().splitlines()[-1].endswith("; run the same command again to resume")
    assert not (run / "report.html").exists()
    codes, outputs = finish(start(config, run, 2))
    assert codes == [0, 0], outputs
    assert "resumed from step 24" in outputs[0][0]
    assert "training 0/" not in outputs[0][0]
    assert_same_losses(run, reference_losses)
    assert (run / "report.html").is_file()


@pytest.mark.parametrize("index", [0, -1])
def test_processes_agree_on_damaged_checkpoints(config, reference_losses, tmp_path, index):
    """Each process checks some of the files; all restore the previous checkpoint."""
    run = tmp_path / "run"
    codes, outputs = finish(start(config, run, 2))
    assert codes == [0, 0], outputs
    state_folder = run / "checkpoints" / "24" / "state"
    damaged = sorted(file for file in state_folder.rglob("*") if file.is_file())[index]
    content = damaged.read_bytes()
    damaged.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    codes, outputs = finish(start(config, run, 2))
    assert codes == [0, 0], outputs
    assert f"a damaged file {damaged.relative_to(run / 'checkpoints' / '24')}" in outputs[0][0]
    assert "resumed from step 16" in outputs[0][0]
    assert (run / "checkpoints" / "damaged" / "24").is_dir()
    assert_same_losses(run, reference_losses)


def test_death_of_one_process_ends_the_others_with_a_message(config, tmp_path):
    run = tmp_path / "run"
    processes = start(config, run, 2, "--training.num-steps", "100000")
    wait_for(lambda: (run / "metrics.jsonl").exists())
    processes[1].kill()
    start_time = time.monotonic()
    codes, outputs = finish(processes)
    assert time.monotonic() - start_time < 60
    assert codes[0] not in (0, None)
    assert "another process" in outputs[0][1]


def test_error_in_one_process_ends_all_processes(config, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("not a run")
    codes, outputs = finish(start(config, tmp_path / "run", 2))
    assert codes == [2, 2], outputs
    assert "must be new, empty or contain a run" in outputs[0][1]
    assert "an error in process 0" in outputs[1][1]
