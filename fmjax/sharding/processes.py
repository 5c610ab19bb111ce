"""Several processes of one run: how they find one another, and what each may do by itself."""

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
from jax._src.clusters import ClusterEnv  # JAX has no public way to ask for the coordinator.
from jax.experimental import multihost_utils

from fmjax._checks import require, require_at_least
from fmjax._stopping import is_installed

# A process that does not answer for so long is taken for dead, and the others end.
_DEAD_AFTER = 30
# How long a process that ends waits for the others to end too.
_END_WITHIN = 30


@dataclass(frozen=True)
class Processes:
    """Where a run's processes meet. TPU pods, Slurm, GKE and Open MPI say it by themselves.

    Attributes:
        coordinator: HOST:PORT of process 0, which must be free there.
        num_processes: How many there are.
        process_index: Which of them this is, from 0.
    """

    coordinator: str | None = None
    num_processes: int | None = None
    process_index: int | None = None

    def __post_init__(self) -> None:
        missing = [name for name, value in vars(self).items() if value is None]
        if len(missing) == len(vars(self)):
            return
        names = ", ".join(vars(self))
        require(
            not missing, missing[0] if missing else "", f"be given: all of {names}, or none", "none"
        )
        assert self.coordinator is not None
        assert self.num_processes is not None
        assert self.process_index is not None
        host, _, port = self.coordinator.rpartition(":")
        is_port = port.isascii() and port.isdecimal() and 0 < int(port[:6]) < 2**16
        require(bool(host) and is_port, "coordinator", "be HOST:PORT", self.coordinator)
        require_at_least("num_processes", self.num_processes, 1)
        one_of_them = 0 <= self.process_index < self.num_processes
        require(
            one_of_them, "process_index", f"lie in [0, {self.num_processes})", self.process_index
        )


def join(processes: Processes = Processes()) -> bool:  # noqa: B008 (frozen)
    """Connect this process with the others of its run, if there are any.

    To be called before anything else asks JAX for its devices: after that it is alone.

    Args:
        processes: Where they meet; by default what the cluster says.

    Returns:
        Whether there is such a run: without one, this process is alone.

    Raises:
        ValueError: If the others do not come.
    """
    initialize = partial(
        jax.distributed.initialize,
        heartbeat_timeout_seconds=_DEAD_AFTER,
        shutdown_timeout_seconds=_END_WITHIN,
    )
    if jax.distributed.is_initialized():
        return True
    if is_installed():  # JAX's service would take SIGTERM, and leave Ctrl-C to each process.
        jax.config.update("jax_enable_preemption_service", False)
    given = processes.coordinator is not None
    bind = _bind_address(processes.coordinator or _cluster_coordinator())
    if given and processes.process_index == 0:
        _require_free(str(processes.coordinator), str(bind))
    where = vars(processes).values() if given else ()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # In a pod of Kubernetes, that it could do more.
            initialize(*where, coordinator_bind_address=bind)
    except (ValueError, RuntimeError) as error:
        no_cluster = any(
            said in str(error)
            for said in ("coordinator_address should be defined", "must be called before")
        )
        if no_cluster and not given:
            return False
        # A process of several that went on alone would train a model of its own.
        first = str(error).strip().splitlines()[0]
        those = str(processes.num_processes) if given else "the cluster's"
        rule = f"be where {those} processes meet"
        raise ValueError(f"coordinator must {rule}, got {first}") from error
    return True


def _cluster_coordinator() -> str | None:
    """The coordinator's address that JAX finds in the cluster's surroundings; None without one."""
    if address := os.environ.get("JAX_COORDINATOR_ADDRESS"):
        return address
    with contextlib.suppress(RuntimeError, ValueError, OSError):  # `initialize` reports them.
        return ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, 300)[0]
    return None


def _bind_address(coordinator: str | None) -> str | None:
    """The address at which process 0 listens: that of the coordinator, not every interface.

    `JAX_COORDINATOR_BIND_ADDRESS` overrides it. A machine's name that its own hosts file maps to
    loopback (Debian: 127.0.1.1) does not say which interface the others reach: there all are used.
    """
    if (override := os.environ.get("JAX_COORDINATOR_BIND_ADDRESS")) or coordinator is None:
        return override
    host, port = _host_and_port(coordinator)
    try:
        if host == "localhost" or ipaddress.ip_address(host):
            return coordinator
    except ValueError:  # A name.
        pass
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:  # `_require_free` or `initialize` reports it.
        return coordinator
    loopback = all(ipaddress.ip_address(address[0]).is_loopback for *_, address in found)
    return f"[::]:{port}" if loopback else coordinator


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _require_free(coordinator: str, bind: str) -> None:
    """Refuse an address that is taken, or is not one of this machine: jaxlib may crash over it."""
    host, port = _host_and_port(bind)
    errors: list[OSError] = []
    try:
        found = socket.getaddrinfo(
            None if host == "::" else host,
            port,
            type=socket.SOCK_STREAM,
            flags=socket.AI_PASSIVE,
        )
    except OSError as error:
        found, errors = [], [error]
    for family, *_, address in found:
        try:
            socket.create_server(address[:2], family=family).close()
        except OSError as error:
            errors.append(error)
    # A name may also have an IPv6 address that this machine does not use.
    taken = [error for error in errors if error.errno == errno.EADDRINUSE]
    if taken or len(errors) >= max(1, len(found)):
        got = f"{coordinator}: {(taken or errors)[0].strerror}"
        raise ValueError(f"coordinator must be a free address of process 0, got {got}")


def is_main() -> bool:
    """Whether this process is the one that writes files and speaks."""
    return jax.process_index() == 0


# What the transports and the coordinator say of a process that does not answer.
_GONE = ("gloo", "connection", "unavailable", "heartbeat", "coordination", "peer", "barrier")


def is_peer_failure(error: Exception) -> bool:
    """Whether an error of JAX says that a process of the run does not answer any more."""
    text = str(error).lower()
    return jax.process_count() > 1 and any(word in text for word in _GONE)


@contextlib.contextmanager
def all_or_none(what: str) -> Iterator[None]:
    """All processes leave the block as one: an error of one of them ends all.

    Args:
        what: Is being done in it, for those that had no error of their own.

    Raises:
        ValueError: In a process that did its part, if another could not.
        RuntimeError: If another does not answer.
    """
    failed: BaseException | None = None
    try:
        yield
    except BaseException as error:  # noqa: BLE001 (it is raised again below)
        failed = error
    if jax.process_count() > 1:
        try:
            outcomes = multihost_utils.process_allgather(np.asarray(int(failed is not None)))
        except ValueError as error:  # As which JAX reads a result that did not come.
            raise RuntimeError(str(error)) from error
        if failed is None and np.any(outcomes):
            first = int(np.argmax(outcomes != 0))
            raise ValueError(
                f"{what} must go well in all processes, got an error in process "
                f"{first}, which says more"
            )
    if failed is not None:
        raise failed
