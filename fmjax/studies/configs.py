"""Reading an experiment from a Python file."""

import dataclasses
import difflib
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from fmjax._checks import require
from fmjax._files import require_exists
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
        spec.loader.exec_module(module)
        get = getattr(module, function, None)
        config = get() if callable(get) else None
    except Exception as error:  # noqa: BLE001
        # Whatever it is, it is about the user's own file.
        hint = _suggestion(str(error), vars(module))
        raise ValueError(
            f"config {path} must run, got {type(error).__name__}: {error}{hint}"
        ) from error
    if not isinstance(config, kind):
        raise ValueError(f"config {path} must define {function}() -> {kind.__name__}, "
                         f"got {config!r}")  # fmt: skip
    return config


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
