"""CLIP and T5: transformers' states with the same weights, published sizes, refusals."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from fmjax.networks import (
    CLIP_G,
    CLIP_L,
    T5_XXL,
    CLIPTextConfig,
    T5Config,
    make_clip_text,
    make_t5_encoder,
)
from fmjax.networks.text_encoders.t5 import distance_buckets
from fmjax.sharding import MeshConfig, make_mesh
from fmjax.sharding.mesh import batch_sharding, state_sharding
from tests.networks.text_encoders.golden_encoders import (
    CLIPS,
    ENCODERS,
    T5S,
    encoder,
    expected,
    read,
    weights,
)

CLOSE = 1e-5  # Of the largest state: both compute in float32.


def states(folder):
    """What the encoder of a folder gives for the tokens that transformers was given."""
    net, layouts = encoder(folder)
    return jax.jit(net.apply)(read(layouts, weights(folder)), expected(folder)["tokens"])


def require_close(got, want):
    assert got.shape == want.shape
    assert got.dtype == jnp.float32
    scale = np.abs(want).max()
    np.testing.assert_allclose(got / scale, want / scale, atol=CLOSE)


@pytest.mark.parametrize("folder", CLIPS)
def test_clip_states_are_those_of_transformers_with_the_same_weights(folder):
    out, want = states(folder), expected(folder)
    require_close(out.hidden, want["hidden"])
    require_close(out.last, want["last"])
    require_close(out.pooled, want["pooled"])


@pytest.mark.parametrize("folder", T5S)
def test_t5_states_are_those_of_transformers_with_the_same_weights(folder):
    require_close(states(folder), expected(folder)["last"])


def test_kinds_of_distance_are_those_of_transformers():
    tables = np.load(ENCODERS / "buckets.npz")
    for name in tables.files:  # By offsets from -700 to 700.
        num_buckets, max_distance = (int(number) for number in name.split("_"))
        kinds = distance_buckets(701, num_buckets, max_distance)
        np.testing.assert_array_equal(kinds[-1], tables[name][:701])
        np.testing.assert_array_equal(kinds[0], tables[name][700:])


def test_a_token_of_clip_does_not_see_those_after_it():
    config = CLIPTextConfig(20, 8, 8, 2, 2, 16, projection=4, end_token=19)
    net = make_clip_text(config)
    params, tokens = net.init(jax.random.key(0)), np.array([[1, 2, 19, 3, 4]], np.int32)
    changed = np.array([[1, 2, 19, 7, 4]], np.int32)
    apply = jax.jit(net.apply)
    one, other = apply(params, tokens), apply(params, changed)
    np.testing.assert_array_equal(one.last[:, :3], other.last[:, :3])
    np.testing.assert_array_equal(one.pooled, other.pooled)
    assert np.abs(one.last[:, 3:] - other.last[:, 3:]).max(axis=(0, 2)).min() > 1e-3


@pytest.mark.parametrize("folder", ["sd3-pipeline-tiny/text_encoder", T5S[0]])
def test_bfloat16_states_are_near_those_of_float32_and_float32_themselves(folder):
    net, layouts = encoder(folder, dtype="bfloat16")
    out = jax.jit(net.apply)(read(layouts, weights(folder)), expected(folder)["tokens"])
    for got, want in zip(jax.tree.leaves(out), jax.tree.leaves(states(folder)), strict=True):
        assert got.dtype == jnp.float32
        # A number of bfloat16 has 8 bits: errors of 2^-8 a product, some of them in a row.
        assert np.abs(got - want).max() < 0.05 * np.abs(want).max()


@pytest.mark.parametrize("folder", ["sd3-pipeline-tiny/text_encoder_2", T5S[0]])
def test_eight_devices_give_what_one_gives(folder):
    net, layouts = encoder(folder)
    params, tokens = read(layouts, weights(folder)), np.tile(expected(folder)["tokens"], (2, 1))
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        places = state_sharding(params, mesh, net.tensor_axes)
        where = jax.device_put(params, places), jax.device_put(tokens, batch_sharding(mesh))
        out = jax.jit(net.apply)(*where)
    assert places["blocks"]["mlp_in"]["kernel"].spec == P(None, None, ("tensor", "fsdp"))
    for got, want in zip(jax.tree.leaves(out), jax.tree.leaves(states(folder)), strict=True):
        require_close(np.asarray(got), np.tile(want, (2,) + (1,) * (want.ndim - 1)))


@pytest.mark.parametrize(
    ("net", "size"),
    [
        (make_clip_text(CLIP_L), 123_060_480),
        (make_clip_text(dataclasses.replace(CLIP_L, projection=768)), 123_650_304),
        (make_clip_text(CLIP_G), 694_659_840),
        (make_t5_encoder(T5_XXL), 4_762_310_656),
    ],
    ids=["CLIP-L", "CLIP-L projected", "CLIP-G", "T5-XXL"],
)
def test_presets_have_the_released_models_numbers_of_parameters(net, size):
    shapes = jax.eval_shape(net.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == size


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CLIPTextConfig(num_heads=7), "num_heads must divide the width 768, got 7"),
        (lambda: CLIPTextConfig(num_layers=0), "num_layers must be at least 1, got 0"),
        (lambda: CLIPTextConfig(projection=0), "projection must be at least 1, got 0"),
        (lambda: CLIPTextConfig(activation="quick_gel"), "did you mean 'quick_gelu'"),
        (lambda: T5Config(num_buckets=7), "num_buckets must be an even number of at least 4"),
        (lambda: T5Config(max_distance=8), "max_distance must be at least 9, got 8"),
        (lambda: T5Config(dtype="float16"), "dtype must be one of float32, bfloat16"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_more_tokens_than_clip_has_places_for_are_refused():
    net = make_clip_text(CLIPTextConfig(20, 8, 8, 1, 2, 16))
    params = jax.eval_shape(net.init, jax.random.key(0))
    with pytest.raises(ValueError, match="number of tokens must be at most max_tokens = 8, got 9"):
        jax.eval_shape(net.apply, params, jax.ShapeDtypeStruct((1, 9), jnp.int32))
