"""The autoencoder: diffusers' outputs with the same weights, published sizes, tiles, refusals."""

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
    """The golden files are diffusers' in float32: they differ in their last digits."""
    scale = np.abs(expected).max()
    np.testing.assert_allclose(out / scale, expected / scale, atol=tolerance)


def test_encoded_images_are_those_of_diffusers(golden):
    autoencoder, params, outputs = golden
    mean, log_variance = jax.jit(autoencoder.encode)(params, outputs["images"])
    assert_close(mean, outputs["mean"])
    assert_close(log_variance, outputs["log_variance"])


def test_decoded_latents_are_those_of_diffusers(golden):
    autoencoder, params, outputs = golden
    assert_close(jax.jit(autoencoder.decode)(params, outputs["latents"]), outputs["decoded"])


def test_latents_decoded_in_tiles_are_those_of_diffusers(golden):
    autoencoder, params, outputs = golden
    tiled = jax.jit(partial(decode_tiled, autoencoder.decode, tile=8))
    assert_close(tiled(params, outputs["tiled_latents"]), outputs["tiled"])


def test_bfloat16_stays_near_float32_and_gives_float32():
    config = golden_config("vae-two-levels")
    narrow = make_autoencoder(AutoencoderConfig(**{**vars(config), "dtype": "bfloat16"}))
    params, outputs = golden_params("vae-two-levels"), golden_outputs("vae-two-levels")
    images = jax.jit(narrow.decode)(params, outputs["latents"])
    mean, log_variance = jax.jit(narrow.encode)(params, outputs["images"])
    assert {a.dtype for a in (images, mean, log_variance)} == {jnp.dtype("float32")}
    # Two dozen roundings to 8 bits, of 2e-3 each at most, add up like a walk.
    assert_close(images, outputs["decoded"], tolerance=0.04)
    assert_close(mean, outputs["mean"], tolerance=0.04)


def test_norms_keep_their_digits_where_the_mean_is_large():
    norm = Sizes(2, "float32", "xla").norm(4, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(1, 8, 8, 4)).astype(np.float32)
    # In float32 numbers about 3,000 are rounded by 1e-4.
    np.testing.assert_allclose(norm(x + 3000.0), norm(x), atol=1e-3)


@pytest.mark.slow
def test_default_sizes_are_those_of_the_released_autoencoders():
    shapes = jax.eval_shape(make_autoencoder(AutoencoderConfig()).init, jax.random.key(0))
    sizes = {name: sum(a.size for a in jax.tree.leaves(half)) for name, half in shapes.items()}
    assert sizes == {"encoder": 34_274_208, "decoder": 49_545_475}


@pytest.mark.slow
def test_log_variances_are_held_between_bounds():
    autoencoder = make_autoencoder(SMALL)
    params = autoencoder.init(jax.random.key(0))
    bias = params["encoder"]["out"]["bias"]
    params["encoder"]["out"]["bias"] = bias.at[4].set(1e3).at[5].set(-1e3)
    _, log_variance = autoencoder.encode(params, jnp.zeros((1, 4, 4, 3)))
    assert np.all(log_variance[..., 0] == 20.0)
    assert np.all(log_variance[..., 1] == -30.0)


def test_scaling_of_latents_undoes_itself():
    config = AutoencoderConfig(scale=0.5, shift=2.0)
    latents = jnp.arange(-3.0, 3.0)
    np.testing.assert_array_equal(config.scaled(latents), (latents - 2.0) / 2.0)
    np.testing.assert_array_equal(config.unscaled(config.scaled(latents)), latents)
    assert AutoencoderConfig(widths=(32, 32, 64)).downsampling == 4


def twice(params, latents):
    """A decoder that sees one pixel at a time."""
    return params * jnp.repeat(jnp.repeat(latents, 2, 1), 2, 2)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(3, 4), (4, 5), (16, 7)])
