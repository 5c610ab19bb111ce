"""Stop the process on SIGTERM and Ctrl-C: at once, or deferred until a loop has saved its state.

Python calls signal handlers in the main thread between two bytecode instructions, so not while XLA
compiles or a device computes. An exception raised by a handler is lost if Python calls the handler
from a callback of JAX or a finalizer. Therefore the handler of the command line does nothing, and
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
from typing import NoReturn, TypeAlias

Handler: TypeAlias = Callable[[int, FrameType | None], object] | int | None
"""A signal handler as `signal.signal` returns it."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Signals within this many seconds count as one, because `timeout` and shells send a signal to both
# a process and its group.
_SAME_SIGNAL_SECONDS = 0.05


class _State:
    """Signal state of the process; there is one instance."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.installed = self.ending = self.concluded = False
        self.cause: str | None = None
        self.received_at: float | None = None
        self.num_deferred = 0
        self.then = "start over"
        self.stop_all: Callable[[str], None] | None = None
        self.callbacks: dict[object, Callable[[], object]] = {}


_state = _State()


@contextlib.contextmanager
def stoppable(then: str) -> Iterator[None]:
    """End the process on SIGTERM and Ctrl-C in this block, with exit code 128 + signal number.

    The first signal ends the process immediately, unless signals are deferred; a second signal
    always does. Outside the main thread this does nothing, because only it can handle signals.

    Args:
        then: What the same command would do after a stop, for the message: "start over" or
            "resume".
    """
    if _state.installed or threading.current_thread() is not threading.main_thread():
        yield
        return
    uninstall = install(then)
    try:
        yield
    finally:
        uninstall()


def install(then: str) -> Callable[[], None]:
    """Handle signals like `stoppable`, until the returned function is called."""
    global _state
    _state = _State()
    _state.installed, _state.then = True, then
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    # Start the thread first: until the handlers are set, Python's own handlers apply.
    thread = threading.Thread(target=_watch, args=(reader,), name="signals", daemon=True)
    thread.start()
    previous_fd = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    previous = {number: signal.signal(number, _handle) for number in SIGNALS}

    def uninstall() -> None:
        for number, handler in previous.items():
            signal.signal(number, _or_default(handler))
        signal.set_wakeup_fd(previous_fd)
        _state.installed = False
        os.write(writer, b"\0")
        thread.join()
        os.close(reader)
        os.close(writer)

    return uninstall


def _handle(number: int, frame: FrameType | None) -> None:
    """Do nothing; Python writes a signal to the pipe only if it has a Python handler."""


def _in_forked_child() -> None:
    """Restore default signal handling in a child, which lacks the thread and shares the pipe."""
    if _state.installed:
        _state.installed = False
        signal.set_wakeup_fd(-1)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_forked_child)


def _or_default(handler: Handler) -> Handler:
    """Return a previous handler; None, a handler set by C code, becomes the default handler."""
    return signal.SIG_DFL if handler is None else handler


def _watch(reader: int) -> None:
    """Read signal numbers from the pipe until a 0, which ends the thread."""
    while number := os.read(reader, 1)[0]:
        if number in SIGNALS:
            _receive(signal.Signals(number).name)


def _receive(cause: str) -> None:
    """End the process, request a stop of all processes, or note a deferred signal."""
    now = time.monotonic()
    with _state.lock:
        is_repeated = _state.received_at is not None
        if is_repeated and now - (_state.received_at or 0.0) < _SAME_SIGNAL_SECONDS:
            return
        _state.received_at = now
        stop_all = None if is_repeated else _state.stop_all
        is_deferred = _state.num_deferred > 0 and not is_repeated
        if is_deferred and stop_all is None:
            _state.cause = cause
    if stop_all is not None:
        stop_all(cause)
    elif not is_deferred:
        end(cause)


def end(cause: str, *, delay: float = 0.0) -> NoReturn:
    """End the process from any thread: run the `at_stop` callbacks and print one line.

    Nothing is printed after a call of `suppress_stop_message`.

    Args:
        cause: Name of the signal.
        delay: Seconds to wait before the end, for other processes that still need this one.
    """
    with _state.lock:
        is_first, _state.ending = not _state.ending, True
    if not is_first:
        wait_if_ending()
    for callback in reversed(list(_state.callbacks.values())):
        with contextlib.suppress(Exception):  # The process ends in any case.
            callback()
    line = f"fmjax: stopped by {cause}; run the same command again to {_state.then}\n"
    if not _state.concluded:
        with contextlib.suppress(OSError):
            os.write(2, line.encode())
    if delay:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        time.sleep(delay)
    os._exit(128 + signal.Signals[cause])


def wait_if_ending() -> None:
    """Wait forever if another thread is ending the process.

    Call this before reporting an error, which the end of the process may have caused.
    """
    while _state.ending:
        time.sleep(1.0)


def suppress_stop_message() -> None:
    """Suppress the message of later signals, because the command prints its last line next.

    If another thread is ending the process, wait for its end.
    """
    with _state.lock:
        _state.concluded = not _state.ending
    wait_if_ending()


@contextlib.contextmanager
def at_stop(callback: Callable[[], object]) -> Iterator[None]:
    """Call `callback` from another thread if a signal ends the process in this block."""
    key = object()
    _state.callbacks[key] = callback
    try:
        yield
    finally:
        _state.callbacks.pop(key, None)


def is_installed() -> bool:
    """Return whether `install` handles the signals of this process."""
    return _state.installed


def note(cause: str) -> None:
    """Note a signal that another process of the run received, until all agree on a last step."""
    _state.cause = _state.cause or cause


def stop_all_by(request: Callable[[str], None]) -> None:
    """Make the first signal call `request(cause)`, which asks all processes of a run to stop.

    It must return immediately, and must lead to a call of `end`.
    """
    _state.stop_all = request


class Deferral:
    """Between `enter` and `leave`, record signals instead of ending the process.

    Without `install`, as in a notebook, this sets handlers that record SIGTERM and Ctrl-C, and a
    second Ctrl-C raises `KeyboardInterrupt`. Outside the main thread nothing is recorded then.

    Attributes:
        cause: Name of the signal, or None; it is kept after `leave`.
    """

    def __init__(self) -> None:
        self.cause: str | None = None
        self._deferred = False
        self._previous: dict[int, Handler] = {}

    def enter(self) -> None:
        """Start deferring signals."""
        if _state.installed:
            wait_if_ending()
            with _state.lock:
                _state.num_deferred += 1
            self._deferred = True
        elif threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._previous[number] = signal.signal(number, self._note)

    def leave(self) -> None:
        """Stop deferring signals; one that arrived in the meantime is in `cause`."""
        self.look()
        for number, handler in self._previous.items():
            signal.signal(number, _or_default(handler))
        if self._deferred:
            with _state.lock:
                _state.num_deferred -= 1
                self.cause = self.cause or _state.cause
        self._deferred, self._previous = False, {}

    def look(self) -> str | None:
        """Return the name of the signal received so far, or None."""
        if self._deferred:
            self.cause = self.cause or _state.cause
        return self.cause

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.cause is not None:
            raise KeyboardInterrupt
        self.cause = self.cause or signal.Signals(number).name


def show_cursor() -> None:
    """Show the cursor, which progress bars hide, and start a new line."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.write(sys.__stdout__.fileno(), b"\x1b[?25h\n")  # pyright: ignore[reportOptionalMemberAccess]
