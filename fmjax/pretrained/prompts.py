"""Prompts as a released model's text encoders give them.

The encoders are read one after the other, each gone before the next comes: with T5-XXL they are as
large as the transformer itself, and are not needed once the prompts are encoded.

Source: Esser et al. 2024, arXiv:2403.03206, section 4 (which outputs SD3 takes, and how they are
joined); Black Forest Labs, FLUX.1 (2024).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import numpy as np

from fmjax._arrays import Text, TextPart, TextShape
from fmjax._checks import require, require_at_least, require_unicode
from fmjax._progress import COMPILING, Progress, Silent
from fmjax.networks.text_encoders.t5 import T5Config
from fmjax.pretrained.folder import FLUX, SD3, ModelFolder, tokenizer_part
from fmjax.pretrained.tokenizers.tokenizers import Tokenizer, read_tokenizer
from fmjax.sharding import num_shares, replicated

MAX_TOKENS = {SD3: 256, FLUX: 512}
"""Tokens that T5 is given, unless others are asked for: as many as diffusers takes by default.

A model that comes without it has zeros in their place.
"""
_SHOWN = 60  # Characters of a prompt in a warning.


@dataclass(frozen=True)
class PromptEncoding:
    """How prompts are encoded.

    Attributes:
        max_tokens: That T5 is given; None takes the model's usual number.
        dtype: Of weights and computation, "float32" or "bfloat16".
        batch_size: Prompts at once.
    """

    max_tokens: int | None = None
    dtype: str = "float32"
    batch_size: int = 8

    def __post_init__(self) -> None:
        if self.max_tokens is not None:
            require_at_least("max_tokens", self.max_tokens, 1)
        require_at_least("batch_size", self.batch_size, 1)


class LoadedEncoder(NamedTuple):
    """A text encoder on the devices.

    Attributes:
        part: Which of the model's.
        tokenizer: Its own.
        length: Tokens that it is given.
        apply: `apply(params, tokens)`, jitted, its result whole on every device.
        params: Its weights.
        batch_size: Prompts at once.
    """

    part: str
    tokenizer: Tokenizer
    length: int
    apply: Any
    params: Any
    batch_size: int

    def __call__(self, prompts: Sequence[str], progress: Progress = Silent()) -> Any:
        """Encode prompts: what the encoder gives, on the host."""
        tokens, lost = self.tokenizer(prompts, self.length)
        _warn(prompts, lost, self, progress)
        outputs = []
        with progress.task(self.part.replace("_", " "), len(prompts)) as advance:
            advance(0, COMPILING)
            for first in range(0, len(prompts), self.batch_size):
                kept = min(self.batch_size, len(prompts) - first)
                rows = np.minimum(np.arange(first, first + self.batch_size), len(prompts) - 1)
                out = self.apply(self.params, tokens[rows])
                outputs.append(jax.tree.map(lambda a, n=kept: np.asarray(a)[:n], out))
                advance(kept)
        return jax.tree.map(lambda *rows: np.concatenate(rows), *outputs)


def tokenizer_of(model: ModelFolder, part: str) -> Tokenizer:
    """The tokenizer of one of a model's text encoders."""
    return read_tokenizer(model.path / tokenizer_part(part))


def num_tokens(
    model: ModelFolder, config: Any, tokenizer: Tokenizer, max_tokens: int | None
) -> int:
    """Tokens that a text encoder is given.

    Args:
        model: Whose it is.
        config: Of the encoder.
        tokenizer: Its own.
        max_tokens: Asked for of T5; None takes the usual number.

    Raises:
        ValueError: If they are more than the tokenizer takes.
    """
    t5 = isinstance(config, T5Config)
    usual = MAX_TOKENS[model.kind] if t5 else config.max_tokens
    most = tokenizer.max_length
    if not t5 or max_tokens is None:
        return min(usual, most or usual)
    rule = f"be at most {most}, as many as the tokenizer takes"
    require(most is None or max_tokens <= most, "max_tokens", rule, max_tokens)
    return max_tokens


