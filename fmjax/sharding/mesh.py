"""The device mesh, and the shardings of batches and training states on it.

The batch is split over `data` and `fsdp`. Weights, their average and the optimizer's moments are
replicated over `data`, split over `fsdp`, and split over `tensor` where the network says so. The
same program runs on any number of devices; only the mesh differs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.mesh_utils import create_hybrid_device_mesh
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from fmjax._arrays import Batch
from fmjax._checks import require, require_at_least, require_numbers
from fmjax._inputs import describe, is_array
from fmjax._specs import CondSpec, abstract_cond
from fmjax.sharding.layout import AXES, BATCH_AXES, stored_spec


@runtime_checkable
class Device(Protocol):
    """A device of JAX, or of a topology to compile for."""

    @property
    def platform(self) -> str:
        """Kind of backend, such as "cpu", "cuda" or "tpu"."""
        ...

    @property
    def device_kind(self) -> str:
        """Model of the device, such as "TPU v5 lite"."""
        ...


@dataclass(frozen=True)
class MeshConfig:
    """Number of devices along each axis of the mesh; -1 takes all remaining devices.

    Only `data` spans machines joined by slower links (TPU slices): gradients cross these links once
    per training step, weights never.

    Attributes:
        data: Number of model replicas, each on a different part of the batch.
        fsdp: Number of devices that share one copy of the model's weights; they also split the
            batch.
        tensor: Number of devices that share the work on each example, by splitting hidden channels
            and attention heads. For models whose work on one example is too large for one device.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self):
        require_numbers(self, "mesh.")
        for name, value in vars(self).items():
            require(value == -1 or value >= 1, f"mesh.{name}", "be -1 or at least 1", value)
        sizes = tuple(vars(self).values())
        require(sizes.count(-1) <= 1, "mesh", "leave at most one axis at -1", self)

    def sizes(self, num_devices: int) -> tuple[int, int, int]:
        """Resolve -1 and return the number of devices along data, fsdp and tensor.

        Raises:
            ValueError: If the product of the sizes is not `num_devices`.
        """
        sizes = (self.data, self.fsdp, self.tensor)
        remaining = max(num_devices // math.prod(size for size in sizes if size != -1), 1)
        data, fsdp, tensor = (remaining if size == -1 else size for size in sizes)
        rule = f"have data * fsdp * tensor equal to {num_devices}, the number of devices"
        got = f"data {self.data}, fsdp {self.fsdp}, tensor {self.tensor}"
        require(data * fsdp * tensor == num_devices, "mesh", rule, got)
        return data, fsdp, tensor


def make_mesh(config: MeshConfig | None = None, devices: Sequence[Device] | None = None) -> Mesh:
    """Make a mesh with the axes `data`, `fsdp` and `tensor`.

    Args:
        config: Number of devices along each axis; by default all are along `data`.
        devices: The devices; by default all devices of the run.

    Raises:
        ValueError: If the product of the axes is not the number of devices, or `data` is not a
            multiple of the number of TPU slices.
    """
    config = MeshConfig() if config is None else config
    devices = jax.devices() if devices is None else list(devices)
    sizes, types = config.sizes(len(devices)), (AxisType.Auto,) * len(AXES)
    # Other devices are ordered by machine, so `data` is the outermost axis there as well.
    slices = {getattr(device, "slice_index", 0) for device in devices}
    num_slices = len(slices) if devices[0].platform == "tpu" else 1
    if num_slices == 1:
        return jax.make_mesh(sizes, AXES, axis_types=types, devices=devices)
    rule = f"be divisible by {num_slices}, the number of TPU slices"
    require(sizes[0] % num_slices == 0, "mesh.data", rule, sizes[0])
    within, across = (sizes[0] // num_slices, *sizes[1:]), (num_slices, 1, 1)
    # Several logical axes may share one axis of the chip grid, as `jax.make_mesh` allows.
    grid = create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=types)


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding that keeps a full copy of an array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding that splits the leading axis over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def num_shares(mesh: Mesh) -> int:
    """Return the number of parts into which the mesh splits a batch."""
    return math.prod(mesh.shape[name] for name in BATCH_AXES)


def state_sharding(
    abstract_state: PyTree, mesh: Mesh, tensor_axes: Mapping[str, int] = MappingProxyType({})
) -> PyTree:
    """Return the sharding of each array of a training state or any other pytree of arrays.

    The weights, average and optimizer moments of one parameter have the same layout, because their
    names have the same ending.

    Args:
        abstract_state: Arrays or `jax.ShapeDtypeStruct`s, for example from `jax.eval_shape`.
        mesh: The mesh, from `make_mesh`.
        tensor_axes: Maps the dotted name of a parameter of the network to the axis that is split
            over `tensor`.
    """

    def sharding_of(
        key_path: jax.tree_util.KeyPath, leaf: jax.Array | np.ndarray | jax.ShapeDtypeStruct
    ) -> NamedSharding:
        name = "." + jax.tree_util.keystr(key_path, simple=True, separator=".")
        axes = (axis for ending, axis in tensor_axes.items() if name.endswith(f".{ending}"))
        return NamedSharding(mesh, stored_spec(leaf.shape, mesh.shape, next(axes, None)))

    return jax.tree_util.tree_map_with_path(sharding_of, abstract_state)


def with_shardings(
    abstract_state: PyTree, mesh: Mesh, tensor_axes: Mapping[str, int] = MappingProxyType({})
) -> PyTree:
    """Return a state as `jax.ShapeDtypeStruct`s with the shardings of `state_sharding`.

    The arguments are those of `state_sharding`.
    """
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract_state,
        state_sharding(abstract_state, mesh, tensor_axes),
    )


