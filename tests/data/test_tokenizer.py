"""Tests of the word tokenizer: encoding, decoding, rules and files."""

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from fmjax.data import TokenizerConfig, read_word_tokenizer, train_tokenizer

TEXTS = ["A red heart", "the Blue heart!", "a café, red", "heart-eyes and an owl's eye"]
CONFIG = TokenizerConfig(num_tokens=4, vocab_size=32)
RULE_1_TOKENS = [[4, 8, 4], [6, 0, 0], [2, 2, 2], [5, 1, 0], [3, 0, 0], [0, 0, 0]]


def test_decoded_words_are_lower_case_without_articles_accents_or_punctuation():
    tokenizer = train_tokenizer(TEXTS, CONFIG)
    words = tokenizer.decode(tokenizer.encode(TEXTS))
    assert words == ["red heart", "blue heart", "cafe red", "heart-eyes and owl's eye"]


def test_texts_are_padded_with_zeros_or_truncated_to_num_tokens():
    tokens = train_tokenizer(TEXTS, CONFIG).encode(["heart", "red red red red red", ""])
    assert tokens.shape == (3, 4)
    assert tokens.dtype == np.int32
    assert (tokens > 0).sum(axis=1).tolist() == [1, 4, 0]
    assert tokens[0, 0] != 0


def test_unknown_words_share_one_token_and_are_listed():
    tokenizer = train_tokenizer(TEXTS, CONFIG)
    np.testing.assert_array_equal(tokenizer.encode(["green heart", "dog"])[:, 0], [1, 1])
    assert tokenizer.unknown(["A green, heart", "the Dog", "green"]) == ("green", "Dog")
    assert tokenizer.unknown(TEXTS) == ()


def test_the_most_frequent_words_are_kept():
    tokenizer = train_tokenizer(TEXTS, TokenizerConfig(4, vocab_size=4))
    assert tokenizer.unknown(["heart red blue"]) == ("blue",)


def test_the_vocabulary_is_independent_of_the_order_of_texts():
    forward, reverse = (train_tokenizer(texts, CONFIG) for texts in (TEXTS, TEXTS[::-1]))
    assert forward.to_json() == reverse.to_json()


def test_a_tokenizer_read_from_a_file_gives_the_same_tokens(tmp_path):
    tokenizer = train_tokenizer(TEXTS, CONFIG)
    tokenizer.write(tmp_path / "tokenizer.json")
    restored = read_word_tokenizer(tmp_path / "tokenizer.json")
    assert restored.num_tokens == 4
    np.testing.assert_array_equal(restored.encode(TEXTS), tokenizer.encode(TEXTS))
    assert restored.to_json() == tokenizer.to_json()


def test_tokens_of_repeated_texts_follow_the_input_order():
    tokenizer = train_tokenizer(TEXTS, CONFIG)
    tokens = tokenizer.encode([TEXTS[1], TEXTS[0], TEXTS[1]])
    np.testing.assert_array_equal(tokens, tokenizer.encode(TEXTS)[[1, 0, 1]])


def test_truncated_texts_are_listed():
    tokenizer, long_text = train_tokenizer(TEXTS, CONFIG), "red heart and blue heart"
    assert tokenizer.cut(["a red heart and the blue", long_text, "heart", long_text]) == (
        long_text,
    )


def test_files_without_a_tokenizer_are_rejected(tmp_path):
    file = tmp_path / "tokenizer.json"
    with pytest.raises(ValueError, match="must be a tokenizer of fmjax, got no such file"):
        read_word_tokenizer(file)
    file.write_text("{}")
    with pytest.raises(ValueError, match="must be a tokenizer of fmjax"):
        read_word_tokenizer(file)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_tokens": 0}, "tokenizer.num_tokens must be at least 1, got 0"),
        ({"vocab_size": 2}, "tokenizer.vocab_size must be at least 3, got 2"),
    ],
)
def test_invalid_sizes_are_rejected(arguments, message):
    with pytest.raises(ValueError, match=message):
        TokenizerConfig(**arguments)


def decoded_words(*texts):
    """Return the words of each text, from a tokenizer trained on all texts."""
    tokenizer = train_tokenizer(texts, TokenizerConfig(24, 512))
    return tokenizer.decode(tokenizer.encode(texts))


def have_distinct_tokens(*texts):
    """Return whether the texts have different tokens and begin with known words."""
    tokens = train_tokenizer(texts, TokenizerConfig(4, 512)).encode(texts)
    return len(np.unique(tokens, axis=0)) == len(texts) and bool((tokens[:, 0] > 1).all())


