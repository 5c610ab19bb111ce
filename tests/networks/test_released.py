"""Tests of the SD3 and FLUX transformers against diffusers with the same weights."""

import dataclasses

import jax
import numpy as np
import pytest

from fmjax._arrays import Text, TextShape
from fmjax._specs import class_spec
from fmjax.networks import SD3_MEDIUM, SD35_LARGE, SD35_MEDIUM, MMDiTConfig, make_mmdit
from tests.golden_models import TRANSFORMERS, golden_io, loaded, relative_error, unpacked

TEXT = TextShape(3, 8, 6)


def inputs(folder, io):
    """Return time, latents, text and the expected output in fmjax's layout."""
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
def test_outputs_match_diffusers_with_the_same_weights(folder, settings):
    component, params = loaded(folder, **settings)
    t, x, cond, expected = inputs(folder, golden_io(folder))
    text = TextShape(*cond.tokens.shape[1:], cond.pooled.shape[1])
    net = component.network(x.shape[1:], text)
    assert relative_error(jax.jit(net.apply)(params, t, x, cond), expected) < 3e-5


@pytest.mark.slow
def test_identical_layers_are_compiled_as_one_scan():
    """The program length does not depend on the number of layers."""
    component, _ = loaded("sd35-medium-tiny")

    def num_lines(num_layers):
        config = dataclasses.replace(component.config, num_layers=num_layers)
        net = make_mmdit(config, (12, 12, 4), TextShape(6, 32, 24))
        params = jax.eval_shape(net.init, jax.random.key(0))
        cond = Text(np.zeros((2, 6, 32), np.float32), np.zeros((2, 24), np.float32))
        x = np.zeros((2, 12, 12, 4), np.float32)
        t = np.zeros(2, np.float32)
        return str(jax.make_jaxpr(net.apply)(params, t, x, cond)).count("\n")

    assert num_lines(24) == num_lines(4)


@pytest.mark.parametrize(
    ("config", "size"),
    [
        (SD3_MEDIUM, 2_084_951_104),
        (SD35_MEDIUM, 2_469_663_936),
        (SD35_LARGE, 8_146_280_768),
    ],
)
def test_presets_have_as_many_parameters_as_in_diffusers(config, size):
    net = make_mmdit(config, (128, 128, 16), TextShape(333, 4096, 2048))
    shapes = jax.eval_shape(net.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == size


SMALL = MMDiTConfig(num_heads=2, head_width=8, num_layers=2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MMDiTConfig(num_layers=2, dual_layers=(2,)), "dual_layers must contain indices "),
        (lambda: MMDiTConfig(num_heads=1, head_width=6), "width must be a multiple of 4"),
        (
            lambda: make_mmdit(SMALL, (8, 8, 4), class_spec(10)),
            r"must be text \(a TextShape\) for an MM-DiT",
        ),
        (lambda: make_mmdit(SMALL, (7, 8, 4), TEXT), "patch_size must divide the image size 7x8"),
        (
            lambda: make_mmdit(dataclasses.replace(SMALL, position_table=2), (8, 8, 4), TEXT),
            r"event_shape must have sides of at most position_table \* patch_size = 4, got",
        ),
    ],
)
def test_invalid_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("dual_layers", [(), (0, 2), (0, 1, 2, 3)])
def test_runs_list_all_layers_in_order_for_any_dual_layers(dual_layers):
    config = dataclasses.replace(SMALL, num_layers=4, dual_layers=dual_layers)
    layers = [(i, dual, last) for dual, last, indices in config.runs for i in indices]
    assert layers == [(i, i in dual_layers, i == 3) for i in range(4)]
