"""Tests that readers of files with embedded JSON raise one-line errors for invalid JSON."""

import json
import random
from dataclasses import asdict

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fmjax._trees import flatten_dict
from fmjax.metrics.classifier import build
from fmjax.metrics.classifier_cache import load_classifier
from fmjax.networks.classifier import ClassifierConfig
from fmjax.pretrained.lora.files import read_lora
from fmjax.report.gallery import read_gallery
from fmjax.runs.sampling.calibrated_grid import _read as read_grid
from tests.golden_models import GOLDEN
from tests.test_json_files import INVALID, TEXTS, check_error, mutated, to_text

ROWS = [
    {
        "model": "",
        "solver": "heun",
        "setting": "4 steps",
        "family": "fixed",
        "nfe_mean": 8.0,
        "images": None,
    }
]
SMALL = ClassifierConfig(2, 4)
CLASSIFIER = {
    "config": asdict(SMALL),
    "event_shape": [8, 8, 1],
    "num_classes": 2,
    "test_accuracy": 0.5,
}
ADAPTER = {"r": 4, "lora_alpha": 8, "transformer.alpha_pattern": {"to_q": 2}, "use_rslora": False}


def gallery(folder):
    def read(document):
        file, images = folder / "gallery.npz", np.zeros((1, 2, 4, 4, 1), np.uint8)
        np.savez(file, images=images, rows=np.asarray(document))
        return read_gallery(file)

    return ROWS, read


def classifier(folder):
    params = build(SMALL, (8, 8, 1), 2).init(jax.random.key(0))
    arrays = {
        f"params/{k.replace('.', '/')}": np.asarray(v) for k, v in flatten_dict(params).items()
    }

    def read(document):
        np.savez(folder / "classifier.npz", about=np.asarray(document), **arrays)
        return load_classifier(folder / "classifier.npz")

    return CLASSIFIER, read


def adapter(folder):
    tensors = load_file(GOLDEN / "lora-sd3-peft" / "adapter_model.safetensors")

    def read(document):
        file = folder / "pytorch_lora_weights.safetensors"
        save_file(tensors, file, {"format": "pt", "lora_adapter_metadata": document})
        return read_lora(file)

    return ADAPTER, read


@pytest.mark.parametrize("case", [gallery, classifier, adapter])
def test_invalid_json_inside_binary_files_raises_one_line_errors(case, tmp_path):
    valid, read = case(tmp_path)
    read(json.dumps(valid))
    rng = random.Random(16)
    for content in (*INVALID, *TEXTS, *(mutated(valid, rng) for _ in range(60))):
        check_error(read, to_text(content).replace("\x00", ""))
    for content in ("[" * 100_000, "3", '"x"', "null"):
        with pytest.raises(ValueError, match="must"):
            read(content)


def test_damaged_calibrated_grids_are_rejected(tmp_path):
    file, rng = tmp_path / "grid.json", random.Random(16)
    settings = {"step": 3, "guidance": 1.0, "guidance_interval": [0.0, 1.0]}
    valid = {**settings, "times": [0.0, 0.5, 1.0], "density": [1.0, 2.0]}
    file.write_text(json.dumps(valid))
    assert read_grid(file, settings).density == (1.0, 2.0)
    for content in (*INVALID, *TEXTS, *(mutated(valid, rng) for _ in range(100))):
        file.write_bytes(to_text(content).encode("latin-1"))
        grid = read_grid(file, settings)
        assert grid is None or grid.times[-1] == 1.0
