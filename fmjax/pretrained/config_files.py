"""Types of the config.json files of released models, and functions that read and check them.

The `*About` types name the keys that fmjax uses; other keys are allowed.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict, TypeVar

from fmjax._json import NonNegative, Positive, Rule, Size, check_json, read_json

T = TypeVar("T")

# Counts that bound a loop, such as layers and heads: a huge value in a file would never finish.
Few = Annotated[int, Rule("an integer from 1 to 4096", lambda value: 1 <= value <= 4096)]


class ClassConfigJson(TypedDict, total=False):
    """Keys in which diffusers (`_class_name`) and transformers (`architectures`) name the class."""

    _class_name: str
    architectures: list[str]


class FluxConfigJson(ClassConfigJson):
    """The config.json of a FluxTransformer2DModel."""

    in_channels: Size
    num_layers: Few
    num_single_layers: Few
    num_attention_heads: Few
    attention_head_dim: Size
    joint_attention_dim: Size
    pooled_projection_dim: Size
    guidance_embeds: bool
    patch_size: NotRequired[Few]
    out_channels: NotRequired[Size]
    axes_dims_rope: NotRequired[tuple[Size, Size, Size]]
    sample_size: NotRequired[Size]


class SD3ConfigJson(ClassConfigJson):
    """The config.json of an SD3Transformer2DModel."""

    in_channels: Size
    patch_size: Few
    num_layers: Few
    num_attention_heads: Few
    attention_head_dim: Size
    joint_attention_dim: Size
    pooled_projection_dim: Size
    caption_projection_dim: Size
    pos_embed_max_size: Few
    dual_attention_layers: NotRequired[list[int]]
    qk_norm: NotRequired[str]
    out_channels: NotRequired[Size]
    sample_size: NotRequired[Size]


class AutoencoderConfigJson(ClassConfigJson, total=False):
    """The config.json of an AutoencoderKL."""

    in_channels: Size
    out_channels: Size
    latent_channels: Size
    block_out_channels: list[Size]
    down_block_types: list[str]
    up_block_types: list[str]
    layers_per_block: Few
    norm_num_groups: Size
    act_fn: str
    mid_block_add_attention: bool
    use_quant_conv: bool
    use_post_quant_conv: bool
    scaling_factor: Positive
    shift_factor: float


class CLIPConfigJson(ClassConfigJson):
    """The config.json of a CLIPTextModel or CLIPTextModelWithProjection."""

    vocab_size: Size
    max_position_embeddings: Size
    hidden_size: Size
    num_hidden_layers: Few
    num_attention_heads: Few
    intermediate_size: Size
    projection_dim: NotRequired[Size]
    hidden_act: NotRequired[str]
    eos_token_id: NotRequired[int]
    layer_norm_eps: NotRequired[Positive]


class T5ConfigJson(ClassConfigJson):
    """The config.json of a T5EncoderModel."""

    vocab_size: Size
    d_model: Size
    num_layers: Few
    num_heads: Few
    d_kv: Size
    d_ff: Size
    feed_forward_proj: NotRequired[str]
    is_gated_act: NotRequired[bool]
    dense_act_fn: NotRequired[str]
    relative_attention_num_buckets: NotRequired[Few]
    relative_attention_max_distance: NotRequired[Size]
    layer_norm_epsilon: NotRequired[Positive]


class SchedulerConfigJson(ClassConfigJson, total=False):
    """The scheduler_config.json of a FlowMatchEulerDiscreteScheduler."""

    num_train_timesteps: Size
    shift: Positive
    use_dynamic_shifting: bool
    base_shift: float
    max_shift: float
    base_image_seq_len: Size
    max_image_seq_len: Size
    shift_terminal: Annotated[NonNegative, Rule("a number below 1", lambda value: value < 1)]
    time_shift_type: Literal["exponential", "linear"]


_TYPES: Mapping[str, Callable[..., Any]] = {
    "FluxTransformer2DModel": FluxConfigJson,
    "SD3Transformer2DModel": SD3ConfigJson,
    "AutoencoderKL": AutoencoderConfigJson,
    "CLIPTextModel": CLIPConfigJson,
    "CLIPTextModelWithProjection": CLIPConfigJson,
    "T5EncoderModel": T5ConfigJson,
    "FlowMatchEulerDiscreteScheduler": SchedulerConfigJson,
}


def class_of(config_json: Mapping[str, Any], name: str = "config.json") -> str | None:
    """Return the class of diffusers or transformers that a config.json names, or None.

    Args:
        config_json: Contents of the file.
        name: Name of the file in error messages.
    """
    class_config_json = check_config_json(config_json, ClassConfigJson, name)
    return class_config_json.get("_class_name") or next(
        iter(class_config_json.get("architectures", ())), None
    )


def check_config_json(
    config_json: Mapping[str, Any], kind: Callable[..., T], name: str = "config.json"
) -> T:
    """Check the contents of a config.json against a type of this module; drop null values.

    Args:
        config_json: Contents of the file.
        kind: One of the `*About` types.
        name: Name of the file in error messages.

    Raises:
        ValueError: If a required value is missing, or a value has another type.
    """
    values = {key: value for key, value in config_json.items() if value is not None}
    for key, value in values.items():
        values[key] = list(value) if isinstance(value, tuple) else value
    return check_json(values, kind, name, extra=True)


def read_config_json(file: Path) -> dict[str, Any]:
    """Read and check a config.json or scheduler_config.json; drop null values.

    Raises:
        ValueError: If the file does not exist or is not JSON, or, for the known classes, if a
            required value is missing or has another type.
    """
    config_json = read_json(file, dict[str, Any])
    kind = _TYPES.get(str(class_of(config_json, str(file))), ClassConfigJson)
    return dict(check_config_json(config_json, kind, str(file)))
