"""Tokenizers of released models: from prompts to the numbers that a text encoder takes.

A folder holds a whole tokenizer (`tokenizer.json`), or CLIP's vocabulary and merges, or T5's
pieces of words (`spiece.model`); beside them stands which tokens are special, and the longest
prompt.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

import numpy as np
from jaxtyping import Int

from fmjax._checks import require, require_at_least
from fmjax._json import Rule, check_json, read_json
from fmjax.pretrained.tokenizers.sentencepiece import t5_backend

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
_NO_LIMIT = 10**9  # From here on a length only says that there is none.


_TokenId = Annotated[int, Rule("an integer in [0, 2**31)", lambda value: 0 <= value < 2**31)]
_Few = Annotated[int, Rule("an integer in [0, 4096]", lambda value: 0 <= value <= 4096)]


def _is_length(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 1


class _Token(TypedDict):
    """A token with how it is found in a text."""

    content: str
    lstrip: NotRequired[bool]
    rstrip: NotRequired[bool]
    single_word: NotRequired[bool]
    normalized: NotRequired[bool]
    special: NotRequired[bool]


class _Settings(TypedDict, total=False):
    """What tokenizer_config.json and special_tokens_map.json say; other keys are ignored."""

    bos_token: str | _Token
    eos_token: str | _Token
    unk_token: str | _Token
    pad_token: str | _Token
    added_tokens_decoder: dict[str, _Token]
    extra_ids: _Few
    # "No limit" is 10**30, which is no integer of 64 bits.
    model_max_length: Annotated[Any, Rule("a number of at least 1", _is_length)]


@dataclass(frozen=True)
class Tokenizer:
    """Prompts to tokens; `read_tokenizer` makes one.

    Attributes:
        backend: Of the package `tokenizers`.
        pad: The token that fills up a prompt.
        max_length: Tokens of the longest prompt that the model was trained with, if it says so.
    """

    backend: Any
    pad: int
    max_length: int | None

    def __call__(
        self, prompts: Sequence[str], length: int
    ) -> tuple[Int[np.ndarray, "batch length"], list[str | None]]:
        """Give the tokens of each prompt, and of each what was cut off.

        Args:
            prompts: Texts.
            length: Tokens of each: the shorter are padded, the longer cut. Start and end stay.

        Returns:
            Tokens, int32; for each prompt the text that none of them stands for, None if there
            is none.

        Raises:
            ValueError: If the length has no room for start and end.
        """
        require(not isinstance(prompts, str), "prompts", "be a sequence of texts", repr(prompts))
        require_at_least("length", length, max(1, self.backend.num_special_tokens_to_add(False)))
        self.backend.enable_truncation(length)
        tokens = np.full((len(prompts), length), self.pad, np.int32)
        lost: list[str | None] = []
        for row, prompt in zip(tokens, prompts, strict=True):
            encoded = self.backend.encode(prompt)
            row[: len(encoded.ids)] = encoded.ids
            lost.append(_cut_off(prompt, encoded))
        return tokens, lost


def _cut_off(prompt: str, encoded: Any) -> str | None:
    """The text from the first token on that did not fit."""
    for part in encoded.overflowing:
        for (start, _), added in zip(part.offsets, part.special_tokens_mask, strict=True):
            if not added:
                return prompt[start:].strip() or None
    return None


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a folder of a released model.

    Raises:
        ValueError: If the folder holds none that can be read, or its padding is not said or no
            token.
    """
    try:
        return _read(folder)
    except ValueError:
        raise
    except Exception as error:  # noqa: BLE001 (those of `tokenizers` are plain Exceptions)
        raise ValueError(f"{folder} must hold a tokenizer, got {error!r}") from error


def _read(folder: Path) -> Tokenizer:
    from tokenizers import Tokenizer as Backend

    about: Any = _settings(folder)
    if (folder / "tokenizer.json").exists():
        backend = Backend.from_str(json.dumps(read_json(folder / "tokenizer.json", dict[str, Any])))
    elif (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        about = {**_CLIP_TOKENS, **about}
        backend = _clip(folder, about)
    else:
        need = "hold tokenizer.json, or vocab.json and merges.txt, or spiece.model"
        require((folder / "spiece.model").exists(), str(folder), need, "none of them")
        about = {**_T5_TOKENS, **about}
        num_extra = about.get("extra_ids", _T5_EXTRA)
        backend = t5_backend(folder / "spiece.model", about["eos_token"], num_extra)
    _add_special(backend, about)
    pad, vocabulary = str(about.get("pad_token")), backend.get_vocab(with_added_tokens=True)
    require(pad in vocabulary, "pad_token", f"be one of the tokens in {folder}", pad)
    backend.no_padding()
    most = about.get("model_max_length", _NO_LIMIT)
    return Tokenizer(backend, vocabulary[pad], int(most) if most < _NO_LIMIT else None)


def _settings(folder: Path) -> dict[str, Any]:
    """What a folder says of its tokenizer, special tokens as plain texts."""
    about: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).exists():
            said = read_json(folder / name, dict[str, Any]).items()
            said = {key: value for key, value in said if value is not None}
            about |= check_json(said, _Settings, str(folder / name), extra=True)
    for name in _CLIP_TOKENS:
        if isinstance(about.get(name), Mapping):
            about[name] = about[name]["content"]
    for key in about.get("added_tokens_decoder", {}):
        numbered = key.isascii() and key.isdecimal() and len(key) < 10
        require(numbered, f"added_tokens_decoder in {folder}", "map numbers to tokens", repr(key))
    return about


def _add_special(backend: Any, about: Mapping[str, Any]) -> None:
    """Make the special tokens such wherever a prompt has them.

    SD3's second tokenizer pads with "!", so that a "!" behind a word is no longer part of it.
    """
    from tokenizers import AddedToken

    flags = ("lstrip", "rstrip", "single_word", "normalized", "special")
    listed = about.get("added_tokens_decoder", {})
    for _, token in sorted(listed.items(), key=lambda item: int(item[0])):
        said = {flag: token[flag] for flag in flags if flag in token}
        backend.add_tokens([AddedToken(token["content"], **said)])
    added = {token.content for token in backend.get_added_tokens_decoder().values()}
    for name in _CLIP_TOKENS:
        token = about.get(name)
        if token not in added and token in backend.get_vocab():
            backend.add_special_tokens([AddedToken(token, special=True, normalized=False)])


def _clip(folder: Path, about: Mapping[str, Any]) -> Any:
    """CLIP's tokenizer: lower case, words in pieces of bytes, merged by rank.

    Source: Radford et al. 2021, arXiv:2103.00020, section 2.4; Sennrich et al. 2016,
    arXiv:1508.07909, section 3.2.
    """
    from tokenizers import Regex, normalizers, pre_tokenizers, processors
    from tokenizers import Tokenizer as Backend
    from tokenizers.models import BPE

    vocabulary = read_json(folder / "vocab.json", dict[str, _TokenId])
    try:
        lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{folder / 'merges.txt'} must be UTF-8 text, got {error}") from error
    pairs = [line.split() for line in lines if line.strip() and not line.startswith("#version")]
    wrong = next((pair for pair in pairs if len(pair) != 2), None)
    require(wrong is None, f"{folder / 'merges.txt'}", "hold pairs", wrong)
    merges = [(first, second) for first, second in pairs]
    start, end = about["bos_token"], about["eos_token"]
    for name in ("bos_token", "eos_token"):
        require(about[name] in vocabulary, name, f"be one of the tokens in {folder}", about[name])
    backend = Backend(
        BPE(
            vocabulary,
            merges,
            unk_token=about["unk_token"],
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
