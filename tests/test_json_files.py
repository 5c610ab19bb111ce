"""Every JSON file that fmjax reads, of every wrong shape: one line, never a traceback.

Each reader meets a table of wrong documents, and copies of a right one in which a random value was
replaced by a random other (the seed is fixed).
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

WRONG: list = [[], None, "x", {}, 0, -1, 1.5, True, 10**30, 2**63, "7", [[]], {"x": 1}, [None], ""]
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


def places(value, found):
    """Every (container, key) of a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in list(items):
        found.append((value, key))
        if isinstance(item, dict | list):
            places(item, found)
    return found


def mutated(document, rng):
    changed = copy.deepcopy(document)
    container, key = rng.choice(places(changed, []))
    kind = rng.random()
    if kind < 0.15:
        del container[key]
    elif kind < 0.25 and isinstance(container, dict):
        container["unknown"] = rng.choice(WRONG)
    else:
        container[key] = rng.choice(WRONG)
    return changed


def attempt(read, path):
    said = ""
    try:
        read(path)
    except ValueError as error:
        said = str(error)
    assert "\n" not in said
    assert len(said) < 4_000


def text(document):
    return document if isinstance(document, str) else json.dumps(document)


CONFIG = json.loads(to_json(Config("x")))
PATHS = StraightnessResult(
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
    unflatten_dict = {
        "round_trips": [INVERSION.round_trips[0]._asdict()],
        "edits": [INVERSION.edits[0]._asdict()],
    }
    return INVERSION._asdict() | unflatten_dict


def of_run(name, read):
    return lambda folder: (folder / name, lambda: read(folder))


def of_file(name, read):
    return lambda folder: (folder / name, lambda: read(folder / name))


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
    path = folder / "tokenizer.json"
    train_tokenizer(["a red cat", "a blue dog"], TokenizerConfig(4, 16)).write(path)
    return path, lambda: read_word_tokenizer(path)


def captions(folder):
    from PIL import Image

    Image.new("RGB", (4, 4)).save(folder / "1.png")
    (folder / "metadata.jsonl").write_text('{"file_name": "1.png", "text": "a cat", "size": [4]}')
    return folder / "metadata.jsonl", lambda: CaptionedImages(str(folder), 4).load("train")


def documents(values):
    def make(name, read):
        def made(folder):
            (folder / name).write_text(json.dumps(values))
            return folder / name, lambda: read(folder / name)

        return made

    return make


def released(part, name):
    def made(folder):
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

    return made


def adapter(folder):
    folder = shutil.copytree(GOLDEN / "lora-sd3-peft", folder / "lora")
    (folder / "adapter_config.json").write_text(
        json.dumps({"r": 4, "lora_alpha": 8, "alpha_pattern": {"to_q": 2}, "use_rslora": False})
    )
    return folder / "adapter_config.json", lambda: read_lora(folder)


def index(folder):
    path = folder / "model.safetensors.index.json"
    (folder / "a.safetensors").touch()
    path.write_text(json.dumps({"metadata": {}, "weight_map": {"x": "a.safetensors"}}))
    return path, lambda: find_files(folder)


CASES = {
    "config": config,
    "model": lambda folder: documents(MODEL)(
        "model.json", lambda path: (read_model(path.parent), read_captions(path.parent))
    )(folder),
    "comparison": comparison,
    "row": row,
    "paths": documents(PATHS._asdict())("straightness.json", read_straightness),
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
    "whole tokenizer": released("tokenizer_3", "tokenizer.json"),
}


# These open a whole released model each time.
SLOW = ("vae", "clip", "t5", "transformer", "tokenizer_config", "vocab", "whole tokenizer")


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] * (case in SLOW)) for case in CASES]
)
def test_no_document_ends_in_more_than_one_line(case, tmp_path):
    path, read = CASES[case](tmp_path)
    right = path.read_text(encoding="utf-8")
    read()  # As it was written.
    rng, document = random.Random(16), json.loads(right)
    slow = case in ("whole tokenizer", "vocab")
    changed = [mutated(document, rng) for _ in range(20 if slow else 60)]
    for content in (*WRONG, *TEXTS, right[: len(right) // 2], *changed):
        path.write_bytes(text(content).encode("latin-1", errors="replace"))
        attempt(lambda _: read(), path)
    for content in ([], None, "x", 3, "[" * 100_000):
        path.write_text(text(content) if content != "x" else '"x"')
        with pytest.raises(ValueError, match=f"{path.name}|{path.parent.name}|row"):
            read()


def test_no_log_and_no_digests_end_in_an_error(tmp_path):
    rng, line = random.Random(16), {"step": 3, "loss": 0.5, "rate": [1]}
    path = tmp_path / "metrics.jsonl"
    lines = [text(value).replace("\n", " ") for value in (*WRONG, *TEXTS)]
    lines += [json.dumps(mutated(line, rng)) for _ in range(100)]
    path.write_bytes("\n".join([*lines, '{"step": 4, "loss": 0.25}\n']).encode("latin-1"))
    with pytest.warns(UserWarning, match="damaged lines"):
        assert read_metrics(path)[-1] == {"step": 4, "loss": 0.25}
    folder = tmp_path / "3"
    (folder / "run").mkdir(parents=True)
    (folder / "run" / "a").write_bytes(np.arange(4).tobytes())
    write_digests(folder, ("run",))
    sealed = folder / "digests.json"
    whole = json.loads(sealed.read_text())
    assert find_damage(folder, "run") is None
    for content in (*WRONG, *TEXTS, *(mutated(whole, rng) for _ in range(60))):
        sealed.write_bytes(text(content).encode("latin-1"))
        assert find_damage(folder, "run") is not None or json.loads(sealed.read_text()) == whole
        sealed_as(folder)


def test_files_of_the_golden_models_are_read_as_they_are():
    for path in sorted(Path(GOLDEN).glob("*pipeline*")):
        assert open_model(path).parts
