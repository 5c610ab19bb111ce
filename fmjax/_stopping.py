"""Ends by SIGTERM and Ctrl-C: at once, or, while there is something to save, where a loop looks.

Python calls a signal handler in the main thread and between two of its own instructions: not while
XLA compiles or a device computes. An exception that the handler raises is lost where Python calls
it from a callback of JAX or a finalizer. So the handler of the command line does nothing, and
`signal.set_wakeup_fd` sends the number of each signal to a thread, which ends the process.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Seconds within which two signals are one: `timeout` and shells send theirs to a process and to
# its group.
_ONE = 0.05


class _Stops:
    """What this process knows about its end; one object for the process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.installed = self.ending = self.concluded = False
        self.cause: str | None = None
        self.received_at: float | None = None
        self.num_deferred = 0
        self.then = "starts again"
        self.stop_all: Callable[[str], None] | None = None
        self.callbacks: dict[object, Callable[[], object]] = {}


_stops = _Stops()


@contextlib.contextmanager
def stoppable(then: str) -> Iterator[None]:
    """SIGTERM and Ctrl-C end the process in the block, with one line and exit code 128 + number.

    The first one ends it within moments, except where signals are deferred; a second one always
    does. Only the main thread can take signals over: in others nothing changes.

    Args:
        then: What the same command does after a stop: "starts again", or "goes on".
    """
    if _stops.installed or threading.current_thread() is not threading.main_thread():
        yield
        return
    uninstall = install(then)
    try:
        yield
    finally:
        uninstall()


def install(then: str) -> Callable[[], None]:
    """`stoppable` until the process ends, or until the function that this gives is called."""
    global _stops
    _stops = _Stops()
    _stops.installed, _stops.then = True, then
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    # The thread first: a signal that comes before it is told by Python's own handler.
    thread = threading.Thread(target=_watch, args=(reader,), name="signals", daemon=True)
    thread.start()
    previous_fd = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    previous = {number: signal.signal(number, _handle) for number in SIGNALS}

    def uninstall() -> None:
        for number, handler in previous.items():
            signal.signal(number, _nameable(handler))
        signal.set_wakeup_fd(previous_fd)
        _stops.installed = False
        os.write(writer, b"\0")
        thread.join()
        os.close(reader)
        os.close(writer)

    return uninstall


def _handle(number: int, frame: FrameType | None) -> None:
    """Leave the signal to the thread: that there is a handler makes Python write to the pipe."""


def _in_forked_child() -> None:
    """Signals of a child are its own: it has no thread, and its pipe is that of the parent."""
    if _stops.installed:
        _stops.installed = False
        signal.set_wakeup_fd(-1)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_forked_child)


def _nameable(handler: Any) -> Any:
    """A handler to give back: one that C code set, which Python cannot name, is the default."""
    return signal.SIG_DFL if handler is None else handler


def _watch(reader: int) -> None:
    """Take the numbers of signals out of the pipe; 0 ends the thread."""
    while number := os.read(reader, 1)[0]:
        if number in SIGNALS:
            _receive(signal.Signals(number).name)


def _receive(cause: str) -> None:
    now = time.monotonic()
    with _stops.lock:
        again = _stops.received_at is not None
        if again and now - (_stops.received_at or 0.0) < _ONE:
            return
        _stops.received_at = now
        stop_all = None if again else _stops.stop_all
        deferred = _stops.num_deferred > 0 and not again
        if deferred and stop_all is None:
            _stops.cause = cause
    if stop_all is not None:
        stop_all(cause)
    elif not deferred:
        end(cause)


def end(cause: str, *, delay: float = 0.0) -> NoReturn:
    """End the process now, from any thread: with one line, and without temporary files.

    There is no line if `conclude` was called before.

    Args:
        cause: The signal's name.
        delay: Seconds to wait in silence, for processes that need this one until they end.
    """
    with _stops.lock:
        first, _stops.ending = not _stops.ending, True
    if not first:
        hold()
    for callback in reversed(list(_stops.callbacks.values())):
        with contextlib.suppress(Exception):  # The process ends whatever they do.
            callback()
    line = f"fmjax: stopped by {cause}; the same command {_stops.then}\n"
    if not _stops.concluded:
        with contextlib.suppress(OSError):
            os.write(2, line.encode())
    if delay:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        time.sleep(delay)
    os._exit(128 + signal.Signals[cause])


def hold() -> None:
    """Wait for the end of the process, if another thread is ending it.

    For whoever is about to report an error, which may be one of that end.
    """
    while _stops.ending:
        time.sleep(1.0)


def conclude() -> None:
    """State that the command prints its last line next: a later signal adds no other line.

    If another thread is ending the process, this waits for the end.
    """
    with _stops.lock:
        _stops.concluded = not _stops.ending
    hold()


@contextlib.contextmanager
def at_stop(callback: Callable[[], object]) -> Iterator[None]:
    """Call `callback`, from another thread, if a signal ends the process in the block."""
    key = object()
    _stops.callbacks[key] = callback
    try:
        yield
    finally:
        _stops.callbacks.pop(key, None)


def is_installed() -> bool:
    """Whether the command line has taken the signals over."""
    return _stops.installed


def note(cause: str) -> None:
    """Another process of the run got a signal; this one goes on until all have agreed on a step."""
    _stops.cause = _stops.cause or cause


def stop_all_by(request: Callable[[str], None]) -> None:
    """From now on the first signal calls `request(cause)`, which has all processes of a run stop.

    It must return at once; `end` follows from it.
    """
    _stops.stop_all = request


class Deferral:
    """While entered, a signal only leaves a note, which a loop looks for.

    Without `install`, as in a notebook, handlers of its own note SIGTERM and Ctrl-C, and a second
    Ctrl-C raises `KeyboardInterrupt`. In other threads than the main one they note nothing.

    Attributes:
        cause: The signal's name, None if there was none; it stays after the end.
    """

    def __init__(self) -> None:
        self.cause: str | None = None
        self._deferred = False
        self._previous: dict[int, Any] = {}

    def enter(self) -> None:
        """Defer signals from now on."""
        if _stops.installed:
            hold()
            with _stops.lock:
                _stops.num_deferred += 1
            self._deferred = True
        elif threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._previous[number] = signal.signal(number, self._note)

    def leave(self) -> None:
        """Signals end the process again; one that came in the meantime is `cause`."""
        self.look()
        for number, handler in self._previous.items():
            signal.signal(number, _nameable(handler))
        if self._deferred:
            with _stops.lock:
                _stops.num_deferred -= 1
                self.cause = self.cause or _stops.cause
        self._deferred, self._previous = False, {}

    def look(self) -> str | None:
        """The signal that came, None if none did."""
        if self._deferred:
            self.cause = self.cause or _stops.cause
        return self.cause

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.cause is not None:
            raise KeyboardInterrupt
        self.cause = self.cause or signal.Signals(number).name


def show_cursor() -> None:
    """Show the cursor, which progress bars hide, and begin a new line."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.write(sys.__stdout__.fileno(), b"\x1b[?25h\n")  # pyright: ignore[reportOptionalMemberAccess]
