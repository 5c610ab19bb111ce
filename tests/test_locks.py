"""Tests of the locks that allow one writer of a folder or file, with real processes."""

import errno
import os
import re
import signal
import socket
import subprocess
import sys
import threading

import pytest

from fmjax import _locks
from fmjax._files import write_atomically
from fmjax._locks import Locked, lock_file, lock_folder, require_unlocked, temporary_name
from tests.holder import ROOT, holder


def lock_error(target, lock=lock_folder):
    """Try to lock `target`; return the error message, or None if it succeeds."""
    try:
        with lock(target, "run folder"):
            return None
    except Locked as error:
        return str(error)


def test_second_writer_is_rejected_and_told_process_and_host(tmp_path):
    run = tmp_path / "run"
    with holder(run) as process:
        owner = f"process {process.pid} on host {socket.gethostname()}"
        rule = "must have one writer at a time"
        assert lock_error(run) == f"run folder {run} {rule}, got {owner}, which is writing to it"
        process.communicate()
    assert lock_error(run) is None


def test_killed_process_releases_its_lock(tmp_path):
    with holder(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert list(tmp_path.iterdir()), "the lock file must still exist"
        assert lock_error(tmp_path) is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "body",
    [
        "subprocess.Popen(['sleep', '30'])",
        "os.fork() or (os.close(1), __import__('time').sleep(30))",
    ],
    ids=["program", "fork"],
)
def test_child_of_a_killed_process_does_not_keep_the_lock(tmp_path, body):
    with holder(tmp_path, body=body, setup="os.setsid()") as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        try:
            assert lock_error(tmp_path) is None
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_lock_covers_all_names_of_a_folder(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "runs")
    with holder(tmp_path / "runs" / "a"):
        assert "got process" in lock_error(tmp_path / "link" / "a")
        monkeypatch.chdir(tmp_path / "runs")
        assert "got process" in lock_error(_locks.Path("a"))
        assert "got process" in lock_error(_locks.Path("../runs/a"))


def test_files_of_one_folder_have_separate_locks(tmp_path):
    long = "x" * 240
    with holder(tmp_path / f"{long}.npz", lock="lock_file"):
        assert "got process" in lock_error(tmp_path / f"{long}.npz", lock_file)
        assert lock_error(tmp_path / f"{long}.png", lock_file) is None
        assert lock_error(tmp_path, lock_folder) is None
        with pytest.raises(Locked, match=f"folder {tmp_path} must have one writer at a time"):
            require_unlocked(tmp_path)


def test_locks_nest_in_one_thread_and_exclude_other_threads(tmp_path):
    errors = []
    with lock_folder(tmp_path):
        with lock_folder(tmp_path):
            pass
        thread = threading.Thread(target=lambda: errors.append(lock_error(tmp_path)))
        thread.start()
        thread.join()
    assert re.search(f"got another thread of process {os.getpid()} on host", errors[0])
    assert lock_error(tmp_path) is None


def test_waiting_reports_the_owner_once(tmp_path):
    messages = []
    with holder(tmp_path) as process:

        def on_wait(line):
            messages.append(line)
            threading.Timer(0.3, process.kill).start()

        with lock_folder(tmp_path, "run folder", on_wait=on_wait):
            pass
    owner = f"process {process.pid} on host {socket.gethostname()}"
    assert messages == [f"waiting for {owner}, which is writing to folder {tmp_path}"]


def test_folders_created_by_a_lock_are_removed_if_empty(tmp_path):
    with lock_folder(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert not list(tmp_path.iterdir())
    with lock_folder(tmp_path / "a" / "b"):
        (tmp_path / "a" / "file").touch()
    assert [entry.name for entry in tmp_path.rglob("*")] == ["a", "file"]


def test_concurrent_processes_never_hold_a_lock_at_the_same_time(tmp_path):
    """Each release removes the lock file; locks on removed files must not count."""
    program = f"""
from pathlib import Path
from fmjax import _locks
from fmjax._locks import lock_folder
_locks._LOOK_EVERY = 0
folder = Path({str(tmp_path)!r})
for i in range(60):
    with lock_folder(folder / "run", on_wait=lambda _: None):
        marker = folder / "marker"
        marker.touch(exist_ok=False)
        marker.unlink()
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert errors == [b""] * 3
    assert not [entry for entry in tmp_path.rglob("*") if entry.is_file()]


def test_symbolic_link_in_place_of_the_lock_is_not_overwritten(tmp_path):
    (tmp_path / "target").write_text("text")
    (tmp_path / ".fmjax.lock").symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="symbolic links"), lock_folder(tmp_path):
        pass
    assert (tmp_path / "target").read_text() == "text"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_file_system_without_locks_causes_one_warning(tmp_path, monkeypatch, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(_locks.fcntl, "flock", flock)
    monkeypatch.setattr(_locks, "_warned", set())

    def write():
        with lock_folder(tmp_path), write_atomically(tmp_path / "file") as temporary:
            temporary.write_text("complete")

    with pytest.warns(UserWarning, match=f"^folder {tmp_path} is on a file system without locks"):
        write()
    write()
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_files_of_killed_writers_are_removed_by_the_next_writer(tmp_path):
    local, old = temporary_name(tmp_path / "a.npz"), tmp_path / ".b-000012345678.fmjax.png"
    kept = [tmp_path / name for name in (".c-ffff12345678.fmjax.png", ".d-12345678.npz", ".e")]
    if kept[0].name[3:7] == _locks._machine():
        kept[0] = old
    for file in (local, old, *kept):
        file.touch()
    os.utime(old, (0, 0))
    with write_atomically(tmp_path / "file") as temporary:
        temporary.write_text("")
    assert sorted(tmp_path.iterdir()) == sorted([*kept, tmp_path / "file"])


def test_files_of_a_running_writer_are_kept(tmp_path):
    body = (
        "from fmjax._files import write_atomically; "
        "writing = write_atomically(Path(sys.argv[2])); writing.__enter__().touch()"
    )
    target = tmp_path / "a.npz"
    program = f"import sys\nfrom pathlib import Path\n{body}\nprint('held', flush=True)\n"
    program += "sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program, "", str(target)],
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout.readline() == "held\n"
        (temporary_file,) = tmp_path.iterdir()
        for name in ("b.npz", "c.npz"):
            with write_atomically(tmp_path / name) as temporary:
                temporary.touch()
        assert temporary_file.exists()
        process.kill()
        process.wait()
    with write_atomically(tmp_path / "d.npz") as temporary:
        temporary.touch()
    assert not temporary_file.exists()
