"""Files: atomic writes, careful reads, and where fmjax keeps what it makes once and uses often."""

import difflib
import hashlib
import os
import shutil
import stat
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fmjax._checks import require
from fmjax._locks import lock_file, temporary_name, writing_in
from fmjax._stopping import at_stop


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Give a temporary path that becomes `path` if the block ends without an exception.

    A reader of `path` sees the old file or the whole new one, never a part. The
    temporary file is in the same folder, because a rename across file systems copies.
    It keeps the suffix of `path`, by which many writers choose their format. Temporary files that
    killed processes have left in the folder are removed. A link stays a link: the file that it
    leads to is replaced.
    """
    if path.is_symlink():
        path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    with writing_in(path.parent), at_stop(partial(temporary.unlink, missing_ok=True)):
        try:
            with naming(path):
                yield temporary
                # On the disk before it has the name: a power cut may leave the name, no content.
                with temporary.open("rb") as file:
                    os.fsync(file.fileno())
                temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an `OSError` the name of the file, if it has none: that of a full disk does not say."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def require_exists(name: str, path: Path) -> None:
    """Raise a `ValueError` unless a file or folder exists; the nearest name that does is named."""
    if path.exists():
        return
    near = _nearest_path(path)
    hint = "" if near is None else f" (did you mean {near}?)"
    raise ValueError(f"{name} must exist, got {path}{hint}")


def _nearest_path(path: Path) -> Path | None:
    """The path next to it, or one folder further down, with the most similar name."""
    folder = path.parent
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    try:
        inner = [one for one in folder.iterdir() if not one.name.startswith(".")]
        below = [one for each in inner if each.is_dir() for one in each.iterdir()]
    except OSError:
        return None  # A folder that cannot be read has no names to offer.
    for found in (inner, below):
        by_name = {one.name: one for one in found if one.suffix == path.suffix}
        near = difflib.get_close_matches(path.name, by_name, n=1)
        if near:
            return by_name[near[0]]
    return None


def is_hidden(path: Path) -> bool:
    """Whether a file's name, or that of a folder on the way to it, begins with a dot."""
    return any(name.startswith(".") for name in path.parts)


class Found(NamedTuple):
    """What is below a folder, without what is hidden.

    Attributes:
        files: The files, within the folder.
        skipped: What could not be followed, within the folder, with the reason.
    """

    files: list[Path]
    skipped: dict[Path, str]


def walk(folder: Path) -> Found:
    """Find all files below a folder, through links too; a link to a folder above it is skipped.

    Raises:
        OSError: If the folder cannot be read.
    """
    files: list[Path] = []
    skipped: dict[Path, str] = {}
    pending: list[tuple[Path, frozenset[tuple[int, int]]]] = [(Path(), frozenset())]
    while pending:
        below, above = pending.pop()
        try:
            status = (folder / below).stat()
            identity = (status.st_dev, status.st_ino)
            if identity in above:
                skipped[below] = "links to a folder above them"
                continue
            with os.scandir(folder / below) as entries:
                visible = [entry for entry in entries if not entry.name.startswith(".")]
        except OSError:
            if not below.parts:
                raise
            skipped[below] = "folders that cannot be read"
            continue
        for entry in visible:
            path = below / entry.name
            try:
                is_dir, is_file = entry.is_dir(), entry.is_file()
            except OSError:  # A link to itself, or into a folder that cannot be read.
                is_dir = is_file = False
            if is_dir:
                pending.append((path, above | {identity}))
            elif is_file:
                files.append(path)
            else:
                skipped[path] = "links that lead nowhere" if entry.is_symlink() else "devices"
    return Found(sorted(files), skipped)


def require_writable(folder: Path) -> None:
    """Raise an `OSError` unless files can be made in a folder, or in what there is of its path."""
    folder = _nearest(folder)
    with writing_in(folder):
        probe = temporary_name(folder / "probe")
        probe.touch()
        probe.unlink()


def is_private(folder: Path) -> bool:
    """Whether only this user, or root, can have written what a folder holds."""
    if not hasattr(os, "getuid"):  # Windows: rights are of another kind.
        return True
    status = folder.stat()
    return status.st_uid in (0, os.getuid()) and not status.st_mode & stat.S_IWOTH


def require_target(
    path: Path, name: str = "output", *, suffix: str = "", inputs: Iterable[Path] = ()
) -> None:
    """Raise unless a file can be written at `path`; to be called before any work.

    Args:
        path: The file, which may exist.
        name: Of the option, in the error.
        suffix: The one that the file must have: ".png".
        inputs: Files that are read, which it must not replace.

    Raises:
        ValueError: If it is a folder, a device or a link to nothing, has no name or another suffix,
            is an input, or lies in a file or in the checkpoints of a run.
        OSError: If no file can be made in its folder.
    """
    require(path.name not in ("", ".."), name, "be the name of a file", path)
    require(path.suffix.lower() == suffix or not suffix, name, f"end in {suffix}", path)
    require(not path.is_dir(), name, "be the name of a file", f"the folder {path}")
    nothing = path.is_symlink() and not path.exists()
    require(not nothing, name, "be the name of a file", f"{path}, a link to nothing")
    plain = path.is_file() or not path.exists()
    require(plain, name, "be the name of a file", f"{path}, which is a device or a pipe")
    for each in inputs:
        require(not same_place(path, each), name, "be another file than the input", path)
    require_folder(path.parent, name)