@pytest.mark.parametrize(
    "texts",
    [
        ("か", "が", "は", "ば", "ぱ", "カ", "ガ"),
        ("и", "й", "е", "ё", "і", "ї"),
        ("क", "कि", "कु", "कं", "क़"),
        ("กา", "ก็", "กำ", "ก่า"),
        ("ש", "שׁ", "שׂ"),
        ("كتب", "كَتَبَ", "كُتِبَ", "آ", "ا"),
        ("α", "ά"),
        ("c", "c+", "c++", "c#", "c++17", "f#", ".net", "net", "node.js", "node"),
        ("keycap", "keycap #", "keycap *"),
        ("5", "$5", "5%", "5°", "5½", "5²", "5 →"),
    ],
)
def test_marks_other_than_latin_accents_distinguish_words(texts):
    assert have_distinct_tokens(*texts)


def test_each_emoji_is_a_separate_word_in_any_context():
    symbols = [
        "🎉",
        "❤",
        "👍",
        "👍🏽",
        "👍🏿",
        "🇫🇷",
        "🇩🇪",
        "1⃣",
        "2⃣",
        "#⃣",
        "*⃣",
        "🏴",
        "‼",
        "↔",
        "◽",
        "〰",
        "©",
        "🫩",
        "☺",
        "🏽",
    ]
    symbols += ["👩\u200d🚀", "👩🏽\u200d🚀", "🏳\u200d🌈", "❤\u200d🔥", "👨\u200d👩\u200d👧"]
    symbols += [
        "🧑🏻\u200d🤝\u200d🧑🏿",
        "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
    ]
    assert have_distinct_tokens(*symbols)
    for symbol in symbols:
        assert decoded_words(f"red{symbol}{symbol} heart") == [f"red {symbol} {symbol} heart"]
    assert decoded_words("❤\ufe0f", "❤", "1\ufe0f⃣", "🏳\ufe0f\u200d🌈") == [
        "❤",
        "❤",
        "1⃣",
        "🏳\u200d🌈",
    ]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_unicode_normal_forms_of_a_word_have_the_same_tokens(form):
    texts = ["한국어", "が", "й", "café", "Việt", "क़", "Ångström"]
    tokenizer = train_tokenizer(texts, CONFIG)
    normalized = [unicodedata.normalize(form, text) for text in texts]
    np.testing.assert_array_equal(tokenizer.encode(normalized), tokenizer.encode(texts))
    assert tokenizer.unknown(normalized) == ()


def test_punctuation_separates_words_and_invisible_characters_do_not():
    assert decoded_words(
        "a 'red' heart -- (it's) t\u2011shirt, dogs' [c#]; c/c++: #sunset 1+1=2"
    ) == ["red heart it's t-shirt dogs c# c c++ sunset 1 1 2"]
    assert decoded_words("soft\u00adhyphen x\u200by \ufeffz \u200eleft می\u200cخواهم \u200d") == [
        "softhyphen x y z left می\u200cخواهم"
    ]
    assert decoded_words("...and end. Start ... cats & dogs <b> | a+") == [
        "and end start cats & dogs b a+"
    ]


def test_texts_without_known_words_are_found():
    tokenizer = train_tokenizer(TEXTS, CONFIG)
    tokens = tokenizer.encode(["heart", "!!!", "dog", "", "the", "dog heart"])
    assert tokenizer.wordless(tokens) == [1, 2, 3, 4]


def test_a_tokenizer_keeps_the_rule_of_its_file(tmp_path):
    """The golden file predates rule versions; its tokens must stay the same."""
    golden_file = Path(__file__).parents[1] / "golden" / "word-tokenizer-rule-1.json"
    tokenizer = read_word_tokenizer(golden_file)
    texts = ["か red が", "café 🎉", "c# c c++", "'owl' owl", "й", "🎉"]
    assert tokenizer.rule == 1
    assert tokenizer.encode(texts)[:, :3].tolist() == RULE_1_TOKENS
    assert tokenizer.to_json() == golden_file.read_text(encoding="utf-8")
    training_texts = ["か red が", "a café 🎉", "c++ c#", "heart-eyes, the 'owl'", "й и"]
    retrained = train_tokenizer(training_texts, TokenizerConfig(6, 32), rule=1)
    assert retrained.to_json() == tokenizer.to_json()
    train_tokenizer(training_texts, CONFIG).write(tmp_path / "tokenizer.json")
    assert json.loads((tmp_path / "tokenizer.json").read_text())["rule"] == 2


def test_unknown_rules_are_rejected(tmp_path):
    file = tmp_path / "tokenizer.json"
    file.write_text(train_tokenizer(TEXTS, CONFIG).to_json().replace('"rule": 2', '"rule": 3'))
    with pytest.raises(ValueError, match=r"must use a rule in \[1, 2\], got rule 3"):
        read_word_tokenizer(file)
    with pytest.raises(ValueError, match=r"rule must be one of \[1, 2\], got 0"):
        train_tokenizer(TEXTS, CONFIG, rule=0)
