"""SD3's transformer: its config.json, and where its weights stand in diffusers' files."""

from collections.abc import Mapping
from typing import Any

from fmjax._arrays import TextShape
from fmjax._checks import require
from fmjax.networks import MMDiTConfig
from fmjax.pretrained.config_files import SD3About, checked
from fmjax.pretrained.families.joint_blocks import (
    IMAGE,
    TEXT,
    Views,
    around_blocks,
    require_class,
    stream,
)
from fmjax.pretrained.layouts import TensorLayout, concatenated, linear, stacked, tensor


def sd3_config(about: Mapping[str, Any], **settings: Any) -> MMDiTConfig:
    """The network of a config.json.

    Args:
        about: The parsed file of an SD3Transformer2DModel.
        settings: Of how it is computed (dtype, remat, attention, ...).

    Raises:
        ValueError: If it is of something else, or of a network that is not known here.
    """
    require_class(about, "SD3Transformer2DModel")
    about = checked(about, SD3About)
    norm, out = about.get("qk_norm"), about.get("out_channels")
    require(norm in (None, "rms_norm"), "qk_norm", "be null or rms_norm", norm)
    require(out in (None, about["in_channels"]), "out_channels", "be in_channels", out)
    config = MMDiTConfig(
        patch_size=about["patch_size"],
        num_heads=about["num_attention_heads"],
        head_width=about["attention_head_dim"],
        num_layers=about["num_layers"],
        dual_layers=tuple(about.get("dual_attention_layers") or ()),
        qk_norm=norm is not None,
        position_table=about["pos_embed_max_size"],
        **settings,
    )
    width = about["caption_projection_dim"]
    require(width == config.width, "caption_projection_dim", f"be {config.width}", width)
    return config


def sd3_config_json(config: MMDiTConfig, channels: int, text: TextShape) -> dict[str, Any]:
    """The config.json of a network: what `sd3_config` reads.

    Args:
        config: The network.
        channels: Of its latents.
        text: Sizes of its condition.

    Raises:
        ValueError: If no such file can describe it.
    """
    table = config.position_table
    require(table is not None, "position_table", "be given for released weights", table)
    return {
        "_class_name": "SD3Transformer2DModel",
        "patch_size": config.patch_size,
        "in_channels": channels,
        "out_channels": channels,
        "num_layers": config.num_layers,
        "attention_head_dim": config.head_width,
        "num_attention_heads": config.num_heads,
        "joint_attention_dim": text.width,
        "caption_projection_dim": config.width,
        "pooled_projection_dim": text.pooled_width,
        "pos_embed_max_size": table,
        "dual_attention_layers": list(config.dual_layers),
        "qk_norm": "rms_norm" if config.qk_norm else None,
    }


def sd3_views(about: Mapping[str, Any]) -> Views:
    """Params of `make_mmdit`, as parts of the file's tensors."""
    config = sd3_config(about)
    width, side, size = config.width, about["pos_embed_max_size"], config.patch_size
    channels = about["in_channels"]
    table = tensor("pos_embed.pos_embed", 1, side**2, width)
    rows = [table[0, row * side : (row + 1) * side] for row in range(side)]
    found: Views = {
        **around_blocks(about, width),
        "patches": {
            "kernel": _patches(tensor("pos_embed.proj.weight", width, channels, size, size)),
            "bias": tensor("pos_embed.proj.bias", width),
        },
        "positions": stacked(rows),
        "out": linear("proj_out", width, size**2 * channels),
    }
    for run, (dual, last, layers) in enumerate(config.runs):
        found[f"blocks_{run}"] = stacked(
            [
                {
                    "text": stream(config.sizes, f"transformer_blocks.{i}", TEXT, last=last),
                    "image": stream(config.sizes, f"transformer_blocks.{i}", IMAGE, dual=dual),
                }
                for i in layers
            ]
        )
    return found


def _patches(convolution: TensorLayout) -> TensorLayout:
    """A convolution from patch to patch is a linear layer of their pixels, row by row."""
    size = convolution.shape[-1]
    pixels = [convolution[:, :, r, c].T for r in range(size) for c in range(size)]
    return concatenated(pixels)
