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
def stoppable() -> Iterator[list[str]]:
    """SIGTERM and Ctrl-C end what is done in the block, by `Stopped`.

    Gives a list, which then holds the signal's name. Who ends the block by another error looks
    there: one that comes while a module of C is imported arrives as an `ImportError`.
    """
    asked: list[str] = []

    def stop(number: int, frame: Any) -> None:
        asked.append(signal.Signals(number).name)
        raise Stopped(asked[0])

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            # None: set by C code, which Python cannot name; the default is the nearest.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
