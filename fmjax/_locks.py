"""Locks between processes: one writer of a folder or file at a time.

A lock is `flock` on a small hidden file that contains the name of its holder. The system releases
it whenever the process ends. Unlike `lockf`, `flock` belongs to an open file, not to a process: it
also excludes threads of one process, and reading the holder's name does not release it. On NFS,
Linux converts it to a lock visible to other machines if the file is open for writing.
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

from fmjax._signals import at_stop

try:
    import fcntl
except ImportError:  # Windows.
    fcntl = None

_SUFFIX = ".fmjax.lock"
_LOOK_EVERY = 0.05  # Seconds between attempts to take a lock.
_TRIES = 4  # Another process may hold the lock briefly, to check whether it is free.
_MAX_ATTEMPTS = 1000  # Attempts to create a folder, which always fail below a broken link.
_BUSY = (errno.EAGAIN, errno.EACCES)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
_MAX_STEM = 100  # Characters of a file's name that the names of hidden files repeat.


class Locked(ValueError):
    """Raised when another process, or another thread of this process, holds a lock."""


class _Held:
    """A lock held by this process.

    Attributes:
        fd: File descriptor of the open lock file.
        thread: Identifier of the thread that holds the lock; only it may acquire it again.
        count: Number of times that the thread has acquired the lock.
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
    """Hold the lock of a folder and its contents, except files that are locked separately.

    Missing folders are created, and removed at the end if they are empty.

    Args:
        folder: The folder.
        name: Description of the folder for error messages, such as "run folder".
        on_wait: Called once with a message that names the holder, before waiting for the lock;
            None raises instead of waiting.

    Raises:
        Locked: If another process holds the lock, and `on_wait` is None.
        OSError: If no file can be created in the folder.
    """
    created = _missing_folders(folder)
    with _removed_if_empty(created), _lock(folder / _SUFFIX, f"{name} {folder}", on_wait):
        yield


