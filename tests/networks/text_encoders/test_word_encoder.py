"""The text encoder, and networks that it makes ones of captions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax._arrays import TextShape, TokenShape
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

SHAPE = TokenShape(5, 7)
ENCODER = TextEncoderConfig(8, 2, 2)
IMAGES = {
    "mmdit": MMDiTConfig(2, 2, 8, 2, qk_norm=True),
    "flux": FluxConfig(2, 2, 8, 1, 1, (4, 2, 2), guidance=None),
}
TOKENS = np.array([[2, 3, 4, 0, 0], [6, 0, 0, 0, 0], [0, 0, 0, 0, 0], [1, 2, 3, 4, 5]], np.int32)
WORDS = jnp.asarray(TOKENS)


def perturbed(params):
    """Away from the start, where every parameter has a part in the output."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda p: p + 0.2 * rng.standard_normal(p.shape, np.float32), params)


def points():
    rng = np.random.default_rng(1)
    t, x = rng.uniform(size=4), rng.standard_normal((4, 4, 4, 3), np.float32)
    return jnp.asarray(t, jnp.float32), jnp.asarray(x)


@pytest.mark.parametrize("num_layers", [0, 2])
def test_a_text_has_a_vector_for_each_word_and_the_mean_of_those_that_are_no_padding(num_layers):
    config = TextEncoderConfig(8, num_layers, 2)
    encoder = make_text_encoder(config, SHAPE)
    text = encoder.apply(perturbed(encoder.init(jax.random.key(0))), WORDS)
    assert config.shape(SHAPE) == TextShape(5, 8, 8)
    assert (text.tokens.shape, text.pooled.shape) == ((4, 5, 8), (4, 8))
    assert text.tokens.dtype == text.pooled.dtype == jnp.float32
    for row, num in enumerate((TOKENS > 0).sum(axis=1)):
        mean = text.tokens[row, :num].mean(axis=0) if num else 0.0
        np.testing.assert_allclose(text.pooled[row], mean, atol=1e-6)


def test_every_word_sees_all_others_and_its_place():
    encoder = make_text_encoder(ENCODER, SHAPE)
    params = perturbed(encoder.init(jax.random.key(0)))
    tokens = jnp.array([[2, 3, 4, 5, 0], [3, 2, 4, 5, 0], [2, 3, 4, 6, 0]])
    one, swapped, other = encoder.apply(params, tokens).tokens
    assert np.abs(one[2] - swapped[2]).max() > 1e-3
    assert np.abs(one[0] - other[0]).max() > 1e-3


def test_bfloat16_is_computed_and_float32_given():
    narrow = make_text_encoder(TextEncoderConfig(8, 2, 2, dtype="bfloat16"), SHAPE)
    params = perturbed(narrow.init(jax.random.key(0)))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert "bf16" in str(jax.make_jaxpr(narrow.apply)(params, WORDS))
    wide = make_text_encoder(ENCODER, SHAPE).apply(params, WORDS).pooled
    text = narrow.apply(params, WORDS)
    assert text.tokens.dtype == jnp.float32
    # Eight bits of mantissa, some ten roundings.
    np.testing.assert_allclose(text.pooled, wide, atol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("name", IMAGES)
def test_a_network_of_captions_is_the_encoder_and_the_network_of_its_text(name):
    net = make_network(IMAGES[name], (4, 4, 3), SHAPE, text_encoder=ENCODER)
    encoder = make_text_encoder(ENCODER, SHAPE)
    image = make_network(IMAGES[name], (4, 4, 3), ENCODER.shape(SHAPE))
    params = perturbed(net.init(jax.random.key(0)))
    assert set(params) == {"encoder", "image"}
    t, x = points()
    text = encoder.apply(params["encoder"], WORDS)
    out = net.apply(params, t, x, WORDS)
    np.testing.assert_array_equal(out, image.apply(params["image"], t, x, text))
    assert np.abs(out - net.apply(params, t, x, jnp.zeros_like(WORDS))).max() > 1e-4
    names = {f"image.{name}" for name in image.tensor_axes}
    assert set(net.tensor_axes) == names | {f"encoder.{name}" for name in encoder.tensor_axes}


@pytest.mark.slow
def test_every_parameter_of_the_encoder_is_trained_with_the_network():
    net = make_network(IMAGES["mmdit"], (4, 4, 3), SHAPE, text_encoder=ENCODER)
    params = perturbed(net.init(jax.random.key(0)))
    t, x = points()
    grads = jax.grad(lambda p: jnp.sum(net.apply(p, t, x, WORDS) ** 2))(params)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads["encoder"]):
        assert float(jnp.max(jnp.abs(grad))) > 0, jax.tree_util.keystr(path)


@pytest.mark.slow
def test_float64_points_are_computed_in_float64():
    net = make_network(IMAGES["mmdit"], (4, 4, 3), SHAPE, text_encoder=ENCODER)
    params = perturbed(net.init(jax.random.key(0)))
    t, x = points()
    narrow = net.apply(params, t, x, WORDS)
    with jax.enable_x64(True):
        double = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), (params, t, x))
        out = np.asarray(net.apply(*double, WORDS))
    assert out.dtype == np.float64
    np.testing.assert_allclose(narrow, out, atol=1e-4)
    assert np.abs(np.asarray(narrow) - out).max() > 0


def test_captions_are_dropped_as_a_whole_and_each_by_itself():
    tokens = jnp.asarray(np.random.default_rng(0).integers(1, 7, (4_000, 5)), jnp.int32)
    dropped = np.asarray(drop_condition(jax.random.key(0), tokens, 0, 0.25))
    gone = (dropped == 0).all(axis=1)
    np.testing.assert_array_equal(dropped[~gone], tokens[~gone])
    assert not (dropped[~gone] == 0).any()
    # Four standard deviations of a share of 4,000 coins.
    assert abs(gone.mean() - 0.25) < 4 * (0.25 * 0.75 / 4_000) ** 0.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TextEncoderConfig(width=0), "text_encoder.width must be at least 1, got 0"),
        (lambda: TextEncoderConfig(num_layers=-1), "text_encoder.num_layers must be at least 0"),
        (lambda: TextEncoderConfig(30, num_heads=4), "text_encoder.num_heads must divide the"),
        (lambda: TextEncoderConfig(dtype="half"), "text_encoder.dtype must be one of"),
        (
            lambda: make_network(IMAGES["mmdit"], (4, 4, 3), SHAPE),
            "text_encoder must be a TextEncoderConfig for data with captions, got None",
        ),
        (
            lambda: make_network(DiTConfig(), (4, 4, 3), SHAPE, text_encoder=ENCODER),
            "network must be a FluxConfig or MMDiTConfig for text conditions, got",
        ),
        (
            lambda: make_flow_map(MLPConfig(), (2,), SHAPE),
            "conditions must be None or a number of classes for a flow map, got",
        ),
    ],
)
def test_what_cannot_be_built_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("cond", "got"),
    [
        (None, "None"),
        (WORDS[:, :3], r"int32 of shape \(4, 3\)"),
        (jnp.zeros((4, 5)), r"float32 of shape \(4, 5\)"),
    ],
)
def test_a_condition_that_is_no_caption_is_refused(cond, got):
    net = make_network(IMAGES["mmdit"], (4, 4, 3), SHAPE, text_encoder=ENCODER)
    params = jax.eval_shape(net.init, jax.random.key(0))
    message = rf"cond must be integer token IDs \[batch, 5\] for a network with captions, got {got}"
    with pytest.raises(ValueError, match=message):
        net.apply(params, *points(), cond)
