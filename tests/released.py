"""Tiny released models, adapters and data for training tests."""

import dataclasses

import jax
import numpy as np

from fmjax._arrays import Batch, Text, TextShape
from fmjax._trees import combine
from fmjax.networks import LoRAConfig, MLPConfig
from fmjax.pretrained.tuning import make_tuning, released_network
from fmjax.sharding import make_mesh
from tests.golden_models import GOLDEN

EVENT, TEXT = (8, 8, 4), TextShape(4, 32, 24)
SINGLE_DEVICE = make_mesh(devices=jax.devices()[:1])
# Layers outside the default selection, with fused inputs or reordered columns.
LAYERS = {
    "flux-dev-tiny": (
        "to_q",
        "to_v",
        "proj_out",
        "ff.net.2",
        "proj_mlp",
        "linear_1",
        "linear",
        "x_embedder",
    ),
    "sd3-medium-tiny": ("to_k", "norm1.linear", "norm_out.linear", "ff_context.net.0.proj"),
    "sd35-medium-tiny": ("attn.add_v_proj", "attn2.to_q", "attn2.to_out.0", "proj_out", "linear"),
}


def on_one_device(patch, *modules):
    """Patch `make_mesh` of the modules: meshes of all devices use one, which compiles faster."""
    for module in modules:
        patch.setattr(
            module,
            "make_mesh",
            lambda layout: make_mesh(
                layout, jax.devices()[: 1 if -1 in dataclasses.astuple(layout) else None]
            ),
        )


def tuned(model, lora, **settings):
    """Return the fine-tuning setup of a golden model."""
    network = released_network(GOLDEN / model, MLPConfig())
    return make_tuning(network, EVENT, TEXT, lora, **settings)


def released_params(model, tuning, key=0, *, zero=False):
    """Return adapters with random A and, unless `zero`, random B; and the released weights."""
    frozen = tuning.load(GOLDEN / model, tuning.frozen(SINGLE_DEVICE), dtype="float32")
    adapters = tuning.net.init(jax.random.key(key))

    def fill(key_path, leaf):
        name = jax.tree_util.keystr(key_path)
        if zero or "up" not in name:
            return leaf
        leaf_key = jax.random.fold_in(jax.random.key(key), sum(map(ord, name)))
        return 0.2 * jax.random.normal(leaf_key, leaf.shape)

    return jax.tree_util.tree_map_with_path(fill, adapters), frozen


def batch(num=8, seed=0):
    """Return random latents and text."""
    rng = np.random.default_rng(seed)
    shapes = (num, *EVENT), (num, TEXT.num_tokens, TEXT.width), (num, TEXT.pooled_width)
    x, tokens, pooled = (rng.standard_normal(shape, np.float32) for shape in shapes)
    return Batch(x, Text(tokens, pooled))


def outputs(tuning, *params):
    """Return the velocities of a batch of four at different times."""
    data = batch(4)
    t = np.linspace(0.1, 0.9, 4, dtype=np.float32)
    return np.asarray(jax.jit(tuning.net.apply)(combine(*params), t, data.x1, data.cond))


USUAL = LoRAConfig(rank=3, alpha=6.0)
CASES = [(model, LoRAConfig(3, 6.0, layers)) for model, layers in LAYERS.items()]
CASES += [(model, USUAL) for model in LAYERS]
