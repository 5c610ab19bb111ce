"""Configs and tensor layouts of released T5 encoders, in the format of transformers."""

from collections.abc import Mapping
from typing import Any

from fmjax._checks import require
from fmjax.networks.text_encoders.t5 import T5Config
from fmjax.pretrained.config_files import T5ConfigJson, check_config_json
from fmjax.pretrained.layouts import Layouts, TensorLayout, linear, stacked, tensor

EMBEDDING = "shared.weight"
"""Name of the token embedding table."""
TIED = "encoder.embed_tokens.weight"
"""Name of a copy of `EMBEDDING` in some files."""

_ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "gelu_new": "gelu_tanh", "silu": "silu"}


def t5_config(config_json: Mapping[str, Any]) -> T5Config:
    """Return the config of the T5 encoder that a config.json describes.

    Raises:
        ValueError: If the model type or the activation is not supported, or a required key is
            missing.
    """
    require(
        config_json.get("model_type") == "t5", "model_type", "be t5", config_json.get("model_type")
    )
    config_json = check_config_json(config_json, T5ConfigJson)
    gated, activation = _feed_forward(config_json)
    return T5Config(
        vocab_size=config_json["vocab_size"],
        width=config_json["d_model"],
        num_layers=config_json["num_layers"],
        num_heads=config_json["num_heads"],
        head_width=config_json["d_kv"],
        mlp_width=config_json["d_ff"],
        activation=activation,
        gated=gated,
        num_buckets=config_json.get("relative_attention_num_buckets", 32),
        max_distance=config_json.get("relative_attention_max_distance", 128),
        epsilon=config_json.get("layer_norm_epsilon", 1e-6),
    )


def _feed_forward(config_json: T5ConfigJson) -> tuple[bool, str]:
    """Return whether the MLP is gated, and its activation.

    In `feed_forward_proj`, "gated-gelu" means the tanh approximation of GELU.
    """
    projection = config_json.get("feed_forward_proj", "relu")
    first, _, last = projection.partition("-")
    gated = config_json.get("is_gated_act", first == "gated")
    default = "gelu_new" if projection == "gated-gelu" else last or first
    activation = config_json.get("dense_act_fn", default)
    rule = f"use one of the activations {', '.join(_ACTIVATIONS)}"
    require(activation in _ACTIVATIONS, "feed_forward_proj", rule, activation)
    return gated, _ACTIVATIONS[activation]


def t5_layouts(config: T5Config) -> Layouts:
    """Return the layouts of the parameters of `make_t5_encoder(config)`."""
    # The position bias of the first block is used by all blocks.
    bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    return {
        "tokens": {"table": tensor(EMBEDDING, config.vocab_size, config.width)},
        "distances": {"table": tensor(bias, config.num_buckets, config.num_heads)},
        "blocks": stacked([_block(config, f"encoder.block.{i}") for i in range(config.num_layers)]),
        "norm": _norm("encoder.final_layer_norm", config.width),
    }


def _block(config: T5Config, name: str) -> Layouts:
    width, inner, hidden = config.width, config.num_heads * config.head_width, config.mlp_width
    attention, mlp = f"{name}.layer.0", f"{name}.layer.1"
    modules = {layer: f"{attention}.SelfAttention.{layer}" for layer in "qkv"}
    out = f"{attention}.SelfAttention.o"
    dense = f"{mlp}.DenseReluDense"
    layers = {
        "attention_norm": _norm(f"{attention}.layer_norm", width),
        "attention": {
            **{
                layer: linear(module, width, inner, bias=False) for layer, module in modules.items()
            },
            "out": linear(out, inner, width, bias=False),
        },
        "mlp_norm": _norm(f"{mlp}.layer_norm", width),
        "mlp_in": linear(
            f"{dense}.wi_0" if config.gated else f"{dense}.wi", width, hidden, bias=False
        ),
        "mlp_out": linear(f"{dense}.wo", hidden, width, bias=False),
    }
    if config.gated:
        layers["mlp_gate"] = linear(f"{dense}.wi_1", width, hidden, bias=False)
    return layers


def _norm(name: str, width: int) -> dict[str, TensorLayout]:
    return {"scale": tensor(f"{name}.weight", width)}
