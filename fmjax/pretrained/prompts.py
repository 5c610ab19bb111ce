"""Encode prompts with the text encoders of a released model.

The encoders are loaded one at a time and freed before the next one: with T5-XXL they are as large
as the transformer, and they are not needed once the prompts are encoded.

Reference: Esser et al. 2024, arXiv:2403.03206, section 4 (outputs that SD3 uses and how they are
combined); Black Forest Labs, FLUX.1 (2024).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import PyTree

from fmjax._arrays import Params, Text, TextPart, TextShape
from fmjax._checks import require, require_at_least, require_unicode
from fmjax._progress import COMPILING, Progress, Silent
from fmjax.networks import CLIPOutput, CLIPTextConfig, T5Config
from fmjax.pretrained.folder import FLUX, SD3, ModelFolder, tokenizer_part
from fmjax.pretrained.tokenizers.tokenizers import Tokenizer, read_tokenizer
from fmjax.sharding import map_batched, on_mesh, padded_batch_size, replicated

MAX_TOKENS = {SD3: 256, FLUX: 512}
"""Default number of T5 tokens of each pipeline class, as in diffusers.

If an SD3 model has no T5 encoder, zeros replace its tokens.
"""
_MAX_SHOWN = 60  # Maximum number of characters of a prompt in a warning.


@dataclass(frozen=True)
class PromptEncoding:
    """Settings of the prompt encoding.

    Attributes:
        max_tokens: Number of T5 tokens; None takes the default of the model.
        dtype: Dtype of the weights and the computation, "float32" or "bfloat16".
        batch_size: Number of prompts per program call.
    """

    max_tokens: int | None = None
    dtype: str = "float32"
    batch_size: int = 8

    def __post_init__(self) -> None:
        if self.max_tokens is not None:
            require_at_least("max_tokens", self.max_tokens, 1)
        require_at_least("batch_size", self.batch_size, 1)


class LoadedEncoder(NamedTuple):
    """A text encoder with its weights on the devices.

    Attributes:
        part: Name of the component.
        tokenizer: Tokenizer of the encoder.
        length: Number of tokens per prompt.
        apply: `apply(params, tokens) -> outputs`, jitted, with outputs replicated on all devices.
        params: Weights of the encoder.
        batch_size: Number of prompts per program call, divisible by the batch shards of the mesh.
    """

    part: str
    tokenizer: Tokenizer
    length: int
    apply: Callable[[Params, ArrayLike], PyTree]
    params: Params
    batch_size: int

    def __call__(self, prompts: Sequence[str], progress: Progress = Silent()) -> PyTree:
        """Encode prompts and return the outputs on the host, with the prompts as first axis."""
        tokens, truncated = self.tokenizer(prompts, self.length)
        _warn_truncated(prompts, truncated, self, progress)
        with progress.task(self.part.replace("_", " "), len(prompts)) as advance:
            advance(0, COMPILING)
            return map_batched(
                partial(self.apply, self.params),
                lambda indices: (tokens[indices],),
                len(prompts),
                batch_size=self.batch_size,
                mesh=None,
                constant_size=True,
                on_batch=advance,
            )


def tokenizer_of(model: ModelFolder, part: str) -> Tokenizer:
    """Read the tokenizer of a text encoder.

    Args:
        model: Released model.
        part: Name of the text encoder.
    """
    return read_tokenizer(model.root / tokenizer_part(part))


def num_tokens(
    model: ModelFolder,
    config: CLIPTextConfig | T5Config,
    tokenizer: Tokenizer,
    max_tokens: int | None,
) -> int:
    """Return the number of tokens per prompt of a text encoder.

    Args:
        model: Released model.
        config: Config of the text encoder.
        tokenizer: Tokenizer of the text encoder.
        max_tokens: Requested number of T5 tokens; None takes the default. CLIP ignores it.

    Raises:
        ValueError: If `max_tokens` exceeds the limit of the tokenizer.
    """
    is_t5 = isinstance(config, T5Config)
    default = MAX_TOKENS[model.kind] if is_t5 else config.max_tokens
    limit = tokenizer.max_length
    if not is_t5 or max_tokens is None:
        return min(default, limit or default)
    rule = f"be at most {limit}, the limit of the tokenizer"
    require(limit is None or max_tokens <= limit, "max_tokens", rule, max_tokens)
    return max_tokens


def load_encoder(
    model: ModelFolder,
    part: str,
    encoding: PromptEncoding,
    *,
    mesh: jax.sharding.Mesh,
    progress: Progress = Silent(),
) -> LoadedEncoder:
    """Load a text encoder with its tokenizer.

    Args:
        model: Released model.
        part: Name of the text encoder.
        encoding: Settings of the prompt encoding.
        mesh: Device mesh that holds the weights.
        progress: Receives progress reports.

    Raises:
        ValueError: If the encoder is missing or damaged, or `encoding.max_tokens` exceeds the limit
            of its tokenizer.
    """
    tokenizer = tokenizer_of(model, part)
    component, params = model.load(
        part, mesh=mesh, dtype=encoding.dtype, compute=encoding.dtype, progress=progress
    )
    length = num_tokens(model, component.config, tokenizer, encoding.max_tokens)

    batch_size = padded_batch_size(encoding.batch_size, encoding.batch_size, mesh)
    apply = jax.jit(on_mesh(mesh, component.network.apply), out_shardings=replicated(mesh))
    return LoadedEncoder(part, tokenizer, length, apply, params, batch_size)


def encode_prompts(
    model: ModelFolder,
    prompts: Sequence[str],
    encoding: PromptEncoding = PromptEncoding(),  # noqa: B008 (frozen)
    *,
    mesh: jax.sharding.Mesh,
    progress: Progress = Silent(),
) -> tuple[Text, TextShape]:
    """Encode prompts with all text encoders of a model, which are freed afterwards.

    Args:
        model: Released model.
        prompts: Texts to encode. Prompts that are too long for an encoder are truncated.
        encoding: Settings of the prompt encoding.
        mesh: Device mesh that holds the weights of each encoder.
        progress: Receives progress reports, and a warning for each truncated prompt.

    Returns:
        The encoded prompts on the host, and their sizes with one `TextPart` per encoder.

    Raises:
        ValueError: If there are no prompts, or a text encoder is missing or damaged.
    """
    require_at_least("the number of prompts", len(prompts), 1)
    require_unicode("prompts", *prompts)
    encoding = replace(encoding, batch_size=min(encoding.batch_size, len(prompts)))

    def encode_with(part: str) -> PyTree:
        return load_encoder(model, part, encoding, mesh=mesh, progress=progress)(prompts, progress)

    outputs = [encode_with(part) if model.has(part) else None for part in model.encoders]
    return combine_encodings(model, outputs, encoding)


def combine_encodings(
    model: ModelFolder, outputs: Sequence[PyTree], encoding: PromptEncoding
) -> tuple[Text, TextShape]:
    """Combine the outputs of all text encoders to the condition of the transformer.

    Args:
        model: Released model.
        outputs: Output of each text encoder in `model.encoders`, None for a missing encoder.
        encoding: Settings with which the outputs were computed.

    Returns:
        The encoded prompts, and their sizes with one `TextPart` per encoder.
    """
    if model.kind == FLUX:
        clip, t5 = outputs
        (_, tokens, width), pooled = t5.shape, clip.pooled.shape[-1]
        parts = (TextPart((0, 0), (0, 0), (0, pooled)), TextPart((0, tokens), (0, width), (0, 0)))
        return Text(t5, clip.pooled), TextShape(tokens, width, pooled, parts)
    first, second, t5 = outputs
    if t5 is None:
        width = model.config_json("transformer")["joint_attention_dim"]
        length = encoding.max_tokens or MAX_TOKENS[SD3]
        t5 = np.zeros((len(first.hidden), length, width), first.hidden.dtype)
    return _sd3_text(first, second, t5)


def _sd3_text(first: CLIPOutput, second: CLIPOutput, t5: np.ndarray) -> tuple[Text, TextShape]:
    """Concatenate both CLIP outputs along the channels, pad them with zeros, and append T5."""
    clip = np.concatenate([first.hidden, second.hidden], axis=-1)
    (_, clip_tokens, channels), width = clip.shape, t5.shape[-1]
    clip = np.pad(clip, ((0, 0), (0, 0), (0, width - channels)))
    pooled = np.concatenate([first.pooled, second.pooled], axis=-1)
    split, pooled_split = first.hidden.shape[-1], first.pooled.shape[-1]
    tokens = np.concatenate([clip, t5], axis=1)
    parts = (
        TextPart((0, clip_tokens), (0, split), (0, pooled_split)),
        TextPart((0, clip_tokens), (split, channels), (pooled_split, pooled.shape[-1])),
        TextPart((clip_tokens, tokens.shape[1]), (0, width), (0, 0)),
    )
    return Text(tokens, pooled), TextShape(tokens.shape[1], width, pooled.shape[-1], parts)


def _warn_truncated(
    prompts: Sequence[str],
    truncated: Sequence[str | None],
    encoder: LoadedEncoder,
    progress: Progress,
) -> None:
    for prompt, text in zip(prompts, truncated, strict=True):
        if text is not None:
            progress.say(
                f"warning: {encoder.part} takes {encoder.length} tokens; the prompt "
                f"{_shorten(prompt)!r} is truncated and loses {_shorten(text)!r}"
            )


def _shorten(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."
