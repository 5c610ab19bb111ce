"""Captions as numbers: a vocabulary of words, learned from the captions of a data set.

Words are what stands between spaces, in lower case, without accents and without punctuation other
than hyphens and apostrophes; articles say nothing and are left out. Token 0 is padding, 1 a word
that was not learned.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fmjax._arrays import TokenShape
from fmjax._checks import require, require_at_least
from fmjax._files import write_atomically

PADDING, UNKNOWN = "[PAD]", "[UNK]"
_ARTICLES = r"(?<![\w-])(a|an|the)(?![\w-])"
_PUNCTUATION = r"[^\w\s'-]"


@dataclass(frozen=True)
class TokenizerConfig:
    """How captions become numbers.

    Attributes:
        num_tokens: Words of a caption at most: longer ones are cut, shorter ones padded.
        vocab_size: Words that are told apart at most, the most frequent ones, with two numbers
            for padding and for all other words.
    """

    num_tokens: int = 16
    vocab_size: int = 2_048

    def __post_init__(self) -> None:
        require_at_least("tokenizer.num_tokens", self.num_tokens, 1)
        require_at_least("tokenizer.vocab_size", self.vocab_size, 3)

    @property
    def shape(self) -> TokenShape:
        """What a model of such captions is conditioned on."""
        return TokenShape(self.num_tokens, self.vocab_size)


class WordTokenizer:
    """From texts to numbers and back; `train_tokenizer` or `read_word_tokenizer` makes it."""

    def __init__(self, inner: Any) -> None:
        """Take a `tokenizers.Tokenizer` that pads and cuts to one length."""
        self._inner = inner

    @property
    def num_tokens(self) -> int:
        """Numbers of a text."""
        return int(self._inner.truncation["max_length"])

    def encode(self, texts: Iterable[str]) -> np.ndarray:
        """Numbers of each text, int32 `[texts, num_tokens]`; what is too long is cut."""
        texts = list(texts)
        different = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        encoded = self._inner.encode_batch(list(different))
        ids = np.asarray([each.ids for each in encoded], np.int32)
        return ids.reshape(-1, self.num_tokens)[[different[text] for text in texts]]

    def cut(self, texts: Iterable[str]) -> tuple[str, ...]:
        """Those of the texts, each once, that are longer than `num_tokens`."""
        different = list(dict.fromkeys(texts))
        encoded = self._inner.encode_batch(different)
        return tuple(t for t, e in zip(different, encoded, strict=True) if e.overflowing)

    def unknown(self, texts: Iterable[str]) -> tuple[str, ...]:
        """The words of the texts that were not learned, each once."""
        found: dict[str, None] = {}
        for text in texts:
            encoded = self._inner.encode(text)
            spans = zip(encoded.tokens, encoded.offsets, strict=True)
            found |= {text[slice(*span)]: None for token, span in spans if token == UNKNOWN}
        return tuple(found)

    def decode(self, tokens: np.ndarray) -> list[str]:
        """The words of each row of numbers."""
        return [
            self._inner.decode([i for i in row if i != 0], skip_special_tokens=False)
            for row in np.asarray(tokens).tolist()
        ]

    def to_json(self) -> str:
        """All of it, as `read_word_tokenizer` reads it."""
        return self._inner.to_str(pretty=True) + "\n"

    def write(self, path: Path) -> None:
        """Write `tokenizer.json`, whole or not at all."""
        with write_atomically(path) as temporary:
            temporary.write_text(self.to_json(), encoding="utf-8")


def train_tokenizer(texts: Iterable[str], config: TokenizerConfig) -> WordTokenizer:
    """Learn the words of `texts`; the same texts in any order give the same numbers."""
    # Imported where it is used: few runs have captions.
    from tokenizers import Regex, models, normalizers, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Inner

    inner: Any = Inner(models.WordLevel(unk_token=UNKNOWN))
    inner.normalizer = normalizers.Sequence([
        normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase(),
            normalizers.Replace("’", "'"),
        normalizers.Replace(Regex(_PUNCTUATION), " "), normalizers.Replace(Regex(_ARTICLES), " "),
    ])  # fmt: skip
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordLevelTrainer(
        vocab_size=config.vocab_size, special_tokens=[PADDING, UNKNOWN], show_progress=False
    )  # pyright: ignore[reportCallIssue]
    inner.train_from_iterator(texts, trainer)
    inner.enable_padding(length=config.num_tokens, pad_id=0, pad_token=PADDING)
    inner.enable_truncation(config.num_tokens)
    return WordTokenizer(inner)


def read_word_tokenizer(path: Path) -> WordTokenizer:
    """Read what `WordTokenizer.write` wrote.

    Raises:
        ValueError: If the file is missing or something else.
    """
    from tokenizers import Tokenizer as Inner

    require(path.is_file(), f"file {path}", "be a tokenizer of fmjax", "no such file")
    try:
        inner = Inner.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # noqa: BLE001 (its own errors are plain Exceptions)
        raise ValueError(f"file {path} must be a tokenizer of fmjax, got {error}") from error
    fits = inner.padding is not None and inner.truncation is not None
    require(fits, f"file {path}", "be a tokenizer of fmjax", "one without a length")
    return WordTokenizer(inner)
