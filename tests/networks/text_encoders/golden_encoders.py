"""Golden text encoders: configs, weights and outputs of transformers."""

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
"""Folders of CLIP encoders, mapped to the prefix of their tensor names."""
T5S = (
    "sd3-pipeline-tiny/text_encoder_3",
    "flux-dev-pipeline-tiny/text_encoder_2",
    "text-encoders/t5-relu",
)


def config_json(folder):
    return json.loads((GOLDEN / folder / "config.json").read_text())


def encoder(folder, **changes):
    """Return the encoder of a folder and the layouts of its parameters."""
    if folder in CLIPS:
        config = dataclasses.replace(clip_text_config(config_json(folder)), **changes)
        return make_clip_text(config), clip_text_layouts(config, prefix=CLIPS[folder])
    config = dataclasses.replace(t5_config(config_json(folder)), **changes)
    return make_t5_encoder(config), t5_layouts(config)


def weights(folder):
    return load_file(GOLDEN / folder / "model.safetensors")


def golden_outputs(folder):
    """Return the tokens and the states that transformers computed from them."""
    name = folder.removeprefix("text-encoders/").replace("/", "-")
    return np.load(ENCODERS / f"{name}.npz")


def read_params(layouts, tensors):
    """Return parameters, read from tensors by name."""
    if isinstance(layouts, TensorLayout):
        full = (slice(None),) * len(layouts.shape)
        return layouts.read(lambda name, index: tensors[name][index], full, np.float32)
    return {name: read_params(layout, tensors) for name, layout in layouts.items()}
