"""Inject faults into the writes of a command: a kill, a full disk or a broken disk.

An audit hook observes each change that Python makes to files below a folder, before the change
happens. Copies of the folder at these times are the states that a kill could leave, so one run of a
command yields all of them. Errors are raised at a selected write. Commands run in forks of one
process that has already imported everything.
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
WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
WRITE_EVENTS = (
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
)
_on_write = None  # Called with a description of each write while `observe_writes` is active.
_root = ""
_thread_state = threading.local()


def describe_write(event, arguments):
    """Describe the write that an audit event announces; None if it writes nothing below `_root`."""
    if event == "open":
        file, _, flags = arguments
        writes = isinstance(flags, int) and flags & WRITE_FLAGS
    else:
        file, writes = arguments[0] if arguments else None, event in WRITE_EVENTS
    if not writes or not isinstance(file, (str, bytes, os.PathLike)):
        return None
    # Functions of shutil pass names relative to an open folder.
    folder_fd = -1 if event in ("open", "os.truncate") else arguments[-1]
    folder = os.readlink(f"/proc/self/fd/{folder_fd}") if folder_fd >= 0 else os.getcwd()
    file = os.path.normpath(os.path.join(folder, os.fsdecode(file)))
    # Making an existing folder or removing a missing file changes nothing.
    exists = os.path.lexists(file)
    has_no_effect = (event == "os.mkdir" and exists) or (event == "os.remove" and not exists)
    if has_no_effect or not file.startswith(_root + os.sep):
        return None
    return f"{event} {file}"


def audit_hook(event, arguments):
    """Call `_on_write` before each write. Audit hooks cannot be removed from a process."""
    if _on_write is None or (event != "open" and not event.startswith("os.")):
        return
    if getattr(_thread_state, "in_hook", False):  # Ignore what `_on_write` does itself.
        return
    _thread_state.in_hook = True
    try:
        description = describe_write(event, arguments)
        if description is not None:
            _on_write(description)
    finally:
        _thread_state.in_hook = False


@contextlib.contextmanager
def observe_writes(root, on_write):
    """Call `on_write(description)` before each write below `root`."""
    global _on_write, _root
    if not hasattr(sys, "_fmjax_faults"):
        sys.addaudithook(audit_hook)
        sys._fmjax_faults = True
    _root, _on_write = str(root), on_write
    try:
        yield
    finally:
        _on_write = None


def copy_before_writes(root, to):
    """Return a callback that copies the folder, which is the state after a kill."""
    count, seen, lock = 0, set(), threading.Lock()

    def on_write(_):
        with lock:
            keep_copy()

    def keep_copy():
        nonlocal count
        copy = Path(to) / f"{count:03d}"
        # Threads of TensorStore may change files during the copy.
        with contextlib.suppress(shutil.Error, OSError):
            shutil.copytree(root, copy, symlinks=True)
        state = folder_state(copy)
        count += state not in seen
        if state in seen:
            shutil.rmtree(copy)
        seen.add(state)

    return on_write


def folder_state(folder):
    """Names and contents of all files, without random parts of names, to find equal states."""
    return frozenset(
        (
            re.sub(r"[0-9a-f]{12}\.fmjax", "", str(file.relative_to(folder))),
            file.read_bytes() if file.is_file() else None,
        )
        for file in folder.rglob("*")
    )


def fail_at_write(number, code):
    """Return a callback that raises `OSError` with this code at write `number`, from 1."""
    count = 0

    def on_write(description):
        nonlocal count
        count += 1
        if count == number:
            raise OSError(code, os.strerror(code), description.partition(" ")[2])

    return on_write


class Faults:
    """Context manager for the process that runs commands in forks."""

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
        """Run a command and return its `Outcome`.

        Args:
            arguments: Arguments of `fmjax`.
            root: The working directory; writes below it are observed.
            copies: Folder for copies of `root` before each write.
            fault: Name of an error code, such as "ENOSPC".
            at: Number of the write that fails with `fault`, from 1.
        """
        request = {
            "arguments": [*map(str, arguments)],
            "root": str(root),
            "fault": fault,
            "at": at,
            "copies": None if copies is None else str(copies),
        }
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return Outcome(**json.loads(self._process.stdout.readline()))


class Outcome:
    """Exit code, stdout, stderr and writes of a command."""

    def __init__(self, code, out, err, writes):
        self.code, self.out, self.err, self.writes = code, out, err, writes

    def __repr__(self):
        return f"{vars(self)}"


def run_in_fork(request, files):
    """Run a command in the fork; write stdout, stderr and the log of writes to `files`."""
    from fmjax import cli

    os.dup2(files[0].fileno(), 1)
    os.dup2(files[1].fileno(), 2)
    os.chdir(request["root"])
    log, inject_fault = files[2].fileno(), lambda description: None
    if request["copies"]:
        inject_fault = copy_before_writes(request["root"], request["copies"])
    elif request["fault"]:
        inject_fault = fail_at_write(request["at"], getattr(errno, request["fault"]))

    def on_write(description):
        os.write(log, (description + "\n").encode())
        inject_fault(description)

    code, arguments = 1, request["arguments"]
    if arguments[0].endswith("-only"):
        arguments = without_results(arguments)
    try:
        with observe_writes(request["root"], on_write):
            cli.main(arguments)
    except SystemExit as error:
        code = error.code or 0
    except BaseException:  # noqa: BLE001 (any exception is printed, as Python does)
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def without_results(arguments):
    """Disable the slow results after training and the report; return the arguments of `fmjax`."""
    from fmjax.jobs.report import report, results

    results.make_results = lambda run, progress: None
    report.report_run = lambda run, progress: None
    return [arguments[0].removesuffix("-only"), *arguments[1:]]


def serve():
    """Run the command of each line of stdin in a fork, and write its outcome to stdout."""
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
        request = json.loads(line)
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(3)]
            child = os.fork()
            if child == 0:
                run_in_fork(request, files)
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
