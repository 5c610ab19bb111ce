"""Cases that are processes: terminals, signals, kills, pipes, platforms, two in one folder."""

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

from tests.fuzz.case import SLOWEST, Case, Outcome, files_in, wrong
from tests.fuzz.families import CONFIGS, Dice
from tests.quick import COMPILATION
from tests.terminal import COLOUR, in_terminal

ROOT = Path(__file__).parents[2]
EVERY = ("--training.checkpoint-every", "1")
LONG = (
    "--training.num-steps",
    "1000000",
    "--training.checkpoint-every",
    "200",
    "--training.log-every",
    "50",
)


class Place(NamedTuple):
    """Where a case runs.

    Attributes:
        world: What `world.build` made.
        folder: The working directory, empty.
        rng: Of the case.
    """

    world: Path
    folder: Path
    rng: Dice


class Ended(NamedTuple):
    """A process that ended."""

    code: int
    out: str
    err: str
    seconds: float


def environment(**more: str) -> dict[str, str]:
    """Of the processes."""
    plain = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "FORCE_COLOR")}
    ours = {"PYTHONPATH": str(ROOT), "XLA_FLAGS": COMPILATION, "JAX_PLATFORMS": "cpu"}
    ours["FMJAX_CACHE"] = plain.get("FMJAX_CACHE", str(Path(tempfile.gettempdir()) / "fmjax-fuzz"))
    return plain | ours | more


def command(*words: object) -> list[str]:
    """fmjax with these arguments."""
    return [sys.executable, "-m", "fmjax.cli", *map(str, words)]


class Running:
    """A process whose output goes to files, and whose time on the processor counts."""

    def __init__(self, words: list[str], folder: Path, **more: str) -> None:
        self.out, self.err = (tempfile.TemporaryFile() for _ in range(2))  # noqa: SIM115
        self.child = subprocess.Popen(
            words,
            cwd=folder,
            stdout=self.out,
            stderr=self.err,
            stdin=subprocess.DEVNULL,
            env=environment(**more),
        )

    def wait_until(self, there: Callable[[], bool], most: float = 60.0) -> bool:
        """Wait for something that it does; False if it ended before."""
        give_up = time.monotonic() + most * slowness()
        while time.monotonic() < give_up and not there():
            if self.child.poll() is not None:
                return False
            time.sleep(0.02)
        return there()

    def end(self, most: float = SLOWEST) -> Ended:
        """Wait for its end; it is killed if that takes too long, with exit code 255."""
        give_up = time.monotonic() + most * slowness()
        pid, code, seconds = 0, 255, 0.0
        while self.child.returncode is None and not pid:
            pid, status, usage = os.wait4(self.child.pid, os.WNOHANG)
            if pid:
                code, seconds = os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime
                self.child.returncode = code
            elif time.monotonic() > give_up:
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
        return Ended(128 - code if code < 0 else code, *texts, seconds)


def slowness() -> float:
    """How much slower the machine is than an idle one."""
    return min(8.0, max(1.0, 1.5 * os.getloadavg()[0] / (os.cpu_count() or 1)))


def judged(case: Case, ended: Ended, folder: Path, before: set[str]) -> list[str]:
    """What is wrong with a process that ended."""
    new = sorted(files_in(folder) - before)
    return wrong(case, Outcome(ended.code, ended.out, ended.err, ended.seconds, new))


def simply(place: Place, case: Case, **more: str) -> list[str]:
    """Run a command to its end."""
    before = files_in(place.folder)
    assert not callable(case.run)
    ended = Running(command(*case.run), place.folder, **more).end(120.0)
    return judged(case, ended, place.folder, before)


# Each gives what it did, in words, and what is wrong.
Kind = Callable[[Place], tuple[str, list[str]]]


