"""Set-up for the work of a command: processes, devices, compilation cache, progress."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fmjax._progress import Progress, Silent
from fmjax.cli.console import console

if TYPE_CHECKING:
    from fmjax.sharding import Processes


@contextlib.contextmanager
def command_progress(
    processes: "Processes | None" = None, since: float | None = None
) -> Iterator[Progress]:
    """Set up JAX and yield the progress display of a command.

    Args:
        processes: The processes of a distributed run, of which only the main one prints. A signal
            to one of them stops all.
        since: `time.perf_counter()` at the start of the command. At the end, the time of each part
            since then is printed; None prints no times.
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


def _silence_threads() -> None:
    """Keep background threads of Orbax from printing errors, which the command reports itself.

    If the disk is full, they would print hundreds of lines.
    """
    if os.environ.get("FMJAX_TRACEBACK") == "1":
        return
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    previous_hook = sys.unraisablehook

    def hook(unraisable: "sys.UnraisableHookArgs") -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            previous_hook(unraisable)

    sys.unraisablehook = hook


def _prepare_jax() -> None:
    """Find the devices, and set up the compilation cache unless the user has configured one."""
    import jax

    from fmjax._memory import keep_freed_memory

    try:
        backend = jax.default_backend()
    except (RuntimeError, AssertionError) as error:
        # JAX raises an assertion without a message if the package of a platform is missing.
        got = str(error) or f"none for JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}"
        raise ValueError(f"JAX must find its devices, got {got}") from error
    _silence_threads()
    if backend == "cpu":
        keep_freed_memory()
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        folder = _compilation_cache()
        if folder is not None:
            jax.config.update("jax_compilation_cache_dir", str(folder))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _compilation_cache() -> Path | None:
    """Return the folder of compiled programs, or None if other users can write to it.

    The programs are machine code that JAX runs.
    """
    from fmjax._files import cache_dir, is_private

    folder = cache_dir() / "compilation"
    with contextlib.suppress(OSError):  # Without a cache, programs are compiled each time.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder if folder.is_dir() and is_private(folder) else None
