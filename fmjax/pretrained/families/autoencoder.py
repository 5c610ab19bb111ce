"""Configs and tensor layouts of released autoencoders (`AutoencoderKL` in diffusers)."""

from collections.abc import Mapping
from typing import Any

from fmjax._checks import require
from fmjax.networks.autoencoder.autoencoder import AutoencoderConfig
from fmjax.pretrained.config_files import AutoencoderConfigJson, check_config_json
from fmjax.pretrained.layouts import Layouts, TensorLayout, convolution, linear, tensor

_BLOCK_TYPES = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}


def autoencoder_config(config_json: Mapping[str, Any]) -> AutoencoderConfig:
    """Return the config of the autoencoder that a config.json describes.

    Missing keys take the defaults of diffusers.

    Raises:
        ValueError: If the autoencoder has unsupported blocks or activations, or normalizes its
            latents per channel.
    """
    for name in ("latents_mean", "latents_std"):
        require(config_json.get(name) is None, name, "be null", config_json.get(name))
    config_json = check_config_json(config_json, AutoencoderConfigJson)
    widths = tuple(config_json.get("block_out_channels", (64,)))
    for name, block in _BLOCK_TYPES.items():
        blocks = list(config_json.get(name, (block,)))
        rule = f"be {block} for each of {len(widths)} levels"
        require(blocks == [block] * len(widths), name, rule, blocks)
    activation = config_json.get("act_fn", "silu")
    require(activation == "silu", "act_fn", "be silu", activation)
    return AutoencoderConfig(
        channels_in=config_json.get("in_channels", 3),
        channels_out=config_json.get("out_channels", 3),
        latent_channels=config_json.get("latent_channels", 4),
        widths=widths,
        num_blocks=config_json.get("layers_per_block", 1),
        num_groups=config_json.get("norm_num_groups", 32),
        attend=config_json.get("mid_block_add_attention", True),
        quant=config_json.get("use_quant_conv", True),
        post_quant=config_json.get("use_post_quant_conv", True),
        scale=config_json.get("scaling_factor", 0.18215),
        shift=config_json.get("shift_factor", 0.0),
    )


def autoencoder_layouts(config: AutoencoderConfig) -> Layouts:
    """Return the layouts of the parameters of `make_autoencoder(config)`."""
    return {"encoder": _encoder(config), "decoder": _decoder(config)}


def _encoder(config: AutoencoderConfig) -> Layouts:
    widths, moments = config.widths, 2 * config.latent_channels
    last = len(widths) - 1
    down = {
        f"level{i}": _level(
            f"encoder.down_blocks.{i}",
            widths[max(i - 1, 0)],
            width,
            config.num_blocks,
            "downsamplers" if i < last else None,
        )
        for i, width in enumerate(widths)
    }
    quant = {"quant": convolution("quant_conv", moments, moments, 1)} if config.quant else {}
    return quant | {
        "inputs": convolution("encoder.conv_in", config.channels_in, widths[0], 3),
        "down": down,
        "middle": _middle("encoder.mid_block", widths[-1], config.attend),
        "norm": _norm("encoder.conv_norm_out", widths[-1]),
        "out": convolution("encoder.conv_out", widths[-1], moments, 3),
    }


def _decoder(config: AutoencoderConfig) -> Layouts:
    widths, latent = config.widths, config.latent_channels
    last = len(widths) - 1
    up = {
        f"level{i}": _level(
            f"decoder.up_blocks.{last - i}",
            widths[min(i + 1, last)],
            width,
            config.num_blocks + 1,
            "upsamplers" if i > 0 else None,
        )
        for i, width in enumerate(widths)
    }
    quant = {}
    if config.post_quant:
        quant = {"quant": convolution("post_quant_conv", latent, latent, 1)}
    return quant | {
        "inputs": convolution("decoder.conv_in", latent, widths[-1], 3),
        "middle": _middle("decoder.mid_block", widths[-1], config.attend),
        "up": up,
        "norm": _norm("decoder.conv_norm_out", widths[0]),
        "out": convolution("decoder.conv_out", widths[0], config.channels_out, 3),
    }


def _level(
    name: str, in_channels: int, channels: int, num_blocks: int, resampler: str | None
) -> Layouts:
    blocks = {
        f"block{i}": _residual(f"{name}.resnets.{i}", channels if i else in_channels, channels)
        for i in range(num_blocks)
    }
    if resampler is None:
        return {"blocks": blocks}
    resample = convolution(f"{name}.{resampler}.0.conv", channels, channels, 3)
    return {"blocks": blocks, "resample": resample}


def _middle(name: str, channels: int, attend: bool) -> Layouts:
    attention = {"attention": _attention(f"{name}.attentions.0", channels)} if attend else {}
    return attention | {
        "first": _residual(f"{name}.resnets.0", channels, channels),
        "last": _residual(f"{name}.resnets.1", channels, channels),
    }


def _residual(name: str, in_channels: int, channels: int) -> Layouts:
    skip = {}
    if in_channels != channels:
        skip = {"skip": convolution(f"{name}.conv_shortcut", in_channels, channels, 1)}
    return skip | {
        "norm_in": _norm(f"{name}.norm1", in_channels),
        "conv_in": convolution(f"{name}.conv1", in_channels, channels, 3),
        "norm_out": _norm(f"{name}.norm2", channels),
        "conv_out": convolution(f"{name}.conv2", channels, channels, 3),
    }


def _attention(name: str, channels: int) -> Layouts:
    modules = {"query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out.0"}
    layouts = {
        layer: linear(f"{name}.{module}", channels, channels) for layer, module in modules.items()
    }
    return layouts | {"norm": _norm(f"{name}.group_norm", channels)}


def _norm(name: str, channels: int) -> dict[str, TensorLayout]:
    return {"scale": tensor(f"{name}.weight", channels), "bias": tensor(f"{name}.bias", channels)}
