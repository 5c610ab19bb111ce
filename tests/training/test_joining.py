"""A process of several never goes on alone."""

import socket
import subprocess
import sys

import pytest

from fmjax.training import Processes, join
from tests.tiny_run import environment

JOIN = "from fmjax.training import join; print('joined', join())"


def join_in(**more):
    """What a process says that joins its run in such surroundings."""
    return subprocess.run(
        [sys.executable, "-c", JOIN], env=environment(**more),
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_without_a_cluster_a_process_is_alone():
    done = join_in()
    assert "joined False" in done.stdout, done.stderr


def test_where_the_clusters_port_is_taken_it_does_not_go_on_alone():
    job = 1234
    with socket.create_server(("", job % 2**12 + 65535 - 2**12 + 1)):  # JAX's, under Slurm.
        done = join_in(SLURM_JOB_ID=str(job), SLURM_STEP_NODELIST="localhost", SLURM_NTASKS="2",
                       SLURM_STEP_NUM_TASKS="2", SLURM_PROCID="0", SLURM_LOCALID="0")  # fmt: skip
    assert done.returncode != 0
    assert "joined" not in done.stdout
    # jaxlib may crash over it before it comes back to us, and has then said this.
    ours = "coordinator must be where the cluster's processes meet"
    assert ours in done.stderr or "Failed to add port" in done.stderr


def test_a_coordinator_that_is_taken_is_refused():
    with socket.create_server(("", 0)) as taken:
        coordinator = f"localhost:{taken.getsockname()[1]}"
        with pytest.raises(
            ValueError, match=f"must be a free address of process 0, got {coordinator}"
        ):
            join(Processes(coordinator, 2, 0))
