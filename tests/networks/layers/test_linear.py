"""Tests of basic layers against their formulas in numpy."""

import math

import jax
import numpy as np
import pytest
from flax import nnx

from fmjax.networks.layers.conditions import ConditionEmbedding
from fmjax.networks.layers.linear import layer_norm, rms_norm, timestep_features
from fmjax.networks.layers.patches import rotary_angles, rotate, sincos_positions


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def on_device(function, *arrays):
    return np.asarray(jax.jit(function)(*arrays))


def test_timestep_features_follow_their_formula():
    t = np.array([0.0, 0.25, 1.0], np.float32)
    features = on_device(lambda t: timestep_features(t, 8), t)
    for example, time in enumerate(t):
        for i in range(4):
            angle = 30.0 * time * 300.0 ** (-i / 4)
            assert features[example, i] == pytest.approx(math.cos(angle), abs=1e-5)
            assert features[example, 4 + i] == pytest.approx(math.sin(angle), abs=1e-5)


def test_layer_norm_has_zero_mean_and_unit_variance():
    x = 3.0 + 2.0 * normal(0, 5, 32)
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(on_device(layer_norm, x), expected, rtol=1e-4, atol=1e-5)


def test_layer_norm_is_exact_far_from_zero():
    # E[x^2] - E[x]^2 in float32 would have no correct digits for these inputs.
    x = 1e4 + normal(0, 5, 32)
    x64 = x.astype(np.float64)
    expected = (x64 - x64.mean(-1, keepdims=True)) / x64.std(-1, keepdims=True)
    np.testing.assert_allclose(on_device(layer_norm, x), expected, atol=5e-3)


def test_rms_norm_divides_by_the_root_mean_square():
    x, scale = normal(0, 2, 3, 5, 8), normal(1, 8)
    expected = scale * x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(on_device(rms_norm, x, scale), expected, rtol=1e-5, atol=1e-6)


def test_sincos_positions_follow_their_formula():
    height, width, dim = 3, 5, 16
    positions = sincos_positions(height, width, dim=dim)
    for row, column, i in np.ndindex(height, width, dim // 4):
        token, frequency = row * width + column, 10000.0 ** (-i / (dim // 4))
        actual = positions[token].reshape(4, dim // 4)[:, i]
        expected = [f(x * frequency) for x in (row, column) for f in (math.sin, math.cos)]
        np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_rotary_products_depend_on_relative_positions_only():
    height, width, dim = 4, 5, 8
    q, k = (np.tile(normal(seed, dim), (1, 1, height * width, 1)) for seed in (0, 1))
    angles = rotary_angles(height, width, dim=dim)
    q, k = (on_device(lambda x: rotate(x, angles), x)[0, 0] for x in (q, k))
    products = (q @ k.T).reshape(height, width, height, width)
    products_by_offset = {}
    for r1, c1, r2, c2 in np.ndindex(products.shape):
        products_by_offset.setdefault((r1 - r2, c1 - c2), []).append(products[r1, c1, r2, c2])
    for equal_products in products_by_offset.values():
        np.testing.assert_allclose(equal_products, equal_products[0], rtol=1e-4, atol=1e-5)
    # The products depend on rows, columns and the sign of the difference.
    distinct = {
        round(float(equal_products[0]), 3) for equal_products in products_by_offset.values()
    }
    assert len(distinct) > 0.9 * len(products_by_offset)


def test_rotate_rotates_channel_pairs_by_their_angles():
    height, width, dim = 2, 3, 8
    x, angles = normal(0, 1, 1, height * width, dim), rotary_angles(height, width, dim=dim)
    rotated = on_device(lambda x: rotate(x, angles), x)[0, 0]
    for row, column, i in np.ndindex(height, width, dim // 2):
        coordinate = row if i < dim // 4 else column
        angle = coordinate * 10000.0 ** (-(i % (dim // 4)) / (dim // 4))
        token = row * width + column
        pair = complex(x[0, 0, token, i], x[0, 0, token, i + dim // 2])
        expected = pair * complex(math.cos(angle), math.sin(angle))
        actual = complex(rotated[token, i], rotated[token, i + dim // 2])
        assert actual == pytest.approx(expected, abs=1e-5)


def test_condition_embedding_adds_time_and_class_embeddings():
    embed = ConditionEmbedding(6, 3, rngs=nnx.Rngs(0))
    labels, table = np.array([0, 3], np.int32), np.asarray(embed.labels.embedding[...])
    assert table.shape == (4, 6)
    t = np.array([0.3, 0.9], np.float32)
    features = on_device(lambda t: timestep_features(t, 256), t)
    hidden = features @ np.asarray(embed.hidden.kernel[...])  # biases are initialized to zero
    hidden = hidden / (1.0 + np.exp(-hidden))
    expected = hidden @ np.asarray(embed.out.kernel[...]) + table[labels]
    np.testing.assert_allclose(on_device(embed, t, labels), expected, rtol=1e-3, atol=1e-5)
