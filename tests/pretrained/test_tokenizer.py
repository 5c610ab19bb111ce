"""Tests of tokenizers against transformers, truncation and invalid files."""

import json
import shutil

import numpy as np
import pytest

from fmjax.pretrained.tokenizers.tokenizers import read_tokenizer
from tests.networks.text_encoders.golden_encoders import ENCODERS, GOLDEN

PROMPTS = json.loads((ENCODERS / "prompts.json").read_text())
VARIANTS = json.loads((ENCODERS / "variants.json").read_text())
CLIP_MERGES = GOLDEN / "sd3-pipeline-tiny" / "tokenizer"
CLIP_JSON = GOLDEN / "flux-dev-pipeline-tiny" / "tokenizer"
T5_SPIECE = ENCODERS / "spiece"
T5_JSON = GOLDEN / "flux-dev-pipeline-tiny" / "tokenizer_2"


def modified(folder, to, *, without=(), **changes):
    """Copy the tokenizer of a folder, change settings and remove the files in `without`."""
    shutil.copytree(folder, to, dirs_exist_ok=True)
    metadata = json.loads((to / "tokenizer_config.json").read_text()) | changes
    (to / "tokenizer_config.json").write_text(json.dumps(metadata))
    for name in without:
        (to / name).unlink()
    return to


def damaged(to, change):
    """Copy T5's SentencePiece tokenizer and apply `change` to the bytes of its model."""
    modified(T5_SPIECE, to)
    (to / "spiece.model").write_bytes(change((T5_SPIECE / "spiece.model").read_bytes()))
    return to


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("files", "folder"), [("sd3", CLIP_MERGES), ("flux", CLIP_JSON)])
def test_clip_tokens_match_transformers(files, folder, variant, tmp_path):
    tokenizer = read_tokenizer(modified(folder, tmp_path, **VARIANTS[variant]))
    tokens, _ = tokenizer(PROMPTS, 77)
    assert tokens.dtype == np.int32
    expected = np.load(ENCODERS / "prompts.npz")[f"{files}-{variant}"]
    for prompt, actual, reference in zip(PROMPTS, tokens, expected, strict=True):
        np.testing.assert_array_equal(actual, reference, err_msg=repr(prompt))
    assert tokenizer.max_length == 77


def test_t5_tokens_match_transformers():
    tokenizer = read_tokenizer(T5_JSON)
    tokens, _ = tokenizer(PROMPTS, 32)
    np.testing.assert_array_equal(tokens, np.load(ENCODERS / "prompts.npz")["t5"])
    assert tokenizer.max_length == 32


def test_t5_tokens_from_sentencepiece_match_transformers():
    tokenizer = read_tokenizer(T5_SPIECE)
    tokens, _ = tokenizer([*PROMPTS, "a <extra_id_0> fox <extra_id_99>"], 64)
    np.testing.assert_array_equal(tokens, np.load(T5_SPIECE / "ids.npz")["tokens"])
    assert tokenizer.max_length == 512


def test_truncation_returns_lost_text_and_keeps_the_end_token():
    tokens, lost = read_tokenizer(CLIP_JSON)(["a cat", "a cat", "A  Cat of Many"], 6)
    assert lost == [None, None, "any"]
    assert tokens[:, 0].tolist() == [530] * 3
    assert tokens[0].tolist()[-1] == 531
    assert tokens[2].tolist()[-1] == 531
    tokens, lost = read_tokenizer(T5_JSON)(["a cat of many words", ""], 5)
    assert tokens[0, -1] == 1
    assert tokens[1].tolist() == [1, 0, 0, 0, 0]
    assert lost[1] is None
    assert "a cat of many words".endswith(lost[0])


def test_length_may_vary_and_prompts_may_be_empty():
    tokenizer = read_tokenizer(CLIP_JSON)
    short, long = tokenizer(["a photo of a cat"], 4)[0], tokenizer(["a photo of a cat"], 77)[0]
    assert short.shape == (1, 4)
    np.testing.assert_array_equal(long, read_tokenizer(CLIP_JSON)(["a photo of a cat"], 77)[0])
    tokens, lost = tokenizer([], 77)
    assert tokens.shape == (0, 77)
    assert lost == []


def test_unlimited_max_length_is_none(tmp_path):
    unlimited = modified(T5_JSON, tmp_path, model_max_length=1000000000000000019884624838656)
    assert read_tokenizer(unlimited).max_length is None


def test_special_tokens_may_be_in_a_separate_file(tmp_path):
    folder = modified(CLIP_MERGES, tmp_path, pad_token=None)
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": {"content": "!"}}))
    assert read_tokenizer(folder).pad == 0
    (folder / "tokenizer_config.json").unlink()
    assert read_tokenizer(folder).pad == 0
    (folder / "special_tokens_map.json").unlink()
    assert read_tokenizer(folder).pad == 531


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda to: to, "or spiece.model, got none of them"),
        (
            lambda to: (to / "tokenizer.json").write_text("version ") and to,
            "tokenizer.json must be JSON, got Expecting value",
        ),
        (lambda to: damaged(to, lambda data: data[:900]), "must be a SentencePiece model, got"),
        (lambda to: damaged(to, lambda data: b"{}"), "must be a SentencePiece model, got other"),
        (lambda to: damaged(to, lambda data: b""), "must hold an unknown token"),
        (
            lambda to: modified(T5_SPIECE, to, eos_token="<none>"),
            "eos_token must be one of the pieces",
        ),
        (
            lambda to: modified(CLIP_JSON, to, pad_token="<none>"),
            "pad_token must be one of the tokens",
        ),
        (
            lambda to: modified(CLIP_MERGES, to, bos_token="<none>"),
            "bos_token must be one of the tokens",
        ),
        (
            lambda to: modified(CLIP_MERGES, to, without=["merges.txt"]),
            "must hold tokenizer.json, or",
        ),
    ],
)
def test_unreadable_folders_are_refused(make, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_tokenizer(make(tmp_path))


def test_invalid_arguments_are_refused(unchecked):
    tokenizer = read_tokenizer(CLIP_JSON)
    with pytest.raises(ValueError, match="length must be at least 2, got 1"):
        tokenizer(["a cat"], 1)
    with pytest.raises(ValueError, match="prompts must be a sequence of texts, got 'a cat'"):
        tokenizer("a cat", 77)
