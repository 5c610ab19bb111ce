"""Conversion of Flax NNX modules to pure functions, and stacks of identical blocks."""

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import PyTree

from fmjax._arrays import Params, PRNGKey
from fmjax.sharding import is_fsdp_sharded, save_all_but_gathered, shard_batch

Block = TypeVar("Block", bound=nnx.Module)
Tokens = TypeVar("Tokens")


class PureModule(NamedTuple):
    """Flax NNX module as pure functions.

    Attributes:
        init: Function `init(key) -> params`.
        apply: Function `apply(params, *args, **kwargs)`, which calls the module.
        tensor_axes: Maps the dotted name of a parameter to the axis that is split over the mesh
            axis `tensor`. Other parameters are not split.
    """

    init: Callable[[PRNGKey], Params]
    apply: Callable[..., PyTree]
    tensor_axes: Mapping[str, int]


def functionalize(build: Callable[[nnx.Rngs], nnx.Module]) -> PureModule:
    """Convert a Flax NNX module to pure functions of its parameters.

    The parameters are a nested dict of arrays with string keys. The structure of the module
    (everything except its arrays) is determined once by this call, without allocating arrays, so
    that a module that cannot be built raises here, before any device work.

    Args:
        build: Function that builds the module.
    """
    module = nnx.eval_shape(lambda: build(nnx.Rngs(jax.random.key(0))))
    graph = nnx.split(module)[0]

    def init(key: PRNGKey) -> Params:
        return nnx.to_pure_dict(nnx.split(build(nnx.Rngs(key)))[1])

    def apply(params: Params, *args: PyTree, **kwargs: PyTree) -> PyTree:
        return nnx.merge(graph, params)(*args, **kwargs)

    return PureModule(jax.jit(init), apply, tensor_axes_of_layers(module))


def tensor_axes_of_layers(module: nnx.Module) -> dict[str, int]:
    """Return the axis of each parameter that is split over `tensor`, by dotted name."""
    return {
        ".".join(map(str, (*key_path, name))): axis
        for key_path, layer in nnx.iter_modules(module)
        for name, axis in getattr(layer, "tensor_axes", {}).items()
    }


def stack_blocks(build: Callable[[nnx.Rngs], Block], num_layers: int, rngs: nnx.Rngs) -> Block:
    """Build `num_layers` blocks as one module whose parameters have a leading layer axis."""
    stacked = nnx.vmap(build, in_axes=(0,), out_axes=0)
    return stacked(rngs.split(num_layers))


_BLOCK_INPUT = "between blocks"

REMAT = {
    # Values that a block saves for its backward pass, in addition to its inputs.
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "save_matmuls": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[_BLOCK_INPUT],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}
"""Rematerialization policies for a stack of blocks, by name.

- none: All values that a block computes are saved for the backward pass, except gathered weights.
- full: Only the inputs of a block are saved, and the block is recomputed.
- save_matmuls: The outputs of linear layers are saved as well; attention, norms and other cheap
  operations are recomputed.
- offload: Like full, with the block inputs stored in host memory (TPU and GPU).
"""


def run_blocks(
    blocks: nnx.Module, h: Tokens, *args: PyTree, unroll: bool = False, remat: str = "none"
) -> Tokens:
    """Apply stacked blocks in order, `h = block(h, *args)`, as a scan over layers.

    Args:
        blocks: Blocks built by `stack_blocks`.
        h: Array or pytree of arrays that passes through the blocks.
        *args: Further arguments, the same for each block.
        unroll: Unroll the scan. This compiles more slowly and runs faster on the CPU, where XLA
            fuses operations and reuses buffers across layers only if they are unrolled.
        remat: Name of a rematerialization policy, one of `REMAT`.
    """
    graph, layers = nnx.split(blocks)

    def layer(h: Tokens, params: Params) -> tuple[Tokens, None]:
        h = jax.tree.map(lambda part: checkpoint_name(shard_batch(part), _BLOCK_INPUT), h)
        return nnx.merge(graph, params)(h, *args), None

    policy = REMAT[remat]
    if policy is None and is_fsdp_sharded():
        # Otherwise each device would save the gathered weights of all layers for the backward pass.
        policy = save_all_but_gathered
    if policy is not None:
        # Within a scan, XLA cannot eliminate the recomputation by CSE, so no barrier is needed.
        layer = jax.checkpoint(layer, policy=policy, prevent_cse=unroll)
    h, _ = jax.lax.scan(layer, h, layers, unroll=unroll)
    return h
