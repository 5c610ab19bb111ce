"""Tests of the autoencoder: outputs of diffusers, parameter counts, tiled decoding."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fmjax.networks import AutoencoderConfig, decode_tiled, make_autoencoder
from fmjax.networks.autoencoder.blocks import Sizes
from tests.networks.autoencoder.golden_autoencoders import (
    MODELS,
    golden_config,
    golden_outputs,
    golden_params,
)

SMALL = AutoencoderConfig(latent_channels=4, widths=(8, 8), num_blocks=1, num_groups=4)


@pytest.fixture(params=MODELS, scope="module")
def golden(request):
    name = request.param
    autoencoder = make_autoencoder(golden_config(name))
    return autoencoder, golden_params(name), golden_outputs(name)


def assert_close(out, expected, tolerance=2e-5):
    """Compare relative to the largest value; both libraries compute in float32."""
    scale = np.abs(expected).max()
    np.testing.assert_allclose(out / scale, expected / scale, atol=tolerance)


def test_encoded_images_match_diffusers(golden):
    autoencoder, params, outputs = golden
    mean, log_variance = jax.jit(autoencoder.encode)(params, outputs["images"])
    assert_close(mean, outputs["mean"])
    assert_close(log_variance, outputs["log_variance"])


def test_decoded_latents_match_diffusers(golden):
    autoencoder, params, outputs = golden
    assert_close(jax.jit(autoencoder.decode)(params, outputs["latents"]), outputs["decoded"])


def test_tiled_decoding_matches_diffusers(golden):
    autoencoder, params, outputs = golden
    tiled = jax.jit(partial(decode_tiled, autoencoder.decode, tile=8))
    assert_close(tiled(params, outputs["tiled_latents"]), outputs["tiled"])


def test_bfloat16_outputs_are_float32_and_close_to_float32():
    config = golden_config("vae-two-levels")
    autoencoder16 = make_autoencoder(AutoencoderConfig(**{**vars(config), "dtype": "bfloat16"}))
    params, outputs = golden_params("vae-two-levels"), golden_outputs("vae-two-levels")
    images = jax.jit(autoencoder16.decode)(params, outputs["latents"])
    mean, log_variance = jax.jit(autoencoder16.encode)(params, outputs["images"])
    assert {a.dtype for a in (images, mean, log_variance)} == {jnp.dtype("float32")}
    # About 24 rounding errors of at most 2e-3 each add up like a random walk.
    assert_close(images, outputs["decoded"], tolerance=0.04)
    assert_close(mean, outputs["mean"], tolerance=0.04)


def test_norm_is_accurate_for_a_large_mean():
    norm = Sizes(2, "float32", "xla").norm(4, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(1, 8, 8, 4)).astype(np.float32)
    # Float32 numbers near 3,000 have rounding errors of about 1e-4.
    np.testing.assert_allclose(norm(x + 3000.0), norm(x), atol=1e-3)


@pytest.mark.slow
def test_default_config_has_the_released_numbers_of_parameters():
    shapes = jax.eval_shape(make_autoencoder(AutoencoderConfig()).init, jax.random.key(0))
    sizes = {name: sum(a.size for a in jax.tree.leaves(params)) for name, params in shapes.items()}
    assert sizes == {"encoder": 34_274_208, "decoder": 49_545_475}


@pytest.mark.slow
def test_log_variances_are_clipped():
    autoencoder = make_autoencoder(SMALL)
    params = autoencoder.init(jax.random.key(0))
    bias = params["encoder"]["out"]["bias"]
    params["encoder"]["out"]["bias"] = bias.at[4].set(1e3).at[5].set(-1e3)
    _, log_variance = autoencoder.encode(params, jnp.zeros((1, 4, 4, 3)))
    assert np.all(log_variance[..., 0] == 20.0)
    assert np.all(log_variance[..., 1] == -30.0)


def test_unscaled_inverts_scaled():
    config = AutoencoderConfig(scale=0.5, shift=2.0)
    latents = jnp.arange(-3.0, 3.0)
    np.testing.assert_array_equal(config.scaled(latents), (latents - 2.0) / 2.0)
    np.testing.assert_array_equal(config.unscaled(config.scaled(latents)), latents)
    assert AutoencoderConfig(widths=(32, 32, 64)).downsampling == 4


def upsample(params, latents):
    """Decode each pixel independently of its neighbors."""
    return params * jnp.repeat(jnp.repeat(latents, 2, 1), 2, 2)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(3, 4), (4, 5), (16, 7)])
@pytest.mark.parametrize(("tile", "overlap"), [(4, None), (4, 0), (4, 3), (5, 2), (1, None)])
def test_tiled_decoding_is_exact_for_a_pixelwise_decoder(size, tile, overlap):
    latents = jax.random.normal(jax.random.key(0), (2, *size, 3))
    params = jnp.float32(3.0)
    tiled = jax.jit(partial(decode_tiled, upsample, tile=tile, overlap=overlap))(params, latents)
    np.testing.assert_allclose(tiled, upsample(params, latents), rtol=1e-5)


def test_overlapping_tiles_are_blended_linearly():
    def mean(params, latents):
        return jnp.broadcast_to(jnp.mean(latents, (1, 2), keepdims=True), latents.shape)

    latents = jnp.arange(12.0).reshape(1, 1, 12, 1)
    tiled = decode_tiled(mean, None, latents, tile=8, overlap=4)
    # The tiles 0..7, 4..11 and 8..11 have the means 3.5, 7.5 and 9.5.
    first_blend, second_blend = [3.5, 4.5, 5.5, 6.5], [7.5, 8.0, 8.5, 9.0]
    np.testing.assert_allclose(tiled[0, 0, :, 0], [3.5] * 4 + first_blend + second_blend, rtol=1e-6)


@pytest.mark.slow
def test_latents_that_fit_one_tile_are_decoded_without_tiling():
    autoencoder = make_autoencoder(SMALL)
    params = autoencoder.init(jax.random.key(0))
    latents = jax.random.normal(jax.random.key(1), (1, 8, 6, 4))
    plain = jax.make_jaxpr(autoencoder.decode)(params, latents)
    tiled = jax.make_jaxpr(partial(decode_tiled, autoencoder.decode, tile=8))(params, latents)
    assert str(tiled) == str(plain)


@pytest.mark.slow
def test_tiled_decoding_uses_about_the_memory_of_one_tile():
    autoencoder = make_autoencoder(SMALL)
    params = jax.eval_shape(autoencoder.init, jax.random.key(0))

    def memory(decode, side):
        latents = jax.ShapeDtypeStruct((1, side, side, 4), np.float32)
        compiled = jax.jit(decode).lower(params, latents).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    one_tile, untiled = memory(autoencoder.decode, 16), memory(autoencoder.decode, 52)
    tiled = memory(partial(decode_tiled, autoencoder.decode, tile=16), 52)
    # Additional memory: 25 tiles of 32x32 pixels, and the image together with its joined bands.
    pixels = 25 * 32 * 32 + 2 * 104 * 104
    assert tiled < 2 * one_tile + 4 * 3 * 2 * pixels
    assert tiled < untiled / 8


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AutoencoderConfig(num_blocks=0), "num_blocks must be at least 1, got 0"),
        (lambda: AutoencoderConfig(widths=()), "widths must be one or more positive multiples of"),
        (lambda: AutoencoderConfig(widths=(32, 48)), "multiples of num_groups = 32, got"),
        (lambda: AutoencoderConfig(scale=0.0), "scale must be positive, got 0"),
        (lambda: AutoencoderConfig(dtype="bf16"), "dtype must be one of float32, bfloat16"),
        (lambda: AutoencoderConfig(attention="flash"), "attention must be one of auto, xla"),
        (
            lambda: decode_tiled(upsample, 1.0, jnp.zeros((1, 4, 4, 1)), tile=0),
            "tile must be at leas",
        ),
        (
            lambda: decode_tiled(upsample, 1.0, jnp.zeros((1, 4, 4, 1)), tile=2, overlap=2),
            r"overlap must lie in \[0, tile - 1 = 1\], got 2",
        ),
    ],
)
def test_invalid_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "shape", "message"),
    [
        ("encode", (1, 4, 5, 3), "image size must be a multiple of 2, got 4x5"),
        ("encode", (1, 4, 4, 1), "images must have 3 channels, got 1"),
        ("decode", (1, 4, 4, 3), "latents must have 4 channels, got 3"),
    ],
)
def test_images_and_latents_of_the_wrong_shape_are_refused(function, shape, message):
    autoencoder = make_autoencoder(SMALL)
    params = jax.eval_shape(autoencoder.init, jax.random.key(0))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(getattr(autoencoder, function), params, np.zeros(shape, np.float32))
