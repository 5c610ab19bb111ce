"""Check that the components of a released model are complete and match, without reading weights."""

from pathlib import Path

from fmjax._checks import require
from fmjax.pretrained.components import check_component, latent_channels
from fmjax.pretrained.folder import FLUX, ModelFolder
from fmjax.pretrained.prompts import num_tokens, tokenizer_of


def validate_model(
    model: ModelFolder,
    *,
    transformer: bool = True,
    lora: Path | None = None,
    max_tokens: int | None = None,
) -> None:
    """Check the files of all components of a released model, using only the headers of weights.

    Args:
        model: Model from `open_model`.
        transformer: Whether to check the weight files of the transformer.
        lora: LoRA file for the transformer.
        max_tokens: Number of tokens for T5; None takes the default of the model.

    Raises:
        ValueError: If a file is missing, damaged, pickled or of an unsupported class, or if two
            components do not match.
        WeightsMismatch: If tensors are missing, unexpected or of another shape.
    """
    configs = {
        part: check_component(model.root / part).config
        for part in ("vae", *model.encoders)
        if model.has(part)
    }
    for part in filter(model.has, model.encoders):
        num_tokens(model, configs[part], tokenizer_of(model, part), max_tokens)
    config_json = model.config_json("transformer")
    channels, vae_channels = latent_channels(config_json), configs["vae"].latent_channels
    rule = f"have {channels} latent channels, like the transformer"
    require(vae_channels == channels, str(model.root / "vae"), rule, vae_channels)
    *clips, t5 = (configs.get(part) for part in model.encoders)
    _require_width(
        model,
        "pooled_projection_dim",
        "the pooled vectors of its CLIP encoders",
        sum(clip.projection or clip.width for clip in clips if clip),
    )
    if t5 is not None:
        _require_width(model, "joint_attention_dim", "the tokens of its T5 encoder", t5.width)
    if model.kind != FLUX:
        width, limit = sum(clip.width for clip in clips if clip), config_json["joint_attention_dim"]
        rule = f"have tokens of at most {limit} channels in total, like the transformer"
        require(width <= limit, f"CLIP encoders of {model.root}", rule, width)
    if transformer:
        check_component(model.root / "transformer", lora=lora)


def _require_width(model: ModelFolder, name: str, other_part: str, width: int) -> None:
    value = model.config_json("transformer")[name]
    rule = f"have a transformer with {name} {width}, the width of {other_part}"
    require(width == value, str(model.root), rule, value)
