"""Read the arguments with tyro; report whatever is wrong with them as one plain line."""

import contextlib
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from fmjax.cli.suggestions import suggestion

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
    """Set fields of `default` from the command line.

    Raises:
        Refused: If an argument is unknown or has a wrong value. The message is one plain line,
            the same on every terminal.
    """
    import tyro

    def read(words: list[str]) -> tuple[Command, list[str]]:
        return tyro.cli(
            kind,
            args=words,
            default=default,
            prog=prog,
            config=(tyro.conf.AvoidSubcommands,),
            return_unknown_args=True,
        )

    if asks_for_help(arguments):
        return read(["--help"])[0]
    for word in arguments:
        # tyro would print scripts for shells, which do not know fmjax's commands, and take -- for
        # the end of an option's values.
        if word == "--" or word.startswith("--tyro-"):
            raise Refused(f"unrecognized option {word.split('=')[0]}")
    # Wide, so that the box around an error does not break words.
    with _captured(columns=100_000) as text:
        try:
            command, unknown = read(arguments)
        except SystemExit:
            error = _sentence(text())
            raise Refused(_with_option(error, _options(read))) from None
    if unknown:
        raise Refused(_unrecognized(unknown, _options(read)))
    return command


@contextlib.contextmanager
def _captured(columns: int) -> Iterator[Callable[[], str]]:
    """Capture what tyro prints, as for a file: without colour, whatever the terminal."""
    printed = io.StringIO()
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(columns)
    try:
        # tyro looks at stdout to decide about colours, and prints errors to stderr.
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            yield printed.getvalue
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def _options(read: Callable[[list[str]], object]) -> list[str]:
    """The names of all options, in the order of the help text."""
    # tyro lays the help out in one column up to a width of 129.
    with _captured(columns=129) as text, contextlib.suppress(SystemExit):
        read(["--help"])
    return list(dict.fromkeys(re.findall(r"^\W*?(--[\w.-]+)", text(), flags=re.MULTILINE)))


def _unrecognized(words: Sequence[str], options: Sequence[str]) -> str:
    """Name the unknown options without their values, each with the options that are near."""
    # What else begins with a dash is a value, such as -1 or -inf.
    options_given = [word for word in words if re.match(r"--?(?!inf$|nan$)[^\W\d]", word)]
    names = [word.split("=")[0] for word in options_given]
    if not names:
        return f"unrecognized argument {words[0]!r}: options begin with --"
    hints = [name + suggestion(name, options) for name in dict.fromkeys(names)]
    return f"unrecognized option{'s' * (len(hints) > 1)} {', '.join(hints)}"


def _sentence(text: str) -> str:
    """The error in the box that tyro draws, in the words of fmjax's own errors."""
    lines = [line.strip(" │╭╮╰╯─") for line in text.splitlines()]
    lines = [line for line in lines if line.strip("-─ ")]
    ends = [i for i, line in enumerate(lines) if line.startswith("For full helptext")]
    lines = lines[: ends[-1]] if ends else lines
    usage = ""
    for i, line in enumerate(lines):
        if line.startswith("Argument helptext"):
            usage, lines = " ".join(lines[i + 1 : i + 2]), lines[:i]
            break
    return _plain(" ".join(lines[1:]) or text.strip(), usage)


def _with_option(error: str, options: Sequence[str]) -> str:
    """Name the field as its option does, where a config refused the value of a field.

    tyro tells the group, fmjax's configs the field in it: `Error parsing config.sampling: solver
    must ...` becomes `sampling.solver must ...`.
    """
    found = re.fullmatch(r"Error parsing ([\w.-]+): (([\w.]+) must .+)", error)
    if found is None:
        return error
    group, said, field = found.groups()
    groups = group.split(".")
    for start in range(len(groups)):
        prefix = ".".join(groups[start:])
        if f"--{prefix}.{field}".replace("_", "-") in options:
            return f"{prefix}.{said}"
    return said


def _plain(sentence: str, usage: str) -> str:
    """Say "<name> must <rule>, got <value>" where tyro says it otherwise.

    Args:
        sentence: The error as tyro words it.
        usage: The option with the kind of its values, such as `--seed INT`; may be empty.
    """
    found = re.fullmatch(r"Error parsing ([^:]+): (.+)", sentence)
    if found is not None:
        name, said = found.groups()
        wrong = re.search(
            r"(?:invalid literal for int\(\) with base 10|could not convert string to float): (.*)",
            said,
        ) or re.search(r"Could not find valid parse for arguments: \[(.*)\]", said)
        if wrong is not None:
            kind = usage.removeprefix(name.split("/")[0]).strip() or "of its type"
            return f"{name} must be {_KINDS.get(kind, kind)}, got {wrong[1] or 'nothing'}"
    found = re.fullmatch(
        r"Missing value for argument '([^']+)'\. Expected (\d+) values?\.", sentence
    )
    if found is not None:
        return f"{found[1]} must have {found[2]} value{'s' * (found[2] != '1')}, got too few"
    found = re.fullmatch(
        r"invalid choice '(.*)' for argument '([^']+)'\. Expected one of \((.+)\)\.", sentence
    )
    if found is not None:
        choices = re.findall(r"'([^']*)'", found[3])
        return f"{found[2]} must be one of {', '.join(choices)}, got {found[1]!r}"
    return sentence


_KINDS = {
    "INT": "an integer",
    "FLOAT": "a number",
    "{None}|INT": "an integer or None",
    "{None}|FLOAT": "a number or None",
    "[INT [INT ...]]": "integers",
    "[FLOAT [FLOAT ...]]": "numbers",
}
