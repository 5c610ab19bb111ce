"""One case: what is run, what may come of it, and whether it did."""

import contextlib
import io
import os
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SLOWEST = 20.0
"""Seconds that a case may take on an idle machine."""


@dataclass
class Case:
    """What is run in a folder.

    Attributes:
        run: Arguments of a command, or a function to call.
        codes: Exit codes that are right.
        says: Texts that stdout and stderr together must contain.
        shown: What to print of a function: enough to find the case.
        may_write: Whether files may be new even after a refusal.
    """

    run: Sequence[str] | Callable[[], object]
    codes: tuple[int, ...] = (0, 1, 2)
    says: tuple[str, ...] = ()
    shown: str = ""
    may_write: bool = False

    def __str__(self) -> str:
        if callable(self.run):
            return self.shown
        words = " ".join(["fmjax", *(ascii(word)[1:-1] for word in self.run)])
        return f"{words} {self.shown}".strip()[:300]


@dataclass
class Outcome:
    """What came of it."""

    code: int
    out: str
    err: str
    seconds: float
    new: list[str] = field(default_factory=list)
    traceback: str = ""


def refused(*says: str) -> dict:
    """Settings of a case that must end in a refusal."""
    return {"codes": (2,), "says": says}


def files_in(folder: Path) -> set[str]:
    """All names below a folder, as texts that can be printed."""
    return {
        ascii(os.path.relpath(os.path.join(at, name), folder))[1:-1]
        for at, folders, files in os.walk(folder)
        for name in (*folders, *files)
    }


def run_here(case: Case, folder: Path) -> Outcome:
    """Run a case in this process, in `folder` as the working directory."""
    from fmjax.cli.main import main

    before = files_in(folder)
    out, err = io.StringIO(), io.StringIO()
    environment, at = dict(os.environ), Path.cwd()
    code, found, start = 0, "", _cpu()
    os.chdir(folder)
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            warnings.catch_warnings(),
        ):
            # Of a command they are part of what is shown.
            warnings.simplefilter("ignore" if callable(case.run) else "default")
            if callable(case.run):
                case.run()
            else:
                main(list(case.run))
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except (ValueError, OSError) as error:
        if callable(case.run):
            code = 2
            print(f"fmjax: error: {error}", file=err)
        else:
            found = traceback.format_exc()
    except BaseException:  # noqa: BLE001 (whatever it is, it is what is looked for)
        found = traceback.format_exc()
    finally:
        os.chdir(at)
        os.environ.clear()
        os.environ.update(environment)
    new = sorted(files_in(folder) - before)
    return Outcome(code, out.getvalue(), err.getvalue(), _cpu() - start, new, found)


def _cpu() -> float:
    # Of this process: other work on the machine does not count.
    return time.process_time()


def wrong(case: Case, outcome: Outcome) -> list[str]:
    """What is wrong with the outcome of a case; empty if nothing is."""
    found = []
    if outcome.traceback or "Traceback (most recent call last)" in outcome.err + outcome.out:
        last = (outcome.traceback or outcome.err).strip().splitlines()[-1:]
        found.append(f"traceback: {' '.join(last)[:200]}")
        return found
    code = outcome.code
    if code not in (0, 1, 2) and not 128 < code < 160:
        found.append(f"exit code {code}")
    elif code not in case.codes:
        said = outcome.err.strip().splitlines()[-1:] or outcome.out.strip().splitlines()[-1:]
        found.append(f"exit code {code}, not {case.codes}: {' '.join(said)[:200]}")
    lines = outcome.err.count("\n")
    if lines > 1:
        found.append(f"{lines} lines on stderr: {outcome.err[:200]!r}")
    missing = [text for text in case.says if text not in outcome.out + outcome.err]
    if missing and not found:
        found.append(f"no word of {missing}: {outcome.err.strip()[:200]!r}")
    temporary = [name for name in outcome.new if Path(name).name.startswith(".")]
    if code == 2 and outcome.new and not case.may_write:
        found.append(f"left behind by a refusal: {outcome.new[:5]}")
    elif temporary:
        found.append(f"temporary files: {temporary[:5]}")
    if outcome.seconds > SLOWEST:
        found.append(f"{outcome.seconds:.0f} s")
    return found
