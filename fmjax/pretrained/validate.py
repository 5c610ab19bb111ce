"""Whether the parts of a released model are whole and fit each other: no weights are read."""

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
    """Raise unless a model's files hold what its parts need, by the headers of the files.

    Args:
        model: From `open_model`.
        transformer: Whether the transformer's files are needed.
        lora: A LoRA file for the transformer.
        max_tokens: That T5 is to be given; None is the usual number.

    Raises:
        ValueError: If a file is missing, damaged, pickled or of something else, or two parts do
            not fit each other.
        WeightsMismatch: If tensors are missing, unexpected or of other shapes.
    """
    configs = {
        part: check_component(model.path / part).config
        for part in ("vae", *model.encoders)
        if model.has(part)
    }
    for part in filter(model.has, model.encoders):
        num_tokens(model, configs[part], tokenizer_of(model, part), max_tokens)
    about = model.about("transformer")
    channels, vae = latent_channels(about), configs["vae"].latent_channels
    rule = f"have the {channels} channels of latents of the transformer"
    require(vae == channels, str(model.path / "vae"), rule, vae)
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
        width, most = sum(clip.width for clip in clips if clip), about["joint_attention_dim"]
        rule = f"have tokens of at most {most} channels together, the transformer's"
        require(width <= most, f"CLIP encoders of {model.path}", rule, width)
    if transformer:
        check_component(model.path / "transformer", lora=lora)


def _require_width(model: ModelFolder, name: str, of: str, found: int) -> None:
    wanted = model.about("transformer")[name]
    require(
        found == wanted, f"{model.path}", f"have a transformer with {name} {found}, as {of}", wanted
    )
