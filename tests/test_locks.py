"""One writer of a folder or file at a time: between processes that are real."""

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


def refusal(path, lock=lock_folder):
    """The words in which the lock of `path` is refused; None if it is free."""
    try:
        with lock(path, "run folder"):
            return None
    except Locked as error:
        return str(error)


def test_a_second_writer_is_refused_and_told_process_and_host(tmp_path):
    run = tmp_path / "run"
    with holder(run) as process:
        who = f"process {process.pid} on host {socket.gethostname()}"
        rule = "must have one writer at a time"
        assert refusal(run) == f"run folder {run} {rule}, got {who}, which is writing to it"
        process.communicate()
    assert refusal(run) is None


def test_a_killed_process_leaves_no_lock(tmp_path):
    with holder(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert list(tmp_path.iterdir()), "the file is left, but not the lock"
        assert refusal(tmp_path) is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "within",
    [
        "subprocess.Popen(['sleep', '30'])",
        "os.fork() or (os.close(1), __import__('time').sleep(30))",
    ],
    ids=["program", "fork"],
)
def test_a_child_of_a_killed_process_does_not_keep_its_lock(tmp_path, within):
    with holder(tmp_path, within=within, before="os.setsid()") as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        try:
            assert refusal(tmp_path) is None
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_a_folder_is_one_by_all_its_names(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "runs")
    with holder(tmp_path / "runs" / "a"):
        assert "got process" in refusal(tmp_path / "link" / "a")
        monkeypatch.chdir(tmp_path / "runs")
        assert "got process" in refusal(_locks.Path("a"))
        assert "got process" in refusal(_locks.Path("../runs/a"))


def test_files_of_one_folder_have_locks_of_their_own(tmp_path):
    long = "x" * 240
    with holder(tmp_path / f"{long}.npz", lock="lock_file"):
        assert "got process" in refusal(tmp_path / f"{long}.npz", lock_file)
        assert refusal(tmp_path / f"{long}.png", lock_file) is None
        assert refusal(tmp_path, lock_folder) is None
        with pytest.raises(Locked, match=f"folder {tmp_path} must have one writer at a time"):
            require_unlocked(tmp_path)


def test_one_thread_may_nest_a_lock_and_another_is_refused(tmp_path):
    words = []
    with lock_folder(tmp_path):
        with lock_folder(tmp_path):
            pass
        thread = threading.Thread(target=lambda: words.append(refusal(tmp_path)))
        thread.start()
        thread.join()
    assert re.search(f"got another thread of process {os.getpid()} on host", words[0])
    assert refusal(tmp_path) is None


def test_whoever_waits_is_told_once_for_whom(tmp_path):
    said = []
    with holder(tmp_path) as process:

        def end(line):
            said.append(line)
            threading.Timer(0.3, process.kill).start()

        with lock_folder(tmp_path, "run folder", on_wait=end):
            pass
    who = f"process {process.pid} on host {socket.gethostname()}"
    assert said == [f"waiting for {who}, which is writing to folder {tmp_path}"]


def test_folders_that_a_lock_made_are_removed_if_nothing_is_in_them(tmp_path):
    with lock_folder(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert not list(tmp_path.iterdir())
    with lock_folder(tmp_path / "a" / "b"):
        (tmp_path / "a" / "file").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "file"]


def test_many_processes_that_come_and_go_never_hold_a_lock_together(tmp_path):
    """The file is removed at each release: a lock on a removed one must not count."""
    program = f"""
from pathlib import Path
from fmjax import _locks
from fmjax._locks import lock_folder
_locks._LOOK_EVERY = 0
folder = Path({str(tmp_path)!r})
for number in range(60):
    with lock_folder(folder / "run", on_wait=lambda _: None):
        mark = folder / "mark"
        mark.touch(exist_ok=False)
        mark.unlink()
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert errors == [b""] * 3
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_link_in_the_place_of_the_lock_is_not_written_over(tmp_path):
    (tmp_path / "precious").write_text("text")
    (tmp_path / ".fmjax.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic links"), lock_folder(tmp_path):
        pass
    assert (tmp_path / "precious").read_text() == "text"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_without_locks_there_is_one_warning_and_the_work_is_done(tmp_path, monkeypatch, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(_locks.fcntl, "flock", flock)
    monkeypatch.setattr(_locks, "_warned", set())

    def write():
        with lock_folder(tmp_path), write_atomically(tmp_path / "file") as temporary:
            temporary.write_text("whole")

    with pytest.warns(UserWarning, match=f"^folder {tmp_path} is on a file system without locks"):
        write()
    write()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_killed_writers_left_is_removed_by_the_next(tmp_path):
    ours, old = temporary_name(tmp_path / "a.npz"), tmp_path / ".b-000012345678.fmjax.png"
    others = [tmp_path / name for name in (".c-ffff12345678.fmjax.png", ".d-12345678.npz", ".e")]
    if others[0].name[3:7] == _locks._machine():
        others[0] = old
    for path in (ours, old, *others):
        path.touch()
    os.utime(old, (0, 0))
    with write_atomically(tmp_path / "file") as temporary:
        temporary.write_text("")
    assert sorted(tmp_path.iterdir()) == sorted([*others, tmp_path / "file"])


def test_what_a_living_process_writes_is_not_removed(tmp_path):
    within = (
        "from fmjax._files import write_atomically; "
        "writing = write_atomically(Path(sys.argv[2])); writing.__enter__().touch()"
    )
    target = tmp_path / "a.npz"
    program = f"import sys\nfrom pathlib import Path\n{within}\nprint('held', flush=True)\n"
    program += "sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program, "", str(target)],
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout.readline() == "held\n"
        (left,) = tmp_path.iterdir()
        for name in ("b.npz", "c.npz"):
            with write_atomically(tmp_path / name) as temporary:
                temporary.touch()
        assert left.exists()
        process.kill()
        process.wait()
    with write_atomically(tmp_path / "d.npz") as temporary:
        temporary.touch()
    assert not left.exists()
