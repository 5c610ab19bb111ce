"""A process of several never goes on alone."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
JOIN = "from fmjax.training import join; print('joined', join())"


def join_in(environment):
    """What a process says that joins its run in such surroundings."""
    return subprocess.run(
        [sys.executable, "-c", JOIN], env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_without_a_cluster_a_process_is_alone():
    done = join_in({})
    assert "joined False" in done.stdout, done.stderr


def test_where_the_clusters_port_is_taken_it_does_not_go_on_alone():
    job = 1234
    with socket.socket() as taken:
        taken.bind(("", job % 2**12 + 65535 - 2**12 + 1))  # Where JAX meets under Slurm.
        taken.listen()
        done = join_in({"SLURM_JOB_ID": str(job), "SLURM_STEP_NODELIST": "localhost",
                        "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0",
                        "SLURM_LOCALID": "0"})  # fmt: skip
    assert done.returncode != 0
    assert "joined" not in done.stdout
