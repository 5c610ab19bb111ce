"""The batches of a training loop: their position, checks, and transfer to the devices."""

import base64
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, cast, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from fmjax._arrays import Batch
from fmjax._checks import require
from fmjax._inputs import describe, is_array
from fmjax.sharding.mesh import put_batch

_BYTES = "base64"  # Key of a state in bytes, such as that of `grain.DataLoader`.


@runtime_checkable
class Batches(Protocol):
    """Protocol of an iterator of batches whose position can be saved.

    The state is JSON data or bytes. After `set_state(state)`, the iterator returns the same batches
    as after the call of `get_state` that returned `state`.
    """

    def __next__(self) -> PyTree:
        """Return the rows of this process in the next batch, usually a `Batch` of NumPy arrays."""
        ...

    def get_state(self) -> Any:
        """Return the position of the iterator."""
        ...

    def set_state(self, state: Any) -> None:
        """Continue from a saved position."""
        ...


class Feed:
    """Checks the batches of an iterator, and transfers the next one while a step runs.

    Args:
        batches: An iterator or iterable of batches; it is iterated once.
        mesh: Mesh of the training.
        num_steps: Total number of steps of the run.

    Attributes:
        can_resume: Whether the position of the iterator can be saved and restored.
        state: Position after the last batch taken, without the prefetched one, as a JSON object;
            None if it cannot be saved.

    Raises:
        ValueError: If `batches` is neither an iterator nor an iterable of batches.
    """

    def __init__(self, batches: Batches | Iterable[PyTree], mesh: Mesh, num_steps: int) -> None:
        is_one = isinstance(batches, Batch | Mapping | str | bytes | np.ndarray | jax.Array)
        can_iterate = hasattr(batches, "__next__") or isinstance(batches, Iterable)
        rule = "be an iterator or iterable of batches"
        require(can_iterate and not is_one, "batches", rule, describe(batches))
        if not hasattr(batches, "__next__"):
            batches = iter(cast(Iterable[PyTree], batches))
        self._batches = cast(Iterator[PyTree], batches)
        self._mesh, self._num_steps = mesh, num_steps
        self._first: PyTree = None
        self._next: tuple[PyTree, dict[str, Any] | None] | None = None
        self.state = _read_state(self._batches)
        self.can_resume = self.state is not None

    def restore(self, state: dict[str, Any] | None) -> None:
        """Continue from a saved position, if the iterator can.

        Raises:
            ValueError: If the position was not saved although the iterator can continue from one,
                or belongs to another iterator.
        """
        if not isinstance(self._batches, Batches) or not self.can_resume:
            return
        if state is None:
            raise ValueError("batches had no get_state and set_state when it was saved")
        is_bytes = set(state) == {_BYTES}
        self._batches.set_state(base64.b64decode(state[_BYTES]) if is_bytes else state)

    def fetch(self, step: int) -> None:
        """Read the batch of a step, counted from 1, and start its transfer to the devices.

        Raises:
            ValueError: If there is none, or its arrays differ from those of the first batch in
                structure, shape or dtype.
        """
        try:
            batch = next(self._batches)
        except StopIteration:
            rule = f"yield a batch for each step up to {self._num_steps}"
            raise ValueError(f"batches must {rule}, got none for step {step}") from None
        batch = jax.tree.map(_as_array, batch)
        if self._first is None:
            self._first = jax.tree.map(_as_abstract, batch)
        _require_same_arrays(batch, self._first, step)
        self._next = (put_batch(batch, self._mesh), _read_state(self._batches))

    def take(self) -> PyTree:
        """Return the prefetched batch."""
        assert self._next is not None, "take() without fetch()"
        batch, self.state = self._next
        self._next = None
        return batch


def _read_state(batches: Iterator[PyTree]) -> dict[str, Any] | None:
    """Return the position of an iterator as a JSON object, or None if it cannot be saved."""
    if not isinstance(batches, Batches):
        return None
    state = batches.get_state()
    if isinstance(state, bytes):
        return {_BYTES: base64.b64encode(state).decode()}
    try:
        json.dumps(state, allow_nan=False)
    except (TypeError, ValueError):
        return None
    return state if isinstance(state, dict) else None


def _as_array(leaf: PyTree) -> jax.Array | np.ndarray:
    """Return a JAX array as it is, and anything else, such as a tensor of PyTorch, as NumPy's."""
    array = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
    require(is_array(array), "batch", "hold arrays of numbers", describe(leaf))
    return array


def _as_abstract(leaf: jax.Array | np.ndarray) -> jax.ShapeDtypeStruct:
    """Return the shape of an array and the dtype that it has on a device."""
    return jax.ShapeDtypeStruct(leaf.shape, jax.dtypes.canonicalize_dtype(leaf.dtype))


def _require_same_arrays(batch: PyTree, first: PyTree, step: int) -> None:
    """Raise unless a batch has the structure, shapes and dtypes of the first batch."""
    name = f"batch of step {step}"
    if jax.tree.structure(batch) != jax.tree.structure(first):
        got, expected = _describe_arrays(batch), _describe_arrays(first)
        if got == expected:
            got, expected = str(jax.tree.structure(batch)), str(jax.tree.structure(first))
        require(False, name, f"have the arrays of the first batch, {expected}", got)
    leaves = jax.tree_util.tree_leaves_with_path(jax.tree.map(_as_abstract, batch))
    for (key_path, leaf), expected in zip(leaves, jax.tree.leaves(first), strict=True):
        if (leaf.shape, leaf.dtype) != (expected.shape, expected.dtype):
            array = jax.tree_util.keystr(key_path, simple=True, separator=".") or "an array"
            rule = f"have {array} like the first batch, {describe(expected)}"
            require(False, name, rule, describe(leaf))


def _describe_arrays(batch: PyTree) -> str:
    """Return the type of a batch and the dotted names of its arrays: "a Batch of x1, cond"."""
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]
    return f"{describe(batch)} of {', '.join(names)}"