def terminal_errors(place: Place) -> tuple[str, list[str]]:
    """17: an error on a terminal is one plain line."""
    width, toy = place.rng.choice((20, 80, 200)), str(place.world / "toy.py")
    words, says = place.rng.next_of(
        (
            (["train", toy, "--optimizer.lr", "1"], "(did you mean --optimizer.learning-rate?)"),
            (["train", toy, "--training.num-steps", "x"], "must be an integer, got 'x'"),
            (["train", toy, "--sampling.control", "no"], "must be one of LARGEST_SAMPLE"),
            (["train", toy, "--sampling.solver", "tsit6"], "(did you mean 'tsit5'?)"),
            (["train", "digit.py"], "config must exist, got digit.py"),
            (["sample", "absent"], "run folder must exist, got absent"),
        )
    )
    colour = place.rng.random() < 0.7
    more = environment(**(COLOUR if colour else {"TERM": "dumb"}))
    code, screen = in_terminal(
        command(*words), columns=width, timeout=300.0, cwd=place.folder, **more
    )
    case = Case(words, (2,), (says,))
    found = wrong(case, Outcome(code, "", screen, 0.0, sorted(files_in(place.folder))))
    if not screen.rstrip("\n").isprintable():
        found.append(f"escape codes or several lines: {screen[:200]!r}")
    return f"{case} ({width} columns, colour: {colour})", found


def platforms(place: Place) -> tuple[str, list[str]]:
    """15: a platform that is not there."""
    name = place.rng.next_of(("cuda", "tpu", "rocm", "abacus", "gpu", "cuda,tpu"))
    run = shutil.copytree(place.world / "toy", place.folder / "run")
    words = place.rng.next_of(
        (
            ["sample", "run"],
            ["evaluate", "run"],
            ["compare", "run"],
            ["train", str(place.world / "toy.py"), "--run", "new"],
        )
    )
    del run
    case = Case(words, (2,), ("JAX must find its devices",))
    return f"JAX_PLATFORMS={name} {case}", simply(place, case, JAX_PLATFORMS=name)


def leaving_configs(place: Place) -> tuple[str, list[str]]:
    """25: config files that leave or fail."""
    text = place.rng.next_of(CONFIGS)
    (place.folder / "c.py").write_text(text)
    case = Case(["train", "c.py"], (2,), ("config",))
    return f"{case} # {text!r}", simply(place, case)


def pipes(place: Place) -> tuple[str, list[str]]:
    """20: a reader that leaves."""
    toy, lines = place.world / "toy.py", place.rng.choice((0, 1, 2, 3))
    words, whole = place.rng.next_of(
        (
            (["train", toy, "--run", "r"], True),
            (["train", toy, "--run", "r", "--training.log-every", "2"], True),
            (["train", toy, "--help"], False),
            (["--help"], False),
        )
    )
    reader = "true" if lines == 0 else f"head -{lines}"
    text = " ".join(f"'{word}'" for word in command(*words))
    script = f"{text} 2> err | {reader} > /dev/null; exit ${{PIPESTATUS[0]}}"
    ended = Running(["bash", "-c", script], place.folder).end(120.0)
    said = (place.folder / "err").read_text()
    (place.folder / "err").unlink()
    case = Case(list(map(str, words)), (0,))
    found = judged(case, ended._replace(err=said, seconds=0.0), place.folder, set())
    if whole and not found and not list((place.folder / "r").glob("checkpoints/2")):
        found.append("no checkpoint")
    return f"{case} | {reader}", found


