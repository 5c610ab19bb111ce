"""Run cases by their numbers, and say which are wrong and how to repeat them."""

import json
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from tests.fuzz.case import SLOWEST
from tests.fuzz.processes import environment, kind_of, run_process, slowness

Say = Callable[[str], object]
_BUILDING = 900.0
"""Seconds until the first case begins, where the world is built before it."""


class Ran(NamedTuple):
    """A case that ended, or did not.

    Attributes:
        begun: What was said when it began: its number, class and words.
        ended: What was said when it ended; empty if it crashed or hung.
        wrong: What is wrong.
        seconds: On the clock.
    """

    begun: dict[str, Any]
    ended: dict[str, Any]
    wrong: list[str]
    seconds: float


def fuzz(seed: int, numbers: Sequence[int], world: Path, *, only: str, say: Say) -> list[str]:
    """Run cases in one process, or in another after each that crashes; a line for each wrong."""
    from tests.fuzz.families import name_of

    left = [number for number in numbers if only in name_of(number)]
    bad, spent, start, done = [], Counter(), time.monotonic(), 0
    while left:
        for ran in _ran_in_one_process(seed, left, world):
            number = ran.begun.get("begun", left[0])
            left = left[left.index(number) + 1 :]
            spent[ran.begun.get("name", "")] += ran.seconds
            done += 1
            if ran.wrong:
                name, case = ran.begun.get("name"), ran.begun.get("case")
                again = f"--seed {seed} --case {number}"
                bad.append(f"WRONG {again} [{name}] {case}\n    {'; '.join(ran.wrong)}")
                say(bad[-1])
            if len(numbers) == 1:
                say(json.dumps(ran.begun | ran.ended, indent=1))
            if done % 100 == 0:
                say(f"{done} cases, {len(bad)} wrong, {time.monotonic() - start:.0f} s")
    slow = ", ".join(f"{value:.0f} s {name[:30]}" for name, value in spent.most_common(6))
    say(f"in process: {time.monotonic() - start:.0f} s ({slow})")
    return bad


def _worker(seed: int, world: Path) -> list[str]:
    return [sys.executable, "-m", "tests.fuzz.worker", str(seed), str(world)]


def _ran_in_one_process(seed: int, numbers: Sequence[int], world: Path):
    """The cases that one process ran: all, or up to one that ended or stopped it."""
    words = _worker(seed, world)
    with (
        tempfile.TemporaryFile() as errors,  # A pipe would be full one day.
        subprocess.Popen(
            [*words, *map(str, numbers)],
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment(),
        ) as worker,
    ):
        begun: dict[str, Any] = {}
        at = time.monotonic()
        while True:
            assert worker.stdout is not None
            most = 1.5 * SLOWEST * slowness() if begun else _BUILDING
            ready = select.select([worker.stdout], [], [], most)[0]
            line = worker.stdout.readline() if ready else b""
            about = json.loads(line) if line else {}
            if "begun" in about:
                begun, at = about, time.monotonic()
                continue
            seconds = time.monotonic() - at
            if "ended" in about:
                yield Ran(begun, about, about["wrong"], seconds)
                begun = {"none": True}
                continue
            if ready and worker.wait() == 0:
                return
            worker.kill()
            errors.seek(0)
            said = errors.read().decode("utf-8", "replace")
            last = " ".join(said.strip().splitlines()[-1:])[-300:]
            how = f"still running after {seconds:.0f} s" if not ready else "the process crashed"
            shutil.rmtree(begun.get("folder", ""), ignore_errors=True)
            yield Ran(begun, {}, [f"{how}: {last}"], seconds)
            return


def fuzz_processes(
    seed: int, numbers: Sequence[int], world: Path, *, only: str, say: Say
) -> list[str]:
    """Run cases as processes, two at a time; a line for each that is wrong."""
    start, bad = time.monotonic(), []
    # Without numbers it makes the world alone.
    subprocess.run(_worker(seed, world), env=environment(), capture_output=True, check=True)
    chosen = [number for number in numbers if only in (kind_of(number).__doc__ or "")]
    with ThreadPoolExecutor(2) as pool:
        ran = pool.map(lambda number: run_process(seed, number, world), chosen)
        for number, (name, shown, found) in zip(chosen, ran, strict=True):
            if found:
                again = f"--seed {seed} --process {number}"
                bad.append(f"WRONG {again} [{name}] {shown}\n    {'; '.join(found)}")
                say(bad[-1])
    say(f"as processes: {time.monotonic() - start:.0f} s")
    return bad
