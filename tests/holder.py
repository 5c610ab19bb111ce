"""A process that holds the lock of a folder, until it is killed or its input ends."""

import contextlib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
HOLD = """
import os, subprocess, sys
from pathlib import Path
from fmjax._locks import lock_file, lock_folder
{before}
with {lock}(Path(sys.argv[1]), "run folder"):
    {within}
    print("held", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def holder(path, lock="lock_folder", within="pass", before=""):
    """The process, once it holds the lock of `path`."""
    program = HOLD.format(lock=lock, within=within, before=before)
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)],
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
