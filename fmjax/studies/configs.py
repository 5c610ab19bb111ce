"""Reading an experiment from a Python file."""

import importlib.util
from pathlib import Path

from fmjax.config import Config


def load_config(path: Path) -> Config:
    """Run the file and call its `get_config()`.

    The file is code that the user chose to run; a run folder, which may come from elsewhere,
    holds JSON instead.

    Raises:
        ValueError: If there is no such file, or it gives no `Config`.
    """
    if not path.is_file() or path.suffix != ".py":
        raise ValueError(f"config must be a Python file, got {path}")
    spec = importlib.util.spec_from_file_location(f"fmjax_config_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        get_config = getattr(module, "get_config", None)
        config = get_config() if callable(get_config) else None
    except (SyntaxError, ImportError, TypeError, NameError, AttributeError) as error:
        raise ValueError(f"config {path} must run, got {type(error).__name__}: {error}") from error
    if not isinstance(config, Config):
        raise ValueError(f"config {path} must define get_config() -> Config, got {config!r}")
    return config
