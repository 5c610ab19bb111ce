"""JSON that lies within other files: galleries, classifiers, adapters, calibrated grids."""

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
from tests.test_json_files import TEXTS, WRONG, mutated, text

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
        path, images = folder / "gallery.npz", np.zeros((1, 2, 4, 4, 1), np.uint8)
        np.savez(path, images=images, rows=np.asarray(document))
        return read_gallery(path)

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
        path = folder / "pytorch_lora_weights.safetensors"
        save_file(tensors, path, {"format": "pt", "lora_adapter_metadata": document})
        return read_lora(path)

    return ADAPTER, read


@pytest.mark.parametrize("case", [gallery, classifier, adapter])
def test_wrong_documents_inside_binary_files_are_one_line(case, tmp_path):
    right, read = case(tmp_path)
    read(json.dumps(right))
    rng = random.Random(16)
    for content in (*WRONG, *TEXTS, *(mutated(right, rng) for _ in range(60))):
        said = ""
        try:
            read(text(content).replace("\x00", ""))
        except ValueError as error:
            said = str(error)
        assert "\n" not in said
        assert len(said) < 4_000
    for content in ("[" * 100_000, "3", '"x"', "null"):
        with pytest.raises(ValueError, match="must"):
            read(content)


def test_a_damaged_calibrated_grid_is_measured_anew(tmp_path):
    path, rng = tmp_path / "grid.json", random.Random(16)
    asked = {"step": 3, "guidance": 1.0, "guidance_interval": [0.0, 1.0]}
    right = {**asked, "times": [0.0, 0.5, 1.0], "density": [1.0, 2.0]}
    path.write_text(json.dumps(right))
    assert read_grid(path, asked).density == (1.0, 2.0)
    for content in (*WRONG, *TEXTS, *(mutated(right, rng) for _ in range(100))):
        path.write_bytes(text(content).encode("latin-1"))
        found = read_grid(path, asked)
        assert found is None or found.times[-1] == 1.0
