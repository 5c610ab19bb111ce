"""Configs and tensor layouts of SD3 transformers, in the format of diffusers."""

from collections.abc import Mapping
from typing import Any

from fmjax._arrays import TextShape
from fmjax._checks import require
from fmjax.networks import MMDiTConfig
from fmjax.pretrained.config_files import SD3ConfigJson, check_config_json
from fmjax.pretrained.families.joint_blocks import (
    IMAGE,
    TEXT,
    embeddings_and_modulation,
    require_class,
    stream,
)
from fmjax.pretrained.layouts import Layouts, TensorLayout, concatenated, linear, stacked, tensor


def sd3_config(config_json: Mapping[str, Any], **settings: Any) -> MMDiTConfig:
    """Return the network config that corresponds to an SD3Transformer2DModel.

    Args:
        config_json: Contents of the config.json.
        settings: Config fields that determine the computation (dtype, remat, attention, ...).

    Raises:
        ValueError: If the class or a value is not supported.
    """
    require_class(config_json, "SD3Transformer2DModel")
    config_json = check_config_json(config_json, SD3ConfigJson)
    norm, out = config_json.get("qk_norm"), config_json.get("out_channels")
    require(norm in (None, "rms_norm"), "qk_norm", "be null or rms_norm", norm)
    require(out in (None, config_json["in_channels"]), "out_channels", "equal in_channels", out)
    config = MMDiTConfig(
        patch_size=config_json["patch_size"],
        num_heads=config_json["num_attention_heads"],
        head_width=config_json["attention_head_dim"],
        num_layers=config_json["num_layers"],
        dual_layers=tuple(config_json.get("dual_attention_layers") or ()),
        qk_norm=norm is not None,
        position_table=config_json["pos_embed_max_size"],
        **settings,
    )
    width = config_json["caption_projection_dim"]
    require(width == config.width, "caption_projection_dim", f"be {config.width}", width)
    return config


def sd3_config_json(config: MMDiTConfig, channels: int, text: TextShape) -> dict[str, Any]:
    """Return the config.json of a network config, the inverse of `sd3_config`.

    Args:
        config: Config of the network.
        channels: Number of latent channels.
        text: Sizes of the text condition.

    Raises:
        ValueError: If the network has no table of positions.
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


def sd3_layouts(config_json: Mapping[str, Any]) -> Layouts:
    """Return the layouts of the parameters of `make_mmdit`.

    Args:
        config_json: Contents of the transformer's config.json.
    """
    config = sd3_config(config_json)
    width, side, size = config.width, config_json["pos_embed_max_size"], config.patch_size
    channels = config_json["in_channels"]
    table = tensor("pos_embed.pos_embed", 1, side**2, width)
    rows = [table[0, row * side : (row + 1) * side] for row in range(side)]
    layouts: Layouts = {
        **embeddings_and_modulation(config_json, width),
        "patches": {
            "kernel": _patches(tensor("pos_embed.proj.weight", width, channels, size, size)),
            "bias": tensor("pos_embed.proj.bias", width),
        },
        "positions": stacked(rows),
        "out": linear("proj_out", width, size**2 * channels),
    }
    for run, (dual, last, layers) in enumerate(config.runs):
        layouts[f"blocks_{run}"] = stacked(
            [
                {
                    "text": stream(config.sizes, f"transformer_blocks.{i}", TEXT, last=last),
                    "image": stream(config.sizes, f"transformer_blocks.{i}", IMAGE, dual=dual),
                }
                for i in layers
            ]
        )
    return layouts


def _patches(convolution: TensorLayout) -> TensorLayout:
    """Convert a convolution over disjoint patches to the kernel of a linear layer.

    The input of that layer is a flattened patch `[row, column, channel]`.
    """
    size = convolution.shape[-1]
    pixels = [convolution[:, :, r, c].T for r in range(size) for c in range(size)]
    return concatenated(pixels)
