"""`fmjax train` in several processes over loopback, as a pod's hosts run it."""

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
    """The processes of one run, of one device each (one alone has two)."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    devices = "2" if num_processes == 1 else "1"
    meeting = ["--coordinator", f"localhost:{port}", "--num-processes", str(num_processes)]
    return [
        subprocess.Popen(
            command(config, run, *options)
            + ([*meeting, "--process-index", str(index)] if num_processes > 1 else []),
            env=environment(JAX_NUM_CPU_DEVICES=devices),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for index in range(num_processes)
    ]


def finish(processes, timeout=240):
    """Exit codes, and what each said."""
    said = [process.communicate(timeout=timeout) for process in processes]
    return [process.returncode for process in processes], said


def losses(run):
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: (line["loss"], line["grad_norm"]) for line in lines}


def wait_for(condition, seconds=90):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert condition()


@pytest.fixture(scope="module")
def alone(config, tmp_path_factory):
    run = tmp_path_factory.mktemp("alone") / "run"
    codes, said = finish(start(config, run, 1))
    assert codes == [0], said
    return losses(run)


def assert_alike(run, alone):
    got = losses(run)
    assert got.keys() == alone.keys()
    np.testing.assert_allclose(list(got.values()), list(alone.values()), rtol=1e-5)


@pytest.mark.parametrize("num_processes", [2, 4])
def test_several_processes_give_the_numbers_of_one_and_one_of_them_speaks(
    config, alone, tmp_path, num_processes
):
    run = tmp_path / "run"
    codes, said = finish(start(config, run, num_processes))
    assert codes == [0] * num_processes, said
    assert_alike(run, alone)
    speaking = ["training" in out for out, _ in said]
    assert speaking == [True] + [False] * (num_processes - 1)
    assert (run / "report.html").is_file()


def test_sigterm_to_one_process_saves_and_ends_all_and_another_number_goes_on(
    config, alone, tmp_path
):
    run = tmp_path / "run"
    processes = start(config, run, 2, "--training.num-steps", "2000")
    wait_for(lambda: (run / "metrics.jsonl").exists())
    processes[1].send_signal(signal.SIGTERM)
    codes, said = finish(processes)
    assert codes == [128 + signal.SIGTERM] * 2, said
    stopped = {re.search(r"stopped by SIGTERM after step \d+", err)[0] for _, err in said}
    assert len(stopped) == 1
    step = int(stopped.pop().split()[-1])
    assert (run / "checkpoints" / str(step)).is_dir()
    # A longer run is the same one; with one process of two devices, its data go on where they were.
    codes, said = finish(start(config, run, 1, "--training.num-steps", "2000"))
    assert codes == [0], said
    assert f"resumed from step {step}" in said[0][0]
    unbroken = tmp_path / "unbroken"
    codes, said = finish(start(config, unbroken, 1, "--training.num-steps", "2000"))
    assert codes == [0], said
    assert_alike(run, losses(unbroken))


@pytest.mark.parametrize("which", [0, 1])
def test_ctrl_c_to_one_process_saves_the_same_step_in_all(config, tmp_path, which):
    run = tmp_path / "run"
    processes = start(config, run, 2, "--training.num-steps", "100000")
    wait_for(lambda: (run / "metrics.jsonl").exists())
    processes[which].send_signal(signal.SIGINT)
    codes, said = finish(processes)
    assert codes == [128 + signal.SIGINT] * 2, said
    assert said[0][1] == said[1][1]
    step = re.fullmatch(
        r"fmjax: stopped by SIGINT after step (\d+); its checkpoint is saved; "
        r"run the same command again to resume\n",
        said[0][1],
    )[1]
    assert (run / "checkpoints" / step).is_dir()


@pytest.mark.parametrize("which", [0, 1])
def test_ctrl_c_to_one_process_before_the_first_step_ends_all_at_once(config, tmp_path, which):
    """The folder is made when the data are read, and before the step is compiled."""
    run = tmp_path / "run"
    processes = start(config, run, 2, "--training.num-steps", "100000")
    wait_for((run / "config.json").exists)
    processes[which].send_signal(signal.SIGINT)
    began = time.monotonic()
    codes, said = finish(processes)
    assert time.monotonic() - began < 10
    assert codes == [128 + signal.SIGINT] * 2, said
    line = "fmjax: stopped by SIGINT; run the same command again to resume\n"
    assert [error for _, error in said] == [line, line]


@pytest.mark.parametrize("begun", ["checkpoints/24*", "evaluation.json", "comparison.json"])
def test_sigterm_to_one_process_ends_all_also_after_the_steps(config, alone, tmp_path, begun):
    """In the last save, in the comparison, in the report: the last two are process 0's alone."""
    run = tmp_path / "run"
    processes = start(config, run, 2)
    wait_for(lambda: any(run.glob(begun)))
    processes[1].send_signal(signal.SIGTERM)
    began = time.monotonic()
    codes, said = finish(processes)
    assert codes == [128 + signal.SIGTERM] * 2, said
    assert time.monotonic() - began < 20
    for _, error in said:
        assert error.rstrip().splitlines()[-1].endswith("; run the same command again to resume")
    assert not (run / "report.html").exists()
    codes, said = finish(start(config, run, 2))
    assert codes == [0, 0], said
    assert "resumed from step 24" in said[0][0]
    assert "training 0/" not in said[0][0]
    assert_alike(run, alone)
    assert (run / "report.html").is_file()


@pytest.mark.parametrize("which", [0, -1])
def test_processes_agree_on_which_checkpoint_is_damaged(config, alone, tmp_path, which):
    """Each looks at some of the files: one of them finds it, and all take the one before."""
    run = tmp_path / "run"
    codes, said = finish(start(config, run, 2))
    assert codes == [0, 0], said
    part = run / "checkpoints" / "24" / "state"
    damaged = sorted(path for path in part.rglob("*") if path.is_file())[which]
    content = damaged.read_bytes()
    damaged.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    codes, said = finish(start(config, run, 2))
    assert codes == [0, 0], said
    assert f"a damaged file {damaged.relative_to(run / 'checkpoints' / '24')}" in said[0][0]
    assert "resumed from step 16" in said[0][0]
    assert (run / "checkpoints" / "damaged" / "24").is_dir()
    assert_alike(run, alone)


def test_if_one_process_dies_the_others_end_within_a_minute_and_say_why(config, tmp_path):
    run = tmp_path / "run"
    processes = start(config, run, 2, "--training.num-steps", "100000")
    wait_for(lambda: (run / "metrics.jsonl").exists())
    processes[1].kill()
    began = time.monotonic()
    codes, said = finish(processes)
    assert time.monotonic() - began < 60
    assert codes[0] not in (0, None)
    assert "another process" in said[0][1]


def test_what_one_process_cannot_do_ends_all_of_them(config, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("not a run")
    codes, said = finish(start(config, tmp_path / "run", 2))
    assert codes == [2, 2], said
    assert "must be new, empty or contain a run" in said[0][1]
    assert "an error in process 0" in said[1][1]
