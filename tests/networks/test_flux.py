"""FLUX: diffusers' outputs with the same weights, published sizes, refusals."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from fmjax._arrays import Text, TextShape
from fmjax.networks import FLUX_DEV, FLUX_SCHNELL, FluxConfig, make_flux, make_network
from fmjax.networks.dit import DiTConfig
from tests.networks.flux_weights import flux_params

GOLDEN = Path(__file__).parents[1] / "golden"
TEXT = TextShape(512, 4096, 768)


def unpacked(tokens, rows, columns):
    """diffusers' packed latents as an image: a token is `[channel, row, column]` of a patch."""
    x = tokens.reshape(len(tokens), rows, columns, -1, 2, 2)
    return x.transpose(0, 1, 4, 2, 5, 3).reshape(len(tokens), 2 * rows, 2 * columns, -1)


@pytest.mark.parametrize("folder", ["flux-dev-tiny", "flux-schnell-tiny"])
def test_outputs_are_those_of_diffusers_with_the_same_weights(folder):
    about = json.loads((GOLDEN / folder / "config.json").read_text())
    io = np.load(GOLDEN / folder / "io.npz")
    weights = load_file(GOLDEN / folder / "diffusion_pytorch_model.safetensors")
    config = FluxConfig(
        num_heads=about["num_attention_heads"],
        head_width=about["attention_head_dim"],
        num_double=about["num_layers"],
        num_single=about["num_single_layers"],
        rotary_axes=tuple(about["axes_dims_rope"]),
        guidance=3.5 if about["guidance_embeds"] else None,
    )
    rows, columns = (int(n) + 1 for n in io["in_img_ids"].max(axis=0)[1:])
    x = unpacked(io["in_hidden_states"], rows, columns)
    guidance = io["in_guidance"] if about["guidance_embeds"] else None
    cond = Text(io["in_encoder_hidden_states"], io["in_pooled_projections"], guidance)
    text = TextShape(*cond.tokens.shape[1:], cond.pooled.shape[1])
    net = make_flux(config, x.shape[1:], text)
    params = flux_params(weights, about)
    like = jax.eval_shape(net.init, jax.random.key(0))
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, like)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == sum(
        leaf.size for leaf in weights.values()
    )
    out = jax.jit(net.apply)(params, io["in_timestep"], x, cond)
    expected = unpacked(io["out_sample"], rows, columns)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(out / scale, expected / scale, atol=3e-5)


@pytest.mark.parametrize(
    ("config", "size"), [(FLUX_DEV, 11_901_408_320), (FLUX_SCHNELL, 11_891_178_560)]
)
def test_presets_have_the_released_models_numbers_of_parameters(config, size):
    net = make_flux(config, (128, 128, 16), TEXT)
    shapes = jax.eval_shape(net.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == size


SMALL = FluxConfig(2, 2, 8, 1, 1, (4, 2, 2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FluxConfig(num_double=0), "num_double must be at least 1, got 0"),
        (lambda: FluxConfig(rotary_axes=(16, 56, 54)), "rotary_axes must be even numbers that add"),
        (lambda: make_flux(SMALL, (8, 8, 4), 10), "conditions must be text for a FLUX network"),
        (lambda: make_flux(SMALL, (7, 8, 4), TEXT), "patch_size must divide the image size 7x8"),
        (lambda: make_network(DiTConfig(), (8, 8, 4), TEXT), "or the network one that takes text"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("cond", "message"),
    [
        (np.zeros(2, np.int32), "cond must be a Text for a network of text"),
        (Text(np.zeros((2, 4, 8)), np.zeros((2, 6))), "cond must hold tokens and pooled of shapes"),
        (Text(np.zeros((2, 3, 8)), np.zeros((2, 6)), np.ones(2)), "cond.guidance must be None"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(cond, message, unchecked):
    net = make_flux(FluxConfig(2, 2, 8, 1, 1, (4, 2, 2), None), (4, 4, 4), TextShape(3, 8, 6))
    params = jax.eval_shape(net.init, jax.random.key(0))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(net.apply, params, np.zeros(2, np.float32), np.zeros((2, 4, 4, 4)), cond)
