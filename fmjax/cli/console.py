"""Progress output: bars on a terminal, plain lines in a log file or pipe."""

import contextlib
import io
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from fmjax._progress import COMPILING, Lines, Progress
from fmjax._signals import at_stop, show_cursor

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

_MIN_COLUMNS_FOR_BARS = 80
"""Narrower terminals show the description and the counts only."""


def print_any_name() -> None:
    r"""Print file names that are not UTF-8 with escapes, as `caf\\udce9`, instead of raising."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def console(since: float | None = None) -> Iterator[Progress]:
    """Print progress: bars on a terminal, elsewhere a plain line every ten seconds.

    Args:
        since: `time.perf_counter()` at the start of the command. At the end, the time of each part
            since then is printed; None prints no times.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress as RichProgress,
        ProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(highlight=False, soft_wrap=True)
    # Ask the file itself: with FORCE_COLOR, rich takes a log file for a terminal.
    if not sys.stdout.isatty() or console.is_dumb_terminal:
        lines = _Lines(since)
        yield lines
        if times := lines.times():
            lines.say(times)
        return
    columns: tuple[ProgressColumn, ...] = (TextColumn("{task.description}"), MofNCompleteColumn())
    if console.width >= _MIN_COLUMNS_FOR_BARS:
        columns = (
            TextColumn("{task.description:>10}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
    rich_progress = RichProgress(*columns, console=console, redirect_stderr=sys.stderr.isatty())
    with rich_progress, at_stop(show_cursor):
        bars = _Bars(rich_progress, since)
        yield bars
        if times := bars.times():
            bars.say(times)


class _PartTimes:
    """Measures the wall time of each part of a command.

    Args:
        since: `time.perf_counter()` at the start of the command; None measures nothing.
    """

    def __init__(self, since: float | None = None) -> None:
        self._start = self._since = since
        self._seconds: dict[str, float] = {}

    def part_done(self, name: str) -> None:
        if self._since is not None:
            now = time.perf_counter()
            self._seconds[name] = self._seconds.get(name, 0.0) + now - self._since
            self._since = now

    def times(self) -> str:
        """Line with the total time and the time of each part; empty if no part is finished."""
        if self._start is None or not self._seconds:
            return ""
        parts = ", ".join(f"{name} {_duration(s)}" for name, s in self._seconds.items())
        return f"time: {_duration(time.perf_counter() - self._start)} ({parts})"


def _duration(seconds: float) -> str:
    """Format seconds as "0.3 s", "48 s", "2 min 5 s" or "1 h 0 min"."""
    if seconds < 0.5:
        return f"{seconds:.1f} s"
    minutes, whole_seconds = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{whole_seconds} s"
    hours, minutes_of_hour = divmod(minutes, 60)
    return f"{hours} h {minutes_of_hour} min" if hours else f"{minutes} min {whole_seconds} s"


class _Bars(_PartTimes):
    """`Progress` on a terminal, by the bars of rich."""

    def __init__(self, bars: "RichProgress", since: float | None = None) -> None:
        super().__init__(since)
        self._bars = bars

    def say(self, line: str) -> None:
        self._bars.console.print(line, markup=False)

    @contextlib.contextmanager
    def task(self, description: str, total: int | None) -> Iterator[Callable[..., None]]:
        task, shown_note = self._bars.add_task(description, total=total, note=""), ""

        def advance(n: int = 1, note: str | None = None) -> None:
            nonlocal shown_note
            if note is None:
                note = "" if shown_note == COMPILING and n else shown_note
            shown_note = note
            self._bars.update(task, advance=n, note=note)

        yield advance
        self._bars.stop_task(task)


class _Lines(_PartTimes, Lines):
    """`Progress` in a log file: lines of standard output, one every ten seconds in a task."""

    def say(self, line: str) -> None:
        print(line, flush=True)
