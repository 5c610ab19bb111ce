"""Tests that the processes of a run join, or fail instead of continuing alone."""

import ipaddress
import socket
import subprocess
import sys

import pytest

from fmjax.sharding import Processes, is_peer_failure, join
from fmjax.sharding.processes import _bind_address
from tests.tiny_run import environment

JOIN = "from fmjax.sharding import join; print('joined', join())"


def run_join(**variables):
    """Call `join` in a process with these environment variables."""
    return subprocess.run(
        [sys.executable, "-c", JOIN],
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_process_without_cluster_runs_alone():
    completed = run_join()
    assert "joined False" in completed.stdout, completed.stderr


def test_process_fails_if_the_cluster_port_is_taken():
    job = 1234
    with socket.create_server(("", job % 2**12 + 65535 - 2**12 + 1)):  # JAX's port under Slurm.
        completed = run_join(
            SLURM_JOB_ID=str(job),
            SLURM_STEP_NODELIST="localhost",
            SLURM_NTASKS="2",
            SLURM_STEP_NUM_TASKS="2",
            SLURM_PROCID="0",
            SLURM_LOCALID="0",
        )
    assert completed.returncode != 0
    assert "joined" not in completed.stdout
    # jaxlib may abort with the second message before `join` can raise the first.
    message = "coordinator must connect the cluster's processes, got"
    assert message in completed.stderr or "Failed to add port" in completed.stderr


def test_taken_coordinator_address_is_rejected():
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
sockets = {link.readlink().name for link in links if link.is_symlink()}
for table in ("tcp", "tcp6"):
    for line in pathlib.Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
        _, local, _, state, *_, = line.split()
        if state == "0A" and f"socket:[{line.split()[9]}]" in sockets:
            print("listens", local)
"""


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def listening_hosts(port, *arguments, **variables):
    """Return the hosts where process 0 listens: at the coordinator's port, and at all ports."""
    completed = subprocess.run(
        [sys.executable, "-c", LISTEN, *arguments],
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=120,
    )
    words = [line.split() for line in completed.stdout.splitlines() if line.startswith("listens")]
    addresses = [parse_address(word) for _, word in words]
    assert addresses, completed.stderr
    coordinator_hosts = {host for host, used_port in addresses if used_port == port}
    return coordinator_hosts, {host for host, _ in addresses}


def parse_address(word):
    """Parse host and port of `/proc/net/tcp`, which has 32-bit words in native byte order."""
    host, port = word.split(":")
    raw = b"".join(bytes.fromhex(host[i : i + 8])[::-1] for i in range(0, len(host), 8))
    address = ipaddress.ip_address(raw)
    return getattr(address, "ipv4_mapped", None) or address, int(port, 16)


@pytest.mark.parametrize("cluster", ["localhost", "127.0.0.2", "slurm"])
def test_loopback_coordinator_listens_only_on_loopback(cluster):
    port = free_port()
    if cluster == "slurm":
        coordinator_hosts, all_hosts = listening_hosts(
            port,
            JAX_COORDINATOR_PORT=str(port),
            SLURM_JOB_ID="1",
            SLURM_PROCID="0",
            SLURM_STEP_NODELIST="localhost",
            SLURM_NTASKS="1",
            SLURM_LOCALID="0",
        )
    else:
        coordinator_hosts, all_hosts = listening_hosts(port, f"{cluster}:{port}")
    assert coordinator_hosts
    assert all(address.is_loopback for address in all_hosts)


def test_bind_address_follows_the_coordinator_address(monkeypatch):
    monkeypatch.delenv("JAX_COORDINATOR_BIND_ADDRESS", raising=False)
    addresses = {"node0": "10.0.0.7", "debian": "127.0.1.1"}
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, port, **_: [(0, 0, 0, "", (addresses[host], port))]
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
def test_invalid_coordinator_address_is_rejected(coordinator):
    with pytest.raises(ValueError, match="coordinator must be HOST:PORT, got"):
        Processes(coordinator, 2, 0)


def test_coordinator_on_another_machine_is_rejected():
    for coordinator, message in {
        "192.0.2.1:4711": "192.0.2.1:4711: Cannot assign requested address",
        "no-such-host.invalid:4711": "no-such-host.invalid:4711: ",
    }.items():
        with pytest.raises(ValueError, match=f"be a free address of process 0, got {message}"):
            join(Processes(coordinator, 2, 0))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("UNAVAILABLE: Connection reset by peer", True),
        ("Gloo all-reduce failed", True),
        ("the task missed its heartbeat", True),
        ("RESOURCE_EXHAUSTED: out of memory", False),
    ],
)
def test_transport_errors_are_peer_failures(text, expected, monkeypatch):
    assert not is_peer_failure(RuntimeError(text)), "a single process has no peers"
    monkeypatch.setattr("jax.process_count", lambda: 2)
    assert is_peer_failure(RuntimeError(text)) == expected
