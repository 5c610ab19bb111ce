"""Layer names in LoRA files, translated to the names of diffusers.

Trainers use two naming schemes for the layers of FLUX and SD3: that of diffusers, or that of the
original releases (Black Forest Labs, Stability AI, ComfyUI). In both, words are separated by dots
or, in files of kohya's trainer, by underscores, and a prefix may come first.

The original releases combine the queries, keys and values of a block in one layer; FLUX's single
blocks also include the input of the MLP. An adapter of a combined layer becomes one adapter per
part. The parts share A, and the rows of B are split in this order. In the last modulation, the
original releases store the shift before the scale; diffusers stores the scale first.
"""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

_PREFIXES = re.compile(
    r"^(?:base_model\.model\.|model\.diffusion_model\.|diffusion_model\.|transformer\.|unet\.)+"
)
_UNDERSCORE_PREFIXES = re.compile(r"^(?:lora_unet_|lora_transformer_|lycoris_)")
_TEXT_ENCODERS = re.compile(
    r"(?:base_model\.model\.)?(text_encoders\.\w+|text_encoder(?:_\d)?|te\d?|clip_[lg]|t5xxl"
    r"|lora_te\d?|lora_clip_[lg]|lora_t5xxl|cond_stage_model|text_model|bundle_emb)(?:[._]|$)"
)
_UNET = re.compile(r"(?:down_blocks|up_blocks|mid_block|input_blocks|output_blocks|middle_block)")
_BLOCK = re.compile(r"(?<=blocks_)\d+")

# Maps the layers of the original releases to the layers of diffusers that they consist of. "#" is
# the number of a block.
_FLUX: Mapping[str, tuple[str, ...]] = {
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "time_in.in_layer": ("time_text_embed.timestep_embedder.linear_1",),
    "time_in.out_layer": ("time_text_embed.timestep_embedder.linear_2",),
    "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
    "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
    "guidance_in.in_layer": ("time_text_embed.guidance_embedder.linear_1",),
    "guidance_in.out_layer": ("time_text_embed.guidance_embedder.linear_2",),
    "double_blocks.#.img_mod.lin": ("transformer_blocks.#.norm1.linear",),
    "double_blocks.#.img_attn.qkv": tuple(f"transformer_blocks.#.attn.to_{x}" for x in "qkv"),
    "double_blocks.#.img_attn.proj": ("transformer_blocks.#.attn.to_out.0",),
    "double_blocks.#.img_mlp.0": ("transformer_blocks.#.ff.net.0.proj",),
    "double_blocks.#.img_mlp.2": ("transformer_blocks.#.ff.net.2",),
    "double_blocks.#.txt_mod.lin": ("transformer_blocks.#.norm1_context.linear",),
    "double_blocks.#.txt_attn.qkv": tuple(f"transformer_blocks.#.attn.add_{x}_proj" for x in "qkv"),
    "double_blocks.#.txt_attn.proj": ("transformer_blocks.#.attn.to_add_out",),
    "double_blocks.#.txt_mlp.0": ("transformer_blocks.#.ff_context.net.0.proj",),
    "double_blocks.#.txt_mlp.2": ("transformer_blocks.#.ff_context.net.2",),
    "single_blocks.#.modulation.lin": ("single_transformer_blocks.#.norm.linear",),
    "single_blocks.#.linear1": (
        *(f"single_transformer_blocks.#.attn.to_{x}" for x in "qkv"),
        "single_transformer_blocks.#.proj_mlp",
    ),
    "single_blocks.#.linear2": ("single_transformer_blocks.#.proj_out",),
    # Names in XLabs' training scripts.
    "double_blocks.#.processor.qkv_lora1": tuple(
        f"transformer_blocks.#.attn.to_{x}" for x in "qkv"
    ),
    "double_blocks.#.processor.proj_lora1": ("transformer_blocks.#.attn.to_out.0",),
    "double_blocks.#.processor.qkv_lora2": tuple(
        f"transformer_blocks.#.attn.add_{x}_proj" for x in "qkv"
    ),
    "double_blocks.#.processor.proj_lora2": ("transformer_blocks.#.attn.to_add_out",),
    "single_blocks.#.processor.qkv_lora": tuple(
        f"single_transformer_blocks.#.attn.to_{x}" for x in "qkv"
    ),
    "single_blocks.#.processor.proj_lora": ("single_transformer_blocks.#.proj_out",),
}
_SD3: Mapping[str, tuple[str, ...]] = {
    "x_embedder.proj": ("pos_embed.proj",),
    "t_embedder.mlp.0": ("time_text_embed.timestep_embedder.linear_1",),
    "t_embedder.mlp.2": ("time_text_embed.timestep_embedder.linear_2",),
    "y_embedder.mlp.0": ("time_text_embed.text_embedder.linear_1",),
    "y_embedder.mlp.2": ("time_text_embed.text_embedder.linear_2",),
    "joint_blocks.#.x_block.adaLN_modulation.1": ("transformer_blocks.#.norm1.linear",),
    "joint_blocks.#.x_block.attn.qkv": tuple(f"transformer_blocks.#.attn.to_{x}" for x in "qkv"),
    "joint_blocks.#.x_block.attn.proj": ("transformer_blocks.#.attn.to_out.0",),
    "joint_blocks.#.x_block.attn2.qkv": tuple(f"transformer_blocks.#.attn2.to_{x}" for x in "qkv"),
    "joint_blocks.#.x_block.attn2.proj": ("transformer_blocks.#.attn2.to_out.0",),
    "joint_blocks.#.x_block.mlp.fc1": ("transformer_blocks.#.ff.net.0.proj",),
    "joint_blocks.#.x_block.mlp.fc2": ("transformer_blocks.#.ff.net.2",),
    "joint_blocks.#.context_block.adaLN_modulation.1": (
        "transformer_blocks.#.norm1_context.linear",
    ),
    "joint_blocks.#.context_block.attn.qkv": tuple(
        f"transformer_blocks.#.attn.add_{x}_proj" for x in "qkv"
    ),
    "joint_blocks.#.context_block.attn.proj": ("transformer_blocks.#.attn.to_add_out",),
    "joint_blocks.#.context_block.mlp.fc1": ("transformer_blocks.#.ff_context.net.0.proj",),
    "joint_blocks.#.context_block.mlp.fc2": ("transformer_blocks.#.ff_context.net.2",),
}
_BOTH: Mapping[str, tuple[str, ...]] = {
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
    "final_layer.linear": ("proj_out",),
}
_RELEASED = {**_FLUX, **_SD3, **_BOTH}
_DIFFUSERS = {name: (name,) for names in _RELEASED.values() for name in names}
_KNOWN = {
    re.sub(r"\W", "_", name.replace("#", "0")): names
    for name, names in {**_RELEASED, **_DIFFUSERS}.items()
}
_SHIFT_FIRST = {"final_layer_adaLN_modulation_1", "joint_blocks_0_context_block_adaLN_modulation_1"}


