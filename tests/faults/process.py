"""Faults at the n-th write of a command: a kill, a full disk, a broken disk.

An audit hook hears of what Python does to files below a folder, before it is done. Copies of the
folder at these moments are what kills leave: one run of a command gives all of them. Errors are
raised at a chosen write. Commands run in forks of one process that has imported everything.
"""

import contextlib
import errno
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import warnings
from pathlib import Path

ROOT = Path(__file__).parents[2]
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate")
_strike = None  # Called with words for each write, once `watching`.
_root = ""
_busy = threading.local()


def change(event, arguments):
    """What an audit event does to a file below the folder, in words; None if nothing."""
    if event == "open":
        path, _, flags = arguments
        changes = isinstance(flags, int) and flags & WRITES
    else:
        path, changes = arguments[0] if arguments else None, event in CHANGES
    if not changes or not isinstance(path, (str, bytes, os.PathLike)):
        return None
    # With shutil's functions: a name within an open folder.
    fd = -1 if event in ("open", "os.truncate") else arguments[-1]
    where = os.readlink(f"/proc/self/fd/{fd}") if fd >= 0 else os.getcwd()
    path = os.path.normpath(os.path.join(where, os.fsdecode(path)))
    # Folders are made and temporary files removed in any case; where that does nothing it is none.
    vain = event in ("os.mkdir", "os.remove") and (event == "os.mkdir") == os.path.lexists(path)
    return None if vain or not path.startswith(_root + os.sep) else f"{event} {path}"


def hook(event, arguments):
    """Stays for the life of the process: audit hooks cannot be removed."""
    if _strike is None or (event != "open" and not event.startswith("os.")):
        return
    if getattr(_busy, "striking", False):  # What the strike itself does.
        return
    _busy.striking = True
    try:
        what = change(event, arguments)
        if what is not None:
            _strike(what)
    finally:
        _busy.striking = False


@contextlib.contextmanager
def watching(root, strike):
    """`strike(what)` is called before each write below `root`."""
    global _strike, _root
    if not hasattr(sys, "_fmjax_faults"):
        sys.addaudithook(hook)
        sys._fmjax_faults = True
    _root, _strike = str(root), strike
    try:
        yield
    finally:
        _strike = None


def copying(root, to):
    """A strike that copies the folder: what a kill at this moment leaves."""
    count, seen, one_thread = 0, set(), threading.Lock()

    def strike(_):
        with one_thread:
            keep_copy()

    def keep_copy():
        nonlocal count
        copy = Path(to) / f"{count:03d}"
        with contextlib.suppress(shutil.Error, OSError):  # Threads of TensorStore write, too.
            shutil.copytree(root, copy, symlinks=True)
        state = looks(copy)
        count += state not in seen
        if state in seen:
            shutil.rmtree(copy)
        seen.add(state)

    return strike


def looks(folder):
    """Names and contents, without what is random in names: equal states are tried once."""
    return frozenset(
        (
            re.sub(r"[0-9a-f]{12}\.fmjax", "", str(path.relative_to(folder))),
            path.read_bytes() if path.is_file() else None,
        )
        for path in folder.rglob("*")
    )


def failing(at, code):
    """A strike that fails with this error at one write."""
    count = 0

    def strike(what):
        nonlocal count
        count += 1
        if count == at:
            raise OSError(code, os.strerror(code), what.partition(" ")[2])

    return strike


class Faults:
    """The process that forks. A context manager."""

    def __enter__(self):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.process"],
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ
            | {
                "PYTHONPATH": str(ROOT),
                "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1"),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            },
        )
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()

    def run(self, *arguments, root, copies=None, fault=None, at=0):
        """Run a command; `Outcome`.

        Args:
            arguments: Of `fmjax`.
            root: The folder whose writes count. It is the current one of the command.
            copies: A folder for copies of `root`, before each write.
            fault: The name of an error, such as "ENOSPC".
            at: Which write fails with it, from 1.
        """
        work = {
            "arguments": [*map(str, arguments)],
            "root": str(root),
            "fault": fault,
            "at": at,
            "copies": None if copies is None else str(copies),
        }
        print(json.dumps(work), file=self._process.stdin, flush=True)
        return Outcome(**json.loads(self._process.stdout.readline()))


class Outcome:
    """What became of a command: exit code, texts, and what it was about to write."""

    def __init__(self, code, out, err, writes):
        self.code, self.out, self.err, self.writes = code, out, err, writes

    def __repr__(self):
        return f"{vars(self)}"


def run_here(work, files):
    """In the fork: the command."""
    from fmjax import cli

    os.dup2(files[0].fileno(), 1)
    os.dup2(files[1].fileno(), 2)
    os.chdir(work["root"])
    log, inner = files[2].fileno(), lambda what: None
    if work["copies"]:
        inner = copying(work["root"], work["copies"])
    elif work["fault"]:
        inner = failing(work["at"], getattr(errno, work["fault"]))

    def strike(what):
        os.write(log, (what + "\n").encode())
        inner(what)

    code, arguments = 1, work["arguments"]
    if arguments[0].endswith("-only"):
        arguments = without_results(arguments)
    try:
        with watching(work["root"], strike):
            cli.main(arguments)
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:  # noqa: BLE001 - as Python prints it
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def without_results(arguments):
    """A command without the results after training and without the page: they take most time."""
    from fmjax.jobs.report import report, results

    results.make_results = lambda run, progress: None
    report.report_run = lambda run, progress: None
    return [arguments[0].removesuffix("-only"), *arguments[1:]]


def serve():
    """Fork for each line of the input."""
    import jax  # noqa: F401
    import matplotlib.pyplot  # noqa: F401

    import fmjax.cli.commands
    import fmjax.jobs.released.compare_prompt
    import fmjax.jobs.released.generate
    import fmjax.jobs.report.report
    import fmjax.jobs.study.study
    import fmjax.jobs.train.train  # noqa: F401

    warnings.filterwarnings("ignore", message=".*os.fork.*")
    for line in sys.stdin:
        work = json.loads(line)
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(3)]
            child = os.fork()
            if child == 0:
                run_here(work, files)
            _, status = os.waitpid(child, 0)
            texts = []
            for file in files:
                file.seek(0)
                texts.append(file.read().decode(errors="replace"))
        out, err, writes = texts
        code = os.waitstatus_to_exitcode(status)
        reply = {"code": code, "out": out, "err": err, "writes": writes.splitlines()}
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
