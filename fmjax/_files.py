"""Atomic file writes, checked reads, checks of output files, and the cache folder."""

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
from fmjax._signals import at_stop


@contextmanager
def write_atomically(file: Path) -> Iterator[Path]:
    """Yield a temporary file that replaces `file` if the block ends without an exception.

    A reader of `file` sees the old file or the complete new one, never a part of it. The temporary
    file is in the same folder, because a rename across file systems copies. It keeps the suffix of
    `file`, because many writers choose their format by suffix. Temporary files that killed
    processes left in the folder are removed. If `file` is a link, the link is kept and its target
    is replaced.
    """
    if file.is_symlink():
        file = file.resolve()
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(file)
    with writing_in(file.parent), at_stop(partial(temporary.unlink, missing_ok=True)):
        try:
            with name_in_error(file):
                yield temporary
                # Sync before the rename: else a power failure may leave an empty file.
                with temporary.open("rb") as stream:
                    os.fsync(stream.fileno())
                temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def name_in_error(file: Path) -> Iterator[None]:
    """Add the file name to an `OSError` without one, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(file)
        raise


def require_exists(name: str, location: Path) -> None:
    """Raise a `ValueError` unless a file or folder exists; the message suggests a similar name."""
    if location.exists():
        return
    similar = _similar_path(location)
    hint = "" if similar is None else f" (did you mean {similar}?)"
    raise ValueError(f"{name} must exist, got {location}{hint}")


def _similar_path(location: Path) -> Path | None:
    """Return the path with the most similar name, in the same folder or one level deeper."""
    folder = location.parent
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    try:
        children = [child for child in folder.iterdir() if not child.name.startswith(".")]
        grandchildren = [
            location for child in children if child.is_dir() for location in child.iterdir()
        ]
    except OSError:
        return None
    for candidates in (children, grandchildren):
        by_name = {item.name: item for item in candidates if item.suffix == location.suffix}
        matches = difflib.get_close_matches(location.name, by_name, n=1)
        if matches:
            return by_name[matches[0]]
    return None


def is_hidden(location: Path) -> bool:
    """Return whether any component of a relative path begins with a dot."""
    return any(name.startswith(".") for name in location.parts)


class FoundFiles(NamedTuple):
    """The visible files below a folder.

    Attributes:
        files: Paths of the files, relative to the folder.
        skipped: Reason for each path, relative to the folder, that could not be followed.
    """

    files: list[Path]
    skipped: dict[Path, str]


def walk(folder: Path) -> FoundFiles:
    """Find all files below a folder, following links except those to a parent folder.

    Raises:
        OSError: If the folder cannot be read.
    """
    files: list[Path] = []
    skipped: dict[Path, str] = {}
    pending: list[tuple[Path, frozenset[tuple[int, int]]]] = [(Path(), frozenset())]
    while pending:
        subfolder, parents = pending.pop()
        try:
            status = (folder / subfolder).stat()
            identity = (status.st_dev, status.st_ino)
            if identity in parents:
                skipped[subfolder] = "links to a parent folder"
                continue
            with os.scandir(folder / subfolder) as entries:
                visible = [entry for entry in entries if not entry.name.startswith(".")]
        except OSError:
            if not subfolder.parts:
                raise
            skipped[subfolder] = "unreadable folders"
            continue
        for entry in visible:
            location = subfolder / entry.name
            try:
                is_dir, is_file = entry.is_dir(), entry.is_file()
            except OSError:  # A link to itself, or into an unreadable folder.
                is_dir = is_file = False
            if is_dir:
                pending.append((location, parents | {identity}))
            elif is_file:
                files.append(location)
            else:
                skipped[location] = "broken links" if entry.is_symlink() else "devices"
    return FoundFiles(sorted(files), skipped)


def require_writable(folder: Path) -> None:
    """Raise an `OSError` unless files can be created in a folder or its nearest existing parent."""
    folder = _existing_parent(folder)
    with writing_in(folder):
        probe = temporary_name(folder / "probe")
        probe.touch()
        probe.unlink()


def is_private(folder: Path) -> bool:
    """Return whether only this user or root can write to a folder."""
    if not hasattr(os, "getuid"):  # Windows has no POSIX permissions.
        return True
    status = folder.stat()
    return status.st_uid in (0, os.getuid()) and not status.st_mode & stat.S_IWOTH


def require_target(
    file: Path, name: str = "output", *, suffix: str = "", inputs: Iterable[Path] = ()
) -> None:
    """Raise unless a file can be written at `file`. Call this before any work.

    Args:
        file: The output file, which may exist.
        name: Name of the option, for error messages.
        suffix: Required suffix, such as ".png"; empty for any.
        inputs: Input files that the output must not overwrite.

    Raises:
        ValueError: If `file` is a folder, a device, a broken link or an input, has no name or
            another suffix, or is inside a file or the checkpoints of a run.
        OSError: If no file can be created in its folder.
    """
    require(file.name not in ("", ".."), name, "be the name of a file", file)
    require(file.suffix.lower() == suffix or not suffix, name, f"end in {suffix}", file)
    require(not file.is_dir(), name, "be the name of a file", f"the folder {file}")
    is_broken_link = file.is_symlink() and not file.exists()
    require(not is_broken_link, name, "be the name of a file", f"the broken link {file}")
    is_regular = file.is_file() or not file.exists()
    require(is_regular, name, "be the name of a file", f"{file}, which is a device or a pipe")
    for input_file in inputs:
        require(not is_same_location(file, input_file), name, "differ from the input file", file)
    require_folder(file.parent, name)


@contextmanager
def lock_outputs(
    *files: Path, name: str = "output", on_wait: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Check output files with `require_target` and lock them against other processes.

    Args:
        files: Files that are written together. Only the first one is locked; without files
            nothing is locked.
        name: Name of the option, for error messages.
        on_wait: Called once with a message if the lock is taken, before waiting for it; None
            raises instead, see `fmjax._locks.lock_file`.

    Raises:
        ValueError: If a file cannot be written, or another process is writing it.
        OSError: If no file can be created in one of the folders.
    """
    for file in files:
        require_target(file, name)
    with lock_file(files[0], name, on_wait=on_wait) if files else nullcontext():
        yield


