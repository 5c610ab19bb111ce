"""Tests of the device mesh and its shardings."""

import jax
import numpy as np
import pytest

from fmjax._arrays import Batch
from fmjax.paths import VelocityNet
from fmjax.sharding.mesh import MeshConfig, make_mesh, put_batch, state_sharding
from fmjax.training.optimizer import OptimizerConfig, make_optimizer
from fmjax.training.step import init_state


def spec(shape, mesh):
    return tuple(state_sharding(jax.ShapeDtypeStruct(shape, "float32"), mesh).spec)


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (MeshConfig(), (8, 1, 1)),
        (MeshConfig(fsdp=2), (4, 2, 1)),
        (MeshConfig(data=1, fsdp=-1), (1, 8, 1)),
        (MeshConfig(2, 4), (2, 4, 1)),
        (MeshConfig(2, tensor=2, fsdp=-1), (2, 2, 2)),
        (MeshConfig(1, 1, -1), (1, 1, 8)),
    ],
)
def test_axis_of_size_minus_one_takes_the_remaining_devices(config, shape):
    assert make_mesh(config).devices.shape == shape


@pytest.mark.parametrize(
    "config", [MeshConfig(fsdp=3), MeshConfig(4, 1), MeshConfig(fsdp=16), MeshConfig(tensor=3)]
)
def test_mesh_shape_must_match_the_device_count(config):
    rule = r"mesh must have data \* fsdp \* tensor equal to 8, the number of devices, got data"
    with pytest.raises(ValueError, match=rule):
        make_mesh(config)


def test_invalid_axis_sizes_are_rejected():
    with pytest.raises(ValueError, match="mesh.fsdp must be -1 or at least 1, got 0"):
        MeshConfig(fsdp=0)
    with pytest.raises(ValueError, match="mesh must leave at most one axis at -1"):
        MeshConfig(-1, -1)


def test_longest_divisible_axis_is_sharded():
    mesh = make_mesh(MeshConfig(1, 8))
    assert spec((64, 256), mesh) == (None, "fsdp")
    assert spec((256, 64), mesh) == ("fsdp", None)
    assert spec((128, 128), mesh) == (None, "fsdp")
    # 250 is not divisible by 8, but 64 is.
    assert spec((64, 250), mesh) == ("fsdp", None)
    # The first of three axes may be a stack of layers.
    assert spec((128, 64, 32), mesh) == (None, "fsdp", None)
    # No axis is divisible, or the array is too small to be worth a gather.
    assert spec((101, 101), mesh) == ()
    assert spec((8, 8), mesh) == ()
    assert spec((), mesh) == ()


def test_arrays_are_replicated_along_the_data_axis():
    assert spec((256, 256), make_mesh(MeshConfig(8, 1))) == ()


def test_fsdp_shards_weights_moments_and_average_evenly():
    large_shapes = {"kernel": (512, 256), "layers": (3, 128, 128)}
    net = VelocityNet(
        init=lambda key: (
            {name: jax.random.normal(key, shape) for name, shape in large_shapes.items()}
            | {"bias": jax.random.normal(key, (256,))}
        ),
        apply=lambda params, t, x, cond=None: x,
    )
    mesh = make_mesh(MeshConfig(1, 8))
    optimizer = make_optimizer(OptimizerConfig(), 10)
    state, _ = init_state(net, optimizer, jax.random.key(0), mesh)
    sizes = [leaf.nbytes for leaf in jax.tree.leaves(state._replace(key=None))]
    bytes_per_device = [0] * 8
    num_split = 0
    for leaf in jax.tree.leaves(state._replace(key=None)):
        for shard in leaf.addressable_shards:
            bytes_per_device[shard.device.id] += shard.data.nbytes
        num_split += leaf.addressable_shards[0].data.nbytes * 8 == leaf.nbytes
    assert num_split == 8  # Two large arrays in params, average and both moments.
    assert max(bytes_per_device) < 1.05 * sum(sizes) / 8


def test_batch_rows_are_divided_among_devices():
    mesh = make_mesh(MeshConfig(4, 2))
    rows = np.arange(48, dtype=np.float32).reshape(16, 3)
    batch = put_batch(Batch(rows, np.arange(16)), mesh)
    assert [shard.data.shape for shard in batch.x1.addressable_shards] == [(2, 3)] * 8
    np.testing.assert_array_equal(batch.x1, rows)
    np.testing.assert_array_equal(batch.cond, np.arange(16))
