"""Process fuzz cases: terminals, platforms, pipes, signals, kills and concurrent writers."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.fuzz.case import TIME_LIMIT, Case, Outcome, files_in, find_problems
from tests.fuzz.families import CONFIGS, CaseRandom
from tests.quick import COMPILATION
from tests.terminal import COLOR, in_terminal

ROOT = Path(__file__).parents[2]
SAVE_EVERY_STEP = ("--training.checkpoint-every", "1")
LONG_TRAINING = (
    "--training.num-steps",
    "1000000",
    "--training.checkpoint-every",
    "200",
    "--training.log-every",
    "50",
)


class Context(NamedTuple):
    """Inputs of a process case.

    Attributes:
        fixtures: Folder that `world.build` made.
        folder: Empty working directory.
        rng: Random generator of the case.
    """

    fixtures: Path
    folder: Path
    rng: CaseRandom


class ProcessResult(NamedTuple):
    """Exit code, output and processor time of a process."""

    code: int
    out: str
    err: str
    seconds: float


def environment(**overrides: str) -> dict[str, str]:
    """Environment variables of the processes."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "FORCE_COLOR")}
    cache = inherited.get("FMJAX_CACHE", str(Path(tempfile.gettempdir()) / "fmjax-fuzz"))
    fixed = {
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": COMPILATION,
        "JAX_PLATFORMS": "cpu",
        "FMJAX_CACHE": cache,
    }
    return inherited | fixed | overrides


def fmjax_command(*arguments: object) -> list[str]:
    """Command that runs fmjax with these arguments."""
    return [sys.executable, "-m", "fmjax.cli", *map(str, arguments)]


class RunningProcess:
    """A process that writes its output to files and whose processor time is measured."""

    def __init__(self, command: list[str], folder: Path, **overrides: str) -> None:
        self.out, self.err = (tempfile.TemporaryFile() for _ in range(2))  # noqa: SIM115
        self.child = subprocess.Popen(
            command,
            cwd=folder,
            stdout=self.out,
            stderr=self.err,
            stdin=subprocess.DEVNULL,
            env=environment(**overrides),
        )

    def wait_until(self, condition: Callable[[], bool], timeout: float = 60.0) -> bool:
        """Wait for a condition; return False if the process exits first."""
        deadline = time.monotonic() + timeout * slowdown()
        while time.monotonic() < deadline and not condition():
            if self.child.poll() is not None:
                return False
            time.sleep(0.02)
        return condition()

    def wait(self, timeout: float = TIME_LIMIT) -> ProcessResult:
        """Wait for the exit; after the timeout, kill the process and return exit code 255."""
        deadline = time.monotonic() + timeout * slowdown()
        pid, code, seconds = 0, 255, 0.0
        while self.child.returncode is None and not pid:
            pid, status, usage = os.wait4(self.child.pid, os.WNOHANG)
            if pid:
                code, seconds = os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime
                self.child.returncode = code
            elif time.monotonic() > deadline:
                os.kill(self.child.pid, signal.SIGKILL)
                os.waitpid(self.child.pid, 0)
                self.child.returncode = 255
            else:
                time.sleep(0.02)
        code = self.child.returncode if not pid else code
        texts = []
        for file in (self.out, self.err):
            file.seek(0)
            texts.append(file.read().decode("utf-8", "replace"))
            file.close()
        return ProcessResult(128 - code if code < 0 else code, *texts, seconds)


def slowdown() -> float:
    """Estimated factor by which other processes slow this machine down."""
    return min(8.0, max(1.0, 1.5 * os.getloadavg()[0] / (os.cpu_count() or 1)))


def check_result(
    case: Case, result: ProcessResult, folder: Path, files_before: set[str]
) -> list[str]:
    """Return the problems of a process that exited."""
    new_files = sorted(files_in(folder) - files_before)
    outcome = Outcome(result.code, result.out, result.err, result.seconds, new_files)
    return find_problems(case, outcome)


def run_and_check(context: Context, case: Case, **overrides: str) -> list[str]:
    """Run a command until it exits; return its problems."""
    files_before = files_in(context.folder)
    assert not callable(case.run)
    process = RunningProcess(fmjax_command(*case.run), context.folder, **overrides)
    return check_result(case, process.wait(120.0), context.folder, files_before)


# Returns a description of the case, and its problems.
ProcessFamily = Callable[[Context], tuple[str, list[str]]]


