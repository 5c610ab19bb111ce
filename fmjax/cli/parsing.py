"""Reading the arguments: tyro's, with its complaints on one line."""

import contextlib
import io
import os
from pathlib import Path
from typing import TypeVar

Command = TypeVar("Command")


class Refused(Exception):
    """The arguments cannot be read; the message is one line."""


def asks_for_help(arguments: list[str]) -> bool:
    """Whether the options are asked for, not the work."""
    return "--help" in arguments or "-h" in arguments


def path_and_rest(command: str, kind: str, arguments: list[str]) -> tuple[Path, list[str]]:
    """The file or folder that a command is about, and the options after it."""
    if not arguments or arguments[0].startswith("-"):
        raise Refused(f"fmjax {command} needs a {kind} first: fmjax {command} {kind} [options]")
    return Path(arguments[0]), arguments[1:]


def parse(kind: type[Command], default: Command, arguments: list[str], prog: str) -> Command:
    """Set fields of `default` from the command line; whatever is wrong becomes one line."""
    import tyro

    def read() -> Command:
        config = (tyro.conf.AvoidSubcommands,)
        return tyro.cli(kind, args=arguments, default=default, prog=prog, config=config)

    if asks_for_help(arguments):
        return read()
    boxed = io.StringIO()
    # Wide, so that the box around a complaint does not break words; set for this call alone.
    columns = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "10000"
    try:
        with contextlib.redirect_stderr(boxed):
            return read()
    except SystemExit:
        raise Refused(_unboxed(boxed.getvalue())) from None
    finally:
        if columns is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = columns


def _unboxed(text: str) -> str:
    """The sentence in the box that tyro draws, with its first suggestion."""
    lines = [line.strip(" │╭╮╰╯─") for line in text.splitlines()]
    lines = [line for line in lines if line.strip("-─ ")]
    for end in ("For full helptext", "Argument helptext"):
        starts = [index for index, line in enumerate(lines) if line.startswith(end)]
        lines = lines[: starts[0]] if starts else lines
    sentence, suggestion = lines[1:], ""
    hints = [i for i, line in enumerate(sentence) if line.startswith("Perhaps you meant")]
    if hints:
        options = [line.split()[0] for line in sentence[hints[0] + 1 :] if line.startswith("--")]
        suggestion = f" (did you mean {options[0]}?)" if options else ""
        sentence = sentence[: hints[0]]
    return " ".join(sentence) + suggestion
