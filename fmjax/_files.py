"""Files: atomic writes, and where fmjax keeps what it makes once and uses often."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def write_atomically(path: Path) -> Iterator[Path]:
    """Give a temporary path that becomes `path` if the block ends without an exception.

    A reader of `path` sees the old file or the whole new one, never a part. The
    temporary file stands in the same folder, because a rename across file systems copies.
    It keeps the suffix of `path`, by which many writers choose their format.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")
    try:
        yield temporary
        # On the disk before it has the name: else a power cut may leave the name and no content.
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def cache_dir() -> Path:
    """`$FMJAX_CACHE`, or `~/.cache/fmjax` (under `$XDG_CACHE_HOME` if that is set)."""
    if named := os.environ.get("FMJAX_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "fmjax"
