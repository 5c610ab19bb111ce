"""Golden autoencoders: configs, weights and outputs of diffusers."""

import json
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import load_file

from fmjax.pretrained.families.autoencoder import autoencoder_config, autoencoder_layouts
from fmjax.pretrained.layouts import TensorLayout

GOLDEN = Path(__file__).parents[2] / "golden"
MODELS = {"vae-two-levels": "sd3-pipeline-tiny/vae", "vae-three-levels": "vae-three-levels"}
"""Folders of outputs, mapped to the folders of the models that computed them."""


def golden_config_json(folder):
    return json.loads((GOLDEN / folder / "config.json").read_text())


def golden_tensors(folder):
    return load_file(GOLDEN / folder / "diffusion_pytorch_model.safetensors")


def golden_config(name):
    return autoencoder_config(golden_config_json(MODELS[name]))


def golden_params(name):
    tensors = golden_tensors(MODELS[name])

    def read_tensor(name, index):
        return tensors[name][index]

    def read_param(layout):
        return layout.read(read_tensor, (slice(None),) * len(layout.shape), np.float32)

    layouts = autoencoder_layouts(golden_config(name))
    return jax.tree.map(read_param, layouts, is_leaf=lambda node: isinstance(node, TensorLayout))


def golden_outputs(name):
    """Return diffusers' images and latents, `[batch, height, width, channel]`."""
    with np.load(GOLDEN / name / "io.npz") as outputs:
        return {key: array.transpose(0, 2, 3, 1) for key, array in outputs.items()}
