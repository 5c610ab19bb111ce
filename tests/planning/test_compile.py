"""Programs that were compiled ahead run, and say what they take."""

import jax
import jax.numpy as jnp

from fmjax.planning.compile import compiled, executable_of
from fmjax.sharding import make_mesh, with_shardings


def test_an_executable_runs_as_the_function_does_and_comes_with_the_same_figures():
    mesh = make_mesh(devices=jax.devices()[:1])
    x = jnp.arange(64.0).reshape(8, 8)
    fn = jax.jit(lambda x: jnp.tanh(x @ x.T))
    like = with_shardings(jax.eval_shape(lambda: x), mesh)
    program, found = executable_of(fn, like)
    placed = jax.device_put(x, like.sharding)
    assert jnp.array_equal(program(placed), fn(placed))
    assert found.seconds > 0
    assert (found.arguments, found.outputs, found.kernels) == (256.0, 256.0, ())
    assert found._replace(seconds=0.0) == compiled(fn, like)._replace(seconds=0.0)
