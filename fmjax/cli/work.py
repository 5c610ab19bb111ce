"""What surrounds a command's work: its processes and devices, its progress."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmjax._progress import Progress, Silent
from fmjax.cli.console import console

if TYPE_CHECKING:
    from fmjax.sharding import Processes


@contextlib.contextmanager
def working(processes: "Processes | None" = None, since: float | None = None) -> Iterator[Progress]:
    """Make JAX ready and show progress.

    Args:
        processes: Of a run of several, of which only the first one speaks. A signal to one of
            them stops all.
        since: `time.perf_counter()` at the start of the command, to print at its end how long each
            part took; None prints no times.
    """
    from fmjax.sharding import forward_preemption, is_main, join

    if processes is not None and join(processes):
        forward_preemption()
    _prepare_jax()
    if not is_main():
        yield Silent()
        return
    with console(since) as progress:
        yield progress


def _hush_threads() -> None:
    """Threads of Orbax tell nothing themselves: what they fail of reaches the command as an error.

    Of a full disk they would print hundreds of lines.
    """
    if os.environ.get("FMJAX_TRACEBACK") == "1":
        return
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    say = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            say(unraisable)

    sys.unraisablehook = hook


def _prepare_jax() -> None:
    """Keep compiled programs between runs, unless the user has said where or not to; and memory."""
    import jax

    from fmjax._memory import keep_freed_memory

    try:
        backend = jax.default_backend()
    except (RuntimeError, AssertionError) as error:
        # An assertion without a word where a platform is asked for whose package is missing.
        got = str(error) or f"none for JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}"
        raise ValueError(f"JAX must find its devices, got {got}") from error
    _hush_threads()
    if backend == "cpu":
        keep_freed_memory()
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        folder = _compilation_cache()
        if folder is not None:
            jax.config.update("jax_compilation_cache_dir", str(folder))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _compilation_cache() -> Path | None:
    """The folder of compiled programs; None if another user could write into it.

    It holds machine code, which JAX runs.
    """
    from fmjax._files import cache_dir, is_private

    folder = cache_dir() / "compilation"
    with contextlib.suppress(OSError):  # Without a place to write, programs are compiled each time.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder if folder.is_dir() and is_private(folder) else None
