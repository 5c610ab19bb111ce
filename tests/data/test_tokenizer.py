"""Words as numbers, and back."""

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from fmjax.data import TokenizerConfig, read_word_tokenizer, train_tokenizer

TEXTS = ["A red heart", "the Blue heart!", "a café, red", "heart-eyes and an owl's eye"]
CONFIG = TokenizerConfig(num_tokens=4, vocab_size=32)
NUMBERS_OF_RULE_1 = [[4, 8, 4], [6, 0, 0], [2, 2, 2], [5, 1, 0], [3, 0, 0], [0, 0, 0]]


def test_words_come_back_in_lower_case_without_articles_accents_and_punctuation():
    tokenizer = train_tokenizer(TEXTS, CONFIG)
    words = tokenizer.decode(tokenizer.encode(TEXTS))
    assert words == ["red heart", "blue heart", "cafe red", "heart-eyes and owl's eye"]


def test_texts_are_padded_with_zeros_and_cut_to_one_length():
    tokens = train_tokenizer(TEXTS, CONFIG).encode(["heart", "red red red red red", ""])
    assert tokens.shape == (3, 4)
    assert tokens.dtype == np.int32
    assert (tokens > 0).sum(axis=1).tolist() == [1, 4, 0]
    assert tokens[0, 0] != 0


def test_words_that_were_not_learned_are_one_number_and_named():
    tokenizer = train_tokenizer(TEXTS, CONFIG)
    np.testing.assert_array_equal(tokenizer.encode(["green heart", "dog"])[:, 0], [1, 1])
    assert tokenizer.unknown(["A green, heart", "the Dog", "green"]) == ("green", "Dog")
    assert tokenizer.unknown(TEXTS) == ()


def test_the_most_frequent_words_are_kept():
    tokenizer = train_tokenizer(TEXTS, TokenizerConfig(4, vocab_size=4))
    assert tokenizer.unknown(["heart red blue"]) == ("blue",)


def test_the_order_of_the_texts_does_not_matter():
    one, other = (train_tokenizer(texts, CONFIG) for texts in (TEXTS, TEXTS[::-1]))
    assert one.to_json() == other.to_json()


def test_a_tokenizer_read_back_gives_the_same_numbers(tmp_path):
    tokenizer = train_tokenizer(TEXTS, CONFIG)
    tokenizer.write(tmp_path / "tokenizer.json")
    again = read_word_tokenizer(tmp_path / "tokenizer.json")
    assert again.num_tokens == 4
    np.testing.assert_array_equal(again.encode(TEXTS), tokenizer.encode(TEXTS))
    assert again.to_json() == tokenizer.to_json()


def test_equal_texts_have_equal_numbers_in_the_order_asked_for():
    tokenizer = train_tokenizer(TEXTS, CONFIG)
    several = tokenizer.encode([TEXTS[1], TEXTS[0], TEXTS[1]])
    np.testing.assert_array_equal(several, tokenizer.encode(TEXTS)[[1, 0, 1]])


def test_texts_that_are_cut_are_named():
    tokenizer, long = train_tokenizer(TEXTS, CONFIG), "red heart and blue heart"
    assert tokenizer.cut(["a red heart and the blue", long, "heart", long]) == (long,)