def require_folder(folder: Path, name: str = "output") -> None:
    """Raise unless files can be written in `folder`, which may not exist yet.

    Raises:
        ValueError: If the folder or one of its parents is a file or a broken link, or it is
            inside the checkpoints of a run.
        OSError: If no file can be created in it.
    """
    for parent in (folder, *folder.parents):
        is_broken_link = parent.is_symlink() and not parent.exists()
        require(not is_broken_link, name, "be in a folder", f"the broken link {parent}")
        if parent.exists():
            require(parent.is_dir(), name, "be in a folder", f"the file {parent}")
            break
    resolved = folder.resolve()
    for parent in (resolved, *resolved.parents):
        is_inside = parent.name == "checkpoints" and (parent.parent / "config.json").is_file()
        require(not is_inside, name, "be outside the checkpoints of a run", folder)
    require_writable(folder)


def require_outside(output: Path, folder: Path, name: str = "output") -> None:
    """Raise a `ValueError` if `output` is `folder` or inside it, after following links."""
    is_inside = output.resolve().is_relative_to(folder.resolve())
    require(not is_inside, name, f"be outside {folder}", output)


def is_same_location(location: Path, other: Path) -> bool:
    """Return whether two paths refer to the same file or folder, which may not exist yet."""
    if location.exists() and other.exists():
        return location.samefile(other)
    return location.resolve() == other.resolve()


def require_space(folder: Path, num_bytes: int, what: str) -> None:
    """Raise a `ValueError` unless the disk of `folder` has enough space. Call before long work.

    Args:
        folder: Output folder, which may not exist yet.
        num_bytes: Number of bytes to be written.
        what: Description of the output for the error message, such as "2 checkpoints".
    """
    free = shutil.disk_usage(_existing_parent(folder)).free
    rule = f"have {_format_bytes(num_bytes)} of free space for {what}"
    require(num_bytes <= free, f"disk of {folder}", rule, _format_bytes(free))