def signals(place: Place) -> tuple[str, list[str]]:
    """18: a signal at any moment ends the process."""
    rng = place.rng
    number = (signal.SIGTERM, signal.SIGINT)[rng.turn // 4 % 2]
    words = rng.next_of(
        (
            ["train", place.world / "toy.py", "--run", "r", *LONG],
            ["train", place.world / "toy.py", "--run", "r", *LONG],
            [
                "sample",
                place.world / "toy",
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
    if words[1] == "run":
        shutil.copytree(place.world / "toy", place.folder / "run")
    before = files_in(place.folder)
    delay, twice = rng.uniform(0.02, 6.0), rng.random() < 0.3
    running = Running(command(*words), place.folder)
    time.sleep(delay * slowness() / 1.5)
    if running.child.poll() is None:
        running.child.send_signal(number)
        if twice:
            time.sleep(rng.uniform(0.0, 0.3))
            if running.child.poll() is None:
                running.child.send_signal(number)
    at = time.monotonic()
    ended = running.end()
    case = Case(list(map(str, words)), (0, 128 + number), may_write=True)
    shown = f"{case} {number.name} after {delay:.2f} s{' twice' if twice else ''}"
    if ended.code in (128 + 9, 255) or ended.code == 127:
        return shown, [f"still running {time.monotonic() - at:.0f} s after the signal"]
    ended = ended._replace(seconds=0.0)
    # The interpreter itself, before it runs anything of ours, may die of the signal.
    return shown, judged(case, ended, place.folder, before)


def kills(place: Place) -> tuple[str, list[str]]:
    """19: the same command after a kill."""
    rng, toy = place.rng, place.world / "toy.py"
    words = rng.next_of(
        (
            ["train", toy, "--run", "r", "--training.num-steps", "6", *EVERY],
            ["train", toy, "--run", "run", "--overwrite", "--training.num-steps", "3"],
            ["sample", place.world / "toy", "--output", "o"],
            ["evaluate", "run"],
        )
    )
    if "run" in words:
        shutil.copytree(place.world / "toy", place.folder / "run")
    delay = rng.uniform(1.5, 7.0)
    running = Running(command(*words), place.folder)
    time.sleep(delay * slowness() / 1.5)
    if running.child.poll() is None:
        running.child.kill()
    running.end()
    ended = Running(command(*words), place.folder).end(120.0)
    case = Case(list(map(str, words)), (0,))
    # A training may take its time.
    found = judged(case, ended._replace(seconds=0.0), place.folder, set())
    return f"{case} killed after {delay:.2f} s", found


def two_writers(place: Place) -> tuple[str, list[str]]:
    """1: a second writer of a run is refused, and says whose the folder is."""
    words = ["train", place.world / "toy.py", "--run", "r", *LONG]
    second = place.rng.next_of((words, [*words, "--overwrite"]))
    running = Running(command(*words), place.folder)
    begun = place.folder / "r" / "metrics.jsonl"
    if not running.wait_until(begun.is_file):
        return "the first writer", [f"did not start: {running.end()}"]
    before = files_in(place.folder)
    case = Case(list(map(str, second)), (2,), (str(running.child.pid),), may_write=True)
    found = judged(case, Running(command(*second), place.folder).end(120.0), place.folder, before)
    running.child.terminate()
    first = running.end()
    if first.code != 128 + signal.SIGTERM:
        found.append(f"the first ended with {first.code}: {first.err[:200]!r}")
    if not re.search("checkpoint is saved", first.err):
        found.append(f"the first said {first.err[:200]!r}")
    return f"a second {case}", found


def plain_errors(place: Place) -> tuple[str, list[str]]:
    """17: errors of real processes, whatever the locale."""
    toy = str(place.world / "toy.py")
    words = place.rng.next_of(
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
    locale = place.rng.choice(("C", "C.UTF-8", "POSIX"))
    case = Case(words, (2,))
    return f"LC_ALL={locale} {case}", simply(place, case, LC_ALL=locale, PYTHONUTF8="0")


KINDS: tuple[tuple[Kind, int], ...] = (
    (terminal_errors, 22),
    (platforms, 8),
    (leaving_configs, 14),
    (pipes, 12),
    (signals, 24),
    (kills, 8),
    (two_writers, 3),
    (plain_errors, 9),
)


def kind_of(number: int) -> Kind:
    """The kind of a process, spread evenly over the numbers."""
    total = sum(share for _, share in KINDS)
    spread = sorted(
        ((place + 0.5) / share, i, kind)
        for i, (kind, share) in enumerate(KINDS)
        for place in range(share)
    )
    return spread[number % total][2]


def run_process(seed: int, number: int, world: Path) -> tuple[str, str, list[str]]:
    """Run one; the name of its kind, what it did, and what is wrong."""
    folder = Path(tempfile.mkdtemp(prefix="fmjax-fuzz-"))
    kind = kind_of(number)
    before = sum(kind_of(each) is kind for each in range(number))
    try:
        shown, found = kind(Place(world, folder, Dice(f"process {seed} {number}", seed + before)))
        return (kind.__doc__ or "").rstrip("."), shown, found
    finally:
        shutil.rmtree(folder, ignore_errors=True)
