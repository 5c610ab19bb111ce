"""The entry point of `fmjax COMMAND ...`: signals, exit codes and error messages."""

import atexit
import os
import signal
import sys

TYPE_CHECKING = False  # Not from `typing`: each import here delays the signal handlers of `main`.
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

USAGE = """\
usage: fmjax COMMAND ... [--help]

  data CONFIG     show the data of a config before training: counts, range, classes, examples
  train CONFIG    train a model from a Python config; write a run folder with samples and a report
  generate FOLDER PROMPT
                  generate images of a prompt with a released model (SD3, FLUX) in diffusers format
  encode FOLDER IMAGES
                  encode images and captions with a released model, as training data
  export RUN      write a finetuned released model, or its LoRA adapters, for diffusers
  sample RUN      generate samples from a run
  compare RUN     compare fixed-step and adaptive solvers on a run
  compare FOLDER PROMPT
                  compare solvers on a prompt with a released model
  evaluate RUN    compare samples of a run with its data by metrics
  likelihood RUN  compute the log-density of test data under a run, and bits per dimension
  invert RUN [IMAGES...]
                  map images to noise and back, interpolate and edit them
  reflow RUN      generate pairs with a run and train a straighter flow on them
  study CONFIG    train several models, sample each in several ways, and compare them in a table
  plan CONFIG     compile training or sampling for absent TPUs or GPUs; print memory and price

`fmjax COMMAND PATH --help` lists the options; there is one for every field of the config.
Commands on a RUN also take `--config FILE`, if its config has objects of your own classes.
"""

_RESUME = ("train", "encode", "reflow", "study")
"""Commands that continue after a stop instead of starting again."""


def main(arguments: "Sequence[str] | None" = None) -> None:
    """Run one command and exit; errors that the user can fix print one line and exit with 2.

    Args:
        arguments: Command and options; None takes those of the process, which then ends at once
            when the command is done.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    then = "resume" if words and words[0] in _RESUME else "start over"
    if arguments is None:  # The process runs nothing but this command.
        _end_by_signals(then)
        from fmjax import _signals
        from fmjax.cli.streams import open_standard_files

        open_standard_files()
        _signals.install(then)
        try:
            code = _run_with_safe_output(words)
        except Exception as error:  # noqa: BLE001
            sys.excepthook(type(error), error, error.__traceback__)
            code = 1
        _exit(code)
    # The command runs inside another program: restore its signal handlers afterwards.
    from fmjax import _signals

    with _signals.stoppable(then):
        code = _run_with_safe_output(words)
    sys.exit(code)


def _end_by_signals(then: str) -> None:
    """Handle SIGTERM and Ctrl-C until `_signals.install` is imported and takes over."""

    def end(number: int, frame: object) -> None:
        name = signal.Signals(number).name
        line = f"fmjax: stopped by {name}; run the same command again to {then}\n"
        try:
            os.write(2, line.encode())
        finally:
            os._exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)


def _exit(code: int) -> "NoReturn":
    """Run the exit functions and end the process without waiting for its threads.

    The command has closed its files. A normal exit would first join all threads: after a failed
    checkpoint write, threads of Orbax wait for each other for ten minutes. It would then free all
    JAX objects, which takes 1 s to 10 s without handling signals.
    """
    from contextlib import suppress

    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # The stream is closed, or nothing reads the pipe.
            stream.flush()
    os._exit(code)


def _run_with_safe_output(arguments: list[str]) -> int:
    """Call `_run`, and continue if standard output is closed; return the exit code."""
    from fmjax import _signals
    from fmjax.cli.console import print_any_name
    from fmjax.cli.streams import forgiving_output, plain_warnings

    print_any_name()
    with forgiving_output() as out, plain_warnings():
        try:
            code = _run(arguments)
        except BaseException:
            # A signal that is ending the process may have caused this error.
            _signals.wait_if_ending()
            raise
        out.flush()
        if out.lost is not None:
            _signals.suppress_stop_message()
            text = out.lost.strerror
            print(f"fmjax: error: standard output must be writable, got {text}", file=sys.stderr)
            code = code or 1
    _signals.wait_if_ending()
    return code


def _run(arguments: list[str]) -> int:
    """Run one command and return its exit code; print known errors as one line."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from fmjax import __version__

        print(f"fmjax {__version__}")
        return 0
    from fmjax._checks import require_one_of
    from fmjax._signals import suppress_stop_message
    from fmjax.cli.commands import COMMANDS
    from fmjax.cli.parsing import Refused, asks_for_help

    try:
        require_one_of("command", arguments[0], COMMANDS)
        if asks_for_help(arguments[1:2]):
            # The options depend on the config, which is missing.
            print(USAGE, end="")
            return 0
        from fmjax._memory import is_out_of_memory
        from fmjax.sharding import Interrupted, is_peer_failure
        from fmjax.training import CheckpointWriteError, NonFiniteLoss
    except ValueError as error:
        return _report_error(error)
    try:
        return COMMANDS[arguments[0]](arguments[1:]) or 0
    except (NonFiniteLoss, CheckpointWriteError) as error:
        return _report_error(error, code=1)
    except Interrupted as error:
        suppress_stop_message()
        print(f"fmjax: {error}; run the same command again to resume", file=sys.stderr)
        return 128 + signal.Signals[error.cause]
    except (ValueError, OSError, Refused) as error:
        return _report_error(error)
    except RuntimeError as error:
        # Errors of JAX that the user can fix: too little memory, or another process that died.
        if is_peer_failure(error):
            _exit_without_barrier(error)
        if not is_out_of_memory(error):
            raise
        return _report_error(error)


def _exit_without_barrier(error: Exception) -> "NoReturn":
    """End the process without the shutdown barrier, at which JAX waits for all processes."""
    from fmjax._signals import suppress_stop_message

    suppress_stop_message()
    reason = (str(error).strip().splitlines() or [""])[0][:200]
    print(
        f"fmjax: error: another process of the run is gone ({reason}); start the same command "
        "again in all processes to continue from the last checkpoint",
        file=sys.stderr,
        flush=True,
    )
    sys.stdout.flush()
    os._exit(1)


def _report_error(error: Exception, code: int = 2) -> int:
    """Print the error as one line, or raise it if FMJAX_TRACEBACK=1; return the exit code."""
    if os.environ.get("FMJAX_TRACEBACK") == "1":
        raise error
    from fmjax._signals import suppress_stop_message
    from fmjax.cli.streams import one_line

    suppress_stop_message()
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror
        if error.filename:
            text += f": {_visible_name(error.filename)}"
    print(f"fmjax: error: {one_line(text)}", file=sys.stderr)
    return code


def _visible_name(name: object) -> object:
    """Replace the name of a hidden temporary file by that of its folder."""
    from pathlib import Path

    if isinstance(name, (str, os.PathLike)) and Path(name).name.startswith("."):
        return Path(name).parent
    return name
