"""Download of published files with verified checksums."""

import hashlib
import http.client
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from fmjax._checks import require
from fmjax._files import write_atomically
from fmjax._locks import lock_file
from fmjax._progress import Advance, Progress, Silent

_CHUNK_BYTES = 1 << 18
_TIMEOUT_SECONDS = 30.0


class DownloadError(ValueError):
    """Raised when no mirror provides the published file; the message lists all failures."""


def download(
    mirrors: Sequence[str],
    file: Path,
    *,
    sha256: str,
    progress: Progress = Silent(),
    open_url: Callable[..., Any] = urllib.request.urlopen,
) -> None:
    """Download a file to `file` from the first mirror that has it, atomically.

    Args:
        mirrors: https URLs of the file, tried in order.
        file: Output file. Its folder is created.
        sha256: Hexadecimal SHA-256 checksum of the published file.
        progress: Receives one task per attempted mirror, in bytes.
        open_url: Opens a URL like `urllib.request.urlopen`.

    Raises:
        ValueError: If a URL is not https.
        DownloadError: If no mirror provides a file with this checksum.
    """
    for url in mirrors:
        require(url.startswith("https://"), "mirrors", "be https URLs", url)
    with ExitStack() as stack:
        with suppress(OSError):  # The write below reports problems of the folder.
            stack.enter_context(lock_file(file, on_wait=progress.say))
        # Another process may have downloaded it.
        if not (file.is_file() and _sha256(file) == sha256):
            _download(mirrors, file, sha256, progress, open_url)


def _download(
    mirrors: Sequence[str],
    file: Path,
    sha256: str,
    progress: Progress,
    open_url: Callable[..., Any],
) -> None:
    """Try the mirrors in order; raise `DownloadError` if all fail."""
    failures = []
    for url in mirrors:
        try:
            with (
                write_atomically(file) as temporary,
                open_url(url, timeout=_TIMEOUT_SECONDS) as response,
            ):
                size = response.headers.get("Content-Length")
                with progress.task(
                    f"downloading {file.name}", int(size) if size else None
                ) as advance:
                    actual = _copy(response, temporary, advance)
                if actual != sha256:
                    raise DownloadError(f"sha256 {actual[:12]}... instead of {sha256[:12]}...")
        except (OSError, http.client.HTTPException, DownloadError) as error:
            failures.append(f"{url}: {error or type(error).__name__}")
        else:
            return
    raise DownloadError("; ".join(failures))


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _copy(response: Any, file: Path, advance: Advance) -> str:
    """Write the body of a response to `file` and return its SHA-256 checksum."""
    digest = hashlib.sha256()
    with file.open("wb") as stream:
        while chunk := response.read(_CHUNK_BYTES):
            digest.update(chunk)
            stream.write(chunk)
            advance(len(chunk))
    return digest.hexdigest()