def bytes_held(arrays: PyTree) -> float:
    """Return the bytes that arrays take on each device.

    Args:
        arrays: Arrays or `jax.ShapeDtypeStruct`s with shardings.
    """

    def bytes_of(leaf: Any) -> float:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.eval_shape(jax.random.key_data, leaf)
            return float(leaf.size * leaf.dtype.itemsize)
        return float(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize)

    return sum(map(bytes_of, jax.tree.leaves(arrays)))


def abstract_batch(
    event_shape: tuple[int, ...],
    conditions: CondSpec,
    batch_size: int,
    mesh: Mesh,
    *,
    paired: bool = False,
) -> Batch:
    """Return a batch of training data as `jax.ShapeDtypeStruct`s with shardings.

    Args:
        event_shape: Shape of one example.
        conditions: What the model is conditioned on.
        batch_size: Number of examples in the global batch.
        mesh: The mesh, from `make_mesh`.
        paired: Whether the batch also contains source points `x0`.
    """
    by_row = batch_sharding(mesh)
    x = jax.ShapeDtypeStruct((batch_size, *event_shape), jnp.float32, sharding=by_row)
    return Batch(x, abstract_cond(conditions, batch_size, by_row), x if paired else None)


def put_batch(batch: PyTree, mesh: Mesh) -> PyTree:
    """Send this process's rows of a batch to its devices and return the global batch.

    The transfer is asynchronous: started before the running training step ends, it adds no time.

    Args:
        batch: A `Batch` or any pytree of NumPy or JAX arrays whose leading axis is the global batch
            size divided by the number of processes. A JAX array over the devices of all processes
            is the global batch, and its leading axis the global batch size.
        mesh: The mesh, from `make_mesh`.

    Raises:
        ValueError: If the global batch size is not divisible by the number of devices along `data`
            and `fsdp`, or a leaf is not an array of numbers.
    """
    sharding = batch_sharding(mesh)

    def put(rows):
        rows = rows if isinstance(rows, jax.Array) else np.asarray(rows)
        require(is_array(rows), "batch", "hold arrays of numbers", describe(rows))
        require_at_least("batch.ndim", rows.ndim, 1)
        is_local = jax.process_count() > 1 and getattr(rows, "is_fully_addressable", True)
        num_rows = rows.shape[0] * (jax.process_count() if is_local else 1)
        require_batch_fits(num_rows, mesh)
        if isinstance(rows, jax.Array) and not is_local:
            return jax.device_put(rows, sharding)
        rows = np.asarray(rows)
        return jax.make_array_from_process_local_data(sharding, rows, (num_rows, *rows.shape[1:]))

    return jax.tree.map(put, batch)


def require_rows_by_process(mesh: Mesh) -> None:
    """Raise unless each process holds separate rows of a batch, in the order of the processes.

    Each process loads only its share of a batch. Devices along `tensor` work on the same rows and
    must therefore belong to one process.
    """
    shares, process = num_shares(mesh), jax.process_index()
    slices = batch_sharding(mesh).addressable_devices_indices_map((shares,)).values()
    rows = {row for index in slices if index for row in range(*index[0].indices(shares))}
    num = shares // jax.process_count()
    expected = set(range(process * num, (process + 1) * num))
    in_order = rows == expected and shares % jax.process_count() == 0
    rule = (
        "give each process separate rows of the batch, in process order (devices along tensor must "
        "belong to one process)"
    )
    require(in_order, "mesh", rule, dict(mesh.shape))


def require_batch_fits(batch_size: int, mesh: Mesh, accumulation_steps: int = 1) -> None:
    """Raise unless every device gets the same number of rows of each microbatch.

    Args:
        batch_size: Number of examples in the global batch.
        mesh: The mesh, from `make_mesh`.
        accumulation_steps: Number of microbatches.
    """
    shares = num_shares(mesh)
    rule = f"be divisible by {shares}, the number of devices along data and fsdp"
    if accumulation_steps > 1:
        rule += f", times {accumulation_steps} accumulation steps"
    require(batch_size % (shares * accumulation_steps) == 0, "batch_size", rule, batch_size)
