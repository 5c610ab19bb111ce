"""Reading an experiment from a Python file."""

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
from fmjax._stopping import SIGNALS
from fmjax.config import Config, StudyConfig, from_json, require_types, to_json

_Kind = TypeVar("_Kind")


def load_config(path: Path) -> Config:
    """Run the file and call its `get_config()`.

    The file is code that the user chose to run; a run folder, which may come from elsewhere,
    holds JSON instead.

    Raises:
        ValueError: If there is no such file, or it gives no `Config`.
    """
    return _with_its_types(_load(path, "get_config", Config), path)


def load_study(path: Path) -> StudyConfig:
    """Run the file and call its `get_study()`.

    Raises:
        ValueError: If there is no such file, or it gives no `StudyConfig`.
    """
    study = _load(path, "get_study", StudyConfig)
    runs = tuple(_with_its_types(run, path) for run in study.runs)
    return dataclasses.replace(study, runs=runs)


def _load(path: Path, function: str, kind: type[_Kind]) -> _Kind:
    """What a function of a Python file gives."""
    require_exists("config", path)
    got = f"the folder {path}" if path.is_dir() else path
    require(path.is_file() and path.suffix == ".py", "config", "be a Python file (.py)", got)
    spec = importlib.util.spec_from_file_location(f"fmjax_config_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        with _process_unchanged():
            spec.loader.exec_module(module)
            get = getattr(module, function, None)
            config = get() if callable(get) else None
            if not isinstance(config, kind):
                raise _NoConfig(f"{function}() -> {kind.__name__}, got {config!r}")
    except _NoConfig as error:
        raise ValueError(f"config {path} must define {error}") from None
    except BaseException as error:  # noqa: BLE001
        # Whatever it is, it is about the user's own file: also `sys.exit()` in it.
        message = _message(error)
        got = ": ".join(filter(None, [type(error).__name__, message]))
        hint = _suggestion(message, vars(module))
        raise ValueError(f"config {path} must run, got {got}{hint}") from error
    return config


class _NoConfig(Exception):
    """The file runs, but gives something else."""


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 (the file's own exception, which cannot be printed)
        return ""


@contextlib.contextmanager
def _process_unchanged() -> Iterator[None]:
    """Give back what the code in the block changes of the process.

    Paths on the command line mean the folder that the command was started in, and signals are
    handled by fmjax.
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
                if handler is not None:  # Set by C code: it cannot be given back.
                    signal.signal(number, handler)
            signal.set_wakeup_fd(wakeup_fd)


def _with_its_types(config: Config, path: Path) -> Config:
    """The config as a run folder will give it back, so that `1e3` steps are the integer 1000.

    Raises:
        ValueError: If a field holds what its type cannot.
    """
    try:
        require_types(config)
    except ValueError as error:
        raise ValueError(f"config {path} must be of fmjax's own parts: {error}") from error
    try:
        text = to_json(config)
    except (TypeError, ValueError) as error:  # A number of NumPy's, say, or what is no number.
        raise ValueError(f"config {path} must hold what JSON can hold, got {error}") from error
    return from_json(text, f"config {path}")


def _suggestion(message: str, names: Mapping[str, object]) -> str:
    """The field that was meant, where the message is Python's about a misspelt one."""
    found = re.match(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", message)
    kind = names.get(found[1]) if found else None
    if found is None or not dataclasses.is_dataclass(kind) or "did you mean" in message.lower():
        return ""
    fields = [field.name for field in dataclasses.fields(kind)]
    close = difflib.get_close_matches(found[2], fields, n=1, cutoff=0.0)
    return f" (did you mean {close[0]!r}?)"
