"""When a disk does not take what a run writes: it is full, or gone."""

import errno
import itertools
import os
import re
import sys
import time
from pathlib import Path

import jax
from jax._src import distributed

_MEETINGS, _UNWRITTEN = "fmjax/meetings", "fmjax/unwritten"
_numbers = itertools.count()
_LOOK_EVERY = 0.05


class CheckpointWriteError(Exception):
    """The disk did not take what a run wrote; its last whole checkpoint is as it was.

    Attributes:
        step: Of that checkpoint, from which the run can go on; 0 if there is none.
    """

    def __init__(self, error: OSError, step: int):
        self.step = step
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        mended = "there is room" if full else "that is mended"
        super().__init__(
            f"{error.strerror}: {error.filename}; once {mended}, the same command goes on from "
            f"step {step}"
        )


def disk_error(error: Exception, folder: Path) -> OSError | None:
    """What the system said, if an error of Orbax comes from the disk; else None.

    Args:
        error: Of Orbax's; that of an array is a text of TensorStore's, with the system's number.
        folder: Of the checkpoints. The one that was being written is named, by its final name.
    """
    if isinstance(error, OSError):
        number, text = error.errno, str(error.filename)
    else:
        found = re.search(r"os_error_code='(\d+)'", str(error))
        number, text = found and int(found[1]), str(error)
    if number is None:
        return None
    step = re.search(rf"{re.escape(str(folder))}/(\d+)", text)
    return OSError(number, os.strerror(number), str(folder / step[1] if step else folder))


class _AnotherFailed(ValueError):
    """A process did its part of a checkpoint, and another could not."""


def barrier(*, key: str, timeout_ms: int) -> None:
    """Where the processes' background threads wait for one another while they save.

    Orbax's own barriers keep waiting for a process that failed to write, up to 20 minutes. Here it
    leaves a note for the others, which then fail too.

    Args:
        key: What for; all processes meet for the same things in the same order.
        timeout_ms: How long to wait.

    Raises:
        ValueError: If another process could not write its part.
        RuntimeError: If the others do not come in time.
    """
    client = distributed.global_state.client
    if client is None:
        return
    here, number = jax.process_index(), next(_numbers)
    if error := sys.exception():
        if not isinstance(error, _AnotherFailed):
            client.key_value_set(f"{_UNWRITTEN}/{here}", key, allow_overwrite=True)
        return
    client.key_value_set(f"{_MEETINGS}/{number}/{here}", key)
    deadline = time.monotonic() + timeout_ms / 1000
    while len(client.key_value_dir_get(f"{_MEETINGS}/{number}/")) < jax.process_count():
        if failed := client.key_value_dir_get(f"{_UNWRITTEN}/"):
            index = failed[0][0].rpartition("/")[2]
            raise _AnotherFailed(
                "saving a checkpoint must go well in all processes, got an error in process "
                f"{index}, which says more"
            )
        if time.monotonic() > deadline:
            raise RuntimeError(f"not all processes came to the barrier {key}")
        time.sleep(_LOOK_EVERY)
    if number > 0:  # All have left the meeting before.
        client.key_value_delete(f"{_MEETINGS}/{number - 1}/{here}")
