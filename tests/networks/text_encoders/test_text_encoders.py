"""Tests of CLIP and T5: states of transformers, parameter counts, argument checks."""

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
    golden_outputs,
    read_params,
    weights,
)

RELATIVE_TOLERANCE = 1e-5  # relative to the largest state; both libraries compute in float32


def compute_states(folder):
    """Return the encoder's states for the golden tokens."""
    net, layouts = encoder(folder)
    params = read_params(layouts, weights(folder))
    return jax.jit(net.apply)(params, golden_outputs(folder)["tokens"])


def assert_close(actual, expected):
    assert actual.shape == expected.shape
    assert actual.dtype == jnp.float32
    scale = np.abs(expected).max()
    np.testing.assert_allclose(actual / scale, expected / scale, atol=RELATIVE_TOLERANCE)


@pytest.mark.parametrize("folder", CLIPS)
def test_clip_states_match_transformers(folder):
    out, expected = compute_states(folder), golden_outputs(folder)
    assert_close(out.hidden, expected["hidden"])
    assert_close(out.last, expected["last"])
    assert_close(out.pooled, expected["pooled"])


@pytest.mark.parametrize("folder", T5S)
def test_t5_states_match_transformers(folder):
    assert_close(compute_states(folder), golden_outputs(folder)["last"])


def test_distance_buckets_match_transformers():
    tables = np.load(ENCODERS / "buckets.npz")
    for name in tables.files:  # one bucket for each offset from -700 to 700
        num_buckets, max_distance = (int(value) for value in name.split("_"))
        buckets = distance_buckets(701, num_buckets, max_distance)
        np.testing.assert_array_equal(buckets[-1], tables[name][:701])
        np.testing.assert_array_equal(buckets[0], tables[name][700:])


def test_clip_tokens_attend_only_to_earlier_tokens():
    config = CLIPTextConfig(20, 8, 8, 2, 2, 16, projection=4, end_token=19)
    net = make_clip_text(config)
    params, tokens = net.init(jax.random.key(0)), np.array([[1, 2, 19, 3, 4]], np.int32)
    changed = np.array([[1, 2, 19, 7, 4]], np.int32)
    apply = jax.jit(net.apply)
    out, changed_out = apply(params, tokens), apply(params, changed)
    np.testing.assert_array_equal(out.last[:, :3], changed_out.last[:, :3])
    np.testing.assert_array_equal(out.pooled, changed_out.pooled)
    assert np.abs(out.last[:, 3:] - changed_out.last[:, 3:]).max(axis=(0, 2)).min() > 1e-3


@pytest.mark.parametrize("folder", ["sd3-pipeline-tiny/text_encoder", T5S[0]])
def test_bfloat16_states_are_float32_and_close_to_float32(folder):
    net, layouts = encoder(folder, dtype="bfloat16")
    params = read_params(layouts, weights(folder))
    out = jax.jit(net.apply)(params, golden_outputs(folder)["tokens"])
    for actual, expected in zip(
        jax.tree.leaves(out), jax.tree.leaves(compute_states(folder)), strict=True
    ):
        assert actual.dtype == jnp.float32
        # bfloat16 has 8 bits of precision: each product has an error of 2^-8, and errors add up.
        assert np.abs(actual - expected).max() < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize("folder", ["sd3-pipeline-tiny/text_encoder_2", T5S[0]])
def test_eight_devices_match_one_device(folder):
    net, layouts = encoder(folder)
    params = read_params(layouts, weights(folder))
    tokens = np.tile(golden_outputs(folder)["tokens"], (2, 1))
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        shardings = state_sharding(params, mesh, net.tensor_axes)
        inputs = jax.device_put(params, shardings), jax.device_put(tokens, batch_sharding(mesh))
        out = jax.jit(net.apply)(*inputs)
    assert shardings["blocks"]["mlp_in"]["kernel"].spec == P(None, None, ("tensor", "fsdp"))
    for actual, expected in zip(
        jax.tree.leaves(out), jax.tree.leaves(compute_states(folder)), strict=True
    ):
        assert_close(np.asarray(actual), np.tile(expected, (2,) + (1,) * (expected.ndim - 1)))


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
def test_presets_have_the_released_numbers_of_parameters(net, size):
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
def test_invalid_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_too_many_tokens_for_clip_are_refused():
    net = make_clip_text(CLIPTextConfig(20, 8, 8, 1, 2, 16))
    params = jax.eval_shape(net.init, jax.random.key(0))
    with pytest.raises(ValueError, match="number of tokens must be at most max_tokens = 8, got 9"):
        jax.eval_shape(net.apply, params, jax.ShapeDtypeStruct((1, 9), jnp.int32))
