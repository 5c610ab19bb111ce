"""Load the config of an experiment or a study from a Python file."""

import contextlib
import dataclasses
import difflib
import importlib.util
import os
import re
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from fmjax._checks import require
from fmjax._files import require_exists
from fmjax._signals import SIGNALS
from fmjax.config import (
    Config,
    StudyConfig,
    from_json,
    register_classes,
    require_types,
    to_json,
    user_classes,
)

_ConfigT = TypeVar("_ConfigT")


def load_config(file: Path) -> Config:
    """Execute a Python file and call its `get_config()`.

    Config files are executed because the user chooses them. Run folders may come from other people
    and therefore store configs as JSON.

    Raises:
        ValueError: If the file does not exist, or does not return a `Config`.
    """
    return _normalized(_load(file, "get_config", Config), file)


def load_classes(file: Path) -> None:
    """Execute a config file, so that run folders may contain objects of the classes in its config.

    Raises:
        ValueError: If the file returns neither a `Config` nor a `StudyConfig`.
    """
    try:
        load_config(file)
    except ValueError as error:
        try:
            load_study(file)
        except ValueError:
            raise error from None


def load_study(file: Path) -> StudyConfig:
    """Execute a Python file and call its `get_study()`.

    Raises:
        ValueError: If the file does not exist, or does not return a `StudyConfig`.
    """
    study = _load(file, "get_study", StudyConfig)
    runs = tuple(_normalized(run, file) for run in study.runs)
    return dataclasses.replace(study, runs=runs)


def _load(file: Path, function: str, config_type: type[_ConfigT]) -> _ConfigT:
    """Execute a Python file and return the result of one of its functions."""
    require_exists("config", file)
    got = f"the folder {file}" if file.is_dir() else file
    require(file.is_file() and file.suffix == ".py", "config", "be a Python file (.py)", got)
    spec = importlib.util.spec_from_file_location(f"fmjax_config_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        with _process_unchanged():
            spec.loader.exec_module(module)
            make_config = getattr(module, function, None)
            config = make_config() if callable(make_config) else None
            if not isinstance(config, config_type):
                raise _WrongResult(f"{function}() -> {config_type.__name__}, got {config!r}")
    except _WrongResult as error:
        raise ValueError(f"config {file} must define {error}") from None
    except BaseException as error:  # noqa: BLE001
        # Report every exception, including `SystemExit`, as an error in the user's file.
        message = _message(error)
        got = ": ".join(filter(None, [type(error).__name__, message]))
        hint = _suggestion(message, vars(module))
        raise ValueError(f"config {file} must run without errors, got {got}{hint}") from error
    return config


class _WrongResult(Exception):
    """Raised if a config file runs but does not return a config."""


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 (an exception class of the config file whose str() fails)
        return ""


@contextlib.contextmanager
def _process_unchanged() -> Iterator[None]:
    """Restore the working directory and the signal handlers after the block.

    Paths on the command line are relative to the folder where the command was started, and fmjax
    handles signals itself.
    """
    folder, handlers = os.getcwd(), {number: signal.getsignal(number) for number in SIGNALS}
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread:
        wakeup_fd = signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(wakeup_fd)
    try:
        yield
    finally:
        os.chdir(folder)
        if in_main_thread:
            for number, handler in handlers.items():
                if handler is not None:  # None: set by C code, which Python cannot restore.
                    signal.signal(number, handler)
            signal.set_wakeup_fd(wakeup_fd)


def _normalized(config: Config, file: Path) -> Config:
    """Convert a config to JSON and back, as in a run folder, so that `1e3` steps become 1000.

    Raises:
        ValueError: If the value of a field does not fit the type of the field.
    """
    try:
        require_types(config)
    except ValueError as error:
        raise ValueError(f"config {file} must consist of fmjax configs: {error}") from error
    try:
        register_classes(user_classes(config))
        text = to_json(config)
    except (TypeError, ValueError) as error:  # For example NumPy numbers and NaN.
        raise ValueError(f"config {file} must be convertible to JSON, got {error}") from error
    return from_json(text, f"config {file}")


def _suggestion(message: str, names: Mapping[str, object]) -> str:
    """Suggest the closest field name if `message` is Python's error for an unknown field."""
    match = re.match(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", message)
    cls = names.get(match[1]) if match else None
    # Newer versions of Python suggest a name themselves.
    if match is None or not dataclasses.is_dataclass(cls) or "did you mean" in message.lower():
        return ""
    fields = [field.name for field in dataclasses.fields(cls)]
    close = difflib.get_close_matches(match[2], fields, n=1, cutoff=0.0)
    return f" (did you mean {close[0]!r}?)"
