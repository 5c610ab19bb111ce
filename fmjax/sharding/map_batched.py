"""Apply a function to any number of examples, in batches of one size over a mesh."""

import functools
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int, PyTree

from fmjax.sharding.mesh import batch_sharding, num_shares, replicated

P = ParamSpec("P")
R = TypeVar("R")


def on_mesh(mesh: Mesh, fn: Callable[P, R]) -> Callable[P, R]:
    """Wrap `fn` so that its layers and solvers can name the axes of `mesh` while it is traced."""

    @functools.wraps(fn)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return fn(*args, **kwargs)

    return wrapped


def padded_batch_size(num: int, batch_size: int, mesh: Mesh | None) -> int:
    """Round `min(batch_size, num)` up to a multiple of the number of batch shards."""
    shares = 1 if mesh is None else num_shares(mesh)
    return -(-min(batch_size, num) // shares) * shares


def even_batches(
    num: int, batch_size: int, mesh: Mesh | None, *, constant_size: bool = False
) -> Iterator[tuple[Int[np.ndarray, " batch"], slice]]:
    """Split the indices below `num` into batches of one size, so that one program serves all.

    Args:
        num: Number of examples.
        batch_size: Largest number of examples in a batch, before it is rounded up to a multiple of
            the number of batch shards.
        mesh: The devices; None is the default device.
        constant_size: Whether a batch also has this size if `num` is smaller, so that calls with
            another `num` use the same program.

    Yields:
        The indices of a batch, and the slice of the batch to keep: the last batch is padded with
        the last index.
    """
    size = padded_batch_size(batch_size if constant_size else num, batch_size, mesh)
    for first in range(0, num, size):
        yield np.minimum(np.arange(first, first + size), num - 1), slice(0, min(size, num - first))


def map_batched(
    fn: Callable[..., PyTree],
    inputs: Callable[[Int[np.ndarray, " batch"]], tuple[PyTree, ...]],
    num: int,
    *,
    batch_size: int,
    mesh: Mesh | None,
    constant_size: bool = False,
    on_batch: Callable[[int], object] = lambda num: None,
) -> PyTree:
    """Apply a function to `num` examples in batches over a mesh, and concatenate the results.

    On the devices of several processes, all of them must call it, and each gets all results.

    Args:
        fn: Function of the arrays that `inputs` returns, usually jitted. Each leaf of its result
            has the batch as leading axis.
        inputs: `inputs(indices)` returns the arguments for these examples: pytrees of host arrays
            with the batch as leading axis.
        num: Number of examples, at least 1.
        batch_size: Largest number of examples in a batch, as in `even_batches`.
        mesh: The devices; None is the default device.
        constant_size: As in `even_batches`.
        on_batch: Called after each batch with the number of examples in it.

    Returns:
        The results of all examples on the host, NumPy arrays `[num, ...]`.
    """
    rows = None if mesh is None else batch_sharding(mesh)

    gather = None if mesh is None else jax.jit(lambda a: a, out_shardings=replicated(mesh))

    def to_host(array: jax.Array) -> np.ndarray:
        return np.asarray(array if array.is_fully_addressable or gather is None else gather(array))

    parts = []
    for indices, kept in even_batches(num, batch_size, mesh, constant_size=constant_size):
        outputs = fn(*jax.device_put(inputs(indices), rows))
        parts.append(jax.tree.map(lambda array, kept=kept: to_host(array)[kept], outputs))
        on_batch(kept.stop)
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
