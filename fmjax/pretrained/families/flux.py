"""Configs and tensor layouts of FLUX.1 transformers, in the format of diffusers."""

from collections.abc import Mapping
from typing import Any

from fmjax._arrays import TextShape
from fmjax._checks import require
from fmjax.networks import FluxConfig
from fmjax.networks.transformers.text_to_image import TIME_FEATURES
from fmjax.pretrained.config_files import FluxConfigJson, check_config_json
from fmjax.pretrained.families.joint_blocks import (
    IMAGE,
    TEXT,
    embedding,
    embeddings_and_modulation,
    heads,
    require_class,
    stream,
)
from fmjax.pretrained.layouts import Layouts, TensorLayout, concatenated, linear, stacked, tensor

PATCH = 2
"""Side of a patch in latents; in diffusers the pipeline, not the network, splits patches."""


def flux_config(config_json: Mapping[str, Any], **settings: Any) -> FluxConfig:
    """Return the network config that corresponds to a FluxTransformer2DModel.

    Args:
        config_json: Contents of the config.json.
        settings: Config fields that determine the computation (dtype, remat, attention, ...).

    Raises:
        ValueError: If the class or a value is not supported.
    """
    require_class(config_json, "FluxTransformer2DModel")
    config_json = check_config_json(config_json, FluxConfigJson)
    patch, out = config_json.get("patch_size", 1), config_json.get("out_channels")
    require(patch == 1, "patch_size", "be 1 in a FLUX config.json", patch)
    require(out in (None, config_json["in_channels"]), "out_channels", "equal in_channels", out)
    return FluxConfig(
        patch_size=PATCH,
        num_heads=config_json["num_attention_heads"],
        head_width=config_json["attention_head_dim"],
        num_double=config_json["num_layers"],
        num_single=config_json["num_single_layers"],
        rotary_axes=config_json.get("axes_dims_rope", (16, 56, 56)),
        guidance=3.5 if config_json["guidance_embeds"] else None,
        **settings,
    )


def flux_config_json(config: FluxConfig, channels: int, text: TextShape) -> dict[str, Any]:
    """Return the config.json of a network config, the inverse of `flux_config`.

    Args:
        config: Config of the network.
        channels: Number of latent channels.
        text: Sizes of the text condition.

    Raises:
        ValueError: If the patch size is not that of FLUX.
    """
    require(config.patch_size == PATCH, "patch_size", f"be {PATCH} in FLUX", config.patch_size)
    return {
        "_class_name": "FluxTransformer2DModel",
        "patch_size": 1,
        "in_channels": channels * PATCH**2,
        "out_channels": None,
        "num_layers": config.num_double,
        "num_single_layers": config.num_single,
        "attention_head_dim": config.head_width,
        "num_attention_heads": config.num_heads,
        "joint_attention_dim": text.width,
        "pooled_projection_dim": text.pooled_width,
        "guidance_embeds": config.guidance is not None,
        "axes_dims_rope": list(config.rotary_axes),
    }


def flux_layouts(config_json: Mapping[str, Any]) -> Layouts:
    """Return the layouts of the parameters of `make_flux`.

    Args:
        config_json: Contents of the transformer's config.json.
    """
    config, sizes = flux_config(config_json), flux_config(config_json).sizes
    width, patch = config.width, config_json["in_channels"]
    doubles, singles = range(config.num_double), range(config.num_single)
    patches, out = linear("x_embedder", patch, width), linear("proj_out", width, patch)
    layouts: Layouts = {
        **embeddings_and_modulation(config_json, width),
        "patches": {"kernel": _channels_last(patches["kernel"], 0), "bias": patches["bias"]},
        "double": stacked(
            [
                {
                    "image": stream(sizes, f"transformer_blocks.{i}", IMAGE, rotary=True),
                    "text": stream(sizes, f"transformer_blocks.{i}", TEXT, rotary=True),
                }
                for i in doubles
            ]
        ),
        "single": stacked([_single(config, f"single_transformer_blocks.{i}") for i in singles]),
        "out": {
            "kernel": _channels_last(out["kernel"], 1),
            "bias": _channels_last(out["bias"], 0),
        },
    }
    if config.guidance is not None:
        layouts["guidance"] = embedding("time_text_embed.guidance_embedder", TIME_FEATURES, width)
    return layouts


def _channels_last(layout: TensorLayout, axis: int) -> TensorLayout:
    """Reorder a patch from `[channel, row, column]` in diffusers to `[row, column, channel]`."""
    leading = (slice(None),) * axis
    parts = [layout[(*leading, slice(pixel, None, PATCH**2))] for pixel in range(PATCH**2)]
    return concatenated(parts, axis)


def _single(config: FluxConfig, block: str) -> Layouts:
    """Return the layouts of a single-stream block.

    In diffusers, `proj_out` projects the attention and the MLP together; fmjax has two layers.
    """
    sizes, width = config.sizes, config.width
    query, key, value = (f"{block}.attn.to_{name}" for name in "qkv")
    out = tensor(f"{block}.proj_out.weight", width, 5 * width).T
    return {
        "modulation": linear(f"{block}.norm.linear", width, 3 * width),
        "to_heads": heads(sizes, (query, key, value), f"{block}.attn.norm_{{}}", rotary=True),
        "mlp_in": linear(f"{block}.proj_mlp", width, 4 * width),
        "out": {"kernel": out[:width], "bias": tensor(f"{block}.proj_out.bias", width)},
        "mlp_out": {"kernel": out[width:]},
    }
