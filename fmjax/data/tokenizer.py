"""Word tokenizer of captions, whose vocabulary is learned from the captions of a data set.

Texts are lower-cased and split at spaces; punctuation and articles are removed. Accents are
removed from Latin letters only ("café" becomes "cafe", but か and が differ). Hyphens and
apostrophes within a word are kept, and so are signs that change its meaning ("c++", "c#", ".net").
Each emoji and symbol is a word. Languages without spaces between words need added spaces. Token
id 0 is padding and 1 an unknown word.

The splitting rule has a version, stored in `tokenizer.json`; tokenizers keep the version under
which they were written.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fmjax._checks import require, require_at_least, require_numbers
from fmjax._files import write_atomically
from fmjax._json import format_value, read_json
from fmjax._specs import Spec, token_spec

PADDING, UNKNOWN = "[PAD]", "[UNK]"
_SPECIAL_IDS = {PADDING: 0, UNKNOWN: 1}
RULE = 2
"""Current version of the rule that splits texts into words; files without a version use rule 1."""

_WORD = r"\p{L}\p{M}\p{N}\p{Pc}"  # Word characters, inside brackets.
_PICTURE = r"\p{Extended_Pictographic}"
# Symbols except those of ASCII, which separate words or are markup.
_SYMBOLS = rf"[\p{{So}}\p{{Sc}}\p{{Sm}}{_PICTURE}\p{{Emoji_Modifier}}%‰&&[^+<=>|~]]"
_JOINER, _JOINERS, _TAGS = r"\x{200D}", r"\x{200C}\x{200D}", r"\x{E0020}-\x{E007F}"
_KEYCAP = r"\x{20E3}"
_TONED = rf"{_PICTURE}\p{{Emoji_Modifier}}?"
_EMOJI_OR_SYMBOL = (
    rf"\p{{Regional_Indicator}}{{2}}|[0-9#*]{_KEYCAP}|{_TONED}(?:{_JOINER}{_TONED})*[{_TAGS}]*"
    rf"|{_SYMBOLS}"
)
# Regular expressions and their replacements, applied in this order after lower-casing.
_REPLACEMENTS = (
    (r"[’ʼ＇]", "'"),
    (r"[\x{2010}\x{2011}]", "-"),
    # Invisible characters: variation selectors, soft hyphens, directions, byte order marks.
    (
        r"[\x{FE00}-\x{FE0F}\x{E0100}-\x{E01EF}\x{AD}\x{61C}\x{200E}\x{200F}\x{202A}-\x{202E}"
        r"\x{2060}-\x{206F}\x{FEFF}]",
        "",
    ),
    # Joiners, except within a word or an emoji.
    (
        rf"(?!(?<=[{_WORD}])[{_JOINERS}](?=[{_WORD}])"
        rf"|(?<=[{_PICTURE}\p{{Emoji_Modifier}}]){_JOINER}(?={_PICTURE}))[{_JOINERS}]",
        "",
    ),
    # Punctuation, except a single sign between spaces ("keycap *").
    (
        rf"(?!(?<!\S)[*&@=](?!\S)|\*{_KEYCAP})(?!{_SYMBOLS})"
        rf"[^{_WORD}\s'\-+#.{_JOINERS}{_TAGS}]",
        " ",
    ),
    (rf"(?<![{_WORD}])['-]+|['-]+(?![{_WORD}])", " "),
    # Plus and number signs, except at the end of a word ("c++", "c#", "c++17") or alone.
    (
        rf"(?<![+#])(?!(?<=[\p{{L}}\p{{N}}])[+#]+(?![\p{{L}}\p{{N}}+#])"
        rf"|(?<=\p{{L}})\+\+(?=\p{{N}})|(?<!\S)[+#](?!\S)|#{_KEYCAP})[+#]+",
        " ",
    ),
    # Dots, except before the first letter (".net").
    (r"(?!(?<!\S)\.\p{L})\.", " "),
    (rf"(?<![{_WORD}'+#.-])(?:a|an|the)(?![{_WORD}'+#-])", " "),
)


@dataclass(frozen=True)
class TokenizerConfig:
    """Sizes of a word tokenizer.

    Attributes:
        num_tokens: Number of tokens per caption; longer captions are truncated, shorter ones
            padded.
        vocab_size: Maximum number of token ids: the most frequent words, padding and the unknown
            word.
    """

    num_tokens: int = 16
    vocab_size: int = 2_048

    def __post_init__(self) -> None:
        require_numbers(self, "tokenizer.")
        require_at_least("tokenizer.num_tokens", self.num_tokens, 1)
        require_at_least("tokenizer.vocab_size", self.vocab_size, 3)

    @property
    def shape(self) -> Spec:
        """Description of tokenized captions, the condition of a model."""
        return token_spec(self.num_tokens, self.vocab_size)


class WordTokenizer:
    """Converter between texts and token ids, from `train_tokenizer` or `read_word_tokenizer`."""

    def __init__(self, inner: Any, rule: int = RULE) -> None:
        """Wrap a `tokenizers.Tokenizer`; `rule` is the version of the word-splitting rule."""
        self._inner, self.rule = inner, rule

    @property
    def vocab_size(self) -> int:
        """Number of token ids: the words, padding and the unknown word."""
        return int(self._inner.get_vocab_size())

    @property
    def num_tokens(self) -> int:
        """Number of tokens per text."""
        return int(self._inner.truncation["max_length"])

    def encode(self, texts: Iterable[str]) -> np.ndarray:
        """Return the token ids of each text, int32 `[texts, num_tokens]`; truncate long texts."""
        texts = list(texts)
        rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        encodings = self._inner.encode_batch(list(rows))
        ids = np.asarray([encoding.ids for encoding in encodings], np.int32)
        return ids.reshape(-1, self.num_tokens)[[rows[text] for text in texts]]

    def cut(self, texts: Iterable[str]) -> tuple[str, ...]:
        """Return the distinct texts that are longer than `num_tokens`."""
        distinct = list(dict.fromkeys(texts))
        encodings = self._inner.encode_batch(distinct)
        return tuple(t for t, e in zip(distinct, encodings, strict=True) if e.overflowing)

    def unknown(self, texts: Iterable[str]) -> tuple[str, ...]:
        """Return the distinct words of the texts that are not in the vocabulary."""
        words: dict[str, None] = {}
        for text in texts:
            encoding = self._inner.encode(text)
            spans = zip(encoding.tokens, encoding.offsets, strict=True)
            words |= {text[slice(*span)]: None for token, span in spans if token == UNKNOWN}
        return tuple(words)

    def wordless(self, tokens: np.ndarray) -> list[int]:
        """Return the indices of rows of token ids without any word of the vocabulary."""
        has_word = (np.asarray(tokens) > _SPECIAL_IDS[UNKNOWN]).any(axis=1)
        return np.flatnonzero(~has_word).tolist()

    def decode(self, tokens: np.ndarray) -> list[str]:
        """Return the words of each row of token ids."""
        return [
            self._inner.decode([i for i in row if i != 0], skip_special_tokens=False)
            for row in np.asarray(tokens).tolist()
        ]

    def to_json(self) -> str:
        """Serialize the tokenizer to JSON, which `read_word_tokenizer` reads."""
        document = json.loads(self._inner.to_str())
        document = document if self.rule == 1 else {"rule": self.rule, **document}
        return json.dumps(document, indent=2, ensure_ascii=False) + "\n"

    def write(self, file: Path) -> None:
        """Write the tokenizer to a JSON file, atomically."""
        with write_atomically(file) as temporary:
            temporary.write_text(self.to_json(), encoding="utf-8")


def train_tokenizer(
    texts: Iterable[str], config: TokenizerConfig, *, rule: int = RULE
) -> WordTokenizer:
    """Learn the vocabulary of `texts`, independent of their order.

    Args:
        texts: Captions to learn from.
        config: Number of tokens per caption and size of the vocabulary.
        rule: Version of the rule that splits texts into words: 2, or 1 for old runs.

    Raises:
        ValueError: If the rule is unknown.
    """
    # Imported only for data with captions.
    from tokenizers import Tokenizer as Inner, models, trainers

    require(rule in _RULES, "rule", f"be one of {sorted(_RULES)}", rule)
    inner: Any = Inner(models.WordLevel(unk_token=UNKNOWN))
    inner.normalizer, inner.pre_tokenizer = _RULES[rule]()
    trainer = trainers.WordLevelTrainer(
        vocab_size=config.vocab_size, special_tokens=list(_SPECIAL_IDS), show_progress=False
    )  # pyright: ignore[reportCallIssue]
    inner.train_from_iterator(texts, trainer)
    inner.enable_padding(length=config.num_tokens, pad_id=_SPECIAL_IDS[PADDING], pad_token=PADDING)
    inner.enable_truncation(config.num_tokens)
    return WordTokenizer(inner, rule)


def _first_rule() -> tuple[Any, Any]:
    """Return the normalizer and pre-tokenizer of runs made before rules had versions."""
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
    """Return the normalizer and pre-tokenizer described in the module docstring."""
    from tokenizers import Regex, normalizers, pre_tokenizers

    steps = [
        normalizers.NFD(),
        normalizers.Replace(Regex(r"(?<=\p{Latin})\p{Mn}+"), ""),
        normalizers.Lowercase(),
        normalizers.NFC(),
        *(normalizers.Replace(Regex(pattern), content) for pattern, content in _REPLACEMENTS),
    ]
    isolated = pre_tokenizers.Split(Regex(_EMOJI_OR_SYMBOL), "isolated")
    split = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), isolated])
    return normalizers.Sequence(steps), split


_RULES: dict[int, Callable[[], tuple[Any, Any]]] = {1: _first_rule, 2: _second_rule}


def read_word_tokenizer(file: Path) -> WordTokenizer:
    """Read a tokenizer written by `WordTokenizer.write`.

    Raises:
        ValueError: If the file is missing or is not such a tokenizer.
    """
    from tokenizers import Tokenizer as Inner

    name = f"file {file}"
    require(file.is_file(), name, "be a tokenizer of fmjax", "no such file")
    document = read_json(file, dict[str, Any])
    rule = document.pop("rule", 1)
    require(type(rule) is int, name, "hold an integer as its rule", format_value(rule))
    try:
        inner = Inner.from_str(json.dumps(document))
    except Exception as error:  # noqa: BLE001 (tokenizers raises plain Exceptions)
        raise ValueError(f"{name} must be a tokenizer of fmjax, got {error}") from error
    has_length = inner.padding is not None and inner.truncation is not None
    require(has_length, name, "be a tokenizer of fmjax", "a tokenizer without a fixed length")
    require(rule in _RULES, name, f"use a rule in {sorted(_RULES)}", f"rule {rule}")
    return WordTokenizer(inner, rule)
