"""SD3's and FLUX's transformers: diffusers' outputs with the same weights."""

import dataclasses

import jax
import numpy as np
import pytest

from fmjax._arrays import Text, TextShape
from fmjax.networks import SD3_MEDIUM, SD35_LARGE, SD35_MEDIUM, MMDiTConfig, make_mmdit
from tests.golden_models import TRANSFORMERS, golden_io, loaded, relative_error, unpacked

TEXT = TextShape(3, 8, 6)


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


@pytest.mark.slow
def test_layers_that_are_alike_are_one_scan():
    """However many they are: the program of twenty layers is as long as that of three."""
    component, _ = loaded("sd35-medium-tiny")

    def equations(num_layers):
        config = dataclasses.replace(component.config, num_layers=num_layers)
        net = make_mmdit(config, (12, 12, 4), TextShape(6, 32, 24))
        params = jax.eval_shape(net.init, jax.random.key(0))
        cond = Text(np.zeros((2, 6, 32), np.float32), np.zeros((2, 24), np.float32))
        x = np.zeros((2, 12, 12, 4), np.float32)
        t = np.zeros(2, np.float32)
        return str(jax.make_jaxpr(net.apply)(params, t, x, cond)).count("\n")

    assert equations(24) == equations(4)


@pytest.mark.parametrize(
    ("config", "size"),
    [
        (SD3_MEDIUM, 2_084_951_104),
        (SD35_MEDIUM, 2_469_663_936),
        (SD35_LARGE, 8_146_280_768),
    ],
)
def test_presets_hold_as_many_numbers_as_diffusers_models_of_their_sizes(config, size):
    net = make_mmdit(config, (128, 128, 16), TextShape(333, 4096, 2048))
    shapes = jax.eval_shape(net.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == size


SMALL = MMDiTConfig(num_heads=2, head_width=8, num_layers=2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MMDiTConfig(num_layers=2, dual_layers=(2,)), "dual_layers must contain indices "),
        (lambda: MMDiTConfig(num_heads=1, head_width=6), "width must be a multiple of 4"),
        (lambda: make_mmdit(SMALL, (8, 8, 4), 10), r"must be text \(a TextShape\) for an MM-DiT"),
        (lambda: make_mmdit(SMALL, (7, 8, 4), TEXT), "patch_size must divide the image size 7x8"),
        (
            lambda: make_mmdit(dataclasses.replace(SMALL, position_table=2), (8, 8, 4), TEXT),
            r"event_shape must have sides of at most position_table \* patch_size = 4, got",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("runs", [(), (0, 2), (0, 1, 2, 3)])
def test_layers_with_a_second_attention_may_stand_anywhere(runs):
    """Layers in a row that are alike are one stack; together they are all, in their order."""
    config = dataclasses.replace(SMALL, num_layers=4, dual_layers=runs)
    found = [(i, dual, last) for dual, last, layers in config.runs for i in layers]
    assert found == [(i, i in runs, i == 3) for i in range(4)]
