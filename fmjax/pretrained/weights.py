"""Parameters from files of tensors, slice by slice onto the devices, and back."""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fmjax._arrays import Params
from fmjax._checks import require
from fmjax._files import write_atomically
from fmjax._locks import is_left
from fmjax._progress import Progress, Silent
from fmjax.pretrained.files import TensorFiles, require_finite
from fmjax.pretrained.layouts import Index, TensorLayout, all_tensors

_THREADS = 8  # That read and write layers side by side.
_UNFINISHED = ".fmjax.unfinished"
_NAMED = 8  # Tensors of one kind in a message.


class WeightsMismatch(ValueError):
    """Files whose tensors are not those of the model.

    Attributes:
        missing: Names that the files lack.
        unexpected: Names that the model does not have.
        misshaped: Names of tensors of another shape, with both.
    """

    def __init__(self, where: str, missing: list[str], unexpected: list[str], misshaped: list[str]):
        self.missing, self.unexpected, self.misshaped = missing, unexpected, misshaped
        kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", misshaped))
        parts = [f"{len(names)} {kind} ({_some(names)})" for kind, names in kinds if names]
        super().__init__(
            f"{where} must hold the tensors of its config.json, got {'; '.join(parts)}"
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")


def check_tensors(files: TensorFiles, views: Any, ignored: Sequence[str] = ()) -> None:
    """Raise unless the files hold exactly the tensors of a model.

    Args:
        files: Opened.
        views: Of all its parameters.
        ignored: Names that may be there, and are no parameters.

    Raises:
        WeightsMismatch: Which lists all that are missing, unexpected or of another shape.
    """
    wanted, found = all_tensors(views), files.shapes
    missing = sorted(set(wanted) - set(found))
    unexpected = sorted(set(found) - set(wanted) - set(ignored))
    misshaped = [
        f"{name}: {list(found[name])}, not {list(wanted[name])}"
        for name in sorted(set(wanted) & set(found))
        if wanted[name] != found[name]
    ]
    if missing or unexpected or misshaped:
        raise WeightsMismatch(str(files.paths[0].parent), missing, unexpected, misshaped)


def load_params(
    files: TensorFiles,
    views: Any,
    like: Any,
    *,
    dtype: Any = None,
    progress: Progress = Silent(),
) -> Params:
    """Read parameters, each device its own part: the host holds one such part at a time.

    Args:
        files: That `check_tensors` has seen.
        views: Nested dicts of `TensorLayout`, of the structure of the parameters.
        like: Their shapes and shardings (`jax.ShapeDtypeStruct`).
        dtype: Of the parameters; None keeps that of the files.
        progress: Hears of each.
    """
    leaves, structure = jax.tree.flatten(like)
    assert jax.tree.structure(views) == structure, "views and parameters must have one structure"
    found = []
    with progress.task("loading weights", len(leaves)) as advance, _threads() as pool:
        for view, leaf in zip(jax.tree.leaves(views), leaves, strict=True):
            assert view.shape == leaf.shape, f"{view.shape} is not {leaf.shape}"
            kind = dtype_of(files, view) if dtype is None else jnp.dtype(dtype)
            read: Any = partial(_read, view, files, dtype=kind, pool=pool)
            found.append(_laid(leaf, read))
            advance()
    return jax.tree.unflatten(structure, found)


def _laid(leaf: Any, read: Callable[[Index], np.ndarray]) -> jax.Array:
    """An array whose parts are read one after the other, each once for all devices that have it."""
    holders: dict[tuple[tuple[int, int], ...], list[Any]] = {}
    for device, index in leaf.sharding.addressable_devices_indices_map(leaf.shape).items():
        spans = (s.indices(n)[:2] for s, n in zip(index, leaf.shape, strict=True))
        holders.setdefault(tuple(spans), []).append(device)
    parts = []
    for spans, devices in holders.items():
        part = read(tuple(slice(*span) for span in spans))
        parts += jax.block_until_ready([jax.device_put(part, device) for device in devices])
    return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, parts)


def _one_or_many() -> ThreadPoolExecutor:
    """One thread where processes gather together: all in one order."""
    return ThreadPoolExecutor(1) if jax.process_count() > 1 else _threads()


def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1))


def _read(
    view: TensorLayout, files: TensorFiles, index: Index, *, dtype: Any, pool: ThreadPoolExecutor
) -> np.ndarray:
    """Part of a parameter; layers, or other rows of its first axis, side by side."""
    if len(view.shape) < 3:
        return view.read(files.read, index, dtype)
    first, *rest = (slice(*s.indices(n)) for s, n in zip(index, view.shape, strict=True))
    out = np.empty([s.stop - s.start for s in (first, *rest)], dtype)

    def fill(row: int) -> None:
        part = view.read(files.read, (slice(row, row + 1), *rest), dtype)
        out[row - first.start] = part[0]

    list(pool.map(fill, range(first.start, first.stop)))
    return out


def dtype_of(files: TensorFiles, view: TensorLayout) -> Any:
    """The type of a parameter that loses nothing of what its tensors hold."""
    kinds = (jnp.dtype(files.dtypes[name]) for name in view.tensors)
    return jnp.result_type(*dict.fromkeys(kinds))


