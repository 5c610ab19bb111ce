"""Golden text encoders: their settings, weights and what transformers makes of them."""

import dataclasses
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from fmjax.networks import make_clip_text, make_t5_encoder
from fmjax.pretrained.families.clip import clip_text_config, clip_text_views
from fmjax.pretrained.families.t5 import t5_config, t5_views
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


def about(folder):
    return json.loads((GOLDEN / folder / "config.json").read_text())


def encoder(folder, **changes):
    """The encoder of a folder, and the views of its parameters."""
    if folder in CLIPS:
        config = dataclasses.replace(clip_text_config(about(folder)), **changes)
        return make_clip_text(config), clip_text_views(config, prefix=CLIPS[folder])
    config = dataclasses.replace(t5_config(about(folder)), **changes)
    return make_t5_encoder(config), t5_views(config)


def weights(folder):
    return load_file(GOLDEN / folder / "model.safetensors")


def expected(folder):
    """Tokens in, states out."""
    name = folder.removeprefix("text-encoders/").replace("/", "-")
    return np.load(ENCODERS / f"{name}.npz")


def read(views, tensors):
    """Parameters, from tensors by name."""
    if isinstance(views, TensorLayout):
        whole = (slice(None),) * len(views.shape)
        return views.read(lambda name, index: tensors[name][index], whole, np.float32)
    return {name: read(part, tensors) for name, part in views.items()}
