"""Tests of ahead-of-time compilation and the statistics of compiled programs."""

import jax
import jax.numpy as jnp

from fmjax.planning.compile import compiled, executable_of
from fmjax.sharding import make_mesh, with_shardings


def test_executable_matches_function_and_reports_statistics():
    mesh = make_mesh(devices=jax.devices()[:1])
    x = jnp.arange(64.0).reshape(8, 8)
    fn = jax.jit(lambda x: jnp.tanh(x @ x.T))
    like = with_shardings(jax.eval_shape(lambda: x), mesh)
    program, stats = executable_of(fn, like)
    sharded_x = jax.device_put(x, like.sharding)
    assert jnp.array_equal(program(sharded_x), fn(sharded_x))
    assert stats.seconds > 0
    assert (stats.arguments, stats.outputs, stats.kernels) == (256.0, 256.0, ())
    assert stats._replace(seconds=0.0) == compiled(fn, like)._replace(seconds=0.0)
