"""How far long work is: bars on a terminal, plain lines elsewhere."""

import contextlib
import io
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from fmjax._progress import COMPILING
from fmjax._stopping import at_stop, show_cursor

_NARROW = 80
"""Terminals with fewer columns have room for the counts alone."""


def print_any_name() -> None:
    r"""Let names of files that are not UTF-8 be printed, as `caf\\udce9`, instead of raising."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def console(since: float | None = None) -> Iterator[Any]:
    """Progress bars on a terminal; elsewhere a plain line now and then.

    Args:
        since: `time.perf_counter()` at the start of the command, to print at its end how long each
            part took; None prints no times.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(highlight=False, soft_wrap=True)
    # By the file itself: FORCE_COLOR would make a terminal of a log file.
    if not sys.stdout.isatty() or console.is_dumb_terminal:
        lines = _Lines(since)
        yield lines
        if times := lines.times():
            lines.say(times)
        return
    columns: tuple[ProgressColumn, ...] = (TextColumn("{task.description}"), MofNCompleteColumn())
    if console.width >= _NARROW:
        columns = (
            TextColumn("{task.description:>10}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
    bars = Progress(*columns, console=console, redirect_stderr=sys.stderr.isatty())
    with bars, at_stop(show_cursor):
        shown = _Bars(bars, since)
        yield shown
        if times := shown.times():
            shown.say(times)


class _PartTimes:
    """Wall time of the parts of a command, measured from `since`; None measures nothing."""

    def __init__(self, since: float | None) -> None:
        self._start = self._since = since
        self._seconds: dict[str, float] = {}

    def part_done(self, name: str) -> None:
        if self._since is not None:
            now = time.perf_counter()
            self._seconds[name] = self._seconds.get(name, 0.0) + now - self._since
            self._since = now

    def times(self) -> str:
        """The time of the whole command and of each part; empty if no part is done."""
        if self._start is None or not self._seconds:
            return ""
        parts = ", ".join(f"{name} {_duration(s)}" for name, s in self._seconds.items())
        return f"time: {_duration(time.perf_counter() - self._start)} ({parts})"


def _duration(seconds: float) -> str:
    """Format seconds as "0.3 s", "48 s", "2 min 5 s" or "1 h 0 min"."""
    if seconds < 0.5:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    hours, minutes_of_hour = divmod(minutes, 60)
    return f"{hours} h {minutes_of_hour} min" if hours else f"{minutes} min {rest} s"


class _Bars(_PartTimes):
    """`Progress` on a terminal."""

    def __init__(self, bars: Any, since: float | None = None) -> None:
        super().__init__(since)
        self._bars = bars

    def say(self, line: str) -> None:
        self._bars.console.print(line, markup=False)

    @contextlib.contextmanager
    def task(self, description: str, total: int | None) -> Iterator[Callable[..., None]]:
        task, told = self._bars.add_task(description, total=total, note=""), ""

        def advance(n: int = 1, note: str | None = None) -> None:
            nonlocal told
            if note is None:
                note = "" if told == COMPILING and n else told
            told = note
            self._bars.update(task, advance=n, note=note)

        yield advance
        self._bars.stop_task(task)


class _Lines(_PartTimes):
    """`Progress` in a log file: a line when a task starts, and one every ten seconds."""

    PERIOD = 10.0

    def __init__(self, since: float | None = None) -> None:
        super().__init__(since)

    def say(self, line: str) -> None:
        print(line, flush=True)

    @contextlib.contextmanager
    def task(self, description: str, total: int | None) -> Iterator[Callable[..., None]]:
        done, told = 0, time.monotonic()
        of_total = f"/{total}" if total is not None else ""
        print(f"{description} {done}{of_total}", flush=True)

        def advance(n: int = 1, note: str | None = None) -> None:
            nonlocal done, told
            done += n
            if time.monotonic() - told >= self.PERIOD or note == COMPILING:
                told = time.monotonic()
                print(f"{description} {done}{of_total} {note or ''}".rstrip(), flush=True)

        yield advance
