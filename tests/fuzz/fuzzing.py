"""Run fuzz cases by number and report the failed ones with a command that repeats them."""

import json
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from tests.fuzz.case import TIME_LIMIT
from tests.fuzz.processes import environment, process_family, run_process, slowdown

Log = Callable[[str], object]
_BUILD_TIMEOUT = 900.0
"""Maximum seconds until the first case starts, including the build of the fixtures."""


class CaseResult(NamedTuple):
    """Result of a case that finished, crashed or hung.

    Attributes:
        started: The worker's report at the start of the case: number, family, case and folder.
        finished: The worker's report at the end of the case; empty if it crashed or hung.
        problems: Descriptions of the problems; empty if the case passed.
        seconds: Wall-clock time.
    """

    started: dict[str, Any]
    finished: dict[str, Any]
    problems: list[str]
    seconds: float


def fuzz(seed: int, numbers: Sequence[int], fixtures: Path, *, only: str, log: Log) -> list[str]:
    """Run cases in worker processes, one at a time; return a text for each failed case."""
    from tests.fuzz.families import family_name

    remaining = [number for number in numbers if only in family_name(number)]
    failures, spent, start, num_done = [], Counter(), time.monotonic(), 0
    while remaining:
        for result in _run_worker(seed, remaining, fixtures):
            number = result.started.get("started", remaining[0])
            remaining = remaining[remaining.index(number) + 1 :]
            spent[result.started.get("family", "")] += result.seconds
            num_done += 1
            if result.problems:
                family, case = result.started.get("family"), result.started.get("case")
                repeat = f"--seed {seed} --case {number}"
                failures.append(_failure(repeat, family, case, result.problems))
                log(failures[-1])
            if len(numbers) == 1:
                log(json.dumps(result.started | result.finished, indent=1))
            if num_done % 100 == 0:
                elapsed = time.monotonic() - start
                log(f"{num_done} cases, {len(failures)} failures, {elapsed:.0f} s")
    slowest = ", ".join(f"{value:.0f} s {name[:30]}" for name, value in spent.most_common(6))
    log(f"in process: {time.monotonic() - start:.0f} s ({slowest})")
    return failures


def _failure(repeat: str, family: str | None, case: str | None, problems: list[str]) -> str:
    return f"FAILED {repeat} [{family}] {case}\n    {'; '.join(problems)}"


def _worker_command(seed: int, fixtures: Path) -> list[str]:
    return [sys.executable, "-m", "tests.fuzz.worker", str(seed), str(fixtures)]


def _run_worker(seed: int, numbers: Sequence[int], fixtures: Path) -> Iterator[CaseResult]:
    """Yield the results of one worker, up to the first case that crashes or hangs."""
    command = _worker_command(seed, fixtures)
    with (
        tempfile.TemporaryFile() as stderr,  # A pipe could fill up and block the worker.
        subprocess.Popen(
            [*command, *map(str, numbers)],
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environment(),
        ) as worker,
    ):
        started: dict[str, Any] = {}
        start = time.monotonic()
        while True:
            assert worker.stdout is not None
            timeout = 1.5 * TIME_LIMIT * slowdown() if started else _BUILD_TIMEOUT
            ready = select.select([worker.stdout], [], [], timeout)[0]
            line = worker.stdout.readline() if ready else b""
            report = json.loads(line) if line else {}
            if "started" in report:
                started, start = report, time.monotonic()
                continue
            seconds = time.monotonic() - start
            if "finished" in report:
                yield CaseResult(started, report, report["problems"], seconds)
                started = {"between_cases": True}
                continue
            if ready and worker.wait() == 0:
                return
            worker.kill()
            stderr.seek(0)
            text = stderr.read().decode("utf-8", "replace")
            last_line = " ".join(text.strip().splitlines()[-1:])[-300:]
            reason = "the process crashed" if ready else f"still running after {seconds:.0f} s"
            shutil.rmtree(started.get("folder", ""), ignore_errors=True)
            yield CaseResult(started, {}, [f"{reason}: {last_line}"], seconds)
            return


def fuzz_processes(
    seed: int, numbers: Sequence[int], fixtures: Path, *, only: str, log: Log
) -> list[str]:
    """Run process cases, two at a time; return a text for each failed case."""
    start, failures = time.monotonic(), []
    # Without case numbers the worker only builds the fixtures.
    command = _worker_command(seed, fixtures)
    subprocess.run(command, env=environment(), capture_output=True, check=True)
    selected = [number for number in numbers if only in (process_family(number).__doc__ or "")]
    with ThreadPoolExecutor(2) as pool:
        results = pool.map(lambda number: run_process(seed, number, fixtures), selected)
        for number, (family, description, problems) in zip(selected, results, strict=True):
            if problems:
                repeat = f"--seed {seed} --process {number}"
                failures.append(_failure(repeat, family, description, problems))
                log(failures[-1])
    log(f"as processes: {time.monotonic() - start:.0f} s")
    return failures
