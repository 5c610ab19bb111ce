"""A process of several never goes on alone."""

import ipaddress
import socket
import subprocess
import sys

import pytest

from fmjax.sharding import Processes, is_peer_failure, join
from fmjax.sharding.processes import _bind_address
from tests.tiny_run import environment

JOIN = "from fmjax.sharding import join; print('joined', join())"


def join_in(**more):
    """What a process says that joins its run in such surroundings."""
    return subprocess.run(
        [sys.executable, "-c", JOIN],
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_without_a_cluster_a_process_is_alone():
    done = join_in()
    assert "joined False" in done.stdout, done.stderr


def test_where_the_clusters_port_is_taken_it_does_not_go_on_alone():
    job = 1234
    with socket.create_server(("", job % 2**12 + 65535 - 2**12 + 1)):  # JAX's, under Slurm.
        done = join_in(
            SLURM_JOB_ID=str(job),
            SLURM_STEP_NODELIST="localhost",
            SLURM_NTASKS="2",
            SLURM_STEP_NUM_TASKS="2",
            SLURM_PROCID="0",
            SLURM_LOCALID="0",
        )
    assert done.returncode != 0
    assert "joined" not in done.stdout
    # jaxlib may crash over it before it comes back to us, and has then said this.
    ours = "coordinator must connect the cluster's processes, got"
    assert ours in done.stderr or "Failed to add port" in done.stderr


def test_a_coordinator_that_is_taken_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        coordinator = f"localhost:{taken.getsockname()[1]}"
        with pytest.raises(
            ValueError, match=f"must be a free address of process 0, got {coordinator}"
        ):
            join(Processes(coordinator, 2, 0))


LISTEN = """
import pathlib, sys
from fmjax.sharding import Processes, join
join(*(Processes(argument, 1, 0) for argument in sys.argv[1:]))
import jax
jax.devices()  # The transport between devices listens too.
links = pathlib.Path("/proc/self/fd").iterdir()
mine = {link.readlink().name for link in links if link.is_symlink()}
for table in ("tcp", "tcp6"):
    for line in pathlib.Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
        _, local, _, state, *_, = line.split()
        if state == "0A" and f"socket:[{line.split()[9]}]" in mine:
            print("listens", local)
"""


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def listening(port, *arguments, **more):
    """The addresses at which process 0 listens: at the coordinator's port, and at all ports."""
    done = subprocess.run(
        [sys.executable, "-c", LISTEN, *arguments],
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=120,
    )
    words = [line.split() for line in done.stdout.splitlines() if line.startswith("listens")]
    found = [address_of(word) for _, word in words]
    assert found, done.stderr
    return {host for host, at in found if at == port}, {host for host, _ in found}


def address_of(word):
    """Host and port of `/proc/net/tcp`, whose 32-bit words are in the machine's byte order."""
    host, port = word.split(":")
    raw = b"".join(bytes.fromhex(host[i : i + 8])[::-1] for i in range(0, len(host), 8))
    address = ipaddress.ip_address(raw)
    return getattr(address, "ipv4_mapped", None) or address, int(port, 16)


@pytest.mark.parametrize("found_by", ["localhost", "127.0.0.2", "slurm"])
def test_a_coordinator_on_loopback_listens_on_loopback_alone(found_by):
    port = free_port()
    if found_by == "slurm":
        where, everywhere = listening(
            port,
            JAX_COORDINATOR_PORT=str(port),
            SLURM_JOB_ID="1",
            SLURM_PROCID="0",
            SLURM_STEP_NODELIST="localhost",
            SLURM_NTASKS="1",
            SLURM_LOCALID="0",
        )
    else:
        where, everywhere = listening(port, f"{found_by}:{port}")
    assert where
    assert all(address.is_loopback for address in everywhere)


def test_the_address_to_bind_is_that_of_the_coordinator(monkeypatch):
    monkeypatch.delenv("JAX_COORDINATOR_BIND_ADDRESS", raising=False)
    known = {"node0": "10.0.0.7", "debian": "127.0.1.1"}
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, port, **_: [(0, 0, 0, "", (known[host], port))]
    )
    for coordinator, expected in {
        "localhost:1234": "localhost:1234",
        "10.0.0.7:1234": "10.0.0.7:1234",
        "[::1]:1234": "[::1]:1234",
        "0.0.0.0:1234": "0.0.0.0:1234",
        "node0:1234": "node0:1234",
        "debian:1234": "[::]:1234",
    }.items():
        assert _bind_address(coordinator) == expected
    assert _bind_address(None) is None
    monkeypatch.setenv("JAX_COORDINATOR_BIND_ADDRESS", "10.0.0.8:99")
    assert _bind_address("localhost:1234") == "10.0.0.8:99"


@pytest.mark.parametrize(
    "coordinator",
    [":1234", "localhost", "localhost:0", "localhost:65536", "localhost:\u00b2", "localhost:1e3"],
)
def test_a_coordinator_that_is_no_address_is_refused(coordinator):
    with pytest.raises(ValueError, match="coordinator must be HOST:PORT, got"):
        Processes(coordinator, 2, 0)


def test_a_coordinator_that_is_not_this_machine_is_refused():
    for coordinator, got in {
        "192.0.2.1:4711": "192.0.2.1:4711: Cannot assign requested address",
        "no-such-host.invalid:4711": "no-such-host.invalid:4711: ",
    }.items():
        with pytest.raises(ValueError, match=f"be a free address of process 0, got {got}"):
            join(Processes(coordinator, 2, 0))


@pytest.mark.parametrize(
    ("text", "gone"),
    [
        ("UNAVAILABLE: Connection reset by peer", True),
        ("Gloo all-reduce failed", True),
        ("the task missed its heartbeat", True),
        ("RESOURCE_EXHAUSTED: out of memory", False),
    ],
)
def test_an_error_of_the_transport_says_that_another_process_is_gone(text, gone, monkeypatch):
    assert not is_peer_failure(RuntimeError(text)), "a process that is alone"
    monkeypatch.setattr("jax.process_count", lambda: 2)
    assert is_peer_failure(RuntimeError(text)) == gone
