"""What surrounds a command's work: its processes and devices, its progress, a way to stop it."""

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fmjax._progress import Progress, Silent
from fmjax.cli.console import console

if TYPE_CHECKING:
    from fmjax.training import Processes


class Stopped(BaseException):
    """The process was told to end by a signal; whatever it wrote is whole.

    As `KeyboardInterrupt` no `Exception`: a checkpoint that is being read when the signal comes
    must not be taken for one that cannot be read.
    """


@contextlib.contextmanager
def working(processes: "Processes | None" = None) -> Iterator[Progress]:
    """Make JAX ready and show progress; SIGTERM ends the work where it stands.

    Training takes the signal itself, to save before it leaves.

    Args:
        processes: Of a run of several, of which only the first one speaks. There JAX hears the
            signal, for all of them, until a part of the work is `stoppable`.
    """
    from fmjax.training import is_main, join

    joined = processes is not None and join(processes)
    _prepare_jax()
    if not is_main():
        yield Silent()
        return
    with console() as progress, contextlib.nullcontext() if joined else stoppable():
        yield progress


@contextlib.contextmanager
def planning() -> Iterator[Progress]:
    """As `working`, for work that chooses devices by itself; nothing it compiles can run here."""
    with console() as progress, stoppable():
        yield progress


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM ends what is done in the block, as Ctrl-C does."""
    previous = signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    finally:
        # None: set by C code, which Python cannot name; the default is the nearest.
        signal.signal(signal.SIGTERM, signal.SIG_DFL if previous is None else previous)


def _stop(number: int, frame: Any) -> None:
    raise Stopped(signal.Signals(number).name)


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

    from fmjax._files import cache_dir
    from fmjax._memory import keep_freed_memory

    try:
        backend = jax.default_backend()
    except RuntimeError as error:
        raise ValueError(f"JAX must find its devices, got {error}") from error
    _hush_threads()
    if backend == "cpu":
        keep_freed_memory()
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "compilation"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
