import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow


def start(folder, num_processes, num_steps, pause=0.0):
    """The processes of one run, of two devices each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root), "XLA_FLAGS": ""}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "tests.training.process_child"]
            + [str(a) for a in (index, num_processes, port, folder, num_steps, pause)],
            cwd=root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(num_processes)
    ]


def finish(processes):
    """Exit codes and what was said last, of all."""
    said = [process.communicate(timeout=120) for process in processes]
    return [process.returncode for process in processes], [out for out, _ in said], said


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_give_the_numbers_of_one_also_when_one_is_told_to_stop(tmp_path):
    codes, _, said = finish(start(tmp_path / "one", 1, 12))
    assert codes == [0], said
    processes = start(tmp_path / "two", 2, 12, pause=0.4)
    metrics = tmp_path / "two" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not metrics.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    # Told to one of them, as a scheduler may; both stop after the same step.
    processes[1].send_signal(signal.SIGTERM)
    codes, outs, said = finish(processes)
    assert codes == [7, 7], said
    # Before it come the lines of the transport that connects the processes.
    stopped = {out[out.index("stopped by") :] for out in outs}
    assert len(stopped) == 1
    assert stopped.pop().endswith("its checkpoint is saved")
    codes, _, said = finish(start(tmp_path / "two", 2, 12))
    assert codes == [0, 0], said
    one, two = lines(tmp_path / "one"), lines(tmp_path / "two")
    assert [line["step"] for line in two] == [1, 3, 6, 9, 12]
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(
            [line[name] for line in two], [line[name] for line in one], rtol=1e-6
        )
