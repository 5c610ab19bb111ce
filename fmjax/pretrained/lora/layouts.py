"""Layouts of LoRA parameters: which layers get adapters, and where LoRA files store them."""

import difflib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from fmjax._checks import require
from fmjax._trees import flatten_dict, unflatten_dict
from fmjax.networks.layers.linear import HEADS
from fmjax.networks.layers.lora import LORA, Adapters, LoRAConfig
from fmjax.pretrained.layouts import Layouts, TensorLayout


class _Layer(NamedTuple):
    """A linear layer of fmjax, or a part of one, that is one module per block in diffusers.

    Attributes:
        name: Dotted name of the layer in fmjax.
        part: One of `HEADS` for a layer that gives queries, keys and values; otherwise None.
        modules: Name of the module in diffusers for each block of the stack.
        kernel: Layout of the entire kernel of the layer.
    """

    name: str
    part: str | None
    modules: tuple[str, ...]
    kernel: TensorLayout


def chosen_adapters(layouts: Layouts, config: LoRAConfig) -> Adapters:
    """Find the layers that a LoRA config selects.

    Args:
        layouts: Layouts of the network's parameters.
        config: Rank, scale and layers. An entry of `config.layers` selects every module of
            diffusers whose name is the entry or ends with "." and the entry.

    Raises:
        ValueError: If an entry matches no linear layer, or a layer is selected in some but not all
            blocks of a stack.
    """
    layers = list(_layers(layouts))
    for suffix in config.layers:
        if not any(_matches(suffix, module) for layer in layers for module in layer.modules):
            known = sorted({_short_name(module) for layer in layers for module in layer.modules})
            near = difflib.get_close_matches(suffix, known, n=3, cutoff=0.0)
            rule = f"name linear layers of this network, such as {', '.join(near)}"
            require(False, "lora.layers", rule, repr(suffix))
    places: dict[str, tuple[str, ...]] = {}
    shared = _shared_modules(layers)
    for layer in layers:
        selected = [any(_matches(s, module) for s in config.layers) for module in layer.modules]
        if not any(selected):
            continue
        rule = "select a layer in all blocks of a stack or in none"
        require(all(selected), "lora.layers", rule, layer.modules[selected.index(True)])
        parent, _, last = layer.name.rpartition(".")
        if layer.modules in shared:
            places[parent] = (*places.get(parent, ()), last)
        else:
            part = () if layer.part is None else (layer.part,)
            places[layer.name] = (*places.get(layer.name, ()), *part)
    return Adapters(config.rank, config.scale, places)


def adapter_layouts(layouts: Layouts, adapters: Adapters) -> Layouts:
    """Return the layouts of the adapters' parameters in the tensors of a LoRA file.

    Args:
        layouts: Layouts of the network's parameters without adapters.
        adapters: Layers with adapters, from `chosen_adapters`.
    """
    result: dict[str, TensorLayout] = {}
    layers = list(_layers(layouts))
    shared = _shared_modules(layers)
    for layer in layers:
        parent, _, last = layer.name.rpartition(".")
        down, up = _factors(layer.kernel, layer.modules, adapters.rank)
        if layer.modules in shared:
            if last in adapters.places.get(parent, ()):
                result |= {f"{parent}.{LORA}.{last}.kernel": down, f"{parent}.{LORA}.up.kernel": up}
            continue
        parts = adapters.places.get(layer.name)
        if parts is None or (layer.part is not None and layer.part not in parts):
            continue
        prefix = ".".join(filter(None, (layer.name, LORA, layer.part)))
        result |= {f"{prefix}.down.kernel": down, f"{prefix}.up.kernel": up}
    return unflatten_dict(result)


