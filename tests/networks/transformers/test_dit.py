"""Tests of DiT: parameter counts, patches, attention, scanned and unrolled layers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fmjax.networks import DIT_B, DIT_L, DIT_S, DIT_XL, DiTConfig, make_dit
from fmjax.networks.layers.patches import patchify, rotary_angles, unpatchify
from fmjax.networks.transformers.dit import SelfAttention

CONFIG = DiTConfig(patch_size=2, width=16, num_layers=3, num_heads=2)


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def num_params(config, event_shape=(32, 32, 4), num_classes=1000):
    params = jax.eval_shape(make_dit(config, event_shape, num_classes).init, jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("config", "millions"), [(DIT_S, 33), (DIT_B, 130), (DIT_L, 458), (DIT_XL, 675)]
)
def test_presets_have_the_published_number_of_parameters(config, millions):
    # Reference: Peebles and Xie 2023, table 4, for 32x32x4 latents and 1,000 classes. Their network
    # also predicts a variance; its 16 additional outputs do not change the rounded number.
    assert round(num_params(config) / 1e6) == millions


def test_patchify_is_row_major_and_unpatchify_inverts_it():
    x = np.arange(2 * 4 * 6 * 3, dtype=np.float32).reshape(2, 4, 6, 3)
    tokens = patchify(jnp.asarray(x), 2)
    assert tokens.shape == (2, 6, 12)
    np.testing.assert_array_equal(tokens[1, 4], x[1, 2:4, 2:4].reshape(-1))
    np.testing.assert_array_equal(unpatchify(tokens, 2, (4, 6, 3)), x)


@pytest.mark.parametrize("rotary", [False, True])
def test_self_attention_matches_numpy(rotary):
    positions = "rotary" if rotary else "sincos"
    config = dataclasses.replace(CONFIG, positions=positions, qk_norm=rotary)
    grid, heads, dim = (2, 3), 2, 8
    module = SelfAttention(config, grid, rngs=nnx.Rngs(0))
    if rotary:
        module.q_scale[...] = jnp.asarray(normal(1, dim))
        module.k_scale[...] = jnp.asarray(normal(2, dim))
    h = normal(0, 2, 6, 16)
    projected = h @ np.asarray(module.to_heads.kernel[...])  # biases are initialized to zero
    # The 48 columns hold q, k and v of the first head, then q, k and v of the second head.
    q, k, v = zip(*(np.split(part, 3, -1) for part in np.split(projected, heads, -1)), strict=True)
    expected = np.zeros((2, 6, 16), np.float32)
    for example, head in np.ndindex(2, heads):
        queries, keys = q[head][example], k[head][example]
        if rotary:
            queries = rotated_by_position(normalized(queries, normal(1, dim)), grid)
            keys = rotated_by_position(normalized(keys, normal(2, dim)), grid)
        weights = np.exp(queries @ keys.T / np.sqrt(dim))
        weights /= weights.sum(-1, keepdims=True)
        expected[example, :, head * dim : (head + 1) * dim] = weights @ v[head][example]
    expected = expected @ np.asarray(module.out.kernel[...])
    np.testing.assert_allclose(jax.jit(lambda h: module(h))(h), expected, rtol=1e-4, atol=1e-5)


def normalized(x, scale):
    return scale * x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-6)


def rotated_by_position(x, grid):
    angles, half = rotary_angles(*grid, dim=x.shape[-1]), x.shape[-1] // 2
    rotated = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * angles)
    return np.concatenate([rotated.real, rotated.imag], -1)


def program_size(config):
    net = make_dit(config, (4, 4, 1), 3)
    params = jax.eval_shape(net.init, jax.random.key(0))
    points = (jnp.zeros(2), jnp.zeros((2, 4, 4, 1)), jnp.zeros(2, jnp.int32))

    def loss(params):
        return net.apply(params, *points).sum()

    return len(jax.jit(jax.grad(loss)).lower(params).as_text().splitlines())


@pytest.mark.slow
def test_scanned_program_size_is_independent_of_depth():
    deep = dataclasses.replace(CONFIG, num_layers=12)
    assert program_size(deep) == program_size(CONFIG)
    unrolled = [dataclasses.replace(c, unroll_layers=True) for c in (CONFIG, deep)]
    # The factor is below 4 because the code outside the layers has a fixed size.
    assert program_size(unrolled[1]) > 1.5 * program_size(unrolled[0])


@pytest.mark.slow
def test_unrolling_and_rematerialization_keep_values_and_gradients():
    nets = [
        make_dit(dataclasses.replace(CONFIG, unroll_layers=unroll, remat=remat), (4, 4, 1), 3)
        for unroll, remat in [
            (False, "none"),
            (True, "none"),
            (False, "full"),
            (True, "full"),
            (False, "save_matmuls"),
            (False, "offload"),
        ]
    ]
    shapes = jax.eval_shape(nets[0].init, jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda s: 0.2 * rng.standard_normal(s.shape, np.float32), shapes)
    points = (jnp.array([0.2, 0.7]), jnp.asarray(normal(2, 2, 4, 4, 1)), jnp.array([0, 3]))

    @jax.jit
    def grads_and_outputs(params):
        def loss(params, net):
            out = net.apply(params, *points)
            return (out**2).sum(), out

        return [jax.grad(loss, has_aux=True)(params, net) for net in nets]

    (grads, out), *others = grads_and_outputs(params)
    for other_grads, other_out in others:
        np.testing.assert_allclose(other_out, out, rtol=1e-5, atol=1e-5)
        for actual, expected in zip(
            jax.tree.leaves(other_grads), jax.tree.leaves(grads), strict=True
        ):
            atol = 1e-5 * float(np.max(np.abs(expected)))
            np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=atol)


def test_stacked_layers_are_initialized_independently():
    params = make_dit(CONFIG, (4, 4, 1)).init(jax.random.key(0))
    kernel = params["blocks"]["attention"]["to_heads"]["kernel"]
    assert kernel.shape == (3, 16, 48)
    assert not np.array_equal(kernel[0], kernel[1])
    bound = np.sqrt(6 / (16 + 48))  # Xavier bound, which excludes the layer axis from the fan
    assert 0.9 * bound < np.abs(kernel).max() <= bound
