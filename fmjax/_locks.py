"""Locks between processes: one writer of a folder or file at a time.

A lock is `flock` on a small hidden file, which names its holder. The system releases it when the
process ends, however it ends. `flock` belongs to an open file, not to a process as `lockf` does:
it excludes threads of one process too, and reading the holder's name does not release it. On NFS
Linux turns it into a lock that other machines see, if the file is open for writing, as here.
"""

import errno
import hashlib
import os
import re
import secrets
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from fmjax._stopping import at_stop

try:
    import fcntl
except ImportError:  # Windows.
    fcntl = None

_ENDING = ".fmjax.lock"
_LOOK_EVERY = 0.05
_TRIES = 4  # Another process may have taken it for a moment, to see whether it is free.
_MOST_ATTEMPTS = 1000  # To make a folder; in vain if a link on the way leads to nothing.
_BUSY = (errno.EAGAIN, errno.EACCES)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
_LONGEST_STEM = 100  # Characters of a file's name that the names of hidden files repeat.


class Locked(ValueError):
    """Another process, or another thread of this one, holds the lock."""


class _Held:
    """A lock of this process.

    Attributes:
        fd: Of the open lock file.
        thread: Which holds the lock, and may take it again.
        count: How often it has taken it.
    """

    def __init__(self, fd: int) -> None:
        self.fd, self.thread, self.count = fd, threading.get_ident(), 1


_held: dict[str, _Held] = {}
_guard = threading.Lock()
_warned: set[int] = set()


@contextmanager
def lock_folder(
    folder: Path, name: str = "folder", *, on_wait: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Hold the lock of all that a folder holds, except files with locks of their own.

    Missing folders are made. If they are empty at the end, they are removed again.

    Args:
        folder: The folder.
        name: What it is, in the error: "run folder".
        on_wait: Wait until the lock is free, and call this once with a line that names its holder.

    Raises:
        Locked: If another process holds the lock, and `on_wait` is None.
        OSError: If no file can be made in the folder.
    """
    made = _missing(folder)
    with _removed_if_empty(made), _lock(folder / _ENDING, f"{name} {folder}", on_wait):
        yield


@contextmanager
def lock_file(
    path: Path, name: str = "file", *, on_wait: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Hold the lock of one file that is to be written; as `lock_folder`."""
    made = _missing(path.parent)
    stem = path.name
    if len(stem) > _LONGEST_STEM:
        digest = hashlib.sha256(os.fsencode(stem)).hexdigest()
        stem = f"{stem[: _LONGEST_STEM // 4]}-{digest}"
    lock = path.parent / f".{stem}{_ENDING}"
    with _removed_if_empty(made), _lock(lock, f"{name} {path}", on_wait):
        yield


@contextmanager
def _removed_if_empty(folders: list[Path]) -> Iterator[None]:
    """At the end of the block, or of the process by a signal."""

    def remove() -> None:
        for folder in folders:
            with suppress(OSError):  # It holds something.
                folder.rmdir()

    try:
        with at_stop(remove):
            yield
    finally:
        remove()


def require_unlocked(folder: Path) -> None:
    """Raise unless nothing in a folder is locked, except by this thread.

    Raises:
        Locked: If a process is writing to the folder or to something in it.
    """
    for path in sorted(folder.rglob(f"*{_ENDING}")):
        with _lock(path, f"folder {folder}", None):
            pass


def is_lock(path: Path) -> bool:
    """Whether a file is one that locks are on."""
    return path.name.endswith(_ENDING)


def is_left(path: Path) -> bool:
    """Whether a file is a lock or a temporary file, which a killed process may have left."""
    return is_lock(path) or _TEMPORARY.fullmatch(path.name) is not None


def _missing(folder: Path) -> list[Path]:
    """The folders that are missing and will be made, the innermost first."""
    missing = []
    for each in (folder, *folder.parents):
        if each.exists():
            break
        missing.append(each)
    return missing


@contextmanager
def _lock(
    path: Path, what: str, on_wait: Callable[[str], None] | None, tries: int = _TRIES
) -> Iterator[None]:
    key, told = os.path.realpath(path), False
    while (holder := _take(path, key)) is not None:
        tries -= 1
        if on_wait is None and tries <= 0:
            rule = "have one writer at a time"
            raise Locked(f"{what} must {rule}, got {holder}, which is writing to it")
        if on_wait is not None and not told:
            on_wait(f"waiting for {holder}, which is writing to {what.partition(' ')[2]}")
            told = True
        time.sleep(_LOOK_EVERY)
    try:
        with at_stop(partial(path.unlink, missing_ok=True)):
            yield
    finally:
        _release(path, key)


def _take(path: Path, key: str) -> str | None:
    """Take the lock, or give its holder in words."""
    with _guard:
        held = _held.get(key)
        if held is not None and held.thread == threading.get_ident():
            held.count += 1
            return None
    if held is not None:
        return f"another thread of process {os.getpid()} on host {socket.gethostname()}"
    attempts = 0
    while True:
        try:
            fd, writable = _open(path)
        except FileNotFoundError:
            attempts += 1
            if attempts == _MOST_ATTEMPTS:
                raise
            # Another process may make or remove the folder at the same time.
            with suppress(FileExistsError, FileNotFoundError):
                path.parent.mkdir(parents=True, exist_ok=True)
            continue
        try:
            busy = not _flock(fd, path.parent)
            holder = _read_holder(fd) if busy else None
            current = not busy and _is_at(fd, path)
            if not busy and current and writable:
                _write_holder(fd)
                with _guard:
                    _held[key] = _Held(fd)
                return None
            if not busy and current:  # Left by a process of another user, which was killed.
                path.unlink()
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        if busy:
            return holder
        # Its holder removed the file before it released the lock: there is another one, or none.


def _open(path: Path) -> tuple[int, bool]:
    """A descriptor of the lock file, not passed to child programs, and whether it can be written.

    A link is not followed: the holder's name would be written over what it leads to.
    """
    flags = getattr(os, "O_NOFOLLOW", 0)
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o666), True
    except PermissionError:
        if not path.exists():
            raise
        return os.open(path, os.O_RDONLY | flags), False