def _layers(layouts: Layouts) -> Iterator[_Layer]:
    """Iterate over the layers whose kernels are transposed matrices in the files.

    This excludes convolutions and embedding tables.
    """
    named: dict[str, TensorLayout] = flatten_dict(layouts)
    for name, layout in named.items():
        layer_name, _, leaf = name.rpartition(".")
        is_matrix = all(
            not block.fixed and [axis.tensor_axis for axis in block.axes[-2:]] == [1, 0]
            for block in layout.blocks
        )
        if leaf != "kernel" or not is_matrix:
            continue
        # First column of each tensor in the kernel, for each block of the stack.
        first_columns: dict[int, dict[str, int]] = {}
        for block in layout.blocks:
            number = block.axes[0].offset if len(block.axes) == 3 else 0
            first = first_columns.setdefault(number, {})
            column = block.axes[-1].offset
            first[block.name] = min(column, first.get(block.name, column))
        ordered = [
            sorted(first, key=first.__getitem__) for _, first in sorted(first_columns.items())
        ]
        parts = HEADS if len(ordered[0]) == len(HEADS) else (None,)
        for part, names in zip(parts, zip(*ordered, strict=True), strict=True):
            yield _Layer(layer_name, part, tuple(n.removesuffix(".weight") for n in names), layout)


def _shared_modules(layers: Sequence[_Layer]) -> set[tuple[str, ...]]:
    """Modules of diffusers that are split along their input into several layers of fmjax."""
    modules = [layer.modules for layer in layers]
    return {names for names in modules if modules.count(names) > 1}


def _factors(
    kernel: TensorLayout, modules: tuple[str, ...], rank: int
) -> tuple[TensorLayout, TensorLayout]:
    """Layouts of A `[..., in, rank]` and B `[..., rank, out]` of the modules' part of a kernel.

    The rows of A and the columns of B are ordered like the rows and columns of the kernel.
    """
    names = {f"{module}.weight": module for module in modules}
    down_blocks, up_blocks = {}, {}
    down_tensors: dict[str, tuple[int, ...]] = {}
    up_tensors: dict[str, tuple[int, ...]] = {}
    for block in kernel.blocks:
        if block.name not in names:
            continue
        name, (*stack, inputs, outputs) = names[block.name], block.axes
        ranks = inputs._replace(tensor_axis=0, start=0, step=1, size=rank, offset=0)
        a, b = f"{name}.lora_A.weight", f"{name}.lora_B.weight"
        down_blocks[name, inputs] = block._replace(name=a, axes=(*stack, inputs, ranks))
        up_blocks.setdefault(name, []).append(
            block._replace(name=b, axes=(*stack, ranks._replace(tensor_axis=1), outputs))
        )
        out_features, in_features = kernel.tensors[block.name]
        down_tensors[a], up_tensors[b] = (rank, in_features), (out_features, rank)
    moved = []
    for blocks in up_blocks.values():
        offset = 0
        # A kernel that is split along its input has one block per part for the same columns.
        by_columns = {block.axes[-1]: block for block in reversed(blocks)}
        for columns in sorted(by_columns, key=lambda axis: axis.offset):
            block = by_columns[columns]
            axes = (*block.axes[:-1], columns._replace(offset=offset))
            moved.append(block._replace(axes=axes))
            offset += columns.size
    stack, in_features = kernel.shape[:-2], kernel.shape[-2]
    out_features = max(block.axes[-1].offset + block.axes[-1].size for block in moved)
    down_shape, up_shape = (*stack, in_features, rank), (*stack, rank, out_features)
    down = TensorLayout(down_shape, down_tensors, tuple(down_blocks.values()))
    return down, TensorLayout(up_shape, up_tensors, tuple(moved))


def _matches(suffix: str, module: str) -> bool:
    return module == suffix or module.endswith(f".{suffix}")


def _short_name(module: str) -> str:
    """Remove the block from a module's name: `transformer_blocks.3.attn.to_q` -> `attn.to_q`."""
    words = module.split(".")
    return ".".join(words[2:]) if len(words) > 2 and words[1].isdigit() else module
