"""Tests of the trained text encoder and of networks conditioned on captions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax._arrays import TextShape
from fmjax._specs import token_spec
from fmjax.losses import drop_condition
from fmjax.networks import (
    DiTConfig,
    FluxConfig,
    MLPConfig,
    MMDiTConfig,
    TextEncoderConfig,
    make_flow_map,
    make_network,
    make_text_encoder,
)

SHAPE = token_spec(5, 7)
ENCODER = TextEncoderConfig(8, 2, 2)
IMAGE_NETWORKS = {
    "mmdit": MMDiTConfig(2, 2, 8, 2, qk_norm=True),
    "flux": FluxConfig(2, 2, 8, 1, 1, (4, 2, 2), guidance=None),
}
TOKENS = np.array([[2, 3, 4, 0, 0], [6, 0, 0, 0, 0], [0, 0, 0, 0, 0], [1, 2, 3, 4, 5]], np.int32)
CAPTIONS = jnp.asarray(TOKENS)


def perturbed(params):
    """Add noise to the parameters, so that each of them affects the output."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda p: p + 0.2 * rng.standard_normal(p.shape, np.float32), params)


def make_points():
    rng = np.random.default_rng(1)
    t, x = rng.uniform(size=4), rng.standard_normal((4, 4, 4, 3), np.float32)
    return jnp.asarray(t, jnp.float32), jnp.asarray(x)


@pytest.mark.parametrize("num_layers", [0, 2])
def test_pooled_text_is_the_mean_of_tokens_without_padding(num_layers):
    config = TextEncoderConfig(8, num_layers, 2)
    encoder = make_text_encoder(config, SHAPE)
    text = encoder.apply(perturbed(encoder.init(jax.random.key(0))), CAPTIONS)
    assert config.shape(SHAPE) == TextShape(5, 8, 8)
    assert (text.tokens.shape, text.pooled.shape) == ((4, 5, 8), (4, 8))
    assert text.tokens.dtype == text.pooled.dtype == jnp.float32
    for row, num in enumerate((TOKENS > 0).sum(axis=1)):
        mean = text.tokens[row, :num].mean(axis=0) if num else 0.0
        np.testing.assert_allclose(text.pooled[row], mean, atol=1e-6)


def test_token_states_depend_on_other_tokens_and_position():
    encoder = make_text_encoder(ENCODER, SHAPE)
    params = perturbed(encoder.init(jax.random.key(0)))
    tokens = jnp.array([[2, 3, 4, 5, 0], [3, 2, 4, 5, 0], [2, 3, 4, 6, 0]])
    text, swapped, changed = encoder.apply(params, tokens).tokens
    assert np.abs(text[2] - swapped[2]).max() > 1e-3
    assert np.abs(text[0] - changed[0]).max() > 1e-3


