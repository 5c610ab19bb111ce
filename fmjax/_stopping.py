"""Ending work where it stands when a scheduler asks."""

import contextlib
import signal
from collections.abc import Iterator
from typing import Any


class Stopped(BaseException):
    """The process was told to end by a signal; whatever it wrote is whole.

    As `KeyboardInterrupt` no `Exception`: a checkpoint that is being read when the signal comes
    must not be taken for one that cannot be read.
    """


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM ends what is done in the block, as Ctrl-C does."""
    previous = signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    finally:
        # None: set by C code, which Python cannot name; the default is the nearest.
        signal.signal(signal.SIGTERM, signal.SIG_DFL if previous is None else previous)


def _stop(number: int, frame: Any) -> None:
    raise Stopped(signal.Signals(number).name)
