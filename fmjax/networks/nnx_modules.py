"""`from_nnx`: use a Flax NNX module as the network of a config."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, cast

from flax import nnx

from fmjax._checks import require
from fmjax._inputs import describe
from fmjax._specs import CondSpec
from fmjax.networks.layers.functional import functionalize
from fmjax.networks.make import NetworkFactory
from fmjax.paths import VelocityNet


def from_nnx(module: type[nnx.Module], **fields: Any) -> NetworkFactory:
    """Return the config of a network that is a Flax NNX module.

    The module is built as `module(event_shape, conditions, **fields, rngs=rngs)` and called as
    `(t, x, cond) -> prediction`, shaped like x and float32. Here event_shape is the shape of one
    sample, and conditions is the number of classes or None; the label `num_classes` stands for no
    condition.

    Args:
        module: A class of modules.
        fields: Further arguments of the module: JSON values, which are stored in the run folder.

    Raises:
        ValueError: If `module` is not a class of NNX modules, or does not take one of the fields.
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
        pure = functionalize(lambda rngs: build(event_shape, conditions, **fields, rngs=rngs))
        return VelocityNet(pure.init, pure.apply, pure.tensor_axes)

    doc = f"Fields of the NNX module {module.__qualname__}, as the config of a network."
    config_class = dataclasses.make_dataclass(
        module.__name__, types, frozen=True, namespace={"make": make, "__doc__": doc}
    )
    config_class.__qualname__ = module.__qualname__
    config_class.__module__ = module.__module__
    return config_class