def terminal_errors(context: Context) -> tuple[str, list[str]]:
    """Error messages on a terminal."""
    width, toy = context.rng.choice((20, 80, 200)), str(context.fixtures / "toy.py")
    arguments, message = context.rng.in_turn(
        (
            (["train", toy, "--optimizer.lr", "1"], "(did you mean --optimizer.learning-rate?)"),
            (["train", toy, "--training.num-steps", "x"], "must be an integer, got 'x'"),
            (["train", toy, "--sampling.control", "no"], "must be one of LARGEST_SAMPLE"),
            (["train", toy, "--sampling.solver", "tsit6"], "(did you mean 'tsit5'?)"),
            (["train", "digit.py"], "config must exist, got digit.py"),
            (["sample", "absent"], "run folder must exist, got absent"),
        )
    )
    color = context.rng.random() < 0.7
    variables = environment(**(COLOR if color else {"TERM": "dumb"}))
    code, screen = in_terminal(
        fmjax_command(*arguments), columns=width, timeout=300.0, cwd=context.folder, **variables
    )
    case = Case(arguments, (2,), (message,))
    outcome = Outcome(code, "", screen, 0.0, sorted(files_in(context.folder)))
    problems = find_problems(case, outcome)
    if not screen.rstrip("\n").isprintable():
        problems.append(f"escape codes or several lines: {screen[:200]!r}")
    return f"{case} ({width} columns, color: {color})", problems


def platforms(context: Context) -> tuple[str, list[str]]:
    """Unavailable JAX platforms."""
    name = context.rng.in_turn(("cuda", "tpu", "rocm", "abacus", "gpu", "cuda,tpu"))
    shutil.copytree(context.fixtures / "toy", context.folder / "run")
    arguments = context.rng.in_turn(
        (
            ["sample", "run"],
            ["evaluate", "run"],
            ["compare", "run"],
            ["train", str(context.fixtures / "toy.py"), "--run", "new"],
        )
    )
    case = Case(arguments, (2,), ("JAX must find its devices",))
    return f"JAX_PLATFORMS={name} {case}", run_and_check(context, case, JAX_PLATFORMS=name)


def config_files(context: Context) -> tuple[str, list[str]]:
    """Config files that exit or raise."""
    text = context.rng.in_turn(CONFIGS)
    (context.folder / "c.py").write_text(text)
    case = Case(["train", "c.py"], (2,), ("config",))
    return f"{case} # {text!r}", run_and_check(context, case)


def pipes(context: Context) -> tuple[str, list[str]]:
    """Output to a pipe that is closed early."""
    toy, num_lines = context.fixtures / "toy.py", context.rng.choice((0, 1, 2, 3))
    arguments, expect_checkpoint = context.rng.in_turn(
        (
            (["train", toy, "--run", "r"], True),
            (["train", toy, "--run", "r", "--training.log-every", "2"], True),
            (["train", toy, "--help"], False),
            (["--help"], False),
        )
    )
    reader = "true" if num_lines == 0 else f"head -{num_lines}"
    command = " ".join(f"'{argument}'" for argument in fmjax_command(*arguments))
    script = f"{command} 2> err | {reader} > /dev/null; exit ${{PIPESTATUS[0]}}"
    result = RunningProcess(["bash", "-c", script], context.folder).wait(120.0)
    stderr = (context.folder / "err").read_text()
    (context.folder / "err").unlink()
    case = Case(list(map(str, arguments)), (0,))
    problems = check_result(case, result._replace(err=stderr, seconds=0.0), context.folder, set())
    has_checkpoint = bool(list((context.folder / "r").glob("checkpoints/2")))
    if expect_checkpoint and not problems and not has_checkpoint:
        problems.append("no checkpoint")
    return f"{case} | {reader}", problems