@contextmanager
def lock_outputs(
    *paths: Path, name: str = "output", on_wait: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Hold the files that are to be written together, after `require_target` of each.

    Args:
        paths: The files; the first one's lock is taken. None hold nothing.
        name: As of `require_target`.
        on_wait: As of `fmjax._locks.lock_file`.

    Raises:
        ValueError: If a file cannot be written, or another process is writing them.
        OSError: If no file can be made in one of the folders.
    """
    for path in paths:
        require_target(path, name)
    with lock_file(paths[0], name, on_wait=on_wait) if paths else nullcontext():
        yield


def require_folder(folder: Path, name: str = "output") -> None:
    """Raise unless files can be written in `folder`, which may not exist yet.

    Raises:
        ValueError: If it or a folder above is a file or a link to nothing, or it lies in the
            checkpoints of a run.
        OSError: If no file can be made there.
    """
    for each in (folder, *folder.parents):
        nothing = each.is_symlink() and not each.exists()
        require(not nothing, name, "be in a folder", f"{each}, a link to nothing")
        if each.exists():
            require(each.is_dir(), name, "be in a folder", f"the file {each}")
            break
    real = folder.resolve()
    for each in (real, *real.parents):
        inside = each.name == "checkpoints" and (each.parent / "config.json").is_file()
        require(not inside, name, "be outside the checkpoints of a run", folder)
    require_writable(folder)


def require_outside(path: Path, source: Path, name: str = "output") -> None:
    """Raise a `ValueError` if `path` is `source` or in it, by whatever names and links."""
    inside = path.resolve().is_relative_to(source.resolve())
    require(not inside, name, f"be outside {source}", path)


def same_place(path: Path, other: Path) -> bool:
    """Whether two names lead to one file or folder, or would if it existed."""
    if path.exists() and other.exists():
        return path.samefile(other)
    return path.resolve() == other.resolve()


def require_space(folder: Path, num_bytes: int, what: str) -> None:
    """Raise a `ValueError` unless the disk of `folder` has room; to be called before long work.

    Args:
        folder: It may not exist yet.
        num_bytes: How much is to be written.
        what: In the error: "2 checkpoints".
    """
    free = shutil.disk_usage(_nearest(folder)).free
    rule = f"have {_in_units(num_bytes)} of free space for {what}"
    require(num_bytes <= free, f"disk of {folder}", rule, _in_units(free))


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder; 0 if there is none."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # Removed meanwhile.
            total += path.stat().st_size if path.is_file() else 0
    return total


def _nearest(folder: Path) -> Path:
    """The folder, or what there is of its path."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def _in_units(num_bytes: int) -> str:
    """Bytes in the largest unit of which there is one."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.3g} {unit}"
    return f"{num_bytes} bytes"


_PIECE = 4096


def fingerprint(paths: Iterable[Path], pieces: int = 64) -> str:
    """A digest of files' names and sizes, and of pieces of 4 KiB spread over what they hold.

    It tells other pictures and other weights apart without reading them whole; that a file was
    changed in a few bytes it may not see.

    Args:
        paths: The files, in their order.
        pieces: Of each, at least two: from its start to its end.
    """
    digest = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        digest.update(os.fsencode(f"{path.name}\0{size}\0"))
        with path.open("rb") as file:
            if size <= pieces * _PIECE:
                digest.update(file.read())
                continue
            for piece in range(pieces):
                file.seek((size - _PIECE) * piece // (pieces - 1))
                digest.update(file.read(_PIECE))
    return digest.hexdigest()


def open_npy(path: Path) -> np.ndarray:
    """Map the array of an .npy file into memory; never a pickle.

    Raises:
        ValueError: If the file is damaged or something else.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Headers that Python 2 wrote.
            return np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # noqa: BLE001 - a wrong byte in a header raises a dozen kinds
        found = "an .npz file" if _starts(path, b"PK\x03\x04") else _first_line(error)
        raise ValueError(f"file {path} must be a whole .npy file, got {found}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _starts(path: Path, magic: bytes) -> bool:
    """Whether a file can be read and begins with these bytes, which tell formats apart."""
    try:
        with path.open("rb") as file:
            return file.read(len(magic)) == magic
    except OSError:
        return False


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz file, by name; never a pickle.

    Raises:
        ValueError: If the file is missing, damaged or something else.
    """
    if not zipfile.is_zipfile(path):
        found = "an .npy file" if _starts(path, b"\x93NUMPY") else "no zip archive"
        raise ValueError(f"file {path} must be a whole .npz file, got {found}")
    try:
        # Opened here: NumPy leaves a file open that it finds damaged.
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore")  # Headers that Python 2 wrote.
            with np.load(file, allow_pickle=False) as archive:
                arrays = {key: archive[key] for key in archive.files}
    except Exception as error:  # noqa: BLE001 - a wrong byte makes zipfile raise a dozen kinds
        found = _first_line(error)
        raise ValueError(f"file {path} must be a whole .npz file, got {found}") from error
    for key, array in arrays.items():
        if not isinstance(array, np.ndarray):  # NumPy gives the bytes of any other file.
            raise ValueError(f"file {path} must be a whole .npz file, got no array in {key!r}")
    return arrays


def write_npz(path: Path, **arrays: Any) -> None:
    """Write arrays by name, compressed; the file is there whole or not at all."""
    with write_atomically(path) as temporary:
        np.savez_compressed(temporary, **arrays)


def cache_dir() -> Path:
    """`$FMJAX_CACHE`, or `~/.cache/fmjax` (under `$XDG_CACHE_HOME` if that is set)."""
    if named := os.environ.get("FMJAX_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "fmjax"
