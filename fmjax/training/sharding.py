"""Where arrays live: a mesh of two axes, and what is split over which.

The batch is split over both axes, so every device works on its own rows. Weights, their average
and the optimizer's moments are copied along `data` and split along `fsdp`. The same program runs
on one device and on thousands; only the mesh differs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fmjax._arrays import Batch
from fmjax._checks import require, require_at_least

# Below this many elements an array is copied to every device: to gather it would cost more
# than its memory is worth.
_MIN_SPLIT_SIZE = 2**12


@dataclass(frozen=True)
class MeshConfig:
    """How many devices stand along each axis of the mesh; -1 takes all that remain.

    Attributes:
        data: Copies of the model, each on its own part of the batch.
        fsdp: Devices that share one copy of the model's weights (and split the batch too).
    """

    data: int = -1
    fsdp: int = 1

    def __post_init__(self):
        for name in ("data", "fsdp"):
            value = getattr(self, name)
            require(value == -1 or value >= 1, f"mesh.{name}", "be -1 or at least 1", value)
        require((self.data, self.fsdp) != (-1, -1), "mesh", "leave at most one axis at -1", self)


def make_mesh(config: MeshConfig | None = None, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of axes `data` and `fsdp` over `devices` (default: all there are).

    Raises:
        ValueError: If the axes do not multiply to the number of devices.
    """
    config = MeshConfig() if config is None else config
    devices = jax.devices() if devices is None else list(devices)
    data, fsdp = config.data, config.fsdp
    if data == -1:
        data = max(len(devices) // fsdp, 1)
    if fsdp == -1:
        fsdp = max(len(devices) // data, 1)
    require(
        data * fsdp == len(devices),
        "mesh",
        f"have data * fsdp equal to the {len(devices)} devices",
        f"data {config.data}, fsdp {config.fsdp}",
    )
    return jax.make_mesh(
        (data, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=devices
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis split over all devices of the mesh."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def state_sharding(abstract_state: Any, mesh: Mesh) -> Any:
    """A sharding for every array of a state (or of any pytree of arrays).

    The longest axis that `fsdp` divides is split over it. Weights, average and moments of one
    parameter have one shape, so they are laid out alike. The first of three or more axes is
    never split: it may count layers that a scan walks through. Small arrays stay whole.

    Args:
        abstract_state: Arrays or `jax.ShapeDtypeStruct`s, from `jax.eval_shape`.
        mesh: From `make_mesh`.
    """
    return jax.tree.map(lambda leaf: _array_sharding(leaf.shape, mesh), abstract_state)


def _array_sharding(shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    parts = mesh.shape["fsdp"]
    axes = range(1 if len(shape) >= 3 else 0, len(shape))
    # Of equally long axes the last: rows then stay whole in memory.
    fitting = sorted((shape[axis], axis) for axis in axes if shape[axis] % parts == 0)
    if parts == 1 or not fitting or np.prod(shape) < _MIN_SPLIT_SIZE:
        return replicated(mesh)
    spec: list[str | None] = [None] * len(shape)
    spec[fitting[-1][1]] = "fsdp"
    return NamedSharding(mesh, PartitionSpec(*spec))


def put_batch(batch: Batch, mesh: Mesh) -> Batch:
    """Send this process's rows of a batch to its devices; the result is the global batch.

    The transfer is asynchronous: called before the running step ends, it costs no time.

    Args:
        batch: Numpy arrays whose leading axis is the global batch divided by the processes.
        mesh: From `make_mesh`.

    Raises:
        ValueError: If the global batch does not divide by the number of devices.
    """
    sharding = batch_sharding(mesh)

    def put(rows):
        rows = np.asarray(rows)
        require_at_least("batch.ndim", rows.ndim, 1)
        num_rows = rows.shape[0] * jax.process_count()
        require_batch_fits(num_rows, mesh)
        return jax.make_array_from_process_local_data(sharding, rows, (num_rows, *rows.shape[1:]))

    return jax.tree.map(put, batch)


def require_batch_fits(batch_size: int, mesh: Mesh, accumulation_steps: int = 1) -> None:
    """Raise unless every device gets equally many rows of every microbatch."""
    rule = f"divide by the {mesh.size} devices"
    if accumulation_steps > 1:
        rule += f" times {accumulation_steps} accumulation steps"
    require(batch_size % (mesh.size * accumulation_steps) == 0, "batch size", rule, batch_size)