def signals(context: Context) -> tuple[str, list[str]]:
    """SIGTERM and SIGINT at random times."""
    rng = context.rng
    number = (signal.SIGTERM, signal.SIGINT)[rng.index // 4 % 2]
    arguments = rng.in_turn(
        (
            ["train", context.fixtures / "toy.py", "--run", "r", *LONG_TRAINING],
            ["train", context.fixtures / "toy.py", "--run", "r", *LONG_TRAINING],
            [
                "sample",
                context.fixtures / "toy",
                "--output",
                "o",
                "--num-samples",
                "20000",
                "--solver",
                "euler",
                "--num-steps",
                "2000",
            ],
            [
                "evaluate",
                "run",
                "--num-samples",
                "20000",
                "--sampling.solver",
                "euler",
                "--sampling.num-steps",
                "2000",
            ],
        )
    )
    if arguments[1] == "run":
        shutil.copytree(context.fixtures / "toy", context.folder / "run")
    files_before = files_in(context.folder)
    delay, twice = rng.uniform(0.02, 6.0), rng.random() < 0.3
    process = RunningProcess(fmjax_command(*arguments), context.folder)
    time.sleep(delay * slowdown() / 1.5)
    if process.child.poll() is None:
        process.child.send_signal(number)
        if twice:
            time.sleep(rng.uniform(0.0, 0.3))
            if process.child.poll() is None:
                process.child.send_signal(number)
    start = time.monotonic()
    result = process.wait()
    case = Case(list(map(str, arguments)), (0, 128 + number), may_write=True)
    description = f"{case} {number.name} after {delay:.2f} s{' twice' if twice else ''}"
    if result.code in (128 + 9, 255) or result.code == 127:
        return description, [f"still running {time.monotonic() - start:.0f} s after the signal"]
    result = result._replace(seconds=0.0)
    # The signal may also kill the interpreter before it has imported fmjax.
    return description, check_result(case, result, context.folder, files_before)


def restarts_after_kill(context: Context) -> tuple[str, list[str]]:
    """Kill a command at a random time, and check that the same command then succeeds."""
    rng, toy = context.rng, context.fixtures / "toy.py"
    arguments = rng.in_turn(
        (
            ["train", toy, "--run", "r", "--training.num-steps", "6", *SAVE_EVERY_STEP],
            ["train", toy, "--run", "run", "--overwrite", "--training.num-steps", "3"],
            ["sample", context.fixtures / "toy", "--output", "o"],
            ["evaluate", "run"],
        )
    )
    if "run" in arguments:
        shutil.copytree(context.fixtures / "toy", context.folder / "run")
    delay = rng.uniform(1.5, 7.0)
    process = RunningProcess(fmjax_command(*arguments), context.folder)
    time.sleep(delay * slowdown() / 1.5)
    if process.child.poll() is None:
        process.child.kill()
    process.wait()
    result = RunningProcess(fmjax_command(*arguments), context.folder).wait(120.0)
    case = Case(list(map(str, arguments)), (0,))
    # The processor time of training is not limited.
    problems = check_result(case, result._replace(seconds=0.0), context.folder, set())
    return f"{case} killed after {delay:.2f} s", problems


def two_writers(context: Context) -> tuple[str, list[str]]:
    """Start a second writer of a run folder, and check that it is refused."""
    arguments = ["train", context.fixtures / "toy.py", "--run", "r", *LONG_TRAINING]
    second = context.rng.in_turn((arguments, [*arguments, "--overwrite"]))
    process = RunningProcess(fmjax_command(*arguments), context.folder)
    log = context.folder / "r" / "metrics.jsonl"
    if not process.wait_until(log.is_file):
        return "the first writer", [f"did not start: {process.wait()}"]
    files_before = files_in(context.folder)
    case = Case(list(map(str, second)), (2,), (str(process.child.pid),), may_write=True)
    result = RunningProcess(fmjax_command(*second), context.folder).wait(120.0)
    problems = check_result(case, result, context.folder, files_before)
    process.child.terminate()
    first = process.wait()
    if first.code != 128 + signal.SIGTERM:
        problems.append(f"the first writer exited with {first.code}: {first.err[:200]!r}")
    if not re.search("checkpoint is saved", first.err):
        problems.append(f"the first writer printed {first.err[:200]!r}")
    return f"a second {case}", problems


def locale_errors(context: Context) -> tuple[str, list[str]]:
    """Check that error messages do not depend on the locale."""
    toy = str(context.fixtures / "toy.py")
    arguments = context.rng.in_turn(
        (
            ["trane"],
            [],
            ["train", toy, "--zzz"],
            ["sample", "absent"],
            ["train", toy, "--name", "é\n"],
            ["train", "é.py"],
            ["sample", "\udcff"],
        )
    )
    locale = context.rng.choice(("C", "C.UTF-8", "POSIX"))
    case = Case(arguments, (2,))
    return f"LC_ALL={locale} {case}", run_and_check(context, case, LC_ALL=locale, PYTHONUTF8="0")


PROCESS_FAMILIES: tuple[tuple[ProcessFamily, int], ...] = (
    (terminal_errors, 22),
    (platforms, 8),
    (config_files, 14),
    (pipes, 12),
    (signals, 24),
    (restarts_after_kill, 8),
    (two_writers, 3),
    (locale_errors, 9),
)


def process_family(number: int) -> ProcessFamily:
    """Return the family of process case `number`; the families alternate by their shares."""
    total = sum(share for _, share in PROCESS_FAMILIES)
    order = sorted(
        ((position + 0.5) / share, i, family)
        for i, (family, share) in enumerate(PROCESS_FAMILIES)
        for position in range(share)
    )
    return order[number % total][2]


def run_process(seed: int, number: int, fixtures: Path) -> tuple[str, str, list[str]]:
    """Run a process case; return the name of its family, its description and its problems."""
    folder = Path(tempfile.mkdtemp(prefix="fmjax-fuzz-"))
    family = process_family(number)
    num_earlier = sum(process_family(earlier) is family for earlier in range(number))
    rng = CaseRandom(f"process {seed} {number}", seed + num_earlier)
    try:
        description, problems = family(Context(fixtures, folder, rng))
        return (family.__doc__ or "").rstrip("."), description, problems
    finally:
        shutil.rmtree(folder, ignore_errors=True)
