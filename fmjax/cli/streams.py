"""Standard output and standard error that may be closed, full, or read no more."""

import contextlib
import errno
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

# A pipe without a reader (`fmjax train ... | head`), a terminal that was closed.
_READ_NO_MORE = (errno.EPIPE, errno.ECONNRESET, errno.EIO, errno.EBADF)

_LONGEST = 2_000
"""Characters of an error; values are shown, but not whole files."""


@runtime_checkable
class TextFile(Protocol):
    """What `sys.stdout` can do, also where a test or a notebook has replaced it."""

    def write(self, text: str, /) -> int:
        """Write, and give the number of characters."""
        ...

    def flush(self) -> None:
        """Pass on what is buffered."""
        ...

    def fileno(self) -> int:
        """The descriptor below it."""
        ...


class Output:
    """A text stream that goes on in silence once its file takes no more.

    Attributes:
        error: What the file said first; None as long as it takes everything.
    """

    def __init__(self, stream: TextFile) -> None:
        self._stream = stream
        self.error: OSError | None = None

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, or do as if."""
        with self._forgiving():
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, or do as if."""
        with self._forgiving():
            self._stream.flush()

    @property
    def lost(self) -> OSError | None:
        """Why the text is not all where the user wants it; None if nobody reads it any more."""
        if self.error is None or self.error.errno in _READ_NO_MORE:
            return None
        return self.error

    @contextlib.contextmanager
    def _forgiving(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = self.error or error
            # What is still in the buffer, and all that follows, goes nowhere.
            with contextlib.suppress(OSError, ValueError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self._stream.fileno())
                os.close(null)
        except ValueError:  # Closed by a config, say.
            pass


def open_standard_files() -> None:
    """Give this process the standard files that it was started without (`>&-`), as empty ones.

    Otherwise the next file that is opened gets their number, and what C libraries write to standard
    error would go into it.
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
    """Let nothing in the block fail because standard output or error takes no more.

    Gives what takes the place of standard output.
    """
    before = sys.stdout, sys.stderr
    out = Output(sys.stdout)
    sys.stdout, sys.stderr = out, Output(sys.stderr)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield out
    finally:
        out.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def one_line(text: str) -> str:
    """The text on one line that a terminal shows as it is: without control characters."""
    text = "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode()
        for char in " ".join(text.split())
    )
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]} [...] {text[-_LONGEST // 2 :]}"
    return text


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Show warnings of Python as one plain line among what is printed, without source code."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        print(f"warning: {one_line(str(message))}", flush=True)

    with warnings.catch_warnings():
        # JAX compiles again, but never replaces an entry that a killed process left incomplete.
        warnings.filterwarnings("ignore", "Error reading persistent compilation cache entry")
        warnings.showwarning = show
        yield
