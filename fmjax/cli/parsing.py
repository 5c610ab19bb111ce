"""Parse arguments with tyro, and report every error in them as one plain line."""

import argparse
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
    """Error in the arguments; its message is one line."""


def asks_for_help(arguments: list[str]) -> bool:
    """Whether the arguments contain `--help` or `-h`."""
    return "--help" in arguments or "-h" in arguments


def split_path(command: str, metavar: str, arguments: list[str]) -> tuple[Path, list[str]]:
    """Split the arguments of a command into its file or folder and the words after it.

    For a command on a run, `--config FILE` is taken out of the words: the classes of the objects in
    this config file may then occur in the config of the run.

    Args:
        command: Name of the command, for the message.
        metavar: What the message calls the file or folder, such as `RUN`.
        arguments: All words after the command.

    Raises:
        Refused: If the file or folder is missing.
        ValueError: If the config file cannot be used.
    """
    if not arguments or arguments[0].startswith("-"):
        raise Refused(
            f"fmjax {command} needs a {metavar} first: fmjax {command} {metavar} [options]"
        )
    words = arguments[1:]
    if metavar == "RUN":
        words = _load_config_file(words)
    return Path(arguments[0]), words


def _load_config_file(words: list[str]) -> list[str]:
    """Execute the config file after `--config`, if there is one; return the other words."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", type=Path)
    try:
        passed, others = parser.parse_known_args(words)
    except argparse.ArgumentError:
        raise Refused("--config must be a config file, got nothing") from None
    if passed.config is not None:
        from fmjax.runs.load_config import load_classes

        load_classes(passed.config)
    return others


def parse(
    command_type: type[Command], default: Command, arguments: list[str], prog: str
) -> Command:
    """Replace fields of `default` by the options of the command line.

    Args:
        command_type: Dataclass whose fields are the options.
        default: Values of the options that are not given.
        arguments: The options, without command and path.
        prog: Start of the usage line in the help text, such as `fmjax sample RUN`.

    Raises:
        Refused: If an option is unknown or has an invalid value. The message is one plain line,
            which does not depend on the terminal.
    """
    import tyro

    from fmjax.cli.sampling import short_names

    registry = short_names()

    def read(words: list[str]) -> tuple[Command, list[str]]:
        with registry:
            return tyro.cli(
                command_type,
                args=words,
                default=default,
                prog=prog,
                config=(tyro.conf.AvoidSubcommands,),
                return_unknown_args=True,
            )

    if asks_for_help(arguments):
        return read(["--help"])[0]
    if any(word.split("=")[0] == "--steps" for word in arguments):
        options = _options(read)
        if "--num-steps" in options and "--steps" not in options:
            arguments = [re.sub(r"^--steps(?=$|=)", "--num-steps", word) for word in arguments]
    for word in arguments:
        # tyro would print shell completions that lack the commands of fmjax, and would accept --
        # as the end of an option's values.
        if word == "--" or word.startswith("--tyro-"):
            raise Refused(f"unrecognized option {word.split('=')[0]}")
    # The width keeps tyro from breaking lines in the box around an error.
    with _captured(columns=100_000) as text:
        try:
            command, unknown = read(arguments)
        except SystemExit:
            error = _error_message(text())
            raise Refused(_with_option(error, _options(read))) from None
    if unknown:
        raise Refused(_unrecognized(unknown, _options(read)))
    return command


@contextlib.contextmanager
def _captured(columns: int) -> Iterator[Callable[[], str]]:
    """Capture the output of tyro without colors; the context value returns the captured text."""
    printed = io.StringIO()
    previous = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(columns)
    try:
        # tyro uses colors only if stdout is a terminal, and prints errors to stderr.
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            yield printed.getvalue
    finally:
        if previous is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = previous


def _options(read: Callable[[list[str]], object]) -> list[str]:
    """Return the names of all options, in the order of the help text."""
    # tyro prints the help text in one column up to a width of 129.
    with _captured(columns=129) as text, contextlib.suppress(SystemExit):
        read(["--help"])
    return list(dict.fromkeys(re.findall(r"^\W*?(--[\w.-]+)", text(), flags=re.MULTILINE)))


def _unrecognized(words: Sequence[str], options: Sequence[str]) -> str:
    """Message that names each unknown option and the similar known options."""
    # Other words that begin with a dash, such as -1 and -inf, are values.
    unknown_options = [word for word in words if re.match(r"--?(?!inf$|nan$)[^\W\d]", word)]
    names = [word.split("=")[0] for word in unknown_options]
    if not names:
        return f"unrecognized argument {words[0]!r}: options begin with --"
    hints = [name + suggestion(name, options) for name in dict.fromkeys(names)]
    return f"unrecognized option{'s' * (len(hints) > 1)} {', '.join(hints)}"


def _error_message(text: str) -> str:
    """Extract the error from the box that tyro prints, worded as fmjax's messages are."""
    lines = [line.strip(" │╭╮╰╯─") for line in text.splitlines()]
    lines = [line for line in lines if line.strip("-─ ")]
    ends = [i for i, line in enumerate(lines) if line.startswith("For full helptext")]
    lines = lines[: ends[-1]] if ends else lines
    usage = ""
    for i, line in enumerate(lines):
        if line.startswith("Argument helptext"):
            usage, lines = " ".join(lines[i + 1 : i + 2]), lines[:i]
            break
    return _reword(" ".join(lines[1:]) or text.strip(), usage)


