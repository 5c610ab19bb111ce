"""Progress reports of long computations."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, runtime_checkable

Advance = Callable[..., None]
COMPILING = "compiling"
"""Note of a task while XLA compiles for it. The first completed unit of work removes the note."""


@runtime_checkable
class Progress(Protocol):
    """Receiver of progress reports from long computations: `Lines`, `Silent` or your own."""

    def say(self, line: str) -> None:
        """Report a line of text."""
        ...

    def task(self, description: str, total: int | None) -> AbstractContextManager[Advance]:
        """Open a task of `total` units of work (None: unknown).

        The context manager yields `advance(n=1, note=None)`, which adds `n` completed units. A
        note is shown until the next note, and `COMPILING` until a call with nonzero `n`.
        """
        ...

    def part_done(self, name: str) -> None:
        """End a part of the work; the time since the previous part counts for `name`."""
        ...


class Silent:
    """Progress receiver that ignores all reports, the default of functions that report progress."""

    def say(self, line: str) -> None:
        """Ignore the line."""

    @contextmanager
    def task(self, description: str, total: int | None) -> Iterator[Advance]:
        """Yield an `advance` that does nothing."""
        yield lambda n=1, note=None: None

    def part_done(self, name: str) -> None:
        """Ignore the end of a part."""


class Lines:
    """Progress receiver that writes lines to standard error, one every ten seconds in a task."""

    PERIOD = 10.0

    def say(self, line: str) -> None:
        """Write the line."""
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()

    @contextmanager
    def task(self, description: str, total: int | None) -> Iterator[Advance]:
        """Write a line at the start of the task, while it compiles, and every ten seconds."""
        done, written_at = 0, time.monotonic()
        of_total = f"/{total}" if total is not None else ""
        self.say(f"{description} {done}{of_total}")

        def advance(n: int = 1, note: str | None = None) -> None:
            nonlocal done, written_at
            done += n
            if time.monotonic() - written_at >= self.PERIOD or note == COMPILING:
                written_at = time.monotonic()
                self.say(f"{description} {done}{of_total} {note or ''}".rstrip())

        yield advance

    def part_done(self, name: str) -> None:
        """Ignore the end of a part."""
