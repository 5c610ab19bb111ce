"""Names of layers in LoRA files, as diffusers calls the layers.

Trainers name the layers of FLUX and SD3 in two ways: as diffusers does, or as the models were first
released (Black Forest Labs, Stability AI, ComfyUI). Either way words may be separated by dots or,
in kohya's files, by underscores, and prefixes of several kinds may come first.

In the first releases queries, keys and values of a block are one layer, and in FLUX's blocks on all
tokens so are these and the input of the MLP. An adapter of such a layer is one adapter of each
part: they share A, and B has their rows in this order. Of the last modulation the releases have
the shift first, diffusers the scale.
"""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

_PREFIXES = re.compile(
    r"^(?:base_model\.model\.|model\.diffusion_model\.|diffusion_model\.|transformer\.|unet\.)+"
)
_SPELLED_PREFIXES = re.compile(r"^(?:lora_unet_|lora_transformer_|lycoris_)")
_TEXT_ENCODERS = re.compile(
    r"(?:base_model\.model\.)?(text_encoders\.\w+|text_encoder(?:_\d)?|te\d?|clip_[lg]|t5xxl"
    r"|lora_te\d?|lora_clip_[lg]|lora_t5xxl|cond_stage_model|text_model|bundle_emb)(?:[._]|$)"
)
_UNET = re.compile(r"(?:down_blocks|up_blocks|mid_block|input_blocks|output_blocks|middle_block)")
_BLOCK = re.compile(r"(?<=blocks_)\d+")

# Layers by their names in a release: the layers of diffusers that they consist of. "#" is the
# number of a block.
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
    # As XLabs' scripts call them.
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
    """A layer of a LoRA file in diffusers' terms.

    Attributes:
        names: The layers of diffusers that it consists of, one after the other along its rows.
        shift_first: Whether a modulation by a shift and a scale, `[2 * width, width]`, has the
            shift in its first rows.
    """

    names: tuple[str, ...]
    shift_first: bool = False

    def rows(self, total: int, width: int) -> Iterator[tuple[str, slice]]:
        """Each layer of diffusers with its rows.

        Args:
            total: Rows of the layer's weight.
            width: Its columns.

        Raises:
            ValueError: If it cannot have this shape.
        """
        if len(self.names) == 1:
            yield self.names[0], slice(0, total)
            return
        widths = [4 if name.endswith("proj_mlp") else 1 for name in self.names]
        if total != sum(widths) * width:
            raise ValueError(
                f"must have {sum(widths)} times {width} rows ({', '.join(self.names)}), got {total}"
            )
        start = 0
        for name, share in zip(self.names, widths, strict=True):
            yield name, slice(start, start + share * width)
            start += share * width


def text_encoder_of(tensor: str) -> str | None:
    """The text encoder, or the embeddings of words, that a tensor belongs to; None otherwise."""
    found = _TEXT_ENCODERS.match(tensor)
    return found[1] if found else None


def without_prefix(layer: str) -> str:
    """A layer's name without the dotted prefixes that trainers put before it."""
    return _PREFIXES.sub("", layer)


def layer_of(name: str) -> Layer:
    """A layer of a transformer by its name in a LoRA file.

    Args:
        name: Without the ending of A or B, with or without prefixes.

    Raises:
        ValueError: If the name is of a UNet, or its words are separated by underscores and it is
            unknown. Dotted names that are unknown are returned as they are.
    """
    plain = _SPELLED_PREFIXES.sub("", without_prefix(name))
    if _UNET.match(plain):
        raise ValueError(f"adapters must be of a FLUX or SD3 transformer, got a UNet's ({name})")
    spelled = re.sub(r"\W", "_", plain)
    number = _BLOCK.search(spelled)
    key = _BLOCK.sub("0", spelled, count=1)
    names = _KNOWN.get(key)
    if names is None:
        if _SPELLED_PREFIXES.match(name):
            raise ValueError(f"layers must be those of a FLUX or SD3 transformer, got {name}")
        return Layer((plain,))
    block = number[0] if number else ""
    return Layer(tuple(each.replace("#", block) for each in names), key in _SHIFT_FIRST)
