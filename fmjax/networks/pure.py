"""From a Flax NNX module to pure functions of plain parameters, and stacks of equal blocks."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from flax import nnx
from jax.sharding import PartitionSpec

from fmjax._arrays import Params, PRNGKey, batch_axes

Block = TypeVar("Block", bound=nnx.Module)


def purify(build: Callable[[nnx.Rngs], nnx.Module]) -> tuple[Callable, Callable]:
    """Split a module into `init(key) -> params` and `apply(params, *args)`.

    Params are a nested dict of arrays with string keys. The structure of the module
    (everything but its arrays) is read once, here, without allocating any array; a module
    that cannot be built raises here too, before any device work.
    """
    graph = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(jax.random.key(0)))))[0]

    def init(key: PRNGKey) -> Params:
        return nnx.to_pure_dict(nnx.split(build(nnx.Rngs(key)))[1])

    def apply(params: Params, *args: Any) -> Any:
        return nnx.merge(graph, params)(*args)

    return jax.jit(init), apply


def stack_blocks(build: Callable[[nnx.Rngs], Block], num_layers: int, rngs: nnx.Rngs) -> Block:
    """One module that holds `num_layers` equal blocks: each parameter has a leading layer axis."""
    stacked = nnx.vmap(build, in_axes=(0,), out_axes=0)
    return stacked(rngs.split(num_layers))


def run_blocks(
    blocks: nnx.Module, h: jax.Array, *args: Any, unroll: bool = False, remat: bool = False
) -> jax.Array:
    """Pass `h` through stacked blocks in order: `h = block(h, *args)`.

    A scan, so the program is of one size whatever the depth. `unroll` writes every layer
    out: slower to compile, and faster on the CPU, where XLA fuses and reuses buffers
    across layers only then. `remat` keeps only `h` of each layer for the backward pass.
    """
    graph, layers = nnx.split(blocks)

    def layer(h: jax.Array, params: Params) -> tuple[jax.Array, None]:
        h, params = rows_apart(h), _gathered(params)
        return nnx.merge(graph, params)(h, *args), None

    h, _ = jax.lax.scan(jax.checkpoint(layer) if remat else layer, h, layers, unroll=unroll)
    return h


# Weights that are split over the mesh make the partitioner split the products too, and move
# activations between devices in every layer of a scan, unless it is told what stays where.


def _gathered(params: Params) -> Params:
    """One layer's weights whole on every device of the mesh in context, if there is one."""
    if not batch_axes():
        return params
    return jax.lax.with_sharding_constraint(params, PartitionSpec())


def rows_apart(h: jax.Array) -> jax.Array:
    """Every device of the mesh in context on its own rows."""
    axes = batch_axes()
    return jax.lax.with_sharding_constraint(h, PartitionSpec(axes)) if axes else h
