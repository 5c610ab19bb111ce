"""Tests that every reader of JSON files raises one-line errors for invalid documents.

Each reader gets a table of invalid documents, and copies of a valid one with one random change (the
seed is fixed).
"""

import copy
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from fmjax._arrays import TextShape
from fmjax.config import Config, to_json
from fmjax.data.records.manifest import RecordField, RecordManifest, prepare_records, read_manifest
from fmjax.data.sources.captioned_images import CaptionedImages
from fmjax.data.tokenizer import TokenizerConfig, read_word_tokenizer, train_tokenizer
from fmjax.jobs.evaluate.evaluate import Evaluation, read_evaluation
from fmjax.jobs.evaluate.likelihood import LikelihoodResult, read_likelihood
from fmjax.jobs.evaluate.straightness import StraightnessResult, read_straightness
from fmjax.jobs.invert.invert import Inversion, RoundTrip, read_inversion
from fmjax.jobs.invert.pictures import Edits
from fmjax.pretrained.components import check_component
from fmjax.pretrained.files import find_files
from fmjax.pretrained.folder import open_model
from fmjax.pretrained.lora.files import read_lora
from fmjax.pretrained.pipeline import latents_of, released_times
from fmjax.pretrained.tokenizers.tokenizers import read_tokenizer
from fmjax.report.comparison import read_json, row_from_json, row_to_json, write_json
from fmjax.runs.folder import read_captions, read_config, read_model
from fmjax.training import read_metrics
from fmjax.training.checkpoints.digests import find_damage, sealed_as, write_digests
from tests.golden_models import GOLDEN
from tests.report.made_up import example

INVALID: list = [
    [],
    None,
    "x",
    {},
    0,
    -1,
    1.5,
    True,
    10**30,
    2**63,
    "7",
    [[]],
    {"x": 1},
    [None],
    "",
]
TEXTS = [
    "[" * 100_000,
    '{"a":' * 100_000,
    "1e400",
    '{"a": 1e400}',
    "NaN",
    '{"a"',
    "\x00\xff",
    "",
    '{"a": 1, "a": 2}',
    '"\\ud800"',
    "9" * 10_000,
]


