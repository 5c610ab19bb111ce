"""FLUX adapters under the names of its first release, as kohya's scripts write them.

There queries, keys and values of a block are one layer, and so are those and the MLP's input of a
block on all tokens: an adapter of it is one of each, with A in common and the rows of B apart.
"""

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from fmjax._checks import require

if TYPE_CHECKING:
    from fmjax.pretrained.lora_files import Adapter

_PREFIX = "lora_unet_"
# Layers of a block by their names there: in diffusers, and of several how many widths each is.
_DOUBLE: Mapping[str, tuple[str, ...]] = {
    "img_mod_lin": ("norm1.linear",),
    "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "img_attn_proj": ("attn.to_out.0",),
    "img_mlp_0": ("ff.net.0.proj",),
    "img_mlp_2": ("ff.net.2",),
    "txt_mod_lin": ("norm1_context.linear",),
    "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn_proj": ("attn.to_add_out",),
    "txt_mlp_0": ("ff_context.net.0.proj",),
    "txt_mlp_2": ("ff_context.net.2",),
}
_SINGLE: Mapping[str, tuple[str, ...]] = {
    "modulation_lin": ("norm.linear",),
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
}
_WIDTHS = {"proj_mlp": 4}


def plain_adapters(found: Mapping[str, "Adapter"]) -> Iterator[tuple[str, "Adapter"]]:
    """The same by names in diffusers, where they are kohya's.

    Raises:
        ValueError: If one is of a layer that is not known.
    """
    for layer, adapter in found.items():
        if not layer.startswith(_PREFIX):
            yield layer, adapter
            continue
        names = _names(layer.removeprefix(_PREFIX))
        require(bool(names), "layers", "be those of a FLUX transformer", layer)
        widths = [_WIDTHS.get(name.rpartition(".")[2], 1) for name in names]
        rows, rest = divmod(adapter.shape[0], sum(widths))
        require(rest == 0, f"layer {layer}", f"have a multiple of {sum(widths)} rows",
                adapter.shape[0])  # fmt: skip
        start = 0
        for name, width in zip(names, widths, strict=True):
            stop = start + width * rows
            yield name, adapter._replace(up=adapter.up[start:stop])
            start = stop


def _names(layer: str) -> tuple[str, ...]:
    for blocks, table, diffusers in (("double", _DOUBLE, "transformer_blocks"),
                                     ("single", _SINGLE, "single_transformer_blocks")):  # fmt: skip
        found = re.fullmatch(rf"{blocks}_blocks_(\d+)_(\w+)", layer)
        if found and found[2] in table:
            return tuple(f"{diffusers}.{found[1]}.{name}" for name in table[found[2]])
    return ()
