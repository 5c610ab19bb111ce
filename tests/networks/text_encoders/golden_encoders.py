"""Golden text encoders: their settings, weights and what transformers makes of them."""

import dataclasses
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from fmjax.networks import make_clip_text, make_t5_encoder
from fmjax.pretrained.families.clip import clip_text_config, clip_text_layouts
from fmjax.pretrained.families.t5 import t5_config, t5_layouts
from fmjax.pretrained.layouts import TensorLayout

GOLDEN = Path(__file__).parents[2] / "golden"
ENCODERS = GOLDEN / "text-encoders"

CLIPS = {
    "sd3-pipeline-tiny/text_encoder": "text_model.",
    "sd3-pipeline-tiny/text_encoder_2": "text_model.",
    "flux-dev-pipeline-tiny/text_encoder": "",
    "text-encoders/clip-legacy": "text_model.",
}
"""Folders, and before which prefix their tensors have their names."""
T5S = (
    "sd3-pipeline-tiny/text_encoder_3",
    "flux-dev-pipeline-tiny/text_encoder_2",
    "text-encoders/t5-relu",
)


def config_json(folder):
    return json.loads((GOLDEN / folder / "config.json").read_text())


def encoder(folder, **changes):
    """The encoder of a folder, and the views of its parameters."""
    if folder in CLIPS:
        config = dataclasses.replace(clip_text_config(config_json(folder)), **changes)
        return make_clip_text(config), clip_text_layouts(config, prefix=CLIPS[folder])
    config = dataclasses.replace(t5_config(config_json(folder)), **changes)
    return make_t5_encoder(config), t5_layouts(config)


def weights(folder):
    return load_file(GOLDEN / folder / "model.safetensors")


def expected(folder):
    """Tokens in, states out."""
    name = folder.removeprefix("text-encoders/").replace("/", "-")
    return np.load(ENCODERS / f"{name}.npz")


def read(layouts, tensors):
    """Parameters, from tensors by name."""
    if isinstance(layouts, TensorLayout):
        whole = (slice(None),) * len(layouts.shape)
        return layouts.read(lambda name, index: tensors[name][index], whole, np.float32)
    return {name: read(part, tensors) for name, part in layouts.items()}