def entries(value, result):
    """Append every (container, key) of a document to `result`."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in list(items):
        result.append((value, key))
        if isinstance(item, dict | list):
            entries(item, result)
    return result


def mutated(document, rng):
    """Return a copy of a document with one random change."""
    changed = copy.deepcopy(document)
    container, key = rng.choice(entries(changed, []))
    action = rng.random()
    if action < 0.15:
        del container[key]
    elif action < 0.25 and isinstance(container, dict):
        container["unknown"] = rng.choice(INVALID)
    else:
        container[key] = rng.choice(INVALID)
    return changed


def check_error(read, *arguments):
    """Check that a call succeeds or raises a ValueError with one line of limited length."""
    message = ""
    try:
        read(*arguments)
    except ValueError as error:
        message = str(error)
    assert "\n" not in message
    assert len(message) < 4_000


def to_text(document):
    return document if isinstance(document, str) else json.dumps(document)


CONFIG = json.loads(to_json(Config("x")))
STRAIGHTNESS = StraightnessResult(
    3,
    8,
    1.0,
    0.1,
    0.01,
    1.1,
    (0.0, 0.5),
    (0.1, 0.2),
    (0.25,),
    (0.3,),
    (((0.0, 1.0), (0.5, 0.5)),),
    2.0,
)
EVALUATION = Evaluation(3, 8, 0, 8, "heun", 16.0, 4, 0.1, 0.2, 1.0, 2.0, 3.0, 4, 0.5, 0.9)
LIKELIHOOD = LikelihoodResult(7, 20, 1, -93.5, 0.5, 2.345, 0.012, 0.125, 520.0, "rk4")
INVERSION = Inversion(
    3, 2, (RoundTrip("heun", 8, None, 32.0, 0.015, 0.02, 0.7, 0),), (Edits(0.5, 12.0, 0.1, 0),)
)
MODEL = {
    "event_shape": [8, 8, 4],
    "num_classes": None,
    "captions": ["a"],
    "text": {
        "num_tokens": 4,
        "width": 8,
        "pooled_width": 8,
        "parts": [{"tokens": [0, 4], "channels": [0, 8], "pooled": [0, 8]}],
    },
}


def inversion_document():
    entries = {
        "round_trips": [INVERSION.round_trips[0]._asdict()],
        "edits": [INVERSION.edits[0]._asdict()],
    }
    return INVERSION._asdict() | entries


# The functions below write a valid file to a folder; they return the file and its reader.


def config(folder):
    (folder / "model.json").write_text(json.dumps(MODEL))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder / "config.json", lambda: read_config(folder)


def comparison(folder):
    write_json(example(), folder / "c.json")
    return folder / "c.json", lambda: read_json(folder / "c.json")


def row(folder):
    (folder / "r.json").write_text(row_to_json(example().runs[0]))
    return folder / "r.json", lambda: row_from_json((folder / "r.json").read_text("latin-1"))


def manifest(folder):
    text = TextShape(2, 8, 8).as_json()
    fields = (RecordField("x", "float32", (2, 2)), RecordField("label", "int32"))
    prepare_records(folder, RecordManifest(fields, 100, 60, {"step": 3, "text": text}))
    return folder / "records.json", lambda: read_manifest(folder)


def tokenizer(folder):
    file = folder / "tokenizer.json"
    train_tokenizer(["a red cat", "a blue dog"], TokenizerConfig(4, 16)).write(file)
    return file, lambda: read_word_tokenizer(file)


def captions(folder):
    from PIL import Image

    Image.new("RGB", (4, 4)).save(folder / "1.png")
    (folder / "metadata.jsonl").write_text('{"file_name": "1.png", "text": "a cat", "size": [4]}')
    return folder / "metadata.jsonl", lambda: CaptionedImages(str(folder), 4).load("train")


def documents(values):
    def make(name, read):
        def write(folder):
            (folder / name).write_text(json.dumps(values))
            return folder / name, lambda: read(folder / name)

        return write

    return make


def released(part, name):
    """Return a function that copies a model and returns one of its files and a reader."""

    def copy_model(folder):
        folder = shutil.copytree(GOLDEN / "sd3-pipeline-tiny", folder / "model")

        def read():
            model = open_model(folder)
            latents = latents_of(model)
            released_times(model, latents, 4)
            if part.startswith("tokenizer"):
                read_tokenizer(folder / part)
            elif part not in ("", "scheduler"):
                check_component(folder / part)

        return folder / part / name, read

    return copy_model


def adapter(folder):
    folder = shutil.copytree(GOLDEN / "lora-sd3-peft", folder / "lora")
    (folder / "adapter_config.json").write_text(
        json.dumps({"r": 4, "lora_alpha": 8, "alpha_pattern": {"to_q": 2}, "use_rslora": False})
    )
    return folder / "adapter_config.json", lambda: read_lora(folder)


def index(folder):
    file = folder / "model.safetensors.index.json"
    (folder / "a.safetensors").touch()
    file.write_text(json.dumps({"metadata": {}, "weight_map": {"x": "a.safetensors"}}))
    return file, lambda: find_files(folder)


CASES = {
    "config": config,
    "model": lambda folder: documents(MODEL)(
        "model.json", lambda file: (read_model(file.parent), read_captions(file.parent))
    )(folder),
    "comparison": comparison,
    "row": row,
    "straightness": documents(STRAIGHTNESS._asdict())("straightness.json", read_straightness),
    "evaluation": documents(EVALUATION._asdict())("evaluation.json", read_evaluation),
    "likelihood": documents(LIKELIHOOD._asdict())("likelihood.json", read_likelihood),
    "inversion": documents(inversion_document())("inversion.json", read_inversion),
    "records": manifest,
    "captions": captions,
    "tokenizer": tokenizer,
    "adapter": adapter,
    "index": index,
    "model_index": released("", "model_index.json"),
    "scheduler": released("scheduler", "scheduler_config.json"),
    "transformer": released("transformer", "config.json"),
    "vae": released("vae", "config.json"),
    "clip": released("text_encoder", "config.json"),
    "t5": released("text_encoder_3", "config.json"),
    "tokenizer_config": released("tokenizer", "tokenizer_config.json"),
    "vocab": released("tokenizer", "vocab.json"),
    "full_tokenizer": released("tokenizer_3", "tokenizer.json"),
}


# These read a complete released model for each document.
SLOW = ("vae", "clip", "t5", "transformer", "tokenizer_config", "vocab", "full_tokenizer")


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] * (case in SLOW)) for case in CASES]
)
def test_invalid_documents_raise_one_line_errors(case, tmp_path):
    file, read = CASES[case](tmp_path)
    valid = file.read_text(encoding="utf-8")
    read()  # The valid document.
    rng, document = random.Random(16), json.loads(valid)
    slow = case in ("full_tokenizer", "vocab")
    changed = [mutated(document, rng) for _ in range(20 if slow else 60)]
    for content in (*INVALID, *TEXTS, valid[: len(valid) // 2], *changed):
        file.write_bytes(to_text(content).encode("latin-1", errors="replace"))
        check_error(read)
    for content in ([], None, "x", 3, "[" * 100_000):
        file.write_text(to_text(content) if content != "x" else '"x"')
        with pytest.raises(ValueError, match=f"{file.name}|{file.parent.name}|row"):
            read()


def test_damaged_logs_and_digests_are_tolerated(tmp_path):
    rng, line = random.Random(16), {"step": 3, "loss": 0.5, "rate": [1]}
    file = tmp_path / "metrics.jsonl"
    lines = [to_text(value).replace("\n", " ") for value in (*INVALID, *TEXTS)]
    lines += [json.dumps(mutated(line, rng)) for _ in range(100)]
    file.write_bytes("\n".join([*lines, '{"step": 4, "loss": 0.25}\n']).encode("latin-1"))
    with pytest.warns(UserWarning, match="damaged lines"):
        assert read_metrics(file)[-1] == {"step": 4, "loss": 0.25}
    folder = tmp_path / "3"
    (folder / "run").mkdir(parents=True)
    (folder / "run" / "a").write_bytes(np.arange(4).tobytes())
    write_digests(folder, ("run",))
    digests = folder / "digests.json"
    valid = json.loads(digests.read_text())
    assert find_damage(folder, "run") is None
    for content in (*INVALID, *TEXTS, *(mutated(valid, rng) for _ in range(60))):
        digests.write_bytes(to_text(content).encode("latin-1"))
        assert find_damage(folder, "run") is not None or json.loads(digests.read_text()) == valid
        sealed_as(folder)


def test_json_files_of_golden_models_are_valid():
    for folder in sorted(Path(GOLDEN).glob("*pipeline*")):
        assert open_model(folder).parts
