"""Multi-process runs: connecting the processes, and agreeing on errors."""

import contextlib
import errno
import ipaddress
import os
import socket
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import jax
import numpy as np
from jax._src.clusters import ClusterEnv  # JAX has no public API for the coordinator address.
from jax.experimental import multihost_utils

from fmjax._checks import require, require_at_least
from fmjax._signals import is_installed

# Seconds without a heartbeat after which a process is considered dead and the others end.
_HEARTBEAT_TIMEOUT = 30
# Seconds that an ending process waits for the others to end.
_SHUTDOWN_TIMEOUT = 30


@dataclass(frozen=True)
class Processes:
    """How the processes of a run connect; detected automatically on TPU pods, Slurm, GKE, Open MPI.

    Attributes:
        coordinator: HOST:PORT of process 0; the port must be free on that host.
        num_processes: Number of processes in the run.
        process_index: Index of this process, from 0.
    """

    coordinator: str | None = None
    num_processes: int | None = None
    process_index: int | None = None

    def __post_init__(self) -> None:
        missing = [name for name, value in vars(self).items() if value is None]
        if len(missing) == len(vars(self)):
            return
        names = ", ".join(vars(self))
        rule = f"be set, because the others are (set all of {names}, or none)"
        require(not missing, missing[0] if missing else "", rule, None)
        assert self.coordinator is not None
        assert self.num_processes is not None
        assert self.process_index is not None
        host, _, port = self.coordinator.rpartition(":")
        is_port = port.isascii() and port.isdecimal() and 0 < int(port[:6]) < 2**16
        require(bool(host) and is_port, "coordinator", "be HOST:PORT", self.coordinator)
        require_at_least("num_processes", self.num_processes, 1)
        in_range = 0 <= self.process_index < self.num_processes
        rule = f"lie in [0, {self.num_processes})"
        require(in_range, "process_index", rule, self.process_index)


def join(processes: Processes = Processes()) -> bool:  # noqa: B008 (frozen)
    """Connect this process with the other processes of its run, if there are any.

    Call this before anything uses JAX's devices: afterwards, processes can no longer connect.

    Args:
        processes: How the processes connect; by default as detected from the cluster environment.

    Returns:
        True if this process is part of a multi-process run, False if it runs alone.

    Raises:
        ValueError: If the processes could not connect.
    """
    initialize = partial(
        jax.distributed.initialize,
        heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT,
        shutdown_timeout_seconds=_SHUTDOWN_TIMEOUT,
    )
    if jax.distributed.is_initialized():
        return True
    if is_installed():  # JAX's service would handle SIGTERM, but not Ctrl-C.
        jax.config.update("jax_enable_preemption_service", False)
    is_explicit = processes.coordinator is not None
    bind = _bind_address(processes.coordinator or _cluster_coordinator())
    if is_explicit and processes.process_index == 0:
        _require_free(str(processes.coordinator), str(bind))
    arguments = vars(processes).values() if is_explicit else ()
    try:
        with warnings.catch_warnings():
            # In a Kubernetes pod JAX warns about automatic detection that is not set up.
            warnings.simplefilter("ignore")
            initialize(*arguments, coordinator_bind_address=bind)
    except (ValueError, RuntimeError) as error:
        no_cluster = any(
            text in str(error)
            for text in ("coordinator_address should be defined", "must be called before")
        )
        if no_cluster and not is_explicit:
            return False
        # If this process went on alone, it would train a separate model.
        reason = str(error).strip().splitlines()[0]
        expected = str(processes.num_processes) if is_explicit else "the cluster's"
        rule = f"connect {expected} processes"
        raise ValueError(f"coordinator must {rule}, got {reason}") from error
    return True


def _cluster_coordinator() -> str | None:
    """Return the coordinator's address from the cluster environment, or None without a cluster."""
    if address := os.environ.get("JAX_COORDINATOR_ADDRESS"):
        return address
    with contextlib.suppress(RuntimeError, ValueError, OSError):  # `initialize` reports them.
        return ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, 300)[0]
    return None


def _bind_address(coordinator: str | None) -> str | None:
    """Return the address at which process 0 listens: the coordinator's, not all interfaces.

    `JAX_COORDINATOR_BIND_ADDRESS` overrides it. If the hosts file maps the name of the machine to
    loopback (127.0.1.1 on Debian), the interface that other machines use is unknown, and process 0
    listens on all interfaces.
    """
    if (override := os.environ.get("JAX_COORDINATOR_BIND_ADDRESS")) or coordinator is None:
        return override
    host, port = _host_and_port(coordinator)
    try:
        if host == "localhost" or ipaddress.ip_address(host):
            return coordinator
    except ValueError:  # The host is a name, resolved below.
        pass
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:  # `_require_free` or `initialize` reports it.
        return coordinator
    is_loopback = all(ipaddress.ip_address(address[0]).is_loopback for *_, address in addresses)
    return f"[::]:{port}" if is_loopback else coordinator


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _require_free(coordinator: str, bind: str) -> None:
    """Raise unless this machine can listen at the address; jaxlib may crash on such an address."""
    host, port = _host_and_port(bind)
    errors: list[OSError] = []
    try:
        addresses = socket.getaddrinfo(
            None if host == "::" else host,
            port,
            type=socket.SOCK_STREAM,
            flags=socket.AI_PASSIVE,
        )
    except OSError as error:
        addresses, errors = [], [error]
    for family, *_, address in addresses:
        try:
            socket.create_server(address[:2], family=family).close()
        except OSError as error:
            errors.append(error)
    # A name may also resolve to an IPv6 address that this machine does not use.
    in_use = [error for error in errors if error.errno == errno.EADDRINUSE]
    if in_use or len(errors) >= max(1, len(addresses)):
        got = f"{coordinator}: {(in_use or errors)[0].strerror}"
        raise ValueError(f"coordinator must be a free address of process 0, got {got}")


def is_main() -> bool:
    """Return whether this is process 0, which writes files and prints messages."""
    return jax.process_index() == 0


# Words in the errors of the transports and the coordinator about a process that does not answer.
_PEER_FAILURE_WORDS = (
    "gloo",
    "connection",
    "unavailable",
    "heartbeat",
    "coordination",
    "peer",
    "barrier",
)


def is_peer_failure(error: Exception) -> bool:
    """Return whether a JAX error means that another process of the run no longer answers."""
    text = str(error).lower()
    return jax.process_count() > 1 and any(word in text for word in _PEER_FAILURE_WORDS)


@contextlib.contextmanager
def all_or_none(task: str) -> Iterator[None]:
    """Make an error in one process an error in all; wait at the end of the block for all processes.

    Args:
        task: Description of the block, used in the error of processes that themselves succeeded.

    Raises:
        ValueError: In a process that succeeded, if another process failed.
        RuntimeError: If another process does not answer.
    """
    failed: BaseException | None = None
    try:
        yield
    except BaseException as error:  # noqa: BLE001 (it is raised again below)
        failed = error
    if jax.process_count() > 1:
        try:
            outcomes = multihost_utils.process_allgather(np.asarray(int(failed is not None)))
        except ValueError as error:  # Raised by JAX if the result of a process is missing.
            raise RuntimeError(str(error)) from error
        if failed is None and np.any(outcomes):
            first = int(np.argmax(outcomes != 0))
            raise ValueError(
                f"{task} must succeed in all processes, got an error in process {first} "
                f"(see its output)"
            )
    if failed is not None:
        raise failed
