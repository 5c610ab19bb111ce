"""Standard output and standard error whose file may be closed, full or no longer read."""

import contextlib
import errno
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

# Errors of a pipe whose reader has ended (`fmjax train ... | head`) and of a closed terminal.
_NO_READER_ERRORS = (errno.EPIPE, errno.ECONNRESET, errno.EIO, errno.EBADF)

_MAX_CHARACTERS = 2_000
"""Longest error message; the middle of a longer one is cut out."""


@runtime_checkable
class TextFile(Protocol):
    """The methods of `sys.stdout` that are used, which its replacements in notebooks have too."""

    def write(self, text: str, /) -> int:
        """Write text; return the number of characters."""
        ...

    def flush(self) -> None:
        """Write buffered text to the file."""
        ...

    def fileno(self) -> int:
        """Return the file descriptor."""
        ...


class Output:
    """A text stream that discards all text after its file failed to take some.

    Args:
        stream: The stream that is written to.

    Attributes:
        error: The first error of the file; None if there was none.
    """

    def __init__(self, stream: TextFile) -> None:
        self._stream = stream
        self.error: OSError | None = None

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text, or discard it after an error; return the number of characters."""
        with self._recording_errors():
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream; errors are recorded in `error`."""
        with self._recording_errors():
            self._stream.flush()

    @property
    def lost(self) -> OSError | None:
        """The error if text was lost; None if all was written or its reader has ended."""
        if self.error is None or self.error.errno in _NO_READER_ERRORS:
            return None
        return self.error

    @contextlib.contextmanager
    def _recording_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = self.error or error
            # Discard the rest of the buffer and all later text.
            with contextlib.suppress(OSError, ValueError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self._stream.fileno())
                os.close(null)
        except ValueError:  # The stream is closed, for example by a config file.
            pass


def open_standard_files() -> None:
    """Open /dev/null in place of standard files that were closed at the start (`>&-`).

    Otherwise the next opened file gets the number of standard error, and C libraries write into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # The lowest free number.
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        else:  # A signal ends the process without flushing.
            stream.reconfigure(line_buffering=True)


@contextlib.contextmanager
def forgiving_output() -> Iterator[Output]:
    """Continue if standard output or standard error fails; yield the replaced standard output."""
    previous = sys.stdout, sys.stderr
    out = Output(sys.stdout)
    sys.stdout, sys.stderr = out, Output(sys.stderr)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield out
    finally:
        out.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = previous


def one_line(text: str) -> str:
    """Put text on one line, escape its control characters, and cut out the middle if it is long."""
    text = "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode()
        for char in " ".join(text.split())
    )
    if len(text) > _MAX_CHARACTERS:
        text = f"{text[: _MAX_CHARACTERS // 2]} [...] {text[-_MAX_CHARACTERS // 2 :]}"
    return text


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Print Python warnings as one plain line on standard output, without source code."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        print(f"warning: {one_line(str(message))}", flush=True)

    with warnings.catch_warnings():
        # JAX never replaces an entry that a killed process left incomplete; it compiles again.
        warnings.filterwarnings("ignore", "Error reading persistent compilation cache entry")
        warnings.showwarning = show
        yield
