"""Tests that commands finish if standard output is closed, full or no longer read."""

import errno
import io
import os
import subprocess
import sys

import pytest

from fmjax.cli.streams import Output, forgiving_output
from tests.tiny_run import command, environment, write_config

PROGRAM = """
import sys
from fmjax.cli import main, commands
def work(arguments):
    from fmjax.cli.console import console
    with console() as progress, progress.task("working", 3) as advance:
        for i in range(3000):
            progress.say(f"line {i}")
            print("and", i)
        advance(3)
    sys.stderr.write("finished\\n")
    return 0
commands.COMMANDS["train"] = work
sys.argv = ["fmjax", "train"]
main()
"""


def run_with_redirection(redirection):
    """Return exit code and standard error of a command that prints 6,000 lines."""
    script = f'set -o pipefail; "$0" -c "$1" {redirection}'
    result = subprocess.run(
        ["bash", "-c", script, sys.executable, PROGRAM],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=100,
    )
    return result.returncode, result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("redirection", "expected"),
    [
        ("| head -1 > /dev/null", (0, "finished\n")),
        ("| true", (0, "finished\n")),
        (">&-", (0, "finished\n")),
        ("2>&-", (0, "")),
        (">&- 2>&- <&-", (0, "")),
        ("2> /dev/full", (0, "")),
        (
            "> /dev/full",
            (
                1,
                "finished\nfmjax: error: standard output must be writable, got No space left on "
                "device\n",
            ),
        ),
    ],
)
def test_a_command_finishes_if_standard_output_fails(redirection, expected):
    assert run_with_redirection(redirection) == expected


def test_file_numbers_of_closed_standard_files_are_not_reused(tmp_path):
    script = """
import os
from fmjax.cli.streams import open_standard_files
open_standard_files()
assert os.open(os.devnull, os.O_RDONLY) > 2
print("text")
"""
    result = subprocess.run(
        ["bash", "-c", '"$0" -c "$1" <&- >&- 2>&-', sys.executable, script], env=environment()
    )
    assert result.returncode == 0


class FailingFile(io.StringIO):
    """A file whose writes all fail."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def write(self, text):
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize(("number", "lost"), [(errno.EPIPE, False), (errno.ENOSPC, True)])
def test_failed_writes_are_errors_unless_the_reader_is_gone(number, lost, monkeypatch):
    failing_file = FailingFile(number)
    monkeypatch.setattr(sys, "stdout", failing_file)
    with forgiving_output() as out:
        sys.stdout.write("a line\n")
        assert isinstance(sys.stdout, Output)
        assert (out.lost is not None) == lost
    assert sys.stdout is failing_file


@pytest.mark.slow
def test_training_piped_into_head_writes_checkpoint_and_report(tmp_path):
    arguments = command(write_config(tmp_path), tmp_path / "run")
    script = 'set -o pipefail; "$@" | head -2'
    result = subprocess.run(
        ["bash", "-c", script, "bash", *arguments],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.count("\n") == 2
    assert (tmp_path / "run" / "checkpoints" / "24").is_dir()
    assert (tmp_path / "run" / "report.html").is_file()