def size_of(folder: Path) -> int:
    """Return the size of all files below a folder in bytes; 0 if the folder does not exist."""
    total = 0
    for file in folder.rglob("*"):
        with suppress(FileNotFoundError):  # Another process removed the file.
            total += file.stat().st_size if file.is_file() else 0
    return total


def _existing_parent(folder: Path) -> Path:
    """Return the folder, or its nearest parent that exists."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def _format_bytes(num_bytes: int) -> str:
    """Format a number of bytes with the largest unit that gives a value of at least 1."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.3g} {unit}"
    return f"{num_bytes} bytes"


_PIECE_BYTES = 4096


def fingerprint(files: Iterable[Path], pieces: int = 64) -> str:
    """Compute a digest of files from their names, sizes and evenly spaced pieces of 4 KiB.

    It distinguishes different images or weights without reading entire files, but may miss a
    change of a few bytes.

    Args:
        files: The files; their order matters.
        pieces: Number of pieces read from each file, at least two, from its start to its end.
    """
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(os.fsencode(f"{file.name}\0{size}\0"))
        with file.open("rb") as stream:
            if size <= pieces * _PIECE_BYTES:
                digest.update(stream.read())
                continue
            for piece in range(pieces):
                stream.seek((size - _PIECE_BYTES) * piece // (pieces - 1))
                digest.update(stream.read(_PIECE_BYTES))
    return digest.hexdigest()


def open_npy(file: Path) -> np.ndarray:
    """Memory-map the array of an .npy file, without unpickling.

    Raises:
        ValueError: If the file is not a valid .npy file.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Headers written by Python 2.
            return np.lib.format.open_memmap(file, mode="r")
    except Exception as error:  # noqa: BLE001 - damaged headers raise many types of errors
        reason = "an .npz file" if _starts_with(file, b"PK\x03\x04") else _first_line(error)
        raise ValueError(f"file {file} must be a valid .npy file, got {reason}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _starts_with(file: Path, magic: bytes) -> bool:
    """Return whether a file is readable and begins with the magic bytes of a format."""
    try:
        with file.open("rb") as stream:
            return stream.read(len(magic)) == magic
    except OSError:
        return False


def read_npz(file: Path) -> dict[str, np.ndarray]:
    """Read all arrays of an .npz file, by name, without unpickling.

    Raises:
        ValueError: If the file is missing or not a valid .npz file.
    """
    if not zipfile.is_zipfile(file):
        reason = "an .npy file" if _starts_with(file, b"\x93NUMPY") else "no zip archive"
        raise ValueError(f"file {file} must be a valid .npz file, got {reason}")
    try:
        # Pass an open file, because NumPy does not close a damaged file that it opened itself.
        with warnings.catch_warnings(), file.open("rb") as stream:
            warnings.simplefilter("ignore")  # Headers written by Python 2.
            with np.load(stream, allow_pickle=False) as archive:
                arrays = {key: archive[key] for key in archive.files}
    except Exception as error:  # noqa: BLE001 - damaged archives raise many types of errors
        reason = _first_line(error)
        raise ValueError(f"file {file} must be a valid .npz file, got {reason}") from error
    for key, array in arrays.items():
        if not isinstance(array, np.ndarray):  # NumPy returns bytes for members without an array.
            raise ValueError(f"file {file} must be a valid .npz file, got no array in {key!r}")
    return arrays


def write_npz(file: Path, **arrays: Any) -> None:
    """Write named arrays to a compressed .npz file, atomically."""
    with write_atomically(file) as temporary:
        np.savez_compressed(temporary, **arrays)


def cache_dir() -> Path:
    """Return the cache folder: `$FMJAX_CACHE`, `$XDG_CACHE_HOME/fmjax` or `~/.cache/fmjax`."""
    if named := os.environ.get("FMJAX_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "fmjax"
