"""SD3's and FLUX's transformers: diffusers' outputs with the same weights."""

import jax
import numpy as np
import pytest

from fmjax._arrays import Text, TextShape
from tests.golden_models import TRANSFORMERS, golden_io, loaded, relative_error, unpacked


def inputs(folder, io):
    """Time, latents, text and the expected output, as fmjax has them."""
    guidance = io.get("in_guidance")
    cond = Text(io["in_encoder_hidden_states"], io["in_pooled_projections"], guidance)
    if folder.startswith("sd3"):
        x, out = (io[name].transpose(0, 2, 3, 1) for name in ("in_hidden_states", "out_sample"))
        return io["in_timestep"] / 1000.0, x, cond, out
    rows, columns = (int(n) + 1 for n in io["in_img_ids"].max(axis=0)[1:])
    x, out = (unpacked(io[name], rows, columns) for name in ("in_hidden_states", "out_sample"))
    return io["in_timestep"], x, cond, out


@pytest.mark.parametrize("settings", [{}, {"unroll_layers": True, "remat": "full"}])
@pytest.mark.parametrize("folder", TRANSFORMERS)
def test_outputs_are_those_of_diffusers_with_the_same_weights(folder, settings):
    component, params = loaded(folder, **settings)
    t, x, cond, expected = inputs(folder, golden_io(folder))
    text = TextShape(*cond.tokens.shape[1:], cond.pooled.shape[1])
    net = component.network(x.shape[1:], text)
    assert relative_error(jax.jit(net.apply)(params, t, x, cond), expected) < 3e-5


def test_layers_that_are_alike_are_one_scan():
    """However many they are: the program of twenty layers is as long as that of three."""
    component, _ = loaded("sd35-medium-tiny")

    def equations(num_layers):
        import dataclasses

        from fmjax.networks import make_mmdit

        config = dataclasses.replace(component.config, num_layers=num_layers)
        net = make_mmdit(config, (12, 12, 4), TextShape(6, 32, 24))
        params = jax.eval_shape(net.init, jax.random.key(0))
        cond = Text(np.zeros((2, 6, 32), np.float32), np.zeros((2, 24), np.float32))
        x = np.zeros((2, 12, 12, 4), np.float32)
        t = np.zeros(2, np.float32)
        return str(jax.make_jaxpr(net.apply)(params, t, x, cond)).count("\n")

    assert equations(24) == equations(4)
