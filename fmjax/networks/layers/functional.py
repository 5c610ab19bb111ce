"""From a Flax NNX module to pure functions of plain parameters, and stacks of equal blocks."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from fmjax._arrays import Params, PRNGKey
from fmjax.sharding import is_fsdp_sharded, save_all_but_gathered, shard_batch

Block = TypeVar("Block", bound=nnx.Module)
Tokens = TypeVar("Tokens")


class PureModule(NamedTuple):
    """A module as functions.

    Attributes:
        init: `init(key) -> params`.
        apply: `apply(params, *args)`.
        tensor_axes: Which axis of a parameter tensor parallelism splits, by dotted name.
    """

    init: Callable[..., Params]
    apply: Callable[..., Any]
    tensor_axes: Mapping[str, int]


def functionalize(build: Callable[[nnx.Rngs], nnx.Module]) -> PureModule:
    """Split a module into pure functions.

    Params are a nested dict of arrays with string keys. The structure of the module
    (everything but its arrays) is read once, here, without allocating any array; a module
    that cannot be built raises here too, before any device work.
    """
    module = nnx.eval_shape(lambda: build(nnx.Rngs(jax.random.key(0))))
    graph = nnx.split(module)[0]
    tensor_axes = {
        ".".join(map(str, (*path, name))): axis
        for path, layer in nnx.iter_modules(module)
        for name, axis in getattr(layer, "tensor_axes", {}).items()
    }

    def init(key: PRNGKey) -> Params:
        return nnx.to_pure_dict(nnx.split(build(nnx.Rngs(key)))[1])

    def apply(params: Params, *args: Any) -> Any:
        return nnx.merge(graph, params)(*args)

    return PureModule(jax.jit(init), apply, tensor_axes)


def stack_blocks(build: Callable[[nnx.Rngs], Block], num_layers: int, rngs: nnx.Rngs) -> Block:
    """One module that holds `num_layers` equal blocks: each parameter has a leading layer axis."""
    stacked = nnx.vmap(build, in_axes=(0,), out_axes=0)
    return stacked(rngs.split(num_layers))


_BETWEEN = "between blocks"

REMAT = {
    # What a block keeps for its backward pass, beside what goes into it.
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "save_matmuls": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[_BETWEEN],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}
"""Rematerialisation of a stack of blocks, by name.

- none: everything that a block computes stays in memory for the backward pass (but not weights
  that were gathered for it).
- full: only what goes into a block stays, and the block is computed again.
- save_matmuls: the results of its linear layers stay as well; attention, norms and the like, which
  cost little, are computed again.
- offload: as full, with what goes into the blocks kept in the host's memory (TPU and GPU).
"""


def run_blocks(
    blocks: nnx.Module, h: Tokens, *args: Any, unroll: bool = False, remat: str = "none"
) -> Tokens:
    """Pass `h`, an array or several, through stacked blocks in order: `h = block(h, *args)`.

    A scan, so the program is of one size whatever the depth. `unroll` writes every layer
    out: slower to compile, and faster on the CPU, where XLA fuses and reuses buffers
    across layers only then. `remat` is one of `REMAT`.
    """
    graph, layers = nnx.split(blocks)

    def layer(h: Tokens, params: Params) -> tuple[Tokens, None]:
        h = jax.tree.map(lambda part: checkpoint_name(shard_batch(part), _BETWEEN), h)
        return nnx.merge(graph, params)(h, *args), None

    policy = REMAT[remat]
    if policy is None and is_fsdp_sharded():
        # Or every layer's whole weights would be kept for the backward pass, on each device.
        policy = save_all_but_gathered
    if policy is not None:
        # In a scan nothing can undo it: it needs no fence against that.
        layer = jax.checkpoint(layer, policy=policy, prevent_cse=unroll)
    h, _ = jax.lax.scan(layer, h, layers, unroll=unroll)
    return h