def test_files_that_are_no_tokenizer_are_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    with pytest.raises(ValueError, match="must be a tokenizer of fmjax, got no such file"):
        read_word_tokenizer(path)
    path.write_text("{}")
    with pytest.raises(ValueError, match="must be a tokenizer of fmjax"):
        read_word_tokenizer(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_tokens": 0}, "tokenizer.num_tokens must be at least 1, got 0"),
        ({"vocab_size": 2}, "tokenizer.vocab_size must be at least 3, got 2"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        TokenizerConfig(**arguments)


def words(*texts):
    """The words of each text, by a tokenizer that learned them all."""
    tokenizer = train_tokenizer(texts, TokenizerConfig(24, 512))
    return tokenizer.decode(tokenizer.encode(texts))


def distinct(*texts):
    """Whether each text has other numbers, and none is empty."""
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
def test_words_that_differ_in_more_than_latin_accents_differ(texts):
    assert distinct(*texts)


def test_every_emoji_is_a_word_whatever_stands_next_to_it():
    emoji = [
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
    emoji += ["👩\u200d🚀", "👩🏽\u200d🚀", "🏳\u200d🌈", "❤\u200d🔥", "👨\u200d👩\u200d👧"]
    emoji += [
        "🧑🏻\u200d🤝\u200d🧑🏿",
        "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
    ]
    assert distinct(*emoji)
    for one in emoji:
        assert words(f"red{one}{one} heart") == [f"red {one} {one} heart"]
    assert words("❤\ufe0f", "❤", "1\ufe0f⃣", "🏳\ufe0f\u200d🌈") == ["❤", "❤", "1⃣", "🏳\u200d🌈"]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_both_unicode_forms_of_a_word_are_one_word(form):
    texts = ["한국어", "が", "й", "café", "Việt", "क़", "Ångström"]
    tokenizer = train_tokenizer(texts, CONFIG)
    other = [unicodedata.normalize(form, text) for text in texts]
    np.testing.assert_array_equal(tokenizer.encode(other), tokenizer.encode(texts))
    assert tokenizer.unknown(other) == ()


def test_punctuation_separates_words_and_what_cannot_be_seen_does_not():
    assert words("a 'red' heart -- (it's) t\u2011shirt, dogs' [c#]; c/c++: #sunset 1+1=2") == [
        "red heart it's t-shirt dogs c# c c++ sunset 1 1 2"
    ]
    assert words("soft\u00adhyphen x\u200by \ufeffz \u200eleft می\u200cخواهم \u200d") == [
        "softhyphen x y z left می\u200cخواهم"
    ]
    assert words("...and end. Start ... cats & dogs <b> | a+") == ["and end start cats & dogs b a+"]


def test_texts_without_a_learned_word_are_found():
    tokenizer = train_tokenizer(TEXTS, CONFIG)
    tokens = tokenizer.encode(["heart", "!!!", "dog", "", "the", "dog heart"])
    assert tokenizer.wordless(tokens) == [1, 2, 3, 4]


def test_a_tokenizer_keeps_the_rule_that_it_was_written_under(tmp_path):
    """A file as it was written before rules had versions, and the numbers that it gave then."""
    path = Path(__file__).parents[1] / "golden" / "word-tokenizer-rule-1.json"
    tokenizer = read_word_tokenizer(path)
    texts = ["か red が", "café 🎉", "c# c c++", "'owl' owl", "й", "🎉"]
    assert tokenizer.rule == 1
    assert tokenizer.encode(texts)[:, :3].tolist() == NUMBERS_OF_RULE_1
    assert tokenizer.to_json() == path.read_text(encoding="utf-8")
    learned = ["か red が", "a café 🎉", "c++ c#", "heart-eyes, the 'owl'", "й и"]
    again = train_tokenizer(learned, TokenizerConfig(6, 32), rule=1)
    assert again.to_json() == tokenizer.to_json()
    train_tokenizer(learned, CONFIG).write(tmp_path / "tokenizer.json")
    assert json.loads((tmp_path / "tokenizer.json").read_text())["rule"] == 2


def test_rules_that_are_not_known_are_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(train_tokenizer(TEXTS, CONFIG).to_json().replace('"rule": 2', '"rule": 3'))
    with pytest.raises(ValueError, match=r"must use a rule in \[1, 2\], got rule 3"):
        read_word_tokenizer(path)
    with pytest.raises(ValueError, match=r"rule must be one of \[1, 2\], got 0"):
        train_tokenizer(TEXTS, CONFIG, rule=0)