def load_encoder(
    model: ModelFolder,
    part: str,
    encoding: PromptEncoding,
    *,
    mesh: jax.sharding.Mesh,
    progress: Progress = Silent(),
) -> LoadedEncoder:
    """One of a model's text encoders with its tokenizer.

    Raises:
        ValueError: If it is missing or damaged, or takes fewer tokens than are asked for.
    """
    tokenizer = tokenizer_of(model, part)
    component, params = model.load(
        part, mesh=mesh, dtype=encoding.dtype, compute=encoding.dtype, progress=progress
    )
    length = num_tokens(model, component.config, tokenizer, encoding.max_tokens)

    def apply(params: Any, tokens: jax.Array) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return component.network.apply(params, tokens)

    shares = num_shares(mesh)
    size = -(-encoding.batch_size // shares) * shares
    apply = jax.jit(apply, out_shardings=replicated(mesh))
    return LoadedEncoder(part, tokenizer, length, apply, params, size)


def encode_prompts(
    model: ModelFolder,
    prompts: Sequence[str],
    encoding: PromptEncoding = PromptEncoding(),  # noqa: B008 (frozen)
    *,
    mesh: jax.sharding.Mesh,
    progress: Progress = Silent(),
) -> tuple[Text, TextShape]:
    """Encode prompts; nothing of the encoders stays on the devices.

    Args:
        model: With its text encoders.
        prompts: Texts; what an encoder does not take of them is cut off, and that is said.
        encoding: How.
        mesh: Over which each encoder's weights are laid.
        progress: Hears of each encoder, and of each prompt that is cut.

    Returns:
        The text, on the host, and its sizes, which say what of it is whose.

    Raises:
        ValueError: If there are no prompts, or a part of the model is missing or damaged.
    """
    require_at_least("the number of prompts", len(prompts), 1)
    require_unicode("prompts", *prompts)
    few = replace(encoding, batch_size=min(encoding.batch_size, len(prompts)))

    def outputs_of(part: str) -> Any:
        return load_encoder(model, part, few, mesh=mesh, progress=progress)(prompts, progress)

    outputs = [outputs_of(part) if model.has(part) else None for part in model.encoders]
    return combine_encodings(model, outputs, encoding)


def combine_encodings(
    model: ModelFolder, outputs: Sequence[Any], encoding: PromptEncoding
) -> tuple[Text, TextShape]:
    """The text that a model's encoders make together, and its sizes.

    Args:
        model: Which says how.
        outputs: Of its encoders in their order, None for one that it does without.
        encoding: How they were made.
    """
    if model.kind == FLUX:
        clip, t5 = outputs
        (_, num, width), pooled = t5.shape, clip.pooled.shape[-1]
        parts = (TextPart((0, 0), (0, 0), (0, pooled)), TextPart((0, num), (0, width), (0, 0)))
        return Text(t5, clip.pooled), TextShape(num, width, pooled, parts)
    first, second, t5 = outputs
    if t5 is None:
        width = model.about("transformer")["joint_attention_dim"]
        length = encoding.max_tokens or MAX_TOKENS[SD3]
        t5 = np.zeros((len(first.hidden), length, width), first.hidden.dtype)
    return _sd3_text(first, second, t5)


def _sd3_text(first: Any, second: Any, t5: np.ndarray) -> tuple[Text, TextShape]:
    """Both CLIPs side by side in the channels, filled up with zeros; T5's tokens behind them."""
    clip = np.concatenate([first.hidden, second.hidden], axis=-1)
    (_, tokens, channels), width = clip.shape, t5.shape[-1]
    clip = np.pad(clip, ((0, 0), (0, 0), (0, width - channels)))
    pooled = np.concatenate([first.pooled, second.pooled], axis=-1)
    split, of_pooled = first.hidden.shape[-1], first.pooled.shape[-1]
    both = np.concatenate([clip, t5], axis=1)
    parts = (
        TextPart((0, tokens), (0, split), (0, of_pooled)),
        TextPart((0, tokens), (split, channels), (of_pooled, pooled.shape[-1])),
        TextPart((tokens, both.shape[1]), (0, width), (0, 0)),
    )
    return Text(both, pooled), TextShape(both.shape[1], width, pooled.shape[-1], parts)


def _warn(
    prompts: Sequence[str], lost: Sequence[str | None], encoder: LoadedEncoder, progress: Progress
) -> None:
    for prompt, rest in zip(prompts, lost, strict=True):
        if rest is not None:
            progress.say(
                f"warning: {encoder.part} takes {encoder.length} tokens; of the prompt "
                f"{_short(prompt)!r} it does not see {_short(rest)!r}"
            )


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else text[: _SHOWN - 2] + ".."
