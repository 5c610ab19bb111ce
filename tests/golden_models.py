"""Golden models: tiny diffusers models with random weights, and reference outputs of diffusers."""

import json
from pathlib import Path

import jax
import numpy as np

from fmjax.pretrained.components import load_component
from fmjax.sharding import make_mesh

GOLDEN = Path(__file__).parent / "golden"
PIPELINES = ("sd3-pipeline-tiny", "flux-dev-pipeline-tiny")
TRANSFORMERS = ("sd3-medium-tiny", "sd35-medium-tiny", "flux-dev-tiny", "flux-schnell-tiny")


def golden_io(folder):
    """Return the inputs and outputs of diffusers."""
    with np.load(GOLDEN / folder / "io.npz") as arrays:
        return dict(arrays)


def config_json(folder):
    return json.loads((GOLDEN / folder / "config.json").read_text())


def loaded(folder, **settings):
    """Load a component and its weights on one device."""
    mesh = make_mesh(devices=jax.devices()[:1])
    return load_component(GOLDEN / folder, mesh=mesh, **settings)


def unpacked(tokens, rows, columns):
    """Convert packed latents to images; a token is a patch `[channel, row, column]`."""
    x = tokens.reshape(len(tokens), rows, columns, -1, 2, 2)
    return x.transpose(0, 1, 4, 2, 5, 3).reshape(len(tokens), 2 * rows, 2 * columns, -1)


def relative_error(actual, expected):
    """Return the maximum absolute difference, relative to the maximum of `expected`."""
    return np.abs(np.asarray(actual) - expected).max() / np.abs(expected).max()
