"""Errors of writing a run to disk, such as a full disk, in one or several processes."""

import errno
import itertools
import os
import re
import sys
import time
from pathlib import Path

import jax
from jax._src import distributed

# Folders of JAX's distributed key-value store.
_BARRIERS, _FAILURES = "fmjax/barriers", "fmjax/write_failures"
_POLL_SECONDS = 0.05
_barrier_numbers = itertools.count()


class CheckpointWriteError(Exception):
    """Raised when a run cannot write to disk; its last complete checkpoint is intact.

    Attributes:
        step: Step of the last complete checkpoint, from which the run can resume; 0 if there is
            none.
    """

    def __init__(self, error: OSError, step: int):
        self.step = step
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "free some space" if is_full else "fix this"
        super().__init__(
            f"{error.strerror}: {error.filename}; {remedy} and run the same command again to "
            f"resume from step {step}"
        )


def disk_error(error: Exception, folder: Path) -> OSError | None:
    """Convert an error of Orbax to the `OSError` that caused it, if the disk did.

    Args:
        error: Error raised by Orbax. If writing an array failed, its text contains TensorStore's
            message with the error number of the system.
        folder: Folder of the checkpoints.

    Returns:
        An error that names the folder of the checkpoint being written, or None if the cause is
        not the disk.
    """
    if isinstance(error, OSError):
        number, text = error.errno, str(error.filename)
    else:
        match = re.search(r"os_error_code='(\d+)'", str(error))
        number, text = match and int(match[1]), str(error)
    if number is None:
        return None
    step = re.search(rf"{re.escape(str(folder))}/(\d+)", text)
    return OSError(number, os.strerror(number), str(folder / step[1] if step else folder))


class _PeerWriteError(ValueError):
    """Raised in a process that wrote its part of a checkpoint when another process failed."""


def barrier(*, key: str, timeout_ms: int) -> None:
    """Wait until the background threads of all processes have reached the same point of a save.

    Orbax's barriers wait up to 20 minutes for a process that failed to write. With this barrier,
    a failing process signals the failure, and all other processes fail too.

    Args:
        key: Name of the barrier. All processes call the same barriers in the same order.
        timeout_ms: Maximum time to wait, in milliseconds.

    Raises:
        ValueError: If another process could not write its part.
        RuntimeError: If the other processes do not arrive in time.
    """
    client = distributed.global_state.client
    if client is None:
        return
    process, number = jax.process_index(), next(_barrier_numbers)
    if error := sys.exception():
        if not isinstance(error, _PeerWriteError):
            client.key_value_set(f"{_FAILURES}/{process}", key, allow_overwrite=True)
        return
    client.key_value_set(f"{_BARRIERS}/{number}/{process}", key)
    deadline = time.monotonic() + timeout_ms / 1000
    while len(client.key_value_dir_get(f"{_BARRIERS}/{number}/")) < jax.process_count():
        if failures := client.key_value_dir_get(f"{_FAILURES}/"):
            index = failures[0][0].rpartition("/")[2]
            raise _PeerWriteError(
                "saving a checkpoint must succeed in all processes, got an error in process "
                f"{index} (see its output)"
            )
        if time.monotonic() > deadline:
            raise RuntimeError(f"not all processes reached the barrier {key} in time")
        time.sleep(_POLL_SECONDS)
    if number > 0:  # All processes have left the previous barrier.
        client.key_value_delete(f"{_BARRIERS}/{number - 1}/{process}")
