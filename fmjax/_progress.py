"""How long work tells how far it is, without knowing who listens."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, runtime_checkable

Advance = Callable[..., None]
COMPILING = "compiling"
"""The note of a task that XLA compiles for, which may take minutes; its first result removes it."""


@runtime_checkable
class Progress(Protocol):
    """Hears from work that takes more than a few seconds. Only the command line prints."""

    def say(self, line: str) -> None:
        """Tell one line that stays."""
        ...

    def task(self, description: str, total: int | None) -> AbstractContextManager[Advance]:
        """Open a task of `total` units (None: unknown).

        Call `advance(n=1, note=None)` as it goes. A note stays until the next one; `COMPILING` goes
        when `n` is not 0.
        """
        ...

    def part_done(self, name: str) -> None:
        """End a part of the work. Its time, since the end of the part before, counts for `name`."""
        ...


class Silent:
    """Hears nothing: the default of every function that reports progress."""

    def say(self, line: str) -> None:
        """Ignore the line."""

    @contextmanager
    def task(self, description: str, total: int | None) -> Iterator[Advance]:
        """Give an `advance` that does nothing."""
        yield lambda n=1, note=None: None

    def part_done(self, name: str) -> None:
        """Ignore the part."""