@pytest.mark.parametrize(("tile", "overlap"), [(4, None), (4, 0), (4, 3), (5, 2), (1, None)])
def test_tiles_of_a_decoder_that_sees_single_pixels_make_its_image(size, tile, overlap):
    latents = jax.random.normal(jax.random.key(0), (2, *size, 3))
    params = jnp.float32(3.0)
    tiled = jax.jit(partial(decode_tiled, twice, tile=tile, overlap=overlap))(params, latents)
    np.testing.assert_allclose(tiled, twice(params, latents), rtol=1e-5)


def test_an_overlap_fades_linearly_from_one_tile_into_the_next():
    def mean(params, latents):
        return jnp.broadcast_to(jnp.mean(latents, (1, 2), keepdims=True), latents.shape)

    latents = jnp.arange(12.0).reshape(1, 1, 12, 1)
    tiled = decode_tiled(mean, None, latents, tile=8, overlap=4)
    # Tiles 0..7, 4..11 and 8..11 have means of 3.5, 7.5 and 9.5.
    first, last = [3.5, 4.5, 5.5, 6.5], [7.5, 8.0, 8.5, 9.0]
    np.testing.assert_allclose(tiled[0, 0, :, 0], [3.5] * 4 + first + last, rtol=1e-6)


@pytest.mark.slow
def test_latents_of_one_tile_are_decoded_as_they_are():
    autoencoder = make_autoencoder(SMALL)
    params = autoencoder.init(jax.random.key(0))
    latents = jax.random.normal(jax.random.key(1), (1, 8, 6, 4))
    plain = jax.make_jaxpr(autoencoder.decode)(params, latents)
    tiled = jax.make_jaxpr(partial(decode_tiled, autoencoder.decode, tile=8))(params, latents)
    assert str(tiled) == str(plain)


@pytest.mark.slow
def test_tiles_take_the_memory_of_one():
    autoencoder = make_autoencoder(SMALL)
    params = jax.eval_shape(autoencoder.init, jax.random.key(0))

    def memory(decode, side):
        latents = jax.ShapeDtypeStruct((1, side, side, 4), np.float32)
        compiled = jax.jit(decode).lower(params, latents).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    one, whole = memory(autoencoder.decode, 16), memory(autoencoder.decode, 52)
    tiled = memory(partial(decode_tiled, autoencoder.decode, tile=16), 52)
    # Beside those of one tile, 25 tiles of 32x32 pixels and their image, whose bands are joined.
    pixels = 25 * 32 * 32 + 2 * 104 * 104
    assert tiled < 2 * one + 4 * 3 * 2 * pixels
    assert tiled < whole / 8


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AutoencoderConfig(num_blocks=0), "num_blocks must be at least 1, got 0"),
        (lambda: AutoencoderConfig(widths=()), "widths must be one or more positive multiples of"),
        (lambda: AutoencoderConfig(widths=(32, 48)), "multiples of num_groups = 32, got"),
        (lambda: AutoencoderConfig(scale=0.0), "scale must be positive, got 0"),
        (lambda: AutoencoderConfig(dtype="bf16"), "dtype must be one of float32, bfloat16"),
        (lambda: AutoencoderConfig(attention="flash"), "attention must be one of auto, xla"),
        (lambda: decode_tiled(twice, 1.0, jnp.zeros((1, 4, 4, 1)), tile=0), "tile must be at leas"),
        (
            lambda: decode_tiled(twice, 1.0, jnp.zeros((1, 4, 4, 1)), tile=2, overlap=2),
            r"overlap must lie in \[0, tile - 1 = 1\], got 2",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
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
def test_images_and_latents_that_do_not_fit_are_refused(function, shape, message):
    autoencoder = make_autoencoder(SMALL)
    params = jax.eval_shape(autoencoder.init, jax.random.key(0))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(getattr(autoencoder, function), params, np.zeros(shape, np.float32))
