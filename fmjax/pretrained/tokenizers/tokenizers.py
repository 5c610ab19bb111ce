"""Tokenizers of released models: convert prompts to the token ids that a text encoder takes.

A tokenizer folder holds either a complete tokenizer (`tokenizer.json`), or CLIP's vocabulary and
merges, or T5's SentencePiece model (`spiece.model`). Further files list the special tokens and the
maximum length of a prompt.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NotRequired, TypedDict

import numpy as np
from jaxtyping import Int

from fmjax._checks import require, require_at_least
from fmjax._json import Rule, check_json, read_json
from fmjax.pretrained.tokenizers.sentencepiece import t5_backend

if TYPE_CHECKING:
    import tokenizers

_CLIP_TOKENS = {
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
}
_T5_TOKENS = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
_T5_EXTRA = 100
_CLIP_PIECES = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)
_NO_LIMIT = 10**9  # A larger model_max_length means that there is no limit.

_TokenId = Annotated[int, Rule("an integer in [0, 2**31)", lambda value: 0 <= value < 2**31)]
_Few = Annotated[int, Rule("an integer in [0, 4096]", lambda value: 0 <= value <= 4096)]


def _is_length(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 1


class _Token(TypedDict):
    """A token and its matching rules, as an `AddedToken` of the package `tokenizers`."""

    content: str
    lstrip: NotRequired[bool]
    rstrip: NotRequired[bool]
    single_word: NotRequired[bool]
    normalized: NotRequired[bool]
    special: NotRequired[bool]


class _Settings(TypedDict, total=False):
    """Keys of tokenizer_config.json and special_tokens_map.json; other keys are ignored."""

    bos_token: str | _Token
    eos_token: str | _Token
    unk_token: str | _Token
    pad_token: str | _Token
    added_tokens_decoder: dict[str, _Token]
    extra_ids: _Few
    # Transformers writes 10**30 for "no limit", which exceeds 64-bit integers.
    model_max_length: Annotated[Any, Rule("a number of at least 1", _is_length)]


@dataclass(frozen=True)
class Tokenizer:
    """Tokenizer of a text encoder. Create it with `read_tokenizer`.

    Attributes:
        backend: Tokenizer of the package `tokenizers`.
        pad: Id of the padding token.
        max_length: Maximum number of tokens of a prompt; None if the files state none.
    """

    backend: "tokenizers.Tokenizer"
    pad: int
    max_length: int | None

    def __call__(
        self, prompts: Sequence[str], length: int
    ) -> tuple[Int[np.ndarray, "batch length"], list[str | None]]:
        """Tokenize prompts, padded or truncated to one length.

        Args:
            prompts: Texts to tokenize.
            length: Number of tokens per prompt. Truncation keeps the start and end tokens.

        Returns:
            The token ids, int32, and for each prompt the text that was truncated, or None.

        Raises:
            ValueError: If `length` is too short for the start and end tokens.
        """
        require(not isinstance(prompts, str), "prompts", "be a sequence of texts", repr(prompts))
        require_at_least("length", length, max(1, self.backend.num_special_tokens_to_add(False)))
        self.backend.enable_truncation(length)
        tokens = np.full((len(prompts), length), self.pad, np.int32)
        truncated: list[str | None] = []
        for row, prompt in zip(tokens, prompts, strict=True):
            encoding = self.backend.encode(prompt)
            row[: len(encoding.ids)] = encoding.ids
            truncated.append(_truncated_text(prompt, encoding))
        return tokens, truncated


def _truncated_text(prompt: str, encoding: "tokenizers.Encoding") -> str | None:
    """Return the text from the first truncated token to the end, or None if there is none."""
    for part in encoding.overflowing:
        for (start, _), is_special in zip(part.offsets, part.special_tokens_mask, strict=True):
            if not is_special:
                return prompt[start:].strip() or None
    return None


def read_tokenizer(folder: Path) -> Tokenizer:
    """Read the tokenizer in a folder of a released model.

    Raises:
        ValueError: If the folder holds no readable tokenizer, or its padding token is missing or
            unknown.
    """
    try:
        return _read(folder)
    except ValueError:
        raise
    except Exception as error:  # noqa: BLE001 (`tokenizers` raises plain Exceptions)
        raise ValueError(f"{folder} must hold a tokenizer, got {error!r}") from error


def _read(folder: Path) -> Tokenizer:
    from tokenizers import Tokenizer as Backend

    settings = _read_settings(folder)
    if (folder / "tokenizer.json").exists():
        backend = Backend.from_str(json.dumps(read_json(folder / "tokenizer.json", dict[str, Any])))
    elif (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        settings = {**_CLIP_TOKENS, **settings}
        backend = _clip_backend(folder, settings)
    else:
        rule = "hold tokenizer.json, or vocab.json and merges.txt, or spiece.model"
        require((folder / "spiece.model").exists(), str(folder), rule, "none of them")
        settings = {**_T5_TOKENS, **settings}
        num_extra = settings.get("extra_ids", _T5_EXTRA)
        backend = t5_backend(folder / "spiece.model", settings["eos_token"], num_extra)
    _add_special_tokens(backend, settings)
    pad, vocabulary = str(settings.get("pad_token")), backend.get_vocab(with_added_tokens=True)
    require(pad in vocabulary, "pad_token", f"be one of the tokens in {folder}", pad)
    backend.no_padding()
    max_length = settings.get("model_max_length", _NO_LIMIT)
    limit = int(max_length) if max_length < _NO_LIMIT else None
    return Tokenizer(backend, vocabulary[pad], limit)


def _read_settings(folder: Path) -> dict[str, Any]:
    """Read the settings of a tokenizer, with special tokens as strings."""
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).exists():
            items = read_json(folder / name, dict[str, Any]).items()
            values = {key: value for key, value in items if value is not None}
            settings |= check_json(values, _Settings, str(folder / name), extra=True)
    for name in _CLIP_TOKENS:
        if isinstance(settings.get(name), Mapping):
            settings[name] = settings[name]["content"]
    for key in settings.get("added_tokens_decoder", {}):
        is_id = key.isascii() and key.isdecimal() and len(key) < 10
        require(is_id, f"added_tokens_decoder in {folder}", "map ids to tokens", repr(key))
    return settings


def _add_special_tokens(backend: "tokenizers.Tokenizer", settings: Mapping[str, Any]) -> None:
    """Make the tokenizer match special tokens anywhere in a prompt.

    SD3's second tokenizer pads with "!", so "!" must be a token of its own even after a word.
    """
    from tokenizers import AddedToken

    flags = ("lstrip", "rstrip", "single_word", "normalized", "special")
    listed = settings.get("added_tokens_decoder", {})
    for _, token in sorted(listed.items(), key=lambda item: int(item[0])):
        options = {flag: token[flag] for flag in flags if flag in token}
        backend.add_tokens([AddedToken(token["content"], **options)])
    added = {token.content for token in backend.get_added_tokens_decoder().values()}
    for name in _CLIP_TOKENS:
        token = settings.get(name)
        if token not in added and token in backend.get_vocab():
            backend.add_special_tokens([AddedToken(token, special=True, normalized=False)])


def _clip_backend(folder: Path, settings: Mapping[str, Any]) -> "tokenizers.Tokenizer":
    """Build CLIP's tokenizer: lowercase text, byte-level byte-pair encoding.

    Reference: Radford et al. 2021, arXiv:2103.00020, section 2.4; Sennrich et al. 2016,
    arXiv:1508.07909, section 3.2.
    """
    from tokenizers import Regex, Tokenizer as Backend, normalizers, pre_tokenizers, processors
    from tokenizers.models import BPE

    vocabulary = read_json(folder / "vocab.json", dict[str, _TokenId])
    try:
        lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{folder / 'merges.txt'} must be UTF-8 text, got {error}") from error
    pairs = [line.split() for line in lines if line.strip() and not line.startswith("#version")]
    invalid = next((pair for pair in pairs if len(pair) != 2), None)
    rule = "hold two tokens per line"
    require(invalid is None, f"{folder / 'merges.txt'}", rule, invalid)
    merges = [(first, second) for first, second in pairs]
    start, end = settings["bos_token"], settings["eos_token"]
    for name in ("bos_token", "eos_token"):
        rule = f"be one of the tokens in {folder}"
        require(settings[name] in vocabulary, name, rule, settings[name])
    backend = Backend(
        BPE(
            vocabulary,
            merges,
            unk_token=settings["unk_token"],
            end_of_word_suffix="</w>",
            continuing_subword_prefix="",
            fuse_unk=False,
        )
    )
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
    pieces = pre_tokenizers.Split(Regex(_CLIP_PIECES), "removed", invert=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pieces, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.post_processor = processors.RobertaProcessing(
        (end, vocabulary[end]),
        (start, vocabulary[start]),
        trim_offsets=False,
        add_prefix_space=False,
    )
    return backend
