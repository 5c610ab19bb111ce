"""Leaving at the end of a step instead of in the middle of one."""

import _thread
import contextlib
import itertools
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType

import jax
from jax.experimental import multihost_utils

_ASK_EVERY = 0.25


class Interrupted(Exception):
    """Training was told to stop, and left cleanly after the step it was in.

    Attributes:
        cause: Name of the signal, as "SIGTERM".
        step: Steps taken.
        saved: Whether a checkpoint of that step is on the disk.
    """

    def __init__(self, cause: str, step: int, saved: bool):
        self.cause, self.step, self.saved = cause, step, saved
        kept = "its checkpoint is saved" if saved else "nothing is saved: no checkpoints were asked"
        super().__init__(f"stopped by {cause} after step {step}; {kept}")


class StopSignals:
    """While entered, SIGTERM and Ctrl-C only leave a note; a second Ctrl-C interrupts at once.

    Python delivers signals to the main thread alone: entered in another one, nothing is caught.
    With several processes every one of them must stop after the same step, so there SIGTERM is
    left to JAX's own preemption service, which agrees on one, and Ctrl-C to Python.
    """

    def __init__(self) -> None:
        self._received: str | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread() and jax.process_count() == 1:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            # None: set by C code, which Python cannot name; the default is the nearest.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # pyright: ignore[reportArgumentType]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._received is not None:
            raise KeyboardInterrupt
        self._received = self._received or signal.Signals(number).name

    def cause(self, step: int) -> str | None:
        """What asked to stop, None if nothing did; all processes give the same answer."""
        if jax.process_count() > 1:
            agreed = multihost_utils.reached_preemption_sync_point(step)
            return "SIGTERM" if agreed else None
        return self._received


@contextlib.contextmanager
def hearing_stops(after_step: int) -> Iterator[None]:
    """What one process does while the others wait ends when any of them gets SIGTERM.

    With several processes JAX hears the signal, and only who asks it learns of it: a thread asks,
    and hands it to this process as its own. One process alone gets its signals anyway.

    Args:
        after_step: The last that JAX's preemption service was asked about.
    """
    if jax.process_count() == 1:
        yield
        return
    ended = threading.Event()

    def ask() -> None:
        for step in itertools.count(after_step + 1):
            if multihost_utils.reached_preemption_sync_point(step):
                _thread.interrupt_main(signal.SIGTERM)
                return
            if ended.wait(_ASK_EVERY):
                return

    thread = threading.Thread(target=ask, name="hearing_stops", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
