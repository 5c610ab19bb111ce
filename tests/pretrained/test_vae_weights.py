"""Tests of the configs and tensor layouts of released autoencoders."""

import collections

import jax
import numpy as np
import pytest

from fmjax._trees import flatten_dict
from fmjax.networks import AutoencoderConfig, make_autoencoder
from fmjax.pretrained.families.autoencoder import autoencoder_config, autoencoder_layouts
from fmjax.pretrained.layouts import TensorLayout, all_tensors
from tests.networks.autoencoder.golden_autoencoders import (
    MODELS,
    golden_config,
    golden_config_json,
    golden_tensors,
)

CONFIG_JSON = golden_config_json("sd3-pipeline-tiny/vae")


def test_config_reads_all_settings():
    assert autoencoder_config(CONFIG_JSON) == AutoencoderConfig(
        latent_channels=4, widths=(16, 32), num_blocks=1, num_groups=4, scale=0.3611, shift=0.1159
    )
    assert golden_config("vae-three-levels") == AutoencoderConfig(
        latent_channels=4,
        widths=(8, 12, 16),
        num_blocks=2,
        num_groups=4,
        quant=True,
        post_quant=True,
        scale=0.18215,
        shift=0.0,
    )


@pytest.mark.parametrize("folder", [*MODELS.values(), "flux-dev-pipeline-tiny/vae"])
def test_layouts_use_every_tensor_once(folder):
    layouts = autoencoder_layouts(autoencoder_config(golden_config_json(folder)))
    shapes = {name: array.shape for name, array in golden_tensors(folder).items()}
    assert all_tensors(layouts) == shapes
    counts = collections.Counter(
        name for _, layout in flatten_dict(layouts).items() for name in layout.tensors
    )
    assert set(counts.values()) == {1}


CONFIGS = {
    "released": AutoencoderConfig(),
    "odd": AutoencoderConfig(
        channels_in=1,
        channels_out=2,
        latent_channels=3,
        widths=(4, 8, 8),
        num_blocks=1,
        num_groups=2,
        attend=False,
        post_quant=True,
    ),
    "one level": AutoencoderConfig(widths=(32,), quant=True),
}


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))
def test_layouts_have_the_structure_and_shapes_of_params(config):
    params = jax.eval_shape(make_autoencoder(config).init, jax.random.key(0))
    layouts = autoencoder_layouts(config)
    shapes = jax.tree.map(
        lambda layout: layout.shape, layouts, is_leaf=lambda node: isinstance(node, TensorLayout)
    )
    assert shapes == jax.tree.map(np.shape, params)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]},
            "down_block_types must be DownEncoderBlock2D for each of 2 levels, got .*Attn",
        ),
        (
            {"up_block_types": ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"]},
            "up_block_types must be UpDecoderBlock2D for each of 2 levels",
        ),
        (
            {"down_block_types": ["DownEncoderBlock2D"]},
            "down_block_types must be DownEncoderBlock2D for each of 2",
        ),
        ({"act_fn": "relu"}, "act_fn must be silu, got relu"),
        ({"latents_mean": [0.0, 0.1]}, "latents_mean must be null, got"),
    ],
)
def test_unsupported_configs_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        autoencoder_config(CONFIG_JSON | change)
