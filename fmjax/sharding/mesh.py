"""Where arrays live: a mesh of three axes, and what is split over which.

The batch is split over `data` and `fsdp`. Weights, their average and the optimizer's moments are
copied along `data`, split along `fsdp`, and along `tensor` as their network says. The same program
runs on one device and on thousands; only the mesh differs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.mesh_utils import create_hybrid_device_mesh
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fmjax._arrays import Batch, Cond, Conditions, Text, TextShape, TokenShape
from fmjax._checks import require, require_at_least, require_numbers
from fmjax._inputs import described, is_array
from fmjax.sharding.layout import AXES, BATCH_AXES, stored_spec


@dataclass(frozen=True)
class MeshConfig:
    """How many devices stand along each axis of the mesh; -1 takes all that remain.

    Of machines that are joined by slower links (slices of TPUs), only `data` reaches from one to
    the other: gradients travel there once a step, weights never.

    Attributes:
        data: Copies of the model, each on its own part of the batch.
        fsdp: Devices that share one copy of the model's weights (and split the batch too).
        tensor: Devices that share the work on each example: hidden channels and attention heads
            are split over them. For models of which one example is too much for a device.
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
        """Devices along data, fsdp and tensor.

        Raises:
            ValueError: If they do not multiply to the number of devices.
        """
        asked = (self.data, self.fsdp, self.tensor)
        rest = max(num_devices // math.prod(size for size in asked if size != -1), 1)
        data, fsdp, tensor = (rest if size == -1 else size for size in asked)
        rule = f"have data * fsdp * tensor equal to the {num_devices} devices"
        got = f"data {self.data}, fsdp {self.fsdp}, tensor {self.tensor}"
        require(data * fsdp * tensor == num_devices, "mesh", rule, got)
        return data, fsdp, tensor


def make_mesh(config: MeshConfig | None = None, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of axes `data`, `fsdp` and `tensor` over `devices` (default: all there are).

    Raises:
        ValueError: If the axes do not multiply to the number of devices, or `data` to that of
            the slices they stand in.
    """
    config = MeshConfig() if config is None else config
    devices = jax.devices() if devices is None else list(devices)
    sizes, types = config.sizes(len(devices)), (AxisType.Auto,) * len(AXES)
    # Other devices stand in their order, machine after machine: `data` is then the outermost too.
    slices = {getattr(device, "slice_index", 0) for device in devices}
    num_slices = len(slices) if devices[0].platform == "tpu" else 1
    if num_slices == 1:
        return jax.make_mesh(sizes, AXES, axis_types=types, devices=devices)
    rule = f"be a multiple of the {num_slices} slices of devices"
    require(sizes[0] % num_slices == 0, "mesh.data", rule, sizes[0])
    within, across = (sizes[0] // num_slices, *sizes[1:]), (num_slices, 1, 1)
    # Logical axes may share one of the chips' grid, as `jax.make_mesh` allows.
    grid = create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=types)


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis split over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def num_shares(mesh: Mesh) -> int:
    """How many parts a batch is split into."""
    return math.prod(mesh.shape[name] for name in BATCH_AXES)


def state_sharding(
    abstract_state: Any, mesh: Mesh, tensor_axes: Mapping[str, int] = MappingProxyType({})
) -> Any:
    """A sharding for every array of a state (or of any pytree of arrays).

    Weights, average and moments of one parameter, whose names end alike, are laid out alike.

    Args:
        abstract_state: Arrays or `jax.ShapeDtypeStruct`s, from `jax.eval_shape`.
        mesh: From `make_mesh`.
        tensor_axes: Of the network: which axis `tensor` splits, by a parameter's dotted name.
    """

    def place(path: Any, leaf: Any) -> NamedSharding:
        name = "." + jax.tree_util.keystr(path, simple=True, separator=".")
        axes = (axis for ending, axis in tensor_axes.items() if name.endswith(f".{ending}"))
        return NamedSharding(mesh, stored_spec(leaf.shape, mesh.shape, next(axes, None)))

    return jax.tree_util.tree_map_with_path(place, abstract_state)


def laid_out(
    abstract_state: Any, mesh: Mesh, tensor_axes: Mapping[str, int] = MappingProxyType({})
) -> Any:
    """The same as `jax.ShapeDtypeStruct`s that say where they lie, as `state_sharding` has it."""
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        abstract_state,
        state_sharding(abstract_state, mesh, tensor_axes),
    )


def bytes_held(arrays: Any) -> float:
    """Bytes of each device that these (`jax.ShapeDtypeStruct`s with shardings) take."""

    def held(leaf: Any) -> float:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.eval_shape(jax.random.key_data, leaf)
            return float(leaf.size * leaf.dtype.itemsize)
        return float(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize)

    return sum(map(held, jax.tree.leaves(arrays)))


def abstract_batch(
    event_shape: tuple[int, ...],
    conditions: Conditions,
    batch_size: int,
    mesh: Mesh,
    *,
    paired: bool = False,
) -> Batch:
    """A batch of the data, as `jax.ShapeDtypeStruct`s; with source points if `paired`."""
    rows = batch_sharding(mesh)

    def array(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=rows)

    cond: Cond = None if conditions is None else array((), jnp.int32)
    if isinstance(conditions, TextShape):
        tokens = array((conditions.num_tokens, conditions.width), jnp.float32)
        cond = Text(tokens, array((conditions.pooled_width,), jnp.float32))
    elif isinstance(conditions, TokenShape):
        cond = array((conditions.num_tokens,), jnp.int32)
    x0 = array(event_shape, jnp.float32) if paired else None
    return Batch(array(event_shape, jnp.float32), cond, x0)


def put_batch(batch: Batch, mesh: Mesh) -> Batch:
    """Send this process's rows of a batch to its devices; the result is the global batch.

    The transfer is asynchronous: called before the running step ends, it costs no time.

    Args:
        batch: Numpy arrays whose leading axis is the global batch divided by the processes.
        mesh: From `make_mesh`.

    Raises:
        ValueError: If the global batch does not divide by the devices along `data` and `fsdp`.
    """
    sharding = batch_sharding(mesh)

    def put(rows):
        rows = np.asarray(rows)
        require(is_array(rows), "batch", "hold arrays of numbers", described(rows))
        require_at_least("batch.ndim", rows.ndim, 1)
        num_rows = rows.shape[0] * jax.process_count()
        require_batch_fits(num_rows, mesh)
        return jax.make_array_from_process_local_data(sharding, rows, (num_rows, *rows.shape[1:]))

    return jax.tree.map(put, batch)


def require_rows_by_process(mesh: Mesh) -> None:
    """Raise unless every process has rows of a batch to itself, in the order of the processes.

    Each loads its share of a batch: devices along `tensor`, which work on the same rows, must be in
    one process.
    """
    shares, here = num_shares(mesh), jax.process_index()
    held = batch_sharding(mesh).addressable_devices_indices_map((shares,)).values()
    rows = {row for index in held if index for row in range(*index[0].indices(shares))}
    num = shares // jax.process_count()
    alone = rows == set(range(here * num, (here + 1) * num)) and shares % jax.process_count() == 0
    rule = "give each process rows of its own, in their order: tensor within a process"
    require(alone, "mesh", rule, dict(mesh.shape))


def require_batch_fits(batch_size: int, mesh: Mesh, accumulation_steps: int = 1) -> None:
    """Raise unless every device gets equally many rows of every microbatch."""
    shares = num_shares(mesh)
    rule = f"be divisible by {shares}, the number of devices along data and fsdp"
    if accumulation_steps > 1:
        rule += f", times {accumulation_steps} accumulation steps"
    require(batch_size % (shares * accumulation_steps) == 0, "batch_size", rule, batch_size)
