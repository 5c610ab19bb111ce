"""T5 encoders as transformers saves them: their settings, and the names of their weights."""

from collections.abc import Mapping
from typing import Any

from fmjax._checks import require
from fmjax.networks.text_encoders.t5 import T5Config
from fmjax.pretrained.config_files import T5About, checked
from fmjax.pretrained.layouts import TensorLayout, linear, stacked, tensor

EMBEDDING = "shared.weight"
"""The table of tokens."""
TIED = "encoder.embed_tokens.weight"
"""A copy of `EMBEDDING` that some files hold beside it."""

_ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "gelu_new": "gelu_tanh", "silu": "silu"}


def t5_config(about: Mapping[str, Any]) -> T5Config:
    """The encoder that a parsed `config.json` describes.

    Raises:
        ValueError: If it describes another kind of model, or lacks or asks for what a T5 encoder
            here does not have.
    """
    require(about.get("model_type") == "t5", "model_type", "be t5", about.get("model_type"))
    about = checked(about, T5About)
    gated, activation = _feed_forward(about)
    return T5Config(
        vocab_size=about["vocab_size"],
        width=about["d_model"],
        num_layers=about["num_layers"],
        num_heads=about["num_heads"],
        head_width=about["d_kv"],
        mlp_width=about["d_ff"],
        activation=activation,
        gated=gated,
        num_buckets=about.get("relative_attention_num_buckets", 32),
        max_distance=about.get("relative_attention_max_distance", 128),
        epsilon=about.get("layer_norm_epsilon", 1e-6),
    )


def _feed_forward(about: T5About) -> tuple[bool, str]:
    """Whether the MLP is gated, and its activation; "gated-gelu" means the approximate GELU."""
    kind = about.get("feed_forward_proj", "relu")
    first, _, last = kind.partition("-")
    gated = about.get("is_gated_act", first == "gated")
    activation = about.get("dense_act_fn", "gelu_new" if kind == "gated-gelu" else last or first)
    known = activation in _ACTIVATIONS
    require(known, "feed_forward_proj", f"be of {', '.join(_ACTIVATIONS)}", activation)
    return gated, _ACTIVATIONS[activation]


def t5_views(config: T5Config) -> dict[str, Any]:
    """Where a file holds each parameter of `make_t5_encoder(config)`."""
    first = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    return {
        "tokens": {"table": tensor(EMBEDDING, config.vocab_size, config.width)},
        "distances": {"table": tensor(first, config.num_buckets, config.num_heads)},
        "blocks": stacked([_block(config, f"encoder.block.{i}") for i in range(config.num_layers)]),
        "norm": _norm("encoder.final_layer_norm", config.width),
    }


def _block(config: T5Config, name: str) -> dict[str, Any]:
    width, inner, hidden = config.width, config.num_heads * config.head_width, config.mlp_width
    attention, mlp = f"{name}.layer.0", f"{name}.layer.1"
    heads = {own: f"{attention}.SelfAttention.{own}" for own in "qkv"}
    out = f"{attention}.SelfAttention.o"
    dense = f"{mlp}.DenseReluDense"
    layers = {
        "attention_norm": _norm(f"{attention}.layer_norm", width),
        "attention": {
            **{own: linear(theirs, width, inner, bias=False) for own, theirs in heads.items()},
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
