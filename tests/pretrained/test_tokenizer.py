"""Tokenizers: transformers' tokens for the same prompts, what is cut off, refusals."""

import json
import shutil

import numpy as np
import pytest

from fmjax.pretrained.tokenizers.tokenizers import read_tokenizer
from tests.networks.text_encoders.golden_encoders import ENCODERS, GOLDEN

PROMPTS = json.loads((ENCODERS / "prompts.json").read_text())
VARIANTS = json.loads((ENCODERS / "variants.json").read_text())
MERGES = GOLDEN / "sd3-pipeline-tiny" / "tokenizer"
WHOLE = GOLDEN / "flux-dev-pipeline-tiny" / "tokenizer"
SPIECE = ENCODERS / "spiece"
T5 = GOLDEN / "flux-dev-pipeline-tiny" / "tokenizer_2"


def copied(folder, to, *, without=(), **changes):
    """A folder's tokenizer with other settings."""
    shutil.copytree(folder, to, dirs_exist_ok=True)
    metadata = json.loads((to / "tokenizer_config.json").read_text()) | changes
    (to / "tokenizer_config.json").write_text(json.dumps(metadata))
    for name in without:
        (to / name).unlink()
    return to


def broken(to, change):
    """A folder of T5's pieces, with other bytes in its file."""
    copied(SPIECE, to)
    (to / "spiece.model").write_bytes(change((SPIECE / "spiece.model").read_bytes()))
    return to


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("files", "folder"), [("sd3", MERGES), ("flux", WHOLE)])
def test_tokens_of_clip_are_those_of_transformers(files, folder, variant, tmp_path):
    tokenizer = read_tokenizer(copied(folder, tmp_path, **VARIANTS[variant]))
    tokens, _ = tokenizer(PROMPTS, 77)
    assert tokens.dtype == np.int32
    expected = np.load(ENCODERS / "prompts.npz")[f"{files}-{variant}"]
    for prompt, ours, theirs in zip(PROMPTS, tokens, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs, err_msg=repr(prompt))
    assert tokenizer.max_length == 77


def test_tokens_of_t5_are_those_of_transformers():
    tokenizer = read_tokenizer(T5)
    tokens, _ = tokenizer(PROMPTS, 32)
    np.testing.assert_array_equal(tokens, np.load(ENCODERS / "prompts.npz")["t5"])
    assert tokenizer.max_length == 32


def test_tokens_of_t5_from_its_pieces_are_those_of_transformers():
    tokenizer = read_tokenizer(SPIECE)
    tokens, _ = tokenizer([*PROMPTS, "a <extra_id_0> fox <extra_id_99>"], 64)
    np.testing.assert_array_equal(tokens, np.load(SPIECE / "ids.npz")["tokens"])
    assert tokenizer.max_length == 512


def test_what_is_cut_off_is_told_and_the_end_stays():
    tokens, lost = read_tokenizer(WHOLE)(["a cat", "a cat", "A  Cat of Many"], 6)
    assert lost == [None, None, "any"]
    assert tokens[:, 0].tolist() == [530] * 3
    assert tokens[0].tolist()[-1] == 531
    assert tokens[2].tolist()[-1] == 531
    tokens, lost = read_tokenizer(T5)(["a cat of many words", ""], 5)
    assert tokens[0, -1] == 1
    assert tokens[1].tolist() == [1, 0, 0, 0, 0]
    assert lost[1] is None
    assert "a cat of many words".endswith(lost[0])


def test_a_length_may_change_from_call_to_call_and_there_may_be_no_prompts():
    tokenizer = read_tokenizer(WHOLE)
    short, long = tokenizer(["a photo of a cat"], 4)[0], tokenizer(["a photo of a cat"], 77)[0]
    assert short.shape == (1, 4)
    np.testing.assert_array_equal(long, read_tokenizer(WHOLE)(["a photo of a cat"], 77)[0])
    tokens, lost = tokenizer([], 77)
    assert tokens.shape == (0, 77)
    assert lost == []


def test_no_limit_is_read_as_none(tmp_path):
    unlimited = copied(T5, tmp_path, model_max_length=1000000000000000019884624838656)
    assert read_tokenizer(unlimited).max_length is None


def test_special_tokens_may_stand_in_a_file_of_their_own(tmp_path):
    folder = copied(MERGES, tmp_path, pad_token=None)
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
        (lambda to: broken(to, lambda data: data[:900]), "must be a SentencePiece model, got"),
        (lambda to: broken(to, lambda data: b"{}"), "must be a SentencePiece model, got other"),
        (lambda to: broken(to, lambda data: b""), "must hold an unknown token"),
        (lambda to: copied(SPIECE, to, eos_token="<none>"), "eos_token must be one of the pieces"),
        (lambda to: copied(WHOLE, to, pad_token="<none>"), "pad_token must be one of the tokens"),
        (lambda to: copied(MERGES, to, bos_token="<none>"), "bos_token must be one of the tokens"),
        (lambda to: copied(MERGES, to, without=["merges.txt"]), "must hold tokenizer.json, or"),
    ],
)
def test_folders_that_cannot_be_read_are_refused(make, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_tokenizer(make(tmp_path))


def test_calls_that_do_not_fit_are_refused(unchecked):
    tokenizer = read_tokenizer(WHOLE)
    with pytest.raises(ValueError, match="length must be at least 2, got 1"):
        tokenizer(["a cat"], 1)
    with pytest.raises(ValueError, match="prompts must be a sequence of texts, got 'a cat'"):
        tokenizer("a cat", 77)
