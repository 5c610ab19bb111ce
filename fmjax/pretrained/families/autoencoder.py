"""Released autoencoders, diffusers' `AutoencoderKL`: their configs and their tensors."""

from collections.abc import Mapping
from typing import Any

from fmjax._checks import require
from fmjax.networks.autoencoder.autoencoder import AutoencoderConfig
from fmjax.pretrained.config_files import AutoencoderAbout, checked
from fmjax.pretrained.layouts import TensorLayout, convolution, linear, tensor

_MADE_OF = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}

Views = dict[str, Any]


def autoencoder_config(about: Mapping[str, Any]) -> AutoencoderConfig:
    """The autoencoder that a parsed `config.json` describes; what it leaves out is as in diffusers.

    Raises:
        ValueError: If it is made of what is not known here: other blocks or another activation,
            latents with a mean and a deviation for each channel.
    """
    for name in ("latents_mean", "latents_std"):
        require(about.get(name) is None, name, "be null", about.get(name))
    about = checked(about, AutoencoderAbout)
    widths = tuple(about.get("block_out_channels", (64,)))
    for name, block in _MADE_OF.items():
        kinds = list(about.get(name, (block,)))
        rule = f"be {block} for each of {len(widths)} levels"
        require(kinds == [block] * len(widths), name, rule, kinds)
    activation = about.get("act_fn", "silu")
    require(activation == "silu", "act_fn", "be silu", activation)
    return AutoencoderConfig(
        channels_in=about.get("in_channels", 3),
        channels_out=about.get("out_channels", 3),
        latent_channels=about.get("latent_channels", 4),
        widths=widths,
        num_blocks=about.get("layers_per_block", 1),
        num_groups=about.get("norm_num_groups", 32),
        attend=about.get("mid_block_add_attention", True),
        quant=about.get("use_quant_conv", True),
        post_quant=about.get("use_post_quant_conv", True),
        scale=about.get("scaling_factor", 0.18215),
        shift=about.get("shift_factor", 0.0),
    )


def autoencoder_views(config: AutoencoderConfig) -> Views:
    """Views of the tensors of a file, structured like the params of `make_autoencoder`."""
    return {"encoder": _encoder(config), "decoder": _decoder(config)}


def _encoder(config: AutoencoderConfig) -> Views:
    widths, moments = config.widths, 2 * config.latent_channels
    last = len(widths) - 1
    down = {
        f"level{i}": _level(
            f"encoder.down_blocks.{i}",
            widths[max(i - 1, 0)],
            after,
            config.num_blocks,
            "downsamplers" if i < last else None,
        )
        for i, after in enumerate(widths)
    }
    quant = {"quant": convolution("quant_conv", moments, moments, 1)} if config.quant else {}
    return quant | {
        "inputs": convolution("encoder.conv_in", config.channels_in, widths[0], 3),
        "down": down,
        "middle": _middle("encoder.mid_block", widths[-1], config.attend),
        "norm": _norm("encoder.conv_norm_out", widths[-1]),
        "out": convolution("encoder.conv_out", widths[-1], moments, 3),
    }


def _decoder(config: AutoencoderConfig) -> Views:
    widths, latent = config.widths, config.latent_channels
    last = len(widths) - 1
    up = {
        f"level{i}": _level(
            f"decoder.up_blocks.{last - i}",
            widths[min(i + 1, last)],
            after,
            config.num_blocks + 1,
            "upsamplers" if i > 0 else None,
        )
        for i, after in enumerate(widths)
    }
    has = config.post_quant
    quant = {"quant": convolution("post_quant_conv", latent, latent, 1)} if has else {}
    return quant | {
        "inputs": convolution("decoder.conv_in", latent, widths[-1], 3),
        "middle": _middle("decoder.mid_block", widths[-1], config.attend),
        "up": up,
        "norm": _norm("decoder.conv_norm_out", widths[0]),
        "out": convolution("decoder.conv_out", widths[0], config.channels_out, 3),
    }


def _level(name: str, before: int, after: int, num_blocks: int, change: str | None) -> Views:
    blocks = {
        f"block{i}": _residual(f"{name}.resnets.{i}", after if i else before, after)
        for i in range(num_blocks)
    }
    if change is None:
        return {"blocks": blocks}
    return {"blocks": blocks, "resample": convolution(f"{name}.{change}.0.conv", after, after, 3)}


def _middle(name: str, channels: int, attend: bool) -> Views:
    attention = {"attention": _attention(f"{name}.attentions.0", channels)} if attend else {}
    return attention | {
        "first": _residual(f"{name}.resnets.0", channels, channels),
        "last": _residual(f"{name}.resnets.1", channels, channels),
    }


def _residual(name: str, before: int, after: int) -> Views:
    same = before == after
    skip = {} if same else {"skip": convolution(f"{name}.conv_shortcut", before, after, 1)}
    return skip | {
        "norm_in": _norm(f"{name}.norm1", before),
        "conv_in": convolution(f"{name}.conv1", before, after, 3),
        "norm_out": _norm(f"{name}.norm2", after),
        "conv_out": convolution(f"{name}.conv2", after, after, 3),
    }


def _attention(name: str, channels: int) -> Views:
    layers = {"query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out.0"}
    views = {ours: linear(f"{name}.{their}", channels, channels) for ours, their in layers.items()}
    return views | {"norm": _norm(f"{name}.group_norm", channels)}


def _norm(name: str, channels: int) -> dict[str, TensorLayout]:
    return {"scale": tensor(f"{name}.weight", channels), "bias": tensor(f"{name}.bias", channels)}
