"""Configs and tensor layouts of released CLIP text encoders, in the format of transformers."""

from collections.abc import Mapping
from typing import Any

from fmjax._checks import require
from fmjax.networks.text_encoders.clip import CLIPTextConfig
from fmjax.pretrained.config_files import ClassConfigJson, CLIPConfigJson, check_config_json
from fmjax.pretrained.layouts import Layouts, TensorLayout, linear, stacked, tensor

PREFIX = "text_model."
"""Prefix of the tensor names in most files. The projection never has it."""
BUFFERS = ("embeddings.position_ids",)
"""Buffers in older files, without the prefix: the position ids 0, 1, 2, ..."""

_PROJECTS = {"CLIPTextModel": False, "CLIPTextModelWithProjection": True}
_ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu"}
# Older files state this wrong end token; the end token is then the largest id in a prompt.
_LEGACY_END = 2


def clip_text_config(config_json: Mapping[str, Any]) -> CLIPTextConfig:
    """Return the config of the text encoder that a config.json describes.

    Raises:
        ValueError: If the class or the activation is not supported, or a required key is missing.
    """
    class_name = next(
        iter(check_config_json(config_json, ClassConfigJson).get("architectures", ())), "none"
    )
    rule = f"be one of {', '.join(_PROJECTS)}"
    require(class_name in _PROJECTS, "architectures", rule, class_name)
    config_json = check_config_json(config_json, CLIPConfigJson)
    activation = config_json.get("hidden_act", "quick_gelu")
    known = activation in _ACTIVATIONS
    require(known, "hidden_act", f"be one of {', '.join(_ACTIVATIONS)}", activation)
    end = config_json.get("eos_token_id", 49407)
    projection = config_json.get("projection_dim") if _PROJECTS[class_name] else None
    rule = f"hold projection_dim for a {class_name}"
    require(projection is not None or not _PROJECTS[class_name], "config.json", rule, "none")
    return CLIPTextConfig(
        vocab_size=config_json["vocab_size"],
        max_tokens=config_json["max_position_embeddings"],
        width=config_json["hidden_size"],
        num_layers=config_json["num_hidden_layers"],
        num_heads=config_json["num_attention_heads"],
        mlp_width=config_json["intermediate_size"],
        activation=_ACTIVATIONS[activation],
        projection=projection,
        end_token=None if end == _LEGACY_END else end,
        epsilon=config_json.get("layer_norm_eps", 1e-5),
    )


def clip_text_layouts(config: CLIPTextConfig, *, prefix: str = PREFIX) -> Layouts:
    """Return the layouts of the parameters of `make_clip_text(config)`.

    Args:
        config: Config of the text encoder.
        prefix: Prefix of all tensor names except that of the projection: `PREFIX` or "".
    """
    width = config.width
    layers = [_block(config, f"{prefix}encoder.layers.{i}") for i in range(config.num_layers)]
    tables = f"{prefix}embeddings"
    tokens = tensor(f"{tables}.token_embedding.weight", config.vocab_size, width)
    positions = tensor(f"{tables}.position_embedding.weight", config.max_tokens, width)
    layouts = {
        "tokens": {"table": tokens},
        "positions": {"table": positions},
        "blocks": stacked(layers),
        "norm": _norm(f"{prefix}final_layer_norm", width),
    }
    if config.projection is not None:
        layouts["projection"] = linear("text_projection", width, config.projection, bias=False)
    return layouts


def _block(config: CLIPTextConfig, name: str) -> Layouts:
    width, hidden = config.width, config.mlp_width
    modules = {layer: f"{name}.self_attn.{layer}_proj" for layer in ("q", "k", "v", "out")}
    return {
        "attention_norm": _norm(f"{name}.layer_norm1", width),
        "attention": {layer: linear(module, width, width) for layer, module in modules.items()},
        "mlp_norm": _norm(f"{name}.layer_norm2", width),
        "mlp_in": linear(f"{name}.mlp.fc1", width, hidden),
        "mlp_out": linear(f"{name}.mlp.fc2", hidden, width),
    }


def _norm(name: str, width: int) -> dict[str, TensorLayout]:
    return {"scale": tensor(f"{name}.weight", width), "bias": tensor(f"{name}.bias", width)}
