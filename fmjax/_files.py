"""Files: atomic writes, and where fmjax keeps what it makes once and uses often."""

import os
import tempfile
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
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files private to the user; give what a plain open() would have given.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def cache_dir() -> Path:
    """`$FMJAX_CACHE`, or `~/.cache/fmjax` (under `$XDG_CACHE_HOME` if that is set)."""
    if named := os.environ.get("FMJAX_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "fmjax"
