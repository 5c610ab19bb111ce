"""Several processes of one run: how they find one another, and what each may do by itself."""

import contextlib
import socket
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import jax
import numpy as np
from jax.experimental import multihost_utils

from fmjax._checks import require, require_at_least
from fmjax._stopping import Stopped

# A process that does not answer for so long is taken for dead, and the others end.
_DEAD_AFTER = 30
# How long a process that ends waits for the others to end too.
_END_WITHIN = 30
# The outcome of a block, beside 0 (it went well) and 1 (it did not).
_STOPPED = 2


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
        require(not missing, missing[0] if missing else "", f"be given: all of {names}, or none",
                "none")  # fmt: skip
        assert self.coordinator is not None
        assert self.num_processes is not None
        assert self.process_index is not None
        _, _, port = self.coordinator.rpartition(":")
        require(port.isdigit(), "coordinator", "be HOST:PORT", self.coordinator)
        require_at_least("num_processes", self.num_processes, 1)
        one_of_them = 0 <= self.process_index < self.num_processes
        require(one_of_them, "process_index", f"lie in [0, {self.num_processes})",
                self.process_index)  # fmt: skip


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
        heartbeat_timeout_seconds=_DEAD_AFTER, shutdown_timeout_seconds=_END_WITHIN,
    )  # fmt: skip
    if jax.distributed.is_initialized():
        return True
    given = processes.coordinator is not None
    if given and processes.process_index == 0:
        _require_free(str(processes.coordinator))
    where = vars(processes).values() if given else ()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # In a pod of Kubernetes, that it could do more.
            initialize(*where)
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


def _require_free(coordinator: str) -> None:
    """Refuse an address that another program has: jaxlib may crash over it."""
    try:
        socket.create_server(("", int(coordinator.rpartition(":")[2]))).close()
    except OSError as error:
        got = f"{coordinator}: {error.strerror}"
        raise ValueError(f"coordinator must be a free address of process 0, got {got}") from error


def is_main() -> bool:
    """Whether this process is the one that writes files and speaks."""
    return jax.process_index() == 0


# What the transports and the coordinator say of a process that does not answer.
_GONE = ("gloo", "connection", "unavailable", "heartbeat", "coordination", "peer", "barrier")


def another_is_gone(error: Exception) -> bool:
    """Whether an error of JAX says that a process of the run does not answer any more."""
    text = str(error).lower()
    return jax.process_count() > 1 and any(word in text for word in _GONE)


@contextlib.contextmanager
def together(what: str) -> Iterator[None]:
    """All processes leave the block as one: an error of one of them ends all.

    Args:
        what: Is being done in it, for those that had no error of their own.

    Raises:
        ValueError: In a process that did its part, if another could not.
        Stopped: If another was stopped.
        RuntimeError: If another does not answer.
    """
    failed: BaseException | None = None
    try:
        yield
    except BaseException as error:  # noqa: BLE001 (it is raised again below)
        failed = error
    if jax.process_count() > 1:
        outcome = _STOPPED if isinstance(failed, Stopped) else int(failed is not None)
        try:
            outcomes = multihost_utils.process_allgather(np.asarray(outcome))
        except ValueError as error:  # As which JAX reads a result that did not come.
            raise RuntimeError(str(error)) from error
        if failed is None and np.any(outcomes == _STOPPED):
            raise Stopped("SIGTERM")
        if failed is None and np.any(outcomes):
            first = int(np.argmax(outcomes != 0))
            raise ValueError(f"{what} must go well in all processes, got an error in process "
                             f"{first}, which says more")  # fmt: skip
    if failed is not None:
        raise failed
