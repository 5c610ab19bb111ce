"""Fetch a published file once, and keep it only if it is the published one."""

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
    """No mirror gave the published file; the message says what each one gave."""


def download(
    mirrors: Sequence[str],
    path: Path,
    *,
    sha256: str,
    progress: Progress = Silent(),
    open_url: Callable[..., Any] = urllib.request.urlopen,
) -> None:
    """Write the file at the first mirror that has it to `path`, whole or not at all.

    Args:
        mirrors: https addresses of the same file, tried in order.
        path: Where to write it. Its folder is made.
        sha256: Of the published file, in hexadecimal.
        progress: Hears one task per mirror tried, in bytes.
        open_url: Opens an address, as `urllib.request.urlopen` does.

    Raises:
        ValueError: If an address is not https.
        DownloadError: If no mirror can be reached, or none has the file of that checksum.
    """
    for url in mirrors:
        require(url.startswith("https://"), "mirrors", "be https addresses", url)
    with ExitStack() as stack:
        with suppress(OSError):  # What is wrong with the folder is said below.
            stack.enter_context(lock_file(path, on_wait=progress.say))
        # Another process may have fetched it.
        if not (path.is_file() and _sha256(path) == sha256):
            _fetch(mirrors, path, sha256, progress, open_url)


def _fetch(
    mirrors: Sequence[str],
    path: Path,
    sha256: str,
    progress: Progress,
    open_url: Callable[..., Any],
) -> None:
    failures = []
    for url in mirrors:
        try:
            with (
                write_atomically(path) as temporary,
                open_url(url, timeout=_TIMEOUT_SECONDS) as reply,
            ):
                size = reply.headers.get("Content-Length")
                with progress.task(
                    f"downloading {path.name}", int(size) if size else None
                ) as advance:
                    found = _copy(reply, temporary, advance)
                if found != sha256:
                    raise DownloadError(f"sha256 {found[:12]}.. instead of {sha256[:12]}..")
        except (OSError, http.client.HTTPException, DownloadError) as error:
            failures.append(f"{url}: {error or type(error).__name__}")
        else:
            return
    raise DownloadError("; ".join(failures))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _copy(reply: Any, path: Path, advance: Advance) -> str:
    """Write the reply's body to `path`; give its sha256."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        while chunk := reply.read(_CHUNK_BYTES):
            digest.update(chunk)
            file.write(chunk)
            advance(len(chunk))
    return digest.hexdigest()