def _with_option(error: str, options: Sequence[str]) -> str:
    """Name the field by its option, if the check of a config failed.

    tyro names the group and the config names the field: `Error parsing config.sampling: solver
    must ...` becomes `sampling.solver must ...`.
    """
    match = re.fullmatch(r"Error parsing ([\w.-]+): (([\w.]+) must .+)", error)
    if match is None:
        return error
    group, message, field = match.groups()
    groups = group.split(".")
    for start in range(len(groups)):
        prefix = ".".join(groups[start:])
        if f"--{prefix}.{field}".replace("_", "-") in options:
            return f"{prefix}.{message}"
    return message


def _reword(message: str, usage: str) -> str:
    """Reword an error of tyro as "<name> must <rule>, got <value>".

    Args:
        message: The error as tyro words it; other messages are returned unchanged.
        usage: The option and the type of its values, such as `--seed INT`; may be empty.
    """
    match = re.fullmatch(r"Error parsing ([^:]+): (.+)", message)
    if match is not None:
        name, reason = match.groups()
        invalid = re.search(
            r"(?:invalid literal for int\(\) with base 10|could not convert string to float): (.*)",
            reason,
        ) or re.search(r"Could not find valid parse for arguments: \[(.*)\]", reason)
        if invalid is not None:
            metavar = usage.removeprefix(name.split("/")[0]).strip() or "of its type"
            rule = _TYPE_NAMES.get(metavar, metavar)
            return f"{name} must be {rule}, got {invalid[1] or 'nothing'}"
    match = re.fullmatch(
        r"Missing value for argument '([^']+)'\. Expected (\d+) values?\.", message
    )
    if match is not None:
        return f"{match[1]} must have {match[2]} value{'s' * (match[2] != '1')}, got too few"
    match = re.fullmatch(
        r"invalid choice '(.*)' for argument '([^']+)'\. Expected one of \((.+)\)\.", message
    )
    if match is not None:
        choices = re.findall(r"'([^']*)'", match[3])
        if "None" in choices:  # tyro keeps the choices of an optional enum in a set.
            choices = [*sorted(set(choices) - {"None"}), "None"]
        return f"{match[2]} must be one of {', '.join(choices)}, got {match[1]!r}"
    return message


_TYPE_NAMES = {
    "INT": "an integer",
    "FLOAT": "a number",
    "{None}|INT": "an integer or None",
    "{None}|FLOAT": "a number or None",
    "{None}|STR": "a name or None",
    "[INT [INT ...]]": "integers",
    "[FLOAT [FLOAT ...]]": "numbers",
}