def save_params(
    params: Params,
    views: Any,
    source: TensorFiles,
    folder: Path,
    *,
    aliases: Mapping[str, str] | None = None,
    dtype: Any = None,
    progress: Progress = Silent(),
) -> None:
    """Write parameters as the tensors that they came from, in files of the same names.

    On the host there is one file's content at a time. What was not changed is written as it was,
    byte for byte.

    Args:
        params: The parameters; they may lie on the devices of several processes.
        views: As of `load_params`.
        source: The files that they came from, which say what goes where.
        folder: Where the new ones go.
        aliases: Tensors that are copies of others, by name.
        dtype: Of the files; None takes that of the parameters, or the source's where the two
            agree.
        progress: Hears of each file.
    """
    pairs = list(zip(jax.tree.leaves(views), jax.tree.leaves(params), strict=True))
    known = {name for view, _ in pairs for name in view.tensors}
    kinds = {
        name: _kind(source, view, leaf, name, dtype)
        for view, leaf in pairs
        for name in view.tensors
    }
    with progress.task("writing weights", len(source.paths)) as advance, _one_or_many() as pool:
        for path in source.paths:
            names = [name for name in source.shapes if source.file_of[name] == path]
            # What is no parameter stays as it is: a buffer.
            out = {name: source.read(name) for name in names if name not in known}
            out = {name: np.array(array) for name, array in out.items()}
            own = {
                name: np.empty(source.shapes[name], kinds[name]) for name in names if name in known
            }
            wanted = {name: of for name, of in (aliases or {}).items() if name in out}
            own |= {
                of: np.empty(source.shapes[of], kinds[of])
                for of in wanted.values()
                if of not in own
            }
            _fill(own, pairs, pool)
            out |= {name: own[of] for name, of in wanted.items()}
            out |= {name: array for name, array in own.items() if name in names}
            if jax.process_index() == 0:
                write_tensors(folder / path.name, out, source.metadata(path))
            advance()


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], about: Mapping[str, str]) -> None:
    """Write a safetensors file, whole or not at all.

    Raises:
        ValueError: If a number of a tensor is NaN or infinite.
    """
    from safetensors.numpy import save_file

    for name, array in tensors.items():
        require_finite(f"tensor {name}", array)
    with write_atomically(path) as temporary:
        save_file(dict(tensors), temporary, dict(about))


def _kind(source: TensorFiles, view: TensorLayout, leaf: Any, name: str, dtype: Any) -> Any:
    if dtype is not None:
        return jnp.dtype(dtype)
    same = jnp.dtype(leaf.dtype) == dtype_of(source, view)
    return jnp.dtype(source.dtypes[name]) if same else jnp.dtype(leaf.dtype)


def _write_layer(view: TensorLayout, leaf: Any, out: Mapping[str, np.ndarray], layer: int) -> None:
    index = (slice(layer, layer + 1), *(slice(0, n) for n in view.shape[1:]))
    view.write(_on_host(leaf[layer : layer + 1]), index, out)


def _fill(
    out: Mapping[str, np.ndarray], pairs: Sequence[tuple[TensorLayout, Any]], pool: Any
) -> None:
    """Put into tensors what of the parameters belongs there; layer by layer, where stacked."""
    for view, leaf in pairs:
        blocks = [block for block in view.blocks if block.name in out]
        if not blocks:
            continue
        if any(block.axes[0].tensor_axis is not None for block in blocks):
            view.write(_on_host(leaf), tuple(slice(0, n) for n in view.shape), out)
            continue
        layers = sorted({block.axes[0].offset for block in blocks})
        list(pool.map(partial(_write_layer, view, leaf, out), layers))


def _on_host(array: Any) -> np.ndarray:
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        from jax.experimental.multihost_utils import process_allgather

        return np.asarray(process_allgather(array, tiled=True))
    return np.asarray(array)


def require_new(folder: Path, overwrite: bool) -> None:
    """Raise unless a folder is new or empty, or may be written over.

    One that a killed process was filling counts as empty.
    """
    taken = folder.exists() and not (folder.is_dir() and (_is_empty(folder) or _is_half(folder)))
    rule = "be new or empty (--overwrite replaces what it holds)"
    require(overwrite or not taken, f"folder {folder}", rule, "files in it")


@contextmanager
def filling(folder: Path) -> Iterator[None]:
    """Mark a folder as unfinished while it is filled, for `require_new`.

    After an error, a folder that was empty before is empty again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    empty = _is_empty(folder) or _is_half(folder)
    marker = folder / _UNFINISHED
    marker.touch()
    try:
        yield
    except BaseException:
        for path in sorted(folder.iterdir()) if empty else ():
            if path != marker and not is_left(path):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        if empty:
            marker.unlink()
        raise
    marker.unlink()


def _is_empty(folder: Path) -> bool:
    return all(map(is_left, folder.iterdir()))


def _is_half(folder: Path) -> bool:
    return (folder / _UNFINISHED).exists()