def _flock(fd: int, folder: Path) -> bool:
    """Take the lock of an open file; False if it is held. Without locks there is a warning."""
    try:
        if fcntl is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _BUSY:
            return False
        if error.errno not in _NO_LOCKS:
            raise
        device = os.fstat(fd).st_dev
        if device not in _warned:
            _warned.add(device)
            text = "is on a file system without locks: run one writer at a time"
            warnings.warn(f"folder {folder} {text}", stacklevel=1)
    return True


def _is_at(fd: int, path: Path) -> bool:
    """Whether an open file is the one that has this name now."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _write_holder(fd: int) -> None:
    with suppress(OSError):  # A full disk: the lock holds without a name.
        os.ftruncate(fd, 0)
        os.write(fd, f"process {os.getpid()} on host {socket.gethostname()}".encode())


def _read_holder(fd: int) -> str:
    """What the holder has written; it may be about to."""
    for _ in range(5):
        with suppress(OSError):
            os.lseek(fd, 0, os.SEEK_SET)
            text = os.read(fd, 200).decode(errors="replace").split("\n")[0]
            if text and text.isprintable():
                return text
        time.sleep(0.02)
    return "another process"


def _release(path: Path, key: str) -> None:
    with _guard:
        held = _held[key]
        held.count -= 1
        if held.count:
            return
        del _held[key]
    with suppress(OSError):
        if _is_at(held.fd, path):
            path.unlink()
    os.close(held.fd)


def _forget() -> None:
    """In a forked child: its copies of the descriptors would keep the locks of a dead parent."""
    global _guard
    _guard = threading.Lock()
    for fd in (*(held.fd for held in _held.values()), *_shared):
        with suppress(OSError):
            os.close(fd)
    _held.clear()
    _shared.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


# Temporary files. While one exists, its writer holds a shared lock of its folder; whoever gets the
# exclusive lock finds only files that were left by processes which are gone.

_shared: set[int] = set()
_MARK = ".fmjax"
_TEMPORARY = re.compile(r"\..*-([0-9a-f]{4})[0-9a-f]{8}\.fmjax(\.[^.]*)?", re.DOTALL)
_OLD = 24 * 3600.0  # Seconds after which a temporary file of another machine counts as left.


def temporary_name(path: Path) -> Path:
    """A hidden name in the folder of `path`, with its suffix, that no other process chooses."""
    name = f".{path.stem[: _LONGEST_STEM // 2]}-{_machine()}{secrets.token_hex(4)}{_MARK}"
    return path.with_name(name + path.suffix)


@contextmanager
def writing_in(folder: Path) -> Iterator[None]:
    """Hold the shared lock of a folder, in which a temporary file is written.

    First those are removed that killed processes have left, and their locks. Where folders cannot
    be locked, none are.
    """
    fd = None
    with suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
    if fd is None or fcntl is None:  # Windows opens no folders.
        yield
        return
    _shared.add(fd)
    try:
        with suppress(OSError):
            _remove_leftovers(fd, folder)
        _share(fd)
        yield
    finally:
        _shared.discard(fd)
        os.close(fd)


def _share(fd: int) -> None:
    """Take the shared lock. Who holds the exclusive one for long is another program: go on."""
    assert fcntl is not None
    for _ in range(20):
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _BUSY:
                return
            time.sleep(0.02)
        else:
            return


def _remove_leftovers(fd: int, folder: Path) -> None:
    """Remove the temporary files of a folder, if no process is writing one there.

    NFS locks folders on one machine only. There files of others are left alone for a day.
    """
    assert fcntl is not None
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    machine = _machine()
    for entry in os.scandir(folder):
        if entry.name.endswith(_ENDING):
            with suppress(Locked, OSError), _lock(Path(entry.path), "", None, tries=1):
                pass  # The file goes with the lock.
        found = _TEMPORARY.fullmatch(entry.name)
        if found and (found[1] == machine or time.time() - entry.stat().st_mtime > _OLD):
            with suppress(OSError):
                os.unlink(entry.path)


def _machine() -> str:
    """Four digits that tell machines apart, since they were started."""
    try:
        about = Path("/proc/sys/kernel/random/boot_id").read_bytes()
    except OSError:
        about = socket.gethostname().encode()
    return hashlib.sha256(about).hexdigest()[:4]
