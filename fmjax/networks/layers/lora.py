"""Low-rank adapters (LoRA): `y = x W + (alpha / rank) (x A) B` with frozen weights W.

A is initialized randomly and B with zeros, so that an adapted network initially equals the
original network.

Reference: Hu et al. 2021, arXiv:2106.09685, section 4.1; A is initialized as in PEFT.
"""

import functools
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from fmjax._arrays import PRNGKey
from fmjax._checks import require, require_at_least, require_numbers, require_positive
from fmjax.networks.layers.functional import stack_blocks
from fmjax.networks.layers.linear import HEADS, INPUTS, OUTPUTS, Linear, ToHeads

Module = TypeVar("Module", bound=nnx.Module)

LORA = "lora"
"""Word in the dotted names of all adapter parameters and of no other parameters."""
ATTENTION = (
    *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
    *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
)
"""Query, key, value and output layers of the attention of image and text tokens, in diffusers."""


@dataclass(frozen=True)
class LoRAConfig:
    """Config of low-rank adapters for a network with released weights.

    Attributes:
        rank: Number of columns of A and rows of B.
        alpha: The product A B is scaled by `alpha / rank`, so that the learning rate does not need
            to change with the rank.
        layers: Layers to adapt, by the last words of their names in diffusers: `attn.to_q` selects
            this layer in each block.
    """

    rank: int = 16
    alpha: float = 16.0
    layers: tuple[str, ...] = ATTENTION

    def __post_init__(self) -> None:
        require_numbers(self, "lora.")
        require_at_least("lora.rank", self.rank, 1)
        require_positive("lora.alpha", self.alpha)
        require(len(self.layers) > 0, "lora.layers", "contain at least one name", self.layers)

    @property
    def scale(self) -> float:
        """Factor of the product A B, `alpha / rank`."""
        return self.alpha / self.rank


class Adapters(NamedTuple):
    """Rank, scale and positions of the adapters of a network.

    Attributes:
        rank: Rank of each adapter.
        scale: Factor of the product A B.
        places: Maps the dotted name of a layer to its adapted parts: an empty tuple for a linear
            layer, some of `HEADS` for a layer that computes queries, keys and values, or the names
            of the linear layers of a block that share one adapter with concatenated inputs.
    """

    rank: int
    scale: float
    places: Mapping[str, tuple[str, ...]]


def with_adapters(
    build: Callable[[nnx.Rngs], Module], adapters: Adapters | None
) -> Callable[[nnx.Rngs], Module]:
    """Wrap `build` to add adapters; all other parameters keep their initial values."""
    if adapters is None:
        return build

    def build_with_adapters(rngs: nnx.Rngs) -> Module:
        module = build(rngs)
        for name, parts in sorted(adapters.places.items()):
            layer = operator.attrgetter(name)(module)
            layer.lora = _make_adapter(layer, parts, adapters, rngs)
        return module

    return build_with_adapters


def _make_adapter(
    layer: nnx.Module, parts: tuple[str, ...], adapters: Adapters, rngs: nnx.Rngs
) -> nnx.Module:
    """Build the adapter of a layer; stacked layers get a stacked adapter."""
    if isinstance(layer, Linear):
        layers = {"down": layer}
    else:
        layers = {part: getattr(layer, part) for part in parts}

    def build(rngs: nnx.Rngs) -> nnx.Module:
        if isinstance(layer, ToHeads):
            return HeadsLowRank(layer, parts, adapters, rngs=rngs)
        return LowRank(layers, adapters, rngs=rngs)

    stack = next(iter(layers.values())).kernel.shape[:-2]
    return stack_blocks(build, stack[0], rngs) if stack else build(rngs)


class LowRank(nnx.Module):
    """Low-rank adapter `(alpha / rank) (x A) B`, in the computation type of its layer.

    For several layers whose outputs are added, x is the concatenation of their inputs.

    Args:
        layers: Adapted layers by name.
        adapters: Rank and scale.
        out_features: Columns of B, by default the output features of the first layer.
        rngs: Random keys of the parameters.
    """

    def __init__(
        self,
        layers: Mapping[str, Linear],
        adapters: Adapters,
        *,
        out_features: int | None = None,
        rngs: nnx.Rngs,
    ):
        self.names, self.scale = tuple(layers), adapters.scale
        first = next(iter(layers.values()))
        widths = {name: layer.kernel.shape[-2] for name, layer in layers.items()}
        bound = 1.0 / math.sqrt(sum(widths.values()))

        def init(key: PRNGKey, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        settings: dict[str, Any] = dict(use_bias=False, dtype=first.dtype, rngs=rngs)
        for name, width in widths.items():
            split = INPUTS if layers[name].split == INPUTS else None
            down = Linear(width, adapters.rank, split=split, kernel_init=init, **settings)
            setattr(self, name, down)
        split = OUTPUTS if first.split == OUTPUTS else None
        out_features = first.kernel.shape[-1] if out_features is None else out_features
        zeros = nnx.initializers.zeros
        self.up = Linear(adapters.rank, out_features, split=split, kernel_init=zeros, **settings)

    def __call__(self, *inputs: Float[Array, "*shape _in"]) -> Float[Array, "*shape _out"]:
        """Return the term that is added to the output of the layers."""
        terms = [getattr(self, name)(x) for name, x in zip(self.names, inputs, strict=True)]
        return self.up(self.scale * functools.reduce(operator.add, terms))


class HeadsLowRank(nnx.Module):
    """Separate adapters for the queries, keys and values of a `ToHeads` layer."""

    def __init__(
        self, layer: ToHeads, parts: tuple[str, ...], adapters: Adapters, *, rngs: nnx.Rngs
    ):
        self.parts, self.num_heads = parts, layer.num_heads
        width = layer.kernel.shape[-1] // len(HEADS)
        for part in parts:
            setattr(self, part, LowRank({"down": layer}, adapters, out_features=width, rngs=rngs))

    def __call__(self, x: Float[Array, "*shape _in"]) -> Float[Array, "*shape _out"]:
        """Return the term that is added to the output, in the column order of `ToHeads`."""
        outputs = {part: getattr(self, part)(x) for part in self.parts}
        first = next(iter(outputs.values()))
        zeros = jnp.zeros_like(first)
        shape = (*first.shape[:-1], self.num_heads, 1, first.shape[-1] // self.num_heads)
        columns = [outputs.get(part, zeros).reshape(shape) for part in HEADS]
        return jnp.concatenate(columns, axis=-2).reshape(*first.shape[:-1], -1)
