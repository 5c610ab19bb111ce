"""A subprocess that holds a lock until it is killed or its standard input closes."""

import contextlib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROGRAM = """
import os, subprocess, sys
from pathlib import Path
from fmjax._locks import lock_file, lock_folder
{setup}
with {lock}(Path(sys.argv[1]), "run folder"):
    {body}
    print("held", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def holder(target, lock="lock_folder", body="pass", setup=""):
    """Start the process and yield it when it holds the lock of `target`."""
    program = PROGRAM.format(lock=lock, body=body, setup=setup)
    with subprocess.Popen(
        [sys.executable, "-c", program, str(target)],
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()
