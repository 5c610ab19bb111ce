"""Tests of the UNet: resampling, initialization and attention resolutions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fmjax.networks import UNetConfig, make_unet
from fmjax.networks.layers.dropout import dropout
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


def test_dropout_zeroes_features_by_the_key_of_each_example():
    keys = jax.random.split(jax.random.key(0), 4)
    ones = jnp.ones((4, 50, 50))
    dropped = np.asarray(dropout(ones, 0.2, keys, 1))
    assert set(np.unique(dropped)) == {0.0, np.float32(1 / 0.8)}
    # Four standard deviations of the share of 10,000 features are 0.016.
    assert abs((dropped == 0).mean() - 0.2) < 0.016
    np.testing.assert_array_equal(dropout(ones[2:], 0.2, keys[2:], 1), dropped[2:])
    assert not np.array_equal(dropped[0], dropped[1])
    assert not np.array_equal(dropout(ones, 0.2, keys, 2), dropped)
    np.testing.assert_array_equal(dropout(ones, 0.2, None, 1), ones)


@pytest.mark.slow
def test_dropout_is_used_with_keys_only_and_adds_no_parameters():
    plain = make_unet(CONFIG, (8, 8, 1))
    net = make_unet(dataclasses.replace(CONFIG, dropout=0.5), (8, 8, 1))
    assert (plain.takes_keys, net.takes_keys) == (False, True)
    like = jax.eval_shape(net.init, jax.random.key(0))
    assert like == jax.eval_shape(plain.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.05), like)
    t, x = jnp.array([0.1, 0.6, 0.7]), normal(0, 3, 8, 8, 1)
    without_keys = jax.make_jaxpr(net.apply)(params, t, x, None)
    assert str(without_keys) == str(jax.make_jaxpr(plain.apply)(params, t, x, None))
    apply = jax.jit(net.apply)
    first = apply(params, t, x, None, keys=jax.random.split(jax.random.key(1), 3))
    keys = jax.random.split(jax.random.key(1), 3).at[0].set(jax.random.key(2))
    second = apply(params, t, x, None, keys=keys)
    np.testing.assert_array_equal(first[1:], second[1:])
    assert np.abs(np.asarray(first - second)[0]).max() > 1e-3


def test_a_dropout_of_one_is_rejected():
    with pytest.raises(ValueError, match=r"dropout must lie in \[0, 1\), got 1.0"):
        UNetConfig(dropout=1.0)


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