@contextmanager
def lock_file(
    file: Path, name: str = "file", *, on_wait: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Hold the lock of one output file; the arguments and errors are those of `lock_folder`."""
    created = _missing_folders(file.parent)
    stem = file.name
    if len(stem) > _MAX_STEM:
        digest = hashlib.sha256(os.fsencode(stem)).hexdigest()
        stem = f"{stem[: _MAX_STEM // 4]}-{digest}"
    lock = file.parent / f".{stem}{_SUFFIX}"
    with _removed_if_empty(created), _lock(lock, f"{name} {file}", on_wait):
        yield


@contextmanager
def _removed_if_empty(folders: list[Path]) -> Iterator[None]:
    """Remove empty folders when the block ends or a signal ends the process."""

    def remove() -> None:
        for folder in folders:
            with suppress(OSError):  # The folder is not empty.
                folder.rmdir()

    try:
        with at_stop(remove):
            yield
    finally:
        remove()


def require_unlocked(folder: Path) -> None:
    """Raise if another process or thread holds a lock in a folder.

    Raises:
        Locked: If a process is writing to the folder or to something in it.
    """
    for file in sorted(folder.rglob(f"*{_SUFFIX}")):
        with _lock(file, f"folder {folder}", None):
            pass


def is_lock(file: Path) -> bool:
    """Return whether a file is a lock file."""
    return file.name.endswith(_SUFFIX)


def is_leftover(file: Path) -> bool:
    """Return whether a file is a lock or temporary file, which killed processes leave behind."""
    return is_lock(file) or _TEMPORARY.fullmatch(file.name) is not None


def _missing_folders(folder: Path) -> list[Path]:
    """Return the folder and its parents that do not exist, innermost first."""
    missing = []
    for parent in (folder, *folder.parents):
        if parent.exists():
            break
        missing.append(parent)
    return missing


@contextmanager
def _lock(
    lock: Path, what: str, on_wait: Callable[[str], None] | None, tries: int = _TRIES
) -> Iterator[None]:
    """Hold the lock file `lock`; `what` names the locked file or folder in messages."""
    key, has_reported = os.path.realpath(lock), False
    while (holder := _acquire(lock, key)) is not None:
        tries -= 1
        if on_wait is None and tries <= 0:
            rule = "have one writer at a time"
            raise Locked(f"{what} must {rule}, got {holder}, which is writing to it")
        if on_wait is not None and not has_reported:
            on_wait(f"waiting for {holder}, which is writing to {what.partition(' ')[2]}")
            has_reported = True
        time.sleep(_LOOK_EVERY)
    try:
        with at_stop(partial(lock.unlink, missing_ok=True)):
            yield
    finally:
        _release(lock, key)


def _acquire(lock: Path, key: str) -> str | None:
    """Try to acquire a lock. Return None, or a description of its holder if it is taken."""
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
            fd, writable = _open(lock)
        except FileNotFoundError:
            attempts += 1
            if attempts == _MAX_ATTEMPTS:
                raise
            # Another process may create or remove the folder at the same time.
            with suppress(FileExistsError, FileNotFoundError):
                lock.parent.mkdir(parents=True, exist_ok=True)
            continue
        try:
            is_locked = not _flock(fd, lock.parent)
            holder = _read_holder(fd) if is_locked else None
            is_current = not is_locked and _is_at(fd, lock)
            if is_current and writable:
                _write_holder(fd)
                with _guard:
                    _held[key] = _Held(fd)
                return None
            if is_current:  # A killed process of another user left the file.
                lock.unlink()
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        if is_locked:
            return holder
        # The previous holder removed this file before it released the lock: try again.


def _open(lock: Path) -> tuple[int, bool]:
    """Open a lock file; return its descriptor and whether it is writable.

    Links are not followed, because writing the holder's name would overwrite their target.
    """
    flags = getattr(os, "O_NOFOLLOW", 0)
    try:
        return os.open(lock, os.O_RDWR | os.O_CREAT | flags, 0o666), True
    except PermissionError:
        if not lock.exists():
            raise
        return os.open(lock, os.O_RDONLY | flags), False


def _flock(fd: int, folder: Path) -> bool:
    """Lock an open file; return False if it is locked. Warn on file systems without locks."""
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
            message = "is on a file system without locks: run one writer at a time"
            warnings.warn(f"folder {folder} {message}", stacklevel=1)
    return True


def _is_at(fd: int, file: Path) -> bool:
    """Return whether an open file is still the file at `file`."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(file, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _write_holder(fd: int) -> None:
    """Write the process and host of the holder to the lock file."""
    with suppress(OSError):  # A full disk: the lock is held without a name.
        os.ftruncate(fd, 0)
        os.write(fd, f"process {os.getpid()} on host {socket.gethostname()}".encode())


def _read_holder(fd: int) -> str:
    """Read the description of the holder, which may be written only shortly after locking."""
    for _ in range(5):
        with suppress(OSError):
            os.lseek(fd, 0, os.SEEK_SET)
            text = os.read(fd, 200).decode(errors="replace").split("\n")[0]
            if text and text.isprintable():
                return text
        time.sleep(0.02)
    return "another process"


def _release(lock: Path, key: str) -> None:
    """Release one acquisition of a lock; the last one removes the lock file."""
    with _guard:
        held = _held[key]
        held.count -= 1
        if held.count:
            return
        del _held[key]
    with suppress(OSError):
        if _is_at(held.fd, lock):
            lock.unlink()
    os.close(held.fd)


def _forget() -> None:
    """Close the locks in a forked child, whose descriptors would outlive a killed parent."""
    global _guard
    _guard = threading.Lock()
    for fd in (*(held.fd for held in _held.values()), *_shared):
        with suppress(OSError):
            os.close(fd)
    _held.clear()
    _shared.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


# Temporary files. While one exists, its writer holds a shared lock of its folder. A process that
# gets the exclusive lock therefore finds only temporary files of processes that have ended.

_shared: set[int] = set()
_MARK = ".fmjax"
_TEMPORARY = re.compile(r"\..*-([0-9a-f]{4})[0-9a-f]{8}\.fmjax(\.[^.]*)?", re.DOTALL)
_MAX_AGE = 24 * 3600.0  # Seconds after which temporary files of other machines are removed.


def temporary_name(file: Path) -> Path:
    """Return a unique hidden file name in the folder of `file`, with the same suffix."""
    name = f".{file.stem[: _MAX_STEM // 2]}-{_machine()}{secrets.token_hex(4)}{_MARK}"
    return file.with_name(name + file.suffix)


@contextmanager
def writing_in(folder: Path) -> Iterator[None]:
    """Hold the shared lock of a folder while a temporary file in it is written.

    Before, temporary and lock files of killed processes are removed, if the folder can be locked.
    """
    fd = None
    with suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
    if fd is None or fcntl is None:  # Windows cannot open folders.
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
    """Acquire the shared lock, or continue without it if it stays locked, as by another program."""
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
    """Remove temporary files in a folder if no process is writing one.

    NFS locks folders only within one machine, so files of other machines are kept for a day.
    """
    assert fcntl is not None
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    machine = _machine()
    for entry in os.scandir(folder):
        if entry.name.endswith(_SUFFIX):
            with suppress(Locked, OSError), _lock(Path(entry.path), "", None, tries=1):
                pass  # Releasing the lock removes the file.
        match = _TEMPORARY.fullmatch(entry.name)
        if match and (match[1] == machine or time.time() - entry.stat().st_mtime > _MAX_AGE):
            with suppress(OSError):
                os.unlink(entry.path)


def _machine() -> str:
    """Return four hexadecimal digits that identify this machine since its last boot."""
    try:
        identity = Path("/proc/sys/kernel/random/boot_id").read_bytes()
    except OSError:
        identity = socket.gethostname().encode()
    return hashlib.sha256(identity).hexdigest()[:4]
