"""Any number of examples in batches of one size over a mesh, with one compiled program."""

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

    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return fn(*args, **kwargs)

    return wrapped


def padded_batch_size(num: int, batch_size: int, mesh: Mesh) -> int:
    """Smallest multiple of the number of batch shards that holds `min(batch_size, num)` examples."""
    shares = num_shares(mesh)
    return -(-min(batch_size, num) // shares) * shares


def even_batches(
    num: int, batch_size: int, mesh: Mesh
) -> Iterator[tuple[Int[np.ndarray, " batch"], slice]]:
    """Split the indices below `num` into batches of one size, so that one program serves all.

    Args:
        num: Number of examples.
        batch_size: Largest number of examples in a batch, before it is rounded up to a multiple of
            the number of batch shards.
        mesh: The devices.

    Yields:
        The indices of a batch, and the slice of the batch to keep: the last batch is padded with
        the last index.
    """
    size = padded_batch_size(num, batch_size, mesh)
    for first in range(0, num, size):
        yield np.minimum(np.arange(first, first + size), num - 1), slice(0, min(size, num - first))


def map_batched(
    fn: Callable[..., PyTree],
    inputs: Callable[[Int[np.ndarray, " batch"]], tuple[PyTree, ...]],
    num: int,
    *,
    batch_size: int,
    mesh: Mesh,
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
        mesh: The devices.
        on_batch: Called after each batch with the number of examples in it.

    Returns:
        The results of all examples on the host, NumPy arrays `[num, ...]`.
    """
    rows = batch_sharding(mesh)
    gather = jax.jit(lambda array: array, out_shardings=replicated(mesh))
    parts = []
    for indices, kept in even_batches(num, batch_size, mesh):
        outputs = fn(*jax.device_put(inputs(indices), rows))
        parts.append(
            jax.tree.map(
                lambda array, kept=kept: np.asarray(
                    array if array.is_fully_addressable else gather(array)
                )[kept],
                outputs,
            )
        )
        on_batch(kept.stop)
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
