"""The command line: `fmjax train | sample | compare | ...`. The only place that prints."""

import atexit
import os
import signal
import sys

TYPE_CHECKING = False  # As in `typing`: what is imported here delays the first line of `main`.
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

USAGE = """\
usage: fmjax COMMAND ... [--help]

  train CONFIG    train from a Python config; leaves a run folder with samples and a report
  generate FOLDER PROMPT
                  pictures of a prompt with a released model (SD3, FLUX), a folder of diffusers
  encode FOLDER IMAGES
                  images with captions as a released model sees them, for training on
  export RUN      write what was trained on a released model: its weights, or a LoRA file
  sample RUN      draw samples from a run folder
  compare RUN     compare fixed and adaptive solvers on a run
  compare FOLDER PROMPT
                  the same on a prompt, with a released model
  evaluate RUN    measure samples of a run against its data
  likelihood RUN  log-density of test data under a run, and bits per dimension
  invert RUN [IMAGES...]
                  images to noise and back, interpolated and edited
  reflow RUN      make pairs with a run and train the next, straighter flow on them
  study CONFIG    train several models, sample each in several ways, measure all alike
  plan CONFIG     compile its training or sampling for TPUs or GPUs that are not here: memory, price

`fmjax COMMAND PATH --help` lists the options: every field of the config can be set.
"""

_RESUME = ("train", "encode", "reflow", "study")
"""Commands that find what they had done when they were stopped."""


def main(arguments: "Sequence[str] | None" = None) -> None:
    """Run one command; exit with 2 and one line for anything the user can mend."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    then = "goes on" if given and given[0] in _RESUME else "starts again"
    if arguments is None:  # The process is this command: from its first moment to its last.
        _end_by_signals(then)
        from fmjax import _stopping
        from fmjax.cli.streams import open_standard_files

        open_standard_files()
        _stopping.install(then)
        try:
            code = _run_forgivingly(given)
        except Exception as error:  # noqa: BLE001
            sys.excepthook(type(error), error, error.__traceback__)
            code = 1
        _exit(code)
    # Within another program, which gets its signals back.
    from fmjax import _stopping

    with _stopping.stoppable(then):
        code = _run_forgivingly(given)
    sys.exit(code)


def _end_by_signals(then: str) -> None:
    """Do what `_stopping.install` does while that is imported; until then Ctrl-C is Python's."""

    def end(number: int, frame: object) -> None:
        line = f"fmjax: stopped by {signal.Signals(number).name}; the same command {then}\n"
        try:
            os.write(2, line.encode())
        finally:
            os._exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)


def _exit(code: int) -> "NoReturn":
    """Run the exit functions and end the process without waiting for its threads.

    The command has closed what it opened. Python would join all threads first: after a failed
    checkpoint write some of Orbax's wait for one another for ten minutes. Then it would free every
    object of JAX, which takes 1 s to 10 s, and handle no signals meanwhile.
    """
    from contextlib import suppress

    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # The stream is closed, or its reader is gone.
            stream.flush()
    os._exit(code)


def _run_forgivingly(arguments: list[str]) -> int:
    """`_run`, whatever becomes of standard output."""
    from fmjax import _stopping
    from fmjax.cli.console import print_any_name
    from fmjax.cli.streams import forgiving_output, plain_warnings

    print_any_name()
    with forgiving_output() as out, plain_warnings():
        try:
            code = _run(arguments)
        except BaseException:
            _stopping.hold()  # An error of the end that a signal brings, then.
            raise
        out.flush()
        if out.lost is not None:
            _stopping.conclude()
            text = out.lost.strerror
            print(f"fmjax: error: standard output must take the text, got {text}", file=sys.stderr)
            code = code or 1
    _stopping.hold()
    return code


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from fmjax import __version__

        print(f"fmjax {__version__}")
        return 0
    from fmjax._checks import require_one_of
    from fmjax._stopping import conclude
    from fmjax.cli.commands import COMMANDS
    from fmjax.cli.parsing import Refused, asks_for_help

    try:
        require_one_of("command", arguments[0], COMMANDS)
        if asks_for_help(arguments[1:2]):
            # Which fields there are depends on the path, which is missing.
            print(USAGE, end="")
            return 0
        from fmjax._memory import is_out_of_memory
        from fmjax.sharding import Interrupted, is_peer_failure
        from fmjax.training import CheckpointWriteError, NonFiniteLoss
    except ValueError as error:
        return _complain(error)
    try:
        return COMMANDS[arguments[0]](arguments[1:]) or 0
    except (NonFiniteLoss, CheckpointWriteError) as error:
        return _complain(error, code=1)
    except Interrupted as error:
        conclude()
        print(f"fmjax: {error}; the same command goes on", file=sys.stderr)
        return 128 + signal.Signals[error.cause]
    except (ValueError, OSError, Refused) as error:
        return _complain(error)
    except RuntimeError as error:
        # JAX's own. Of its failures these are the user's to mend: a smaller batch, more devices; a
        # process that is gone.
        if is_peer_failure(error):
            _leave_at_once(error)
        if not is_out_of_memory(error):
            raise
        return _complain(error)


def _leave_at_once(error: Exception) -> "NoReturn":
    """End without the farewell that JAX's processes wait for from one another."""
    from fmjax._stopping import conclude

    conclude()
    said = (str(error).strip().splitlines() or [""])[0][:200]
    print(
        f"fmjax: error: another process of the run is gone ({said}); started again in all of "
        "them, the same command goes on from the last checkpoint",
        file=sys.stderr,
        flush=True,
    )
    sys.stdout.flush()
    os._exit(1)


def _complain(error: Exception, code: int = 2) -> int:
    """One line; the whole traceback only for whoever asks for it by FMJAX_TRACEBACK=1."""
    if os.environ.get("FMJAX_TRACEBACK") == "1":
        raise error
    from fmjax._stopping import conclude
    from fmjax.cli.streams import one_line

    conclude()
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {_plainly(error.filename)}" if error.filename else error.strerror
    print(f"fmjax: error: {one_line(text)}", file=sys.stderr)
    return code


def _plainly(name: object) -> object:
    """The folder instead of a hidden temporary file in it, of which the user knows nothing."""
    from pathlib import Path

    if isinstance(name, (str, os.PathLike)) and Path(name).name.startswith("."):
        return Path(name).parent
    return name
