"""Compiled steps on the disk: compiled once, by a plan, and run from then on.

The file holds machine code: load only what you saved.
"""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable

from fmjax._files import write_atomically


def _versions() -> dict[str, str]:
    import fmjax

    return {"kind": "fmjax executable", "fmjax": fmjax.__version__, "jax": jax.__version__,
            "jaxlib": version("jaxlib")}  # fmt: skip


def save_executable(path: Path, executable: Any, about: dict[str, Any]) -> None:
    """Write a program, with what it was compiled for.

    Args:
        path: Of the file.
        executable: From `jax.jit(...).lower(...).compile()`.
        about: JSON; `load_executable` wants the same.
    """
    payload, _, _ = serialize_executable.serialize(executable)
    header = json.dumps(_versions() | about, sort_keys=True)
    with write_atomically(path) as temporary:
        temporary.write_bytes(header.encode() + b"\n" + payload)


def load_executable(path: Path, fn: Any, args: tuple[Any, ...], about: dict[str, Any]) -> Any:
    """Read a program that takes the place of the jitted `fn`.

    Args:
        path: Of the file.
        fn: What was compiled.
        args: What it is called with, arrays or `jax.ShapeDtypeStruct`s.
        about: As it was saved with.

    Raises:
        ValueError: If the file holds no program, or one for something else.
    """
    try:
        header, _, payload = path.read_bytes().partition(b"\n")
        found = json.loads(header)
    except (OSError, ValueError) as error:
        raise ValueError(f"executable must be one that `fmjax plan` saved, got {path}: "
                         f"{error}") from error  # fmt: skip
    wanted = json.loads(json.dumps(_versions() | about))
    found = found if isinstance(found, dict) else {}
    other = [name for name in wanted if found.get(name) != wanted[name]]
    if other:
        raise ValueError(f"executable {path} must be of this very step, got another "
                         f"{', '.join(other)}")  # fmt: skip
    ins, outs = (args, {}), jax.eval_shape(fn, *args)
    try:
        return serialize_executable.deserialize_and_load(
            payload, jax.tree.structure(ins), jax.tree.structure(outs)
        )
    except Exception as error:  # noqa: BLE001 (whatever the runtime says of a damaged program)
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"executable {path} must be whole, got {first}") from error
