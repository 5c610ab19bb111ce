"""Load parameters from tensor files shard by shard, and write them back."""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import PyTree

from fmjax._arrays import Params
from fmjax._checks import require
from fmjax._files import write_atomically
from fmjax._locks import is_leftover
from fmjax._progress import Progress, Silent
from fmjax.pretrained.files import TensorFiles, require_finite
from fmjax.pretrained.layouts import Index, Layouts, TensorLayout, all_tensors

_THREADS = 8  # Threads that read and write layers concurrently.
_UNFINISHED = ".fmjax.unfinished"
_MAX_LISTED = 8  # Tensors of each category in a message.

_Leaf: TypeAlias = jax.Array | np.ndarray


class WeightsMismatch(ValueError):
    """Raised if the tensors in files differ from those of the model.

    Attributes:
        missing: Names of tensors that the files lack.
        unexpected: Names of tensors that the model does not have.
        misshaped: Names of tensors with the wrong shape, each with both shapes.
    """

    def __init__(
        self, folder: str, missing: list[str], unexpected: list[str], misshaped: list[str]
    ):
        self.missing, self.unexpected, self.misshaped = missing, unexpected, misshaped
        categories = {"missing": missing, "unexpected": unexpected, "of another shape": misshaped}
        parts = [
            f"{len(names)} {text} ({_list(names)})" for text, names in categories.items() if names
        ]
        super().__init__(
            f"{folder} must hold the tensors of its config.json, got {'; '.join(parts)}"
        )


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:_MAX_LISTED]) + (", ..." if len(names) > _MAX_LISTED else "")


def check_tensors(files: TensorFiles, layouts: Layouts, ignored: Sequence[str] = ()) -> None:
    """Check that files hold exactly the tensors of a model.

    Args:
        files: Open files.
        layouts: Layouts of all parameters of the model.
        ignored: Names of optional tensors.

    Raises:
        WeightsMismatch: If tensors are missing, unexpected or of another shape; lists all of them.
    """
    expected, actual = all_tensors(layouts), files.shapes
    missing = sorted(set(expected) - set(actual))
    unexpected = sorted(set(actual) - set(expected) - set(ignored))
    misshaped = [
        f"{name}: {list(actual[name])}, not {list(expected[name])}"
        for name in sorted(set(expected) & set(actual))
        if expected[name] != actual[name]
    ]
    if missing or unexpected or misshaped:
        raise WeightsMismatch(str(files.files[0].parent), missing, unexpected, misshaped)


def load_params(
    files: TensorFiles,
    layouts: Layouts,
    like: PyTree,
    *,
    dtype: DTypeLike | None = None,
    progress: Progress = Silent(),
) -> Params:
    """Load parameters so that each device reads only its shards, one shard at a time.

    Args:
        files: Open files that passed `check_tensors`.
        layouts: Layouts of the parameters, nested dicts of `TensorLayout`.
        like: Shapes and shardings of the parameters, nested dicts of `jax.ShapeDtypeStruct`.
        dtype: Dtype of the parameters; None keeps the dtype of the files.
        progress: Receives one step per parameter.
    """
    leaves, structure = jax.tree.flatten(like)
    assert jax.tree.structure(layouts) == structure, "views and like must have the same structure"
    arrays = []
    with progress.task("loading weights", len(leaves)) as advance, _thread_pool() as pool:
        for layout, leaf in zip(jax.tree.leaves(layouts), leaves, strict=True):
            assert layout.shape == leaf.shape, f"{layout.shape} is not {leaf.shape}"
            leaf_dtype = dtype_of(files, layout) if dtype is None else jnp.dtype(dtype)
            read = partial(_read, layout, files, dtype=leaf_dtype, pool=pool)
            arrays.append(_load_sharded(leaf.shape, leaf.sharding, read))
            advance()
    return jax.tree.unflatten(structure, arrays)


def _load_sharded(
    shape: tuple[int, ...], sharding: jax.sharding.Sharding, read: Callable[[Index], np.ndarray]
) -> jax.Array:
    """Build a sharded array; reads each shard once for all local devices that hold it."""
    devices_by_shard: dict[tuple[tuple[int, int], ...], list] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        assert index is not None
        bounds = (s.indices(n)[:2] for s, n in zip(index, shape, strict=True))
        devices_by_shard.setdefault(tuple(bounds), []).append(device)
    shards = []
    for bounds, devices in devices_by_shard.items():
        shard = read(tuple(slice(*bound) for bound in bounds))
        shards += jax.block_until_ready([jax.device_put(shard, device) for device in devices])
    return jax.make_array_from_single_device_arrays(shape, sharding, shards)


def _gather_pool() -> ThreadPoolExecutor:
    """A pool for work that may gather arrays from all processes.

    With several processes it has one thread, because all of them must gather in the same order.
    """
    return ThreadPoolExecutor(1) if jax.process_count() > 1 else _thread_pool()


def _thread_pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1))


def _read(
    layout: TensorLayout,
    files: TensorFiles,
    index: Index,
    *,
    dtype: np.dtype,
    pool: ThreadPoolExecutor,
) -> np.ndarray:
    """Read part of a parameter; the entries of the first axis (layers) are read concurrently."""
    if len(layout.shape) < 3:
        return layout.read(files.read, index, dtype)
    rows, *inner = (slice(*s.indices(n)) for s, n in zip(index, layout.shape, strict=True))
    out = np.empty([s.stop - s.start for s in (rows, *inner)], dtype)

    def read_row(row: int) -> None:
        part = layout.read(files.read, (slice(row, row + 1), *inner), dtype)
        out[row - rows.start] = part[0]

    list(pool.map(read_row, range(rows.start, rows.stop)))
    return out


