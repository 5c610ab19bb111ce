"""`from_nnx`: use a Flax NNX module as the network of a config."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import PyTree

from fmjax._arrays import Cond, Params, Points, PRNGKey, Times
from fmjax._checks import require
from fmjax._inputs import describe
from fmjax._specs import CondSpec
from fmjax.networks.layers.functional import tensor_axes_of_layers
from fmjax.networks.make import NetworkFactory
from fmjax.paths import VelocityNet


def from_nnx(module: type[nnx.Module], **fields: Any) -> NetworkFactory:
    """Return the config of a network that is a Flax NNX module.

    The module is built as `module(event_shape, conditions, **fields, rngs=rngs)` and called as
    `(t, x, cond) -> prediction`, shaped like x and float32. Here event_shape is the shape of one
    sample, and conditions is the number of classes or None; the label `num_classes` stands for no
    condition.

    Modules with random layers, such as `nnx.Dropout`, use them in training only: one key per
    example gives the random numbers, so the module is applied to each example with a batch axis of
    length 1 (in a `jax.vmap`). In sampling, the module is in the mode of `module.eval()`.

    Args:
        module: A class of modules.
        fields: Further arguments of the module: JSON values, which are stored in the run folder.

    Raises:
        ValueError: If `module` is not a class of NNX modules, or does not take one of the fields.
            In `make`, if the module has running statistics, such as those of `nnx.BatchNorm`.
    """
    is_module = isinstance(module, type) and issubclass(module, nnx.Module)
    require(is_module, "module", "be a class of Flax NNX modules", describe(module))
    parameters = inspect.signature(module.__init__).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    for name in fields:
        rule = f"be an argument of {module.__name__}"
        require(takes_any or name in parameters, "field", rule, repr(name))
    types = tuple((name, type(value)) for name, value in sorted(fields.items()))
    return _config_class(module, types)(**fields)


@functools.lru_cache
def _config_class(
    module: type[nnx.Module], types: tuple[tuple[str, type], ...]
) -> Callable[..., Any]:
    """Return the frozen dataclass of the fields of a module, under the module's name."""
    build = cast(Callable[..., nnx.Module], module)

    def make(self: Any, event_shape: tuple[int, ...], conditions: CondSpec) -> VelocityNet:
        fields = dataclasses.asdict(self)
        return _functionalize(lambda rngs: build(event_shape, conditions, **fields, rngs=rngs))

    doc = f"Fields of the NNX module {module.__qualname__}, as the config of a network."
    config_class = dataclasses.make_dataclass(
        module.__name__, types, frozen=True, namespace={"make": make, "__doc__": doc}
    )
    config_class.__qualname__ = module.__qualname__
    config_class.__module__ = module.__module__
    return config_class


def _functionalize(build: Callable[[nnx.Rngs], nnx.Module]) -> VelocityNet:
    """Convert a user's module to pure functions; its random streams are no parameters."""
    module = nnx.eval_shape(lambda: build(nnx.Rngs(jax.random.key(0))))
    module.train()
    graph, streams, statistics, _ = nnx.split(module, nnx.RngState, nnx.BatchStat, ...)
    rule = "have no running statistics (use another norm, such as LayerNorm)"
    require(not jax.tree.leaves(statistics), f"network {type(module).__name__}", rule, "some")
    module.eval()
    sampling_graph = nnx.split(module)[0]

    def init(key: PRNGKey) -> Params:
        _, _, params = nnx.split(build(nnx.Rngs(key)), nnx.RngState, ...)
        return nnx.to_pure_dict(params)

    def with_key(key: PRNGKey) -> PyTree:
        """Return the streams of the module, each with its own key."""
        leaves, structure = jax.tree.flatten(streams)
        values = [
            jax.random.fold_in(key, i)
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            else jnp.zeros(leaf.shape, leaf.dtype)
            for i, leaf in enumerate(leaves)
        ]
        return jax.tree.unflatten(structure, values)

    def apply_one(params: Params, key: PRNGKey, *args: PyTree) -> jax.Array:
        args = jax.tree.map(lambda leaf: leaf[None], args)
        return cast(Callable[..., jax.Array], nnx.merge(graph, params, with_key(key)))(*args)[0]

    def apply(
        params: Params, t: Times, x: Points, cond: Cond = None, keys: jax.Array | None = None
    ) -> jax.Array:
        if keys is not None:
            in_axes = (None, 0, 0, 0, None if cond is None else 0)
            return jax.vmap(apply_one, in_axes=in_axes)(params, keys, t, x, cond)
        # Without random layers in use, the key of the streams has no effect.
        module = nnx.merge(sampling_graph, params, with_key(jax.random.key(0)))
        return cast(Callable[..., jax.Array], module)(t, x, cond)

    takes_keys = bool(jax.tree.leaves(streams))
    return VelocityNet(jax.jit(init), apply, tensor_axes_of_layers(module), takes_keys)
