"""Digests of the files of a folder: damage on a disk is found before anything is read from it.

Orbax's format has no checksum of an array's data: of 196 damaged copies of a checkpoint, 4 were
read back with other numbers and no error.
"""

import json
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict

from fmjax._files import write_atomically
from fmjax._json import read_json

_NAME = "digests.json"
_CHUNK = 2**20


class _Sealed(TypedDict):
    """What `digests.json` holds: of each file its size and CRC-32, and a CRC-32 of these."""

    files: dict[str, list[int]]
    crc32: int


def write_digests(folder: Path, parts: Iterable[str]) -> None:
    """Write size and CRC-32 of every file below `folder / part`, unless that has been done."""
    if is_sealed(folder):
        return
    files = [path for part in parts for path in sorted((folder / part).rglob("*"))]
    digests = {
        path.relative_to(folder).as_posix(): _digest(path) for path in files if path.is_file()
    }
    with write_atomically(folder / _NAME) as temporary:
        temporary.write_text(json.dumps({"files": digests, "crc32": _crc32(digests)}))


def is_sealed(folder: Path) -> bool:
    """Whether digests of the folder's files were written."""
    return (folder / _NAME).exists()


def sealed_as(folder: Path) -> int | None:
    """One number for all files of the folder, by which to know it again; None without digests."""
    try:
        return read_json(folder / _NAME, _Sealed)["crc32"]
    except (OSError, ValueError):
        return None


def find_damage(folder: Path, part: str, share: int = 0, shares: int = 1) -> str | None:
    """What is wrong with the files of `folder / part`, in a few words; None if nothing is.

    Args:
        folder: With digests.
        part: Of it.
        share: Only every file of this number, counted round and round to `shares`.
        shares: Into how many the files are dealt out.
    """
    if not is_sealed(folder):
        return f"no {_NAME}"
    try:
        sealed = read_json(folder / _NAME, _Sealed)
    except ValueError:
        return f"a damaged {_NAME}"
    digests = sealed["files"]
    if sealed["crc32"] != _crc32(digests):
        return f"a damaged {_NAME}"
    names = [name for name in digests if name.startswith(f"{part}/")]
    for name in names[share::shares]:
        if not (folder / name).is_file():
            return f"no file {name}"
        if _digest(folder / name) != digests[name]:
            return f"a damaged file {name}"
    return None


def _digest(path: Path) -> list[int]:
    size, crc32 = 0, 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            size, crc32 = size + len(chunk), zlib.crc32(chunk, crc32)
    return [size, crc32]


def _crc32(digests: object) -> int:
    return zlib.crc32(json.dumps(digests, sort_keys=True).encode())
