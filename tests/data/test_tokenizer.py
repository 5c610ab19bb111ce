"""Words as numbers, and back."""

import numpy as np
import pytest

from fmjax.data import TokenizerConfig, read_word_tokenizer, train_tokenizer

TEXTS = ["A red heart", "the Blue heart!", "a café, red", "heart-eyes and an owl's eye"]
CONFIG = TokenizerConfig(num_tokens=4, vocab_size=32)


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