class Layer(NamedTuple):
    """The layers of diffusers that correspond to one layer of a LoRA file.

    Attributes:
        names: Names of these layers, in the order of their rows.
        shift_first: Whether the file stores the shift before the scale, for a modulation of
            `2 * width` rows.
    """

    names: tuple[str, ...]
    shift_first: bool = False

    def rows(self, total: int, width: int) -> Iterator[tuple[str, slice]]:
        """Iterate over the layers of diffusers with their rows.

        Args:
            total: Number of rows of the weight in the file.
            width: Number of columns of the weight in the file.

        Raises:
            ValueError: If a combined layer cannot have a weight of this shape. The message starts
                with "must"; the caller puts the name of the layer before it.
        """
        if len(self.names) == 1:
            yield self.names[0], slice(0, total)
            return
        factors = [4 if name.endswith("proj_mlp") else 1 for name in self.names]
        if total != sum(factors) * width:
            names = ", ".join(self.names)
            raise ValueError(f"must have {sum(factors)} * {width} rows ({names}), got {total}")
        start = 0
        for name, factor in zip(self.names, factors, strict=True):
            yield name, slice(start, start + factor * width)
            start += factor * width


def text_encoder_of(tensor: str) -> str | None:
    """Return the text encoder or embedding that a tensor belongs to, or None if to neither."""
    match = _TEXT_ENCODERS.match(tensor)
    return match[1] if match else None


def without_prefix(layer: str) -> str:
    """Remove the dotted prefixes that trainers add to the name of a layer."""
    return _PREFIXES.sub("", layer)


def layer_of(name: str) -> Layer:
    """Find the layers of diffusers that correspond to a layer name in a LoRA file.

    A dotted name that is unknown is returned unchanged, without its prefix.

    Args:
        name: Name of the layer without the suffix of A or B, with or without prefix.

    Raises:
        ValueError: If the layer belongs to a UNet, or the name has a prefix of kohya's files
            (words separated by underscores) and is unknown.
    """
    plain = _UNDERSCORE_PREFIXES.sub("", without_prefix(name))
    if _UNET.match(plain):
        raise ValueError(f"adapters must be for a FLUX or SD3 transformer, got a UNet ({name})")
    underscored = re.sub(r"\W", "_", plain)
    number = _BLOCK.search(underscored)
    key = _BLOCK.sub("0", underscored, count=1)
    names = _KNOWN.get(key)
    if names is None:
        if _UNDERSCORE_PREFIXES.match(name):
            raise ValueError(f"layers must belong to a FLUX or SD3 transformer, got {name}")
        return Layer((plain,))
    block = number[0] if number else ""
    return Layer(tuple(name.replace("#", block) for name in names), key in _SHIFT_FIRST)
