"""Find image files that cannot be read, without decoding all of them."""

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from PIL import UnidentifiedImageError

from fmjax._checks import require
from fmjax._progress import Advance, Progress
from fmjax.data.sources.image_files import open_image, require_readable_mode

# Last bytes of a complete file. Files of other formats are decoded.
_END_MARKERS = {
    "GIF": b";",
    "JPEG": b"\xff\xd9",
    "MPO": b"\xff\xd9",
    "PNG": b"IEND\xaeB`\x82",
}
_TAIL = 64  # Bytes at the end of a file; some programs append zeros to the marker.
_SECONDS_WITHOUT_TASK = 2.0
_CHUNK = 1_024  # Files that are checked between two progress reports.
_MAX_THREADS = 16
_MAX_SHOWN = 3  # Files listed in a message.
_MAX_CACHED = 8

# Results of earlier checks in this process, by a digest of names, sizes and times of the files.
_found_earlier: dict[bytes, dict[str, str]] = {}


def skip_unreadable(
    folder: Path, names: Sequence[str], *, max_unreadable: int | None, progress: Progress
) -> list[str]:
    """Return the images that can be read; name the others in one line.

    The header and the end of each file are read. Damage between them is found only when the image
    is decoded. A set of files that has not changed is checked once per process.

    Args:
        folder: Folder of the images.
        names: The files, relative to `folder`.
        max_unreadable: Maximum number of unreadable images; None for 1 %, but at least 10.
        progress: Receives the line, and a task if the check takes longer than two seconds.

    Raises:
        ValueError: If more images are unreadable.
    """
    key = _digest(folder, names)
    is_new = key not in _found_earlier
    if is_new:
        while len(_found_earlier) >= _MAX_CACHED:
            _found_earlier.pop(next(iter(_found_earlier)))
        _found_earlier[key] = _check(folder, names, progress)
    unreadable = _found_earlier[key]
    limit = max(10, len(names) // 100) if max_unreadable is None else max_unreadable
    shown = [f"{name} ({reason})" for name, reason in list(unreadable.items())[:_MAX_SHOWN]]
    more = f" and {len(unreadable) - len(shown)} more" if len(unreadable) > len(shown) else ""
    listed = ", ".join(shown) + more
    rule = f"hold at most {limit} unreadable images (data.max_unreadable)"
    got = f"{len(unreadable)} of {len(names)}: {listed}"
    require(len(unreadable) <= limit, f"folder {folder}", rule, got)
    if unreadable and is_new:
        progress.say(
            f"warning: skipped {len(unreadable)} of {len(names)} images in {folder}, which cannot "
            f"be read: {listed}"
        )
    return [name for name in names if name not in unreadable]


def _digest(folder: Path, names: Sequence[str]) -> bytes:
    """Return a digest of the names, sizes and modification times of files."""
    digest = hashlib.sha256(os.fsencode(folder.absolute()))
    for name in names:
        try:
            status = (folder / name).stat()
            version = f"\0{status.st_size}\0{status.st_mtime_ns}\0"
        except OSError:  # Reported by `_check`.
            version = "\0"
        digest.update(os.fsencode(name + version))
    return digest.digest()


def _check(folder: Path, names: Sequence[str], progress: Progress) -> dict[str, str]:
    """Return the names of unreadable images, and why they cannot be read."""
    unreadable: dict[str, str] = {}
    # Threads, because a network file system answers slowly but many requests at once.
    with ThreadPoolExecutor(_MAX_THREADS) as threads, ExitStack() as stack:
        advance: Advance | None = None
        start = time.monotonic()
        for chunk in _chunks(names):
            defects = threads.map(_defect, [folder / name for name in chunk])
            pairs = zip(chunk, defects, strict=True)
            unreadable |= {name: defect for name, defect in pairs if defect is not None}
            if advance is not None:
                advance(len(chunk))
            elif time.monotonic() - start > _SECONDS_WITHOUT_TASK:
                advance = stack.enter_context(progress.task("checking images", len(names)))
                advance(names.index(chunk[-1]) + 1)
    return unreadable


def _chunks(names: Sequence[str]) -> Iterator[Sequence[str]]:
    for first in range(0, len(names), _CHUNK):
        yield names[first : first + _CHUNK]


def _defect(file: Path) -> str | None:
    """Return why an image file cannot be read, or None if no defect is found."""
    try:
        with open_image(file) as image:
            require_readable_mode(image)
            marker = _END_MARKERS.get(image.format or "")
            if marker is None or not _ends_with(file, marker):
                image.load()
    except UnidentifiedImageError:
        return "no image" if file.stat().st_size else "an empty file"
    except Exception as error:  # noqa: BLE001 - damaged files raise many types of errors
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return (text.strip().splitlines() or [type(error).__name__])[0][:100]
    return None


def _ends_with(file: Path, marker: bytes) -> bool:
    """Return whether a file ends with a marker, apart from zeros after it."""
    with file.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - _TAIL))
        return stream.read().rstrip(b"\0").endswith(marker)
