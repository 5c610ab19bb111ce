"""Which layers of a network diffusers' names mean, and where its adapters stand in LoRA files."""

import difflib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from fmjax._checks import require
from fmjax._trees import flatten_dict, unflatten_dict
from fmjax.networks.layers.linear import HEADS
from fmjax.networks.layers.lora import LORA, Adapters, LoRAConfig
from fmjax.pretrained.layouts import TensorLayout


class _Layer(NamedTuple):
    """A layer, or a part of one, and what it is in diffusers.

    Attributes:
        path: Dotted name of the layer.
        part: Of `HEADS`; None of a plain layer.
        modules: What it is called in each block of its stack.
        kernel: The layer's.
    """

    path: str
    part: str | None
    modules: tuple[str, ...]
    kernel: TensorLayout


def chosen_adapters(views: Any, config: LoRAConfig) -> Adapters:
    """The layers that a config means.

    Args:
        views: Of the network's parameters.
        config: Whose `layers` are the last words of names in diffusers.

    Raises:
        ValueError: If a name means no linear layer, or one in some blocks of a stack only.
    """
    layers = list(_layers(views))
    for wanted in config.layers:
        if not any(_means(wanted, module) for layer in layers for module in layer.modules):
            known = sorted({_kind(module) for layer in layers for module in layer.modules})
            near = difflib.get_close_matches(wanted, known, n=3, cutoff=0.0)
            rule = f"name linear layers of this network, as {', '.join(near)}"
            require(False, "lora.layers", rule, repr(wanted))
    places: dict[str, tuple[str, ...]] = {}
    sharing = _sharing(layers)
    for layer in layers:
        taken = [any(_means(w, module) for w in config.layers) for module in layer.modules]
        if not any(taken):
            continue
        rule = "name a layer in all blocks that are alike, or in none"
        require(all(taken), "lora.layers", rule, layer.modules[taken.index(True)])
        path, _, last = layer.path.rpartition(".")
        if layer.modules in sharing:
            places[path] = (*places.get(path, ()), last)
        else:
            part = () if layer.part is None else (layer.part,)
            places[layer.path] = (*places.get(layer.path, ()), *part)
    return Adapters(config.rank, config.scale, places)


def adapter_views(views: Any, adapters: Adapters) -> dict[str, Any]:
    """The parameters of adapters, as parts of the tensors of a LoRA file.

    Args:
        views: Of the network's own parameters.
        adapters: From `chosen_adapters`.
    """
    found: dict[str, TensorLayout] = {}
    layers = list(_layers(views))
    sharing = _sharing(layers)
    for layer in layers:
        path, _, last = layer.path.rpartition(".")
        down, up = _factors(layer.kernel, layer.modules, adapters.rank)
        if layer.modules in sharing:
            if last in adapters.places.get(path, ()):
                found |= {f"{path}.{LORA}.{last}.kernel": down, f"{path}.{LORA}.up.kernel": up}
            continue
        parts = adapters.places.get(layer.path)
        if parts is None or (layer.part is not None and layer.part not in parts):
            continue
        where = ".".join(filter(None, (layer.path, LORA, layer.part)))
        found |= {f"{where}.down.kernel": down, f"{where}.up.kernel": up}
    return unflatten_dict(found)


def _layers(views: Any) -> Iterator[_Layer]:
    """The layers whose kernels are matrices of the files: not convolutions, nor tables."""
    for name, view in flatten_dict(views).items():
        path, _, leaf = name.rpartition(".")
        plain = all(
            not block.fixed and [axis.of for axis in block.axes[-2:]] == [1, 0]
            for block in view.blocks
        )
        if leaf != "kernel" or not plain:
            continue
        by_block: dict[int, dict[str, int]] = {}
        for block in view.blocks:
            place = block.axes[0].place if len(block.axes) == 3 else 0
            first = by_block.setdefault(place, {})
            first[block.name] = min(block.axes[-1].place, first.get(block.name, view.shape[-1]))
        ordered = [sorted(first, key=first.__getitem__) for _, first in sorted(by_block.items())]
        parts = HEADS if len(ordered[0]) == len(HEADS) else (None,)
        for part, names in zip(parts, zip(*ordered, strict=True), strict=True):
            yield _Layer(path, part, tuple(n.removesuffix(".weight") for n in names), view)


def _sharing(layers: Sequence[_Layer]) -> set[tuple[str, ...]]:
    """Modules of which several layers have a part each: their inputs side by side."""
    every = [layer.modules for layer in layers]
    return {modules for modules in every if every.count(modules) > 1}


def _factors(
    kernel: TensorLayout, modules: tuple[str, ...], rank: int
) -> tuple[TensorLayout, TensorLayout]:
    """A `[.., in, rank]` and B `[.., rank, out]` of those rows of a kernel that modules give.

    Where a kernel's columns are a layer's in another order, so are those of B, and the rows of A.
    """
    names = {f"{module}.weight": module for module in modules}
    downs: dict[Any, Any] = {}
    ups: dict[Any, list[Any]] = {}
    tensors: tuple[dict[str, tuple[int, ...]], ...] = ({}, {})
    for block in kernel.blocks:
        if block.name not in names:
            continue
        name, (*stack, before, after) = names[block.name], block.axes
        rows = before._replace(of=0, start=0, step=1, size=rank, place=0)
        a, b = f"{name}.lora_A.weight", f"{name}.lora_B.weight"
        downs[name, before] = block._replace(name=a, axes=(*stack, before, rows))
        ups.setdefault(name, []).append(
            block._replace(name=b, axes=(*stack, rows._replace(of=1), after))
        )
        out, width = kernel.tensors[block.name]
        tensors[0][a], tensors[1][b] = (rank, width), (out, rank)
    raised: list[Any] = []
    for found in ups.values():
        place = 0
        # Some columns may stand in several blocks, one for each of their inputs' parts.
        for column in sorted({block.axes[-1] for block in found}, key=lambda axis: axis.place):
            block = next(block for block in found if block.axes[-1] == column)
            axes = (*block.axes[:-1], column._replace(place=place))
            raised.append(block._replace(axes=axes))
            place += column.size
    stack, before = kernel.shape[:-2], kernel.shape[-2]
    after = max(block.axes[-1].place + block.axes[-1].size for block in raised)
    down = TensorLayout((*stack, before, rank), tensors[0], tuple(downs.values()))
    return down, TensorLayout((*stack, rank, after), tensors[1], tuple(raised))


def _means(wanted: str, module: str) -> bool:
    return module == wanted or module.endswith(f".{wanted}")


def _kind(module: str) -> str:
    """`attn.to_q` of `transformer_blocks.3.attn.to_q`."""
    words = module.split(".")
    return ".".join(words[2:]) if len(words) > 2 and words[1].isdigit() else module
