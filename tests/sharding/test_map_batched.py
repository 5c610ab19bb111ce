"""Tests of functions mapped over batches of equal size on a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax._inputs import is_array
from fmjax.sharding import even_batches, make_mesh, map_batched, on_mesh

X = np.arange(26.0).reshape(13, 2)


@pytest.mark.parametrize("num_devices", [1, 8])
@pytest.mark.parametrize("constant_size", [False, True])
def test_results_do_not_depend_on_the_batch_size(num_devices, constant_size):
    mesh = make_mesh(devices=jax.devices()[:num_devices])
    sizes, counts = [], []

    @jax.jit
    def fn(x, indices, nothing):
        assert nothing is None
        sizes.append(len(x))
        return {"double": 2 * x, "index": indices}

    for batch_size in (1, 4, 13, 100):
        results = map_batched(
            fn,
            lambda indices: (X[indices], indices, None),
            len(X),
            batch_size=batch_size,
            mesh=mesh,
            constant_size=constant_size,
            on_batch=counts.append,
        )
        assert all(isinstance(leaf, np.ndarray) and is_array(leaf) for leaf in results.values())
        np.testing.assert_array_equal(results["double"], 2 * X)
        np.testing.assert_array_equal(results["index"], np.arange(len(X)))
    assert sum(counts) == 4 * len(X)
    assert all(size % num_devices == 0 for size in sizes)
    # Each batch size has one program. Sizes 13 and 100 share it unless the size is constant.
    expected = {1: 4 if constant_size else 3, 8: 3 if constant_size else 2}
    assert len(sizes) == expected[num_devices]


def test_batches_have_constant_size_only_on_request():
    mesh = make_mesh(devices=jax.devices()[:2])
    assert [len(indices) for indices, _ in even_batches(3, 8, mesh)] == [4]
    assert [len(indices) for indices, _ in even_batches(3, 8, mesh, constant_size=True)] == [8]
    assert [len(indices) for indices, _ in even_batches(3, 8, None)] == [3]


def test_function_on_mesh_can_use_axis_names():
    mesh = make_mesh(devices=jax.devices()[:2])

    def fn(x, *, scale):
        return scale * x, jnp.asarray(jax.sharding.get_abstract_mesh().shape["data"])

    doubled, num_shards = jax.jit(on_mesh(mesh, fn), static_argnames="scale")(jnp.ones(2), scale=2)
    assert (doubled.tolist(), int(num_shards)) == ([2.0, 2.0], 2)
    assert on_mesh(mesh, fn).__name__ == "fn"