def dtype_of(files: TensorFiles, layout: TensorLayout) -> np.dtype:
    """Return the dtype that holds all tensors of a parameter without loss of precision."""
    dtypes = (jnp.dtype(files.dtypes[name]) for name in layout.tensors)
    return jnp.result_type(*dict.fromkeys(dtypes))


def save_params(
    params: Params,
    layouts: Layouts,
    original: TensorFiles,
    folder: Path,
    *,
    aliases: Mapping[str, str] | None = None,
    dtype: DTypeLike | None = None,
    progress: Progress = Silent(),
) -> None:
    """Write parameters in the tensors and files from which they were loaded.

    The host holds the contents of one file at a time. Parameters that were not changed give the
    same bytes as in the source files.

    Args:
        params: The parameters. They may be sharded over several processes.
        layouts: Layouts of the parameters, nested dicts of `TensorLayout`.
        original: Open source files, which determine the tensors of each file.
        folder: Folder to write.
        aliases: Names of tensors that are copies of other tensors, with the names of those tensors.
        dtype: Dtype of the tensors. None keeps the dtype of each source tensor if the parameter
            still has the dtype it was loaded with, and otherwise uses that of the parameter.
        progress: Receives one step per written file.
    """
    pairs = list(zip(jax.tree.leaves(layouts), jax.tree.leaves(params), strict=True))
    dtypes = {
        name: _tensor_dtype(original, layout, leaf, name, dtype)
        for layout, leaf in pairs
        for name in layout.tensors
    }
    with progress.task("writing weights", len(original.files)) as advance, _gather_pool() as pool:
        for file in original.files:
            names = [name for name in original.shapes if original.file_of[name] == file]
            # Buffers, which are not parameters, are copied.
            out = {name: np.array(original.read(name)) for name in names if name not in dtypes}
            copies = {name: of for name, of in (aliases or {}).items() if name in out}
            written = [name for name in names if name in dtypes]
            # An alias may be in another file than the tensor that it copies.
            filled = {
                name: np.empty(original.shapes[name], dtypes[name])
                for name in dict.fromkeys((*written, *copies.values()))
            }
            _fill(filled, pairs, pool)
            out |= {name: filled[of] for name, of in copies.items()}
            out |= {name: filled[name] for name in written}
            if jax.process_index() == 0:
                write_tensors(folder / file.name, out, original.metadata(file))
            advance()


def write_tensors(
    file: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file atomically.

    Raises:
        ValueError: If a value of a tensor is NaN or infinite.
    """
    from safetensors.numpy import save_file

    for name, array in tensors.items():
        require_finite(f"tensor {name}", array)
    with write_atomically(file) as temporary:
        save_file(dict(tensors), temporary, dict(metadata))


def _tensor_dtype(
    original: TensorFiles, layout: TensorLayout, leaf: _Leaf, name: str, dtype: DTypeLike | None
) -> np.dtype:
    if dtype is not None:
        return jnp.dtype(dtype)
    unchanged = jnp.dtype(leaf.dtype) == dtype_of(original, layout)
    return jnp.dtype(original.dtypes[name]) if unchanged else jnp.dtype(leaf.dtype)


def _write_layer(
    layout: TensorLayout, leaf: _Leaf, out: Mapping[str, np.ndarray], layer: int
) -> None:
    index = (slice(layer, layer + 1), *(slice(0, n) for n in layout.shape[1:]))
    layout.write(_on_host(leaf[layer : layer + 1]), index, out)


def _fill(
    out: Mapping[str, np.ndarray],
    pairs: Sequence[tuple[TensorLayout, _Leaf]],
    pool: ThreadPoolExecutor,
) -> None:
    """Write parameters into the tensors in `out`; stacked parameters layer by layer."""
    for layout, leaf in pairs:
        blocks = [block for block in layout.blocks if block.name in out]
        if not blocks:
            continue
        if any(block.axes[0].tensor_axis is not None for block in blocks):
            layout.write(_on_host(leaf), tuple(slice(0, n) for n in layout.shape), out)
            continue
        layers = sorted({block.axes[0].offset for block in blocks})
        list(pool.map(partial(_write_layer, layout, leaf, out), layers))


def _on_host(array: _Leaf) -> np.ndarray:
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        from jax.experimental.multihost_utils import process_allgather

        return np.asarray(process_allgather(array, tiled=True))
    return np.asarray(array)


def require_new(folder: Path, overwrite: bool) -> None:
    """Raise a `ValueError` if a folder contains files that may not be overwritten.

    A folder that was left unfinished by a killed process counts as empty.
    """
    free = folder.is_dir() and (_is_empty(folder) or _is_unfinished(folder))
    rule = "be new or empty (--overwrite replaces its files)"
    require(overwrite or free or not folder.exists(), f"folder {folder}", rule, "files in it")


@contextmanager
def mark_unfinished(folder: Path) -> Iterator[None]:
    """Mark a folder as unfinished while the block writes to it; `require_new` reads the mark.

    If the block raises and the folder was empty before, all its files are deleted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    empty = _is_empty(folder) or _is_unfinished(folder)
    marker = folder / _UNFINISHED
    marker.touch()
    try:
        yield
    except BaseException:
        for file in sorted(folder.iterdir()) if empty else ():
            if file != marker and not is_leftover(file):
                shutil.rmtree(file) if file.is_dir() else file.unlink()
        if empty:
            marker.unlink()
        raise
    marker.unlink()


def _is_empty(folder: Path) -> bool:
    return all(map(is_leftover, folder.iterdir()))


def _is_unfinished(folder: Path) -> bool:
    return (folder / _UNFINISHED).exists()
