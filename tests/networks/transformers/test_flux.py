"""Tests of FLUX parameter counts and argument checks; outputs are tested in test_released.py."""

import jax
import numpy as np
import pytest

from fmjax._arrays import Text, TextShape
from fmjax._specs import class_spec
from fmjax.networks import FLUX_DEV, FLUX_SCHNELL, FluxConfig, make_flux, make_network
from fmjax.networks.transformers.dit import DiTConfig

TEXT = TextShape(512, 4096, 768)


@pytest.mark.parametrize(
    ("config", "size"), [(FLUX_DEV, 11_901_408_320), (FLUX_SCHNELL, 11_891_178_560)]
)
def test_presets_have_the_released_numbers_of_parameters(config, size):
    net = make_flux(config, (128, 128, 16), TEXT)
    shapes = jax.eval_shape(net.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == size


SMALL = FluxConfig(2, 2, 8, 1, 1, (4, 2, 2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FluxConfig(num_double=0), "num_double must be at least 1, got 0"),
        (lambda: FluxConfig(rotary_axes=(16, 56, 54)), "rotary_axes must be even numbers that sum"),
        (
            lambda: make_flux(SMALL, (8, 8, 4), class_spec(10)),
            r"must be text \(a TextShape\) for a FLUX network, got Spec",
        ),
        (lambda: make_flux(SMALL, (7, 8, 4), TEXT), "patch_size must divide the image size 7x8"),
        (
            lambda: make_network(DiTConfig(), (8, 8, 4), TEXT),
            "network must be a FluxConfig or MMDi",
        ),
    ],
)
def test_invalid_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("cond", "message"),
    [
        (np.zeros(2, np.int32), "cond must be a Text for a text-to-image network, got int32"),
        (Text(np.zeros((2, 4, 8)), np.zeros((2, 6))), "cond must have tokens and pooled of shapes"),
        (Text(np.zeros((2, 3, 8)), np.zeros((2, 6)), np.ones(2)), "cond.guidance must be None"),
    ],
)
def test_conditions_of_the_wrong_type_or_shape_are_refused(cond, message, unchecked):
    net = make_flux(FluxConfig(2, 2, 8, 1, 1, (4, 2, 2), None), (4, 4, 4), TextShape(3, 8, 6))
    params = jax.eval_shape(net.init, jax.random.key(0))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(net.apply, params, np.zeros(2, np.float32), np.zeros((2, 4, 4, 4)), cond)
