"""Partition specs of weights and activations, and the sharding constraints that apply them.

A mesh has the axes `data`, `fsdp` and `tensor`. The rows of a batch are split over `data` and
`fsdp`. Weights are stored split over `fsdp`, and also over `tensor` where the layer names an axis;
a layer gathers its weight over `fsdp` before use.

Without constraints, XLA's partitioner would follow the layout of the weights: it would split matrix
products and move activations between devices in every layer. Without a mesh in context, every
constraint in this module does nothing.
"""

import math
from collections.abc import Mapping

import jax
from jax.extend.core import Primitive
from jax.sharding import PartitionSpec

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

# Arrays with fewer elements are replicated: gathering them costs more than the memory they save.
_MIN_SPLIT_SIZE = 2**12


def batch_axes() -> tuple[str, ...]:
    """Return the axes over which the mesh in context splits a batch; empty without a mesh."""
    return tuple(name for name in BATCH_AXES if name in _mesh_axes())


def stored_spec(
    shape: tuple[int, ...], sizes: Mapping[str, int], tensor_axis: int | None = None
) -> PartitionSpec:
    """Return the partition spec in which a weight, its average or its optimizer moment is stored.

    `tensor_axis` is split over `tensor`, and the longest axis divisible by the size of `fsdp` is
    split over `fsdp`. The first of three or more axes is never split, because it may be the layer
    axis of a scan. Small arrays are replicated.

    Args:
        shape: Shape of the array.
        sizes: Number of devices along each mesh axis.
        tensor_axis: Axis split by tensor parallelism, or None.
    """
    spec: list[str | tuple[str, ...] | None] = [None] * len(shape)
    if math.prod(shape) < _MIN_SPLIT_SIZE:
        return PartitionSpec()
    lengths, fsdp = list(shape), sizes.get("fsdp", 1)
    if tensor_axis is not None and _is_splittable(shape, tensor_axis, sizes.get("tensor", 1)):
        spec[tensor_axis] = "tensor"
        lengths[tensor_axis] //= sizes["tensor"]
    axes = range(1 if len(shape) >= 3 else 0, len(shape))
    # Among axes of equal length the last is split, which keeps rows contiguous in memory.
    divisible = sorted((lengths[axis], axis) for axis in axes if lengths[axis] % fsdp == 0)
    if fsdp > 1 and divisible:
        axis = divisible[-1][1]
        spec[axis] = "fsdp" if spec[axis] is None else ("tensor", "fsdp")
    return PartitionSpec(*spec) if any(spec) else PartitionSpec()


def all_gather_fsdp(weight: jax.Array, tensor_axis: int | None = None) -> jax.Array:
    """Gather a layer's weight over `fsdp` for use; it stays split over `tensor`.

    Cast the weight to its compute dtype first: bfloat16 halves the bytes that are sent.

    Args:
        weight: The stored weight.
        tensor_axis: Axis split by tensor parallelism, or None.
    """
    if not _mesh_axes():
        return weight
    spec: list[str | None] = [None] * weight.ndim
    if tensor_axis is not None and _is_splittable(weight.shape, tensor_axis, _size("tensor")):
        spec[tensor_axis] = "tensor"
    return jax.lax.with_sharding_constraint(weight, PartitionSpec(*spec))


def is_fsdp_sharded() -> bool:
    """Return whether the mesh in context splits weights over `fsdp`."""
    return _size("fsdp") > 1


def save_all_but_gathered(primitive: Primitive, *_: object, **__: object) -> bool:
    """`jax.checkpoint` policy that saves all values except gathered weights.

    Gathered weights are gathered again in the backward pass.
    """
    return primitive.name != "sharding_constraint"


def shard_batch(h: jax.Array) -> jax.Array:
    """Constrain an array to be split by rows over `data` and `fsdp`; other axes are not split."""
    axes = batch_axes()
    return jax.lax.with_sharding_constraint(h, PartitionSpec(axes)) if axes else h


def heads_spec(
    shape: tuple[int, ...],
) -> tuple[PartitionSpec, PartitionSpec] | tuple[None, None]:
    """Return the partition specs of attention inputs `[batch, heads, tokens, dim]`.

    Rows are split over `data` and `fsdp`, and heads over `tensor`. If the number of heads is not
    divisible by the size of `tensor`, query tokens are split over it instead, with all keys on each
    device; if the number of tokens is not divisible either, nothing is split over `tensor`.

    Args:
        shape: Shape of the queries.

    Returns:
        The spec of the queries, and the spec of the keys and values; (None, None) without a mesh.
    """
    axes, num_parts = batch_axes(), _size("tensor")
    if not axes:
        return None, None
    by_row = PartitionSpec(axes)
    if _is_splittable(shape, 1, num_parts):
        by_head = PartitionSpec(axes, "tensor")
        return by_head, by_head
    by_query = PartitionSpec(axes, None, "tensor")
    return (by_query if _is_splittable(shape, 2, num_parts) else by_row), by_row


def shard_heads(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Constrain queries, keys and values to the layout of `heads_spec`."""
    spec_q, spec_kv = heads_spec(q.shape)
    if spec_q is None:
        return q, k, v
    specs = (spec_q, spec_kv, spec_kv)
    q, k, v = jax.lax.with_sharding_constraint((q, k, v), specs)
    return q, k, v


def _mesh_axes() -> tuple[str, ...]:
    """Return the axes of the mesh in context that the partitioner may use (`AxisType.Auto`)."""
    auto = jax.sharding.get_abstract_mesh().auto_axes
    return tuple(name for name in AXES if name in auto)


def _size(name: str) -> int:
    return jax.sharding.get_abstract_mesh().shape[name] if name in _mesh_axes() else 1


def _is_splittable(shape: tuple[int, ...], axis: int, num_parts: int) -> bool:
    # Optimizers such as Adafactor store moments with fewer axes than the weight.
    has_axis = -len(shape) <= axis < len(shape)
    return num_parts > 1 and has_axis and shape[axis] % num_parts == 0
