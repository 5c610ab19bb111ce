"""Low-rank adapters: a linear layer learns by `y = x W + (alpha / rank) (x A) B`, W as it was.

A is drawn and B zero, so that an adapted network starts as the one that it adapts.

Source: Hu et al. 2021, arXiv:2106.09685, section 4.1; how A is drawn is that of PEFT.
"""

import functools
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import jax
from flax import nnx
from jaxtyping import Array, Float

from fmjax._arrays import PRNGKey
from fmjax._checks import require, require_at_least, require_numbers, require_positive
from fmjax.networks.layers.functional import stack_blocks
from fmjax.networks.layers.linear import HEADS, INPUTS, OUTPUTS, Linear, ToHeads

Module = TypeVar("Module", bound=nnx.Module)

LORA = "lora"
"""Stands in the dotted name of every parameter of an adapter, and of no other."""
ATTENTION = (
    *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
    *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
)
"""Queries, keys, values and outputs of the attention of text and image."""


@dataclass(frozen=True)
class LoRAConfig:
    """Adapters of a network with released weights.

    Attributes:
        rank: Columns of A and rows of B.
        alpha: What A B is scaled by, times the rank: another rank then wants no other learning
            rate.
        layers: Which layers, by the last words of their names in diffusers: `attn.to_q` is that
            layer of every block.
    """

    rank: int = 16
    alpha: float = 16.0
    layers: tuple[str, ...] = ATTENTION

    def __post_init__(self) -> None:
        require_numbers(self, "lora.")
        require_at_least("lora.rank", self.rank, 1)
        require_positive("lora.alpha", self.alpha)
        require(len(self.layers) > 0, "lora.layers", "name at least one", self.layers)

    @property
    def scale(self) -> float:
        """What A B is multiplied by."""
        return self.alpha / self.rank


class Adapters(NamedTuple):
    """Adapters of a network's layers.

    Attributes:
        rank: Of each.
        scale: What A B is multiplied by.
        places: By the dotted name of a layer, the parts of it that have one: none of a plain
            layer, some of `HEADS` of one that gives queries, keys and values, and of a block
            whose layers are one with their inputs side by side the names of these.
    """

    rank: int
    scale: float
    places: Mapping[str, tuple[str, ...]]


def with_adapters(
    build: Callable[[nnx.Rngs], Module], adapters: Adapters | None
) -> Callable[[nnx.Rngs], Module]:
    """Builds the same module, its layers with adapters; all other parameters as without."""
    if adapters is None:
        return build

    def built(rngs: nnx.Rngs) -> Module:
        module = build(rngs)
        for name, parts in sorted(adapters.places.items()):
            layer: Any = module
            for word in name.split("."):
                layer = getattr(layer, word)
            layer.lora = _adapter(layer, parts, adapters, rngs)
        return module

    return built


def _adapter(layer: Any, parts: tuple[str, ...], adapters: Adapters, rngs: nnx.Rngs) -> nnx.Module:
    if isinstance(layer, ToHeads):
        first, make = layer, lambda rngs: HeadsLowRank(layer, parts, adapters, rngs=rngs)
    else:
        layers = {part: getattr(layer, part) for part in parts} or {"down": layer}
        first, make = next(iter(layers.values())), lambda rngs: LowRank(layers, adapters, rngs=rngs)
    stack = first.kernel.shape[:-2]
    return stack_blocks(make, stack[0], rngs) if stack else make(rngs)


class LowRank(nnx.Module):
    """`(alpha / rank) (x A) B`, in the type that the layer computes in.

    Of several layers, whose outputs are added, x stands for their inputs side by side.
    """

    def __init__(
        self,
        layers: Mapping[str, Linear],
        adapters: Adapters,
        *,
        after: int | None = None,
        rngs: nnx.Rngs,
    ):
        self.names, self.scale = tuple(layers), adapters.scale
        first = next(iter(layers.values()))
        widths = {name: layer.kernel.shape[-2] for name, layer in layers.items()}
        bound = 1.0 / math.sqrt(sum(widths.values()))

        def init(key: PRNGKey, shape: tuple[int, ...], dtype: Any) -> jax.Array:
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        settings: dict[str, Any] = dict(use_bias=False, dtype=first.dtype, rngs=rngs)
        for name, width in widths.items():
            split = INPUTS if layers[name].split == INPUTS else None
            down = Linear(width, adapters.rank, split=split, kernel_init=init, **settings)
            setattr(self, name, down)
        split = OUTPUTS if first.split == OUTPUTS else None
        after = first.kernel.shape[-1] if after is None else after
        zeros = nnx.initializers.zeros
        self.up = Linear(adapters.rank, after, split=split, kernel_init=zeros, **settings)

    def __call__(self, *inputs: Float[Array, "*shape _in"]) -> Float[Array, "*shape _out"]:
        """Give what is added to the outputs."""
        parts = [getattr(self, name)(x) for name, x in zip(self.names, inputs, strict=True)]
        inner = functools.reduce(operator.add, parts)
        return self.up(self.scale * inner)


class HeadsLowRank(nnx.Module):
    """Adapters of queries, keys and values, each its own."""

    def __init__(
        self, layer: ToHeads, parts: tuple[str, ...], adapters: Adapters, *, rngs: nnx.Rngs
    ):
        self.parts, self.num_heads = parts, layer.num_heads
        after = layer.kernel.shape[-1] // len(HEADS)
        for part in parts:
            setattr(self, part, LowRank({"down": layer}, adapters, after=after, rngs=rngs))

    def __call__(self, x: Float[Array, "*shape _in"]) -> Float[Array, "*shape _out"]:
        """Give what is added to the columns of all heads, as `ToHeads` has them."""
        found = {part: getattr(self, part)(x) for part in self.parts}
        some = next(iter(found.values()))
        zeros = jax.numpy.zeros_like(some)
        split = (*some.shape[:-1], self.num_heads, 1, some.shape[-1] // self.num_heads)
        parts = [found.get(part, zeros).reshape(split) for part in HEADS]
        return jax.numpy.concatenate(parts, axis=-2).reshape(*some.shape[:-1], -1)
