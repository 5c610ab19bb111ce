"""Fuzz cases, their outcomes, and the checks of the outcomes."""

import contextlib
import io
import os
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

TIME_LIMIT = 20.0
"""Maximum processor time of a case on an idle machine, in seconds."""


@dataclass
class Case:
    """A command or function call to run in a temporary folder.

    Attributes:
        run: Command-line arguments, or a function to call.
        codes: Accepted exit codes.
        messages: Texts that stdout and stderr together must contain.
        description: Text that identifies a function call or adds details to a command.
        may_write: Whether a refused command may leave new files.
    """

    run: Sequence[str] | Callable[[], object]
    codes: tuple[int, ...] = (0, 1, 2)
    messages: tuple[str, ...] = ()
    description: str = ""
    may_write: bool = False

    def __str__(self) -> str:
        if callable(self.run):
            return self.description
        arguments = [_printable(argument) for argument in self.run]
        return " ".join(["fmjax", *arguments, self.description]).strip()[:300]


@dataclass
class Outcome:
    """Exit code, output, processor time, new files and traceback of a case."""

    code: int
    out: str
    err: str
    seconds: float
    new_files: list[str] = field(default_factory=list)
    traceback: str = ""


def expect_refusal(*messages: str) -> dict:
    """Arguments for a `Case` that must exit with code 2 and these messages."""
    return {"codes": (2,), "messages": messages}


def files_in(folder: Path) -> set[str]:
    """Relative names of all files and folders below a folder, with non-ASCII escaped."""
    return {
        _printable(os.path.relpath(os.path.join(parent, name), folder))
        for parent, folders, files in os.walk(folder)
        for name in (*folders, *files)
    }


def _printable(text: str) -> str:
    return ascii(text)[1:-1]  # Without the quotes.


def run_in_this_process(case: Case, folder: Path) -> Outcome:
    """Run a case in this process, with `folder` as the working directory."""
    from fmjax.cli.main import main

    files_before = files_in(folder)
    out, err = io.StringIO(), io.StringIO()
    environment, working_directory = dict(os.environ), Path.cwd()
    code, unexpected, start = 0, "", _processor_time()
    os.chdir(folder)
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            warnings.catch_warnings(),
        ):
            # The warnings of a command count as output, those of a function do not.
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
            unexpected = traceback.format_exc()
    except BaseException:  # noqa: BLE001 (the fuzzer reports any exception)
        unexpected = traceback.format_exc()
    finally:
        os.chdir(working_directory)
        os.environ.clear()
        os.environ.update(environment)
    seconds = _processor_time() - start
    new_files = sorted(files_in(folder) - files_before)
    return Outcome(code, out.getvalue(), err.getvalue(), seconds, new_files, unexpected)


def _processor_time() -> float:
    # Wall-clock time would depend on the load of the machine.
    return time.process_time()


def find_problems(case: Case, outcome: Outcome) -> list[str]:
    """Descriptions of the problems of an outcome; empty if the case passed."""
    problems = []
    if outcome.traceback or "Traceback (most recent call last)" in outcome.err + outcome.out:
        last_line = (outcome.traceback or outcome.err).strip().splitlines()[-1:]
        problems.append(f"traceback: {' '.join(last_line)[:200]}")
        return problems
    code = outcome.code
    if code not in (0, 1, 2) and not 128 < code < 160:
        problems.append(f"exit code {code}")
    elif code not in case.codes:
        last_line = outcome.err.strip().splitlines()[-1:] or outcome.out.strip().splitlines()[-1:]
        problems.append(f"exit code {code}, expected {case.codes}: {' '.join(last_line)[:200]}")
    lines = outcome.err.count("\n")
    if lines > 1:
        problems.append(f"{lines} lines on stderr: {outcome.err[:200]!r}")
    missing = [text for text in case.messages if text not in outcome.out + outcome.err]
    if missing and not problems:
        problems.append(f"output lacks {missing}: {outcome.err.strip()[:200]!r}")
    temporary = [name for name in outcome.new_files if Path(name).name.startswith(".")]
    if code == 2 and outcome.new_files and not case.may_write:
        problems.append(f"new files after a refusal: {outcome.new_files[:5]}")
    elif temporary:
        problems.append(f"temporary files: {temporary[:5]}")
    if outcome.seconds > TIME_LIMIT:
        problems.append(f"{outcome.seconds:.0f} s")
    return problems
