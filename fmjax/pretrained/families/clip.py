"""CLIP text encoders as transformers saves them: their settings, and the names of their weights."""

from collections.abc import Mapping
from typing import Any

from fmjax._checks import require
from fmjax.networks.text_encoders.clip import CLIPTextConfig
from fmjax.pretrained.config_files import ClassAbout, CLIPAbout, checked
from fmjax.pretrained.layouts import TensorLayout, linear, stacked, tensor

PREFIX = "text_model."
"""Of most files' names. Some have none, and the projection never has it."""
BUFFERS = ("embeddings.position_ids",)
"""Tensors, after the prefix, that older files hold beside the weights: 0, 1, 2, .."""

_PROJECTS = {"CLIPTextModel": False, "CLIPTextModelWithProjection": True}
_ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu"}
_LEGACY_END = 2  # What it says was not yet what it meant: the largest token.


def clip_text_config(about: Mapping[str, Any]) -> CLIPTextConfig:
    """The encoder that a parsed `config.json` describes.

    Raises:
        ValueError: If it describes another kind of model, or lacks or asks for what a CLIP text
            encoder here does not have.
    """
    kind = next(iter(checked(about, ClassAbout).get("architectures", ())), "none")
    require(kind in _PROJECTS, "architectures", f"be one of {', '.join(_PROJECTS)}", kind)
    about = checked(about, CLIPAbout)
    activation = about.get("hidden_act", "quick_gelu")
    known = activation in _ACTIVATIONS
    require(known, "hidden_act", f"be one of {', '.join(_ACTIVATIONS)}", activation)
    end = about.get("eos_token_id", 49407)
    projection = about.get("projection_dim") if _PROJECTS[kind] else None
    rule = f"hold projection_dim for a {kind}"
    require(projection is not None or not _PROJECTS[kind], "config.json", rule, "none")
    return CLIPTextConfig(
        vocab_size=about["vocab_size"],
        max_tokens=about["max_position_embeddings"],
        width=about["hidden_size"],
        num_layers=about["num_hidden_layers"],
        num_heads=about["num_attention_heads"],
        mlp_width=about["intermediate_size"],
        activation=_ACTIVATIONS[activation],
        projection=projection,
        end_token=None if end == _LEGACY_END else end,
        epsilon=about.get("layer_norm_eps", 1e-5),
    )


def clip_text_views(config: CLIPTextConfig, *, prefix: str = PREFIX) -> dict[str, Any]:
    """Where a file holds each parameter of `make_clip_text(config)`.

    Args:
        config: Of the encoder.
        prefix: Before all names but the projection's: `PREFIX`, or nothing.
    """
    width = config.width
    layers = [_block(config, f"{prefix}encoder.layers.{i}") for i in range(config.num_layers)]
    tables = f"{prefix}embeddings"
    tokens = tensor(f"{tables}.token_embedding.weight", config.vocab_size, width)
    positions = tensor(f"{tables}.position_embedding.weight", config.max_tokens, width)
    views = {
        "tokens": {"table": tokens},
        "positions": {"table": positions},
        "blocks": stacked(layers),
        "norm": _norm(f"{prefix}final_layer_norm", width),
    }
    if config.projection is not None:
        views["projection"] = linear("text_projection", width, config.projection, bias=False)
    return views


def _block(config: CLIPTextConfig, name: str) -> dict[str, Any]:
    width, hidden = config.width, config.mlp_width
    heads = {own: f"{name}.self_attn.{own}_proj" for own in ("q", "k", "v", "out")}
    return {
        "attention_norm": _norm(f"{name}.layer_norm1", width),
        "attention": {own: linear(theirs, width, width) for own, theirs in heads.items()},
        "mlp_norm": _norm(f"{name}.layer_norm2", width),
        "mlp_in": linear(f"{name}.mlp.fc1", width, hidden),
        "mlp_out": linear(f"{name}.mlp.fc2", hidden, width),
    }


def _norm(name: str, width: int) -> dict[str, TensorLayout]:
    return {"scale": tensor(f"{name}.weight", width), "bias": tensor(f"{name}.bias", width)}
