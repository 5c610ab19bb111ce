"""Small released models to train on, and data for them."""

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
ONE = make_mesh(devices=jax.devices()[:1])
# By model, layers of every kind beside the usual ones: joined inputs, other orders of columns.
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
    """Whoever asks these modules for a layout of all devices gets one: eight compile slowly."""
    for module in modules:
        patch.setattr(
            module,
            "make_mesh",
            lambda layout: make_mesh(
                layout, jax.devices()[: 1 if -1 in dataclasses.astuple(layout) else None]
            ),
        )


def tuned(model, lora, **settings):
    """A golden model to be trained on."""
    network = released_network(GOLDEN / model, MLPConfig())
    return make_tuning(network, EVENT, TEXT, lora, **settings)


def released_params(model, tuning, key=0, *, zero=False):
    """Adapters with numbers in A and, unless `zero`, in B; and the released weights."""
    frozen = tuning.load(GOLDEN / model, tuning.frozen(ONE), dtype="float32")
    adapters = tuning.net.init(jax.random.key(key))

    def filled(path, leaf):
        name = jax.tree_util.keystr(path)
        if zero or "up" not in name:
            return leaf
        own = jax.random.fold_in(jax.random.key(key), sum(map(ord, name)))
        return 0.2 * jax.random.normal(own, leaf.shape)

    return jax.tree_util.tree_map_with_path(filled, adapters), frozen


def batch(num=8, seed=0):
    """Latents and text without meaning."""
    rng = np.random.default_rng(seed)
    shapes = (num, *EVENT), (num, TEXT.num_tokens, TEXT.width), (num, TEXT.pooled_width)
    x, tokens, pooled = (rng.standard_normal(shape, np.float32) for shape in shapes)
    return Batch(x, Text(tokens, pooled))


def outputs(tuning, *params):
    """The velocity of a batch at several times."""
    data = batch(4)
    t = np.linspace(0.1, 0.9, 4, dtype=np.float32)
    return np.asarray(jax.jit(tuning.net.apply)(combine(*params), t, data.x1, data.cond))


USUAL = LoRAConfig(rank=3, alpha=6.0)
CASES = [(model, LoRAConfig(3, 6.0, layers)) for model, layers in LAYERS.items()]
CASES += [(model, USUAL) for model in LAYERS]