def test_bfloat16_encoders_return_float32_states():
    encoder16 = make_text_encoder(TextEncoderConfig(8, 2, 2, dtype="bfloat16"), SHAPE)
    params = perturbed(encoder16.init(jax.random.key(0)))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert "bf16" in str(jax.make_jaxpr(encoder16.apply)(params, CAPTIONS))
    expected = make_text_encoder(ENCODER, SHAPE).apply(params, CAPTIONS).pooled
    text = encoder16.apply(params, CAPTIONS)
    assert text.tokens.dtype == jnp.float32
    # bfloat16 has 8 bits of precision, and about ten rounding errors add up.
    np.testing.assert_allclose(text.pooled, expected, atol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("name", IMAGE_NETWORKS)
def test_caption_network_is_encoder_followed_by_image_network(name):
    net = make_network(IMAGE_NETWORKS[name], (4, 4, 3), SHAPE, text_encoder=ENCODER)
    encoder = make_text_encoder(ENCODER, SHAPE)
    image_net = make_network(IMAGE_NETWORKS[name], (4, 4, 3), ENCODER.shape(SHAPE))
    params = perturbed(net.init(jax.random.key(0)))
    assert set(params) == {"encoder", "image"}
    t, x = make_points()
    text = encoder.apply(params["encoder"], CAPTIONS)
    out = net.apply(params, t, x, CAPTIONS)
    np.testing.assert_array_equal(out, image_net.apply(params["image"], t, x, text))
    assert np.abs(out - net.apply(params, t, x, jnp.zeros_like(CAPTIONS))).max() > 1e-4
    leaves = {f"image.{leaf}" for leaf in image_net.tensor_axes}
    assert set(net.tensor_axes) == leaves | {f"encoder.{leaf}" for leaf in encoder.tensor_axes}


@pytest.mark.slow
def test_every_encoder_parameter_has_a_nonzero_gradient():
    net = make_network(IMAGE_NETWORKS["mmdit"], (4, 4, 3), SHAPE, text_encoder=ENCODER)
    params = perturbed(net.init(jax.random.key(0)))
    t, x = make_points()
    grads = jax.grad(lambda p: jnp.sum(net.apply(p, t, x, CAPTIONS) ** 2))(params)
    for key_path, grad in jax.tree_util.tree_leaves_with_path(grads["encoder"]):
        assert float(jnp.max(jnp.abs(grad))) > 0, jax.tree_util.keystr(key_path)


@pytest.mark.slow
def test_float64_inputs_are_computed_in_float64():
    net = make_network(IMAGE_NETWORKS["mmdit"], (4, 4, 3), SHAPE, text_encoder=ENCODER)
    params = perturbed(net.init(jax.random.key(0)))
    t, x = make_points()
    out32 = net.apply(params, t, x, CAPTIONS)
    with jax.enable_x64(True):
        inputs64 = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), (params, t, x))
        out64 = np.asarray(net.apply(*inputs64, CAPTIONS))
    assert out64.dtype == np.float64
    np.testing.assert_allclose(out32, out64, atol=1e-4)
    assert np.abs(np.asarray(out32) - out64).max() > 0


def test_captions_are_dropped_entirely_and_independently():
    tokens = jnp.asarray(np.random.default_rng(0).integers(1, 7, (4_000, 5)), jnp.int32)
    dropped = np.asarray(drop_condition(jax.random.key(0), tokens, 0, 0.25))
    is_dropped = (dropped == 0).all(axis=1)
    np.testing.assert_array_equal(dropped[~is_dropped], tokens[~is_dropped])
    assert not (dropped[~is_dropped] == 0).any()
    # Four standard errors of the fraction among 4,000 independent captions.
    assert abs(is_dropped.mean() - 0.25) < 4 * (0.25 * 0.75 / 4_000) ** 0.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TextEncoderConfig(width=0), "text_encoder.width must be at least 1, got 0"),
        (lambda: TextEncoderConfig(num_layers=-1), "text_encoder.num_layers must be at least 0"),
        (lambda: TextEncoderConfig(30, num_heads=4), "text_encoder.num_heads must divide the"),
        (lambda: TextEncoderConfig(dtype="half"), "text_encoder.dtype must be one of"),
        (
            lambda: make_network(IMAGE_NETWORKS["mmdit"], (4, 4, 3), SHAPE),
            "text_encoder must be a TextEncoderConfig for data with captions, got None",
        ),
        (
            lambda: make_network(DiTConfig(), (4, 4, 3), SHAPE, text_encoder=ENCODER),
            "network must be a FluxConfig or MMDiTConfig for text conditions, got",
        ),
        (
            lambda: make_flow_map(MLPConfig(), (2,), SHAPE),
            "conditions must not be text or captions for a flow map, got",
        ),
    ],
)
def test_invalid_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("cond", "actual"),
    [
        (None, "None"),
        (CAPTIONS[:, :3], r"int32 of shape \(4, 3\)"),
        (jnp.zeros((4, 5)), r"float32 of shape \(4, 5\)"),
    ],
)
def test_conditions_other_than_captions_are_refused(cond, actual):
    net = make_network(IMAGE_NETWORKS["mmdit"], (4, 4, 3), SHAPE, text_encoder=ENCODER)
    params = jax.eval_shape(net.init, jax.random.key(0))
    message = r"cond must be integer token IDs \[batch, 5\] for a network with captions, got "
    with pytest.raises(ValueError, match=message + actual):
        net.apply(params, *make_points(), cond)
