"""Which mesh axis splits what, and constraints that hold a network to it.

A mesh has the axes `data`, `fsdp` and `tensor`. A batch is split over the first two, so that each
of their devices works on rows of its own. Weights are stored split over `fsdp`, and over `tensor`
where a layer says which axis; a layer gathers its weight over `fsdp` when it uses it.

Left to itself the partitioner would follow the weights' layout, split products and move
activations between devices in every layer: so it is told what stays where. Without a mesh in
context every constraint here does nothing.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import PartitionSpec

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

# Below this many elements an array is copied to every device: to gather it would cost more
# than its memory is worth.
_MIN_SPLIT_SIZE = 2**12


def batch_axes() -> tuple[str, ...]:
    """The axes of the mesh in context over which a batch is split; none without such a mesh."""
    return tuple(name for name in BATCH_AXES if name in _mesh_axes())


def stored_spec(
    shape: tuple[int, ...], sizes: Mapping[str, int], tensor_axis: int | None = None
) -> PartitionSpec:
    """How a weight, its average or a moment of it is kept.

    Its `tensor_axis` is split over `tensor`, and the longest axis over `fsdp`: the next longest
    if that does not divide, and so on. The first of three or more axes is never split, for it
    may count layers that a scan walks through. Small arrays stay whole.

    Args:
        shape: Of the array.
        sizes: Devices along each axis of the mesh.
        tensor_axis: Which axis tensor parallelism splits, None for none.
    """
    spec: list[str | tuple[str, ...] | None] = [None] * len(shape)
    if math.prod(shape) < _MIN_SPLIT_SIZE:
        return PartitionSpec()
    lengths, fsdp = list(shape), sizes.get("fsdp", 1)
    if tensor_axis is not None and _splits(shape, tensor_axis, sizes.get("tensor", 1)):
        spec[tensor_axis] = "tensor"
        lengths[tensor_axis] //= sizes["tensor"]
    axes = range(1 if len(shape) >= 3 else 0, len(shape))
    # Of equally long axes the last: rows then stay whole in memory.
    fitting = sorted((lengths[axis], axis) for axis in axes if lengths[axis] % fsdp == 0)
    if fsdp > 1 and fitting:
        axis = fitting[-1][1]
        spec[axis] = "fsdp" if spec[axis] is None else ("tensor", "fsdp")
    return PartitionSpec(*spec) if any(spec) else PartitionSpec()


def all_gather_fsdp(weight: jax.Array, tensor_axis: int | None = None) -> jax.Array:
    """A layer's weight as it is used: whole, but for the part that `tensor` splits.

    Cast it first to the type it is used in: half the numbers' bytes are half of what travels.
    """
    if not _mesh_axes():
        return weight
    spec: list[str | None] = [None] * weight.ndim
    if tensor_axis is not None and _splits(weight.shape, tensor_axis, _size("tensor")):
        spec[tensor_axis] = "tensor"
    return jax.lax.with_sharding_constraint(weight, PartitionSpec(*spec))


def is_fsdp_sharded() -> bool:
    """Whether weights are split along `fsdp` on the mesh in context."""
    return _size("fsdp") > 1


def save_all_but_gathered(primitive: Any, *_: Any, **__: Any) -> bool:
    """A `jax.checkpoint` policy: save all values but gathered weights, which are gathered again."""
    return primitive.name != "sharding_constraint"


def shard_batch(h: jax.Array) -> jax.Array:
    """Each device along `data` and `fsdp` on rows of its own, whole along their other axes."""
    axes = batch_axes()
    return jax.lax.with_sharding_constraint(h, PartitionSpec(axes)) if axes else h


def heads_spec(
    shape: tuple[int, ...],
) -> tuple[PartitionSpec, PartitionSpec] | tuple[None, None]:
    """Where queries, and where keys and values are, all `[batch, heads, tokens, dim]`.

    Rows apart, and along `tensor` heads apart. Where the heads do not divide, queries of its own
    for each device, which see all keys; where neither does, all of them for each. None without
    a mesh.

    Args:
        shape: Of the queries.
    """
    axes, parts = batch_axes(), _size("tensor")
    if not axes:
        return None, None
    whole = PartitionSpec(axes)
    if _splits(shape, 1, parts):
        by_head = PartitionSpec(axes, "tensor")
        return by_head, by_head
    return (PartitionSpec(axes, None, "tensor") if _splits(shape, 2, parts) else whole), whole


def shard_heads(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries, keys and values where `heads_spec` has them."""
    spec_q, spec_kv = heads_spec(q.shape)
    if spec_q is None:
        return q, k, v
    specs = (spec_q, spec_kv, spec_kv)
    q, k, v = jax.lax.with_sharding_constraint((q, k, v), specs)
    return q, k, v


def _mesh_axes() -> tuple[str, ...]:
    """Those axes of the mesh in context that are the partitioner's to split."""
    auto = jax.sharding.get_abstract_mesh().auto_axes
    return tuple(name for name in AXES if name in auto)


def _size(name: str) -> int:
    return jax.sharding.get_abstract_mesh().shape[name] if name in _mesh_axes() else 1


def _splits(shape: tuple[int, ...], axis: int, parts: int) -> bool:
    return parts > 1 and shape[axis] % parts == 0
