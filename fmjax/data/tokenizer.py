"""Captions as numbers: a vocabulary of words, learned from the captions of a data set.

Words are separated by spaces, in lower case, without punctuation; articles are left out. Marks are
removed from Latin letters only ("café" is "cafe", but か and が differ). Hyphens and apostrophes
within a word belong to it, and so do signs that change its meaning ("c++", "c#", ".net"). Each
emoji and each symbol is a word. Languages that are written without spaces need spaces between the
words. Token 0 is padding, 1 a word that was not learned.

The rule has a version, which `tokenizer.json` states next to the rule: a tokenizer that was written
under an older rule keeps it.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fmjax._arrays import TokenShape
from fmjax._checks import require, require_at_least, require_numbers
from fmjax._files import write_atomically
from fmjax._json import read_json, shown

PADDING, UNKNOWN = "[PAD]", "[UNK]"
_NUMBERS = {PADDING: 0, UNKNOWN: 1}
RULE = 2
"""The version of the rule that splits texts into words; files without one follow rule 1."""

_WORD = r"\p{L}\p{M}\p{N}\p{Pc}"  # Characters of words, to stand in brackets.
_PICTURE = r"\p{Extended_Pictographic}"
# All but those of ASCII, which separate words or mark them up.
_SYMBOLS = rf"[\p{{So}}\p{{Sc}}\p{{Sm}}{_PICTURE}\p{{Emoji_Modifier}}%‰&&[^+<=>|~]]"
_JOINER, _JOINERS, _TAGS = r"\x{200D}", r"\x{200C}\x{200D}", r"\x{E0020}-\x{E007F}"
_KEYCAP = r"\x{20E3}"
_TONED = rf"{_PICTURE}\p{{Emoji_Modifier}}?"
_EMOJI_OR_SYMBOL = (
    rf"\p{{Regional_Indicator}}{{2}}|[0-9#*]{_KEYCAP}|{_TONED}(?:{_JOINER}{_TONED})*[{_TAGS}]*"
    rf"|{_SYMBOLS}"
)
# What is replaced, in this order, after letters were made lower case.
_REPLACED = (
    (r"[’ʼ＇]", "'"),
    (r"[\x{2010}\x{2011}]", "-"),
    # Invisible: variation selectors, soft hyphens, directions, byte order marks.
    (
        r"[\x{FE00}-\x{FE0F}\x{E0100}-\x{E01EF}\x{AD}\x{61C}\x{200E}\x{200F}\x{202A}-\x{202E}"
        r"\x{2060}-\x{206F}\x{FEFF}]",
        "",
    ),
    # Joiners, other than those within a word or an emoji.
    (
        rf"(?!(?<=[{_WORD}])[{_JOINERS}](?=[{_WORD}])"
        rf"|(?<=[{_PICTURE}\p{{Emoji_Modifier}}]){_JOINER}(?={_PICTURE}))[{_JOINERS}]",
        "",
    ),
    # Punctuation, other than a single sign between spaces ("keycap *").
    (
        rf"(?!(?<!\S)[*&@=](?!\S)|\*{_KEYCAP})(?!{_SYMBOLS})"
        rf"[^{_WORD}\s'\-+#.{_JOINERS}{_TAGS}]",
        " ",
    ),
    (rf"(?<![{_WORD}])['-]+|['-]+(?![{_WORD}])", " "),
    # Plus and number signs, other than at the end of a word ("c++", "c#", "c++17") or single.
    (
        rf"(?<![+#])(?!(?<=[\p{{L}}\p{{N}}])[+#]+(?![\p{{L}}\p{{N}}+#])"
        rf"|(?<=\p{{L}})\+\+(?=\p{{N}})|(?<!\S)[+#](?!\S)|#{_KEYCAP})[+#]+",
        " ",
    ),
    # Dots, other than before the first letter (".net").
    (r"(?!(?<!\S)\.\p{L})\.", " "),
    (rf"(?<![{_WORD}'+#.-])(?:a|an|the)(?![{_WORD}'+#-])", " "),
)


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
        require_numbers(self, "tokenizer.")
        require_at_least("tokenizer.num_tokens", self.num_tokens, 1)
        require_at_least("tokenizer.vocab_size", self.vocab_size, 3)

    @property
    def shape(self) -> TokenShape:
        """What a model of such captions is conditioned on."""
        return TokenShape(self.num_tokens, self.vocab_size)


class WordTokenizer:
    """From texts to numbers and back; `train_tokenizer` or `read_word_tokenizer` makes it."""

    def __init__(self, inner: Any, rule: int = RULE) -> None:
        """Take a `tokenizers.Tokenizer` that pads and cuts to one length, and its rule."""
        self._inner, self.rule = inner, rule

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

    def wordless(self, tokens: np.ndarray) -> list[int]:
        """The rows of numbers, as `encode` gives them, without any word that was learned."""
        known = (np.asarray(tokens) > _NUMBERS[UNKNOWN]).any(axis=1)
        return np.flatnonzero(~known).tolist()

    def decode(self, tokens: np.ndarray) -> list[str]:
        """The words of each row of numbers."""
        return [
            self._inner.decode([i for i in row if i != 0], skip_special_tokens=False)
            for row in np.asarray(tokens).tolist()
        ]

    def to_json(self) -> str:
        """All of it, as `read_word_tokenizer` reads it."""
        stored = json.loads(self._inner.to_str())
        stored = stored if self.rule == 1 else {"rule": self.rule, **stored}
        return json.dumps(stored, indent=2, ensure_ascii=False) + "\n"

    def write(self, path: Path) -> None:
        """Write `tokenizer.json`, whole or not at all."""
        with write_atomically(path) as temporary:
            temporary.write_text(self.to_json(), encoding="utf-8")


def train_tokenizer(
    texts: Iterable[str], config: TokenizerConfig, *, rule: int = RULE
) -> WordTokenizer:
    """Learn the words of `texts`; the same texts in any order give the same numbers.

    Args:
        texts: The captions to learn from.
        config: How many words are kept.
        rule: Version of the rule that splits texts into words: 2, or 1 for runs made by it.

    Raises:
        ValueError: If the rule is unknown.
    """
    # Imported where it is used: few runs have captions.
    from tokenizers import Tokenizer as Inner
    from tokenizers import models, trainers

    require(rule in _RULES, "rule", f"be one of {sorted(_RULES)}", rule)
    inner: Any = Inner(models.WordLevel(unk_token=UNKNOWN))
    inner.normalizer, inner.pre_tokenizer = _RULES[rule]()
    trainer = trainers.WordLevelTrainer(
        vocab_size=config.vocab_size, special_tokens=list(_NUMBERS), show_progress=False
    )  # pyright: ignore[reportCallIssue]
    inner.train_from_iterator(texts, trainer)
    inner.enable_padding(length=config.num_tokens, pad_id=_NUMBERS[PADDING], pad_token=PADDING)
    inner.enable_truncation(config.num_tokens)
    return WordTokenizer(inner, rule)


def _first_rule() -> tuple[Any, Any]:
    """The normalizer and the pre-tokenizer of runs made before rules had versions."""
    from tokenizers import Regex, normalizers, pre_tokenizers

    steps = [
        normalizers.NFD(),
        normalizers.StripAccents(),
        normalizers.Lowercase(),
        normalizers.Replace("’", "'"),
        normalizers.Replace(Regex(r"[^\w\s'-]"), " "),
        normalizers.Replace(Regex(r"(?<![\w-])(a|an|the)(?![\w-])"), " "),
    ]
    return normalizers.Sequence(steps), pre_tokenizers.WhitespaceSplit()


def _second_rule() -> tuple[Any, Any]:
    """The normalizer and the pre-tokenizer that the module's docstring describes."""
    from tokenizers import Regex, normalizers, pre_tokenizers

    steps = [
        normalizers.NFD(),
        normalizers.Replace(Regex(r"(?<=\p{Latin})\p{Mn}+"), ""),
        normalizers.Lowercase(),
        normalizers.NFC(),
        *(normalizers.Replace(Regex(pattern), content) for pattern, content in _REPLACED),
    ]
    isolated = pre_tokenizers.Split(Regex(_EMOJI_OR_SYMBOL), "isolated")
    split = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), isolated])
    return normalizers.Sequence(steps), split


_RULES: dict[int, Callable[[], tuple[Any, Any]]] = {1: _first_rule, 2: _second_rule}


def read_word_tokenizer(path: Path) -> WordTokenizer:
    """Read what `WordTokenizer.write` wrote.

    Raises:
        ValueError: If the file is missing or something else.
    """
    from tokenizers import Tokenizer as Inner

    require(path.is_file(), f"file {path}", "be a tokenizer of fmjax", "no such file")
    stored = read_json(path, dict[str, Any])
    rule = stored.pop("rule", 1)
    require(type(rule) is int, f"file {path}", "hold an integer as its rule", shown(rule))
    try:
        inner = Inner.from_str(json.dumps(stored))
    except Exception as error:  # noqa: BLE001 (its own errors are plain Exceptions)
        raise ValueError(f"file {path} must be a tokenizer of fmjax, got {error}") from error
    fits = inner.padding is not None and inner.truncation is not None
    require(fits, f"file {path}", "be a tokenizer of fmjax", "one without a length")
    require(rule in _RULES, f"file {path}", f"follow a rule of {sorted(_RULES)}", f"rule {rule}")
    return WordTokenizer(inner, rule)
