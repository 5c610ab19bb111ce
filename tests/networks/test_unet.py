"""Tests of the UNet: resampling, initialization and attention resolutions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fmjax.networks import UNetConfig, make_unet
from fmjax.networks.unet import AttentionBlock, ResBlock, resample

CONFIG = UNetConfig(width=8, multipliers=(1, 2), num_blocks=1, attention_resolutions=(4,))


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def test_downsampling_averages_and_upsampling_repeats_pixels():
    x = normal(0, 2, 4, 6, 3)
    down = np.asarray(resample(x, "down"))
    np.testing.assert_allclose(down[1, 1, 2], np.asarray(x)[1, 2:4, 4:6].mean((0, 1)), rtol=1e-5)
    up = resample(x, "up")
    np.testing.assert_array_equal(up, np.asarray(x).repeat(2, axis=1).repeat(2, axis=2))
    np.testing.assert_allclose(resample(up, "down"), x, rtol=1e-5)


@pytest.mark.slow
def test_blocks_are_initialized_to_the_identity():
    h, c = normal(0, 2, 4, 4, 8), normal(1, 2, 32)
    np.testing.assert_array_equal(ResBlock(CONFIG, 8, 8, rngs=nnx.Rngs(0))(h, c), h)
    np.testing.assert_array_equal(AttentionBlock(CONFIG, 8, rngs=nnx.Rngs(0))(h), h)
    np.testing.assert_array_equal(
        ResBlock(CONFIG, 8, 8, "down", rngs=nnx.Rngs(0))(h, c), resample(h, "down")
    )


@pytest.mark.slow
def test_attention_is_at_the_chosen_resolutions_and_in_the_middle():
    params = jax.eval_shape(make_unet(CONFIG, (8, 8, 1)).init, jax.random.key(0))
    with_attention = {
        f"{direction}.{name}"
        for direction in ("down", "up")
        for name, stage in params[direction].items()
        if "attention" in stage
    }
    assert with_attention == {"down.level1_block0", "up.level1_block0", "up.level1_block1"}
    assert "attention" in params["middle_in"]
    assert "attention" not in params["middle_out"]
