"""Tests of attention against numpy, and of the kernels against the XLA implementation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from fmjax.networks.layers import attention as module
from fmjax.networks.layers.attention import attention
from fmjax.sharding import MeshConfig, make_mesh


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def qkv(batch, heads, queries, keys, dim):
    shapes = ((batch, heads, n, dim) for n in (queries, keys, keys))
    return tuple(jnp.asarray(normal(seed, *shape)) for seed, shape in enumerate(shapes))


def test_attention_is_the_softmax_of_scaled_products_times_values():
    q, k, v = normal(0, 2, 3, 5, 4), normal(1, 2, 3, 7, 4), normal(2, 2, 3, 7, 4)
    out = np.asarray(jax.jit(attention)(q, k, v))
    for batch, head, query in np.ndindex(2, 3, 5):
        weights = np.exp(k[batch, head] @ q[batch, head, query] / np.sqrt(4.0))
        expected = (weights / weights.sum()) @ v[batch, head]
        np.testing.assert_allclose(out[batch, head, query], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("heads", [1, 3])
def test_bias_is_added_to_logits_and_minus_infinity_masks_keys(heads):
    q, k, v = qkv(2, 3, 5, 7, 4)
    bias = normal(3, heads, 5, 7)
    bias[:, 1, 2:] = -np.inf
    out = np.asarray(
        jax.jit(partial(attention, implementation="auto"))(q, k, v, bias=jnp.asarray(bias))
    )
    logits = np.einsum("bhqd,bhkd->bhqk", q, k) / 2.0 + bias[None]
    expected = np.einsum("bhqk,bhkd->bhqd", np.asarray(jax.nn.softmax(logits)), v)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-6)
    grads = jax.grad(lambda q: jnp.sum(attention(q, k, v, "xla", jnp.asarray(bias))))(q)
    assert np.isfinite(grads).all()


def test_kernels_refuse_a_bias():
    q, k, v = qkv(1, 1, 128, 128, 8)
    with pytest.raises(ValueError, match="attention must be 'xla' if a bias is used, got splash"):
        attention(q, k, v, "splash", jnp.zeros((1, 128, 128)))


def test_attention_is_accurate_for_large_logits():
    q, k, v = 1e3 * normal(0, 1, 1, 3, 4), 1e3 * normal(1, 1, 1, 6, 4), normal(2, 1, 1, 6, 4)
    largest = np.argmax(q[0, 0] @ k[0, 0].T, axis=-1)
    np.testing.assert_allclose(
        np.asarray(jax.jit(attention)(q, k, v))[0, 0], v[0, 0][largest], rtol=1e-5
    )


def test_softmax_of_bfloat16_queries_is_computed_in_float32():
    q, k, v = (jnp.asarray(normal(seed, 1, 2, 4, 8), jnp.bfloat16) for seed in range(3))
    out, jaxpr = attention(q, k, v), str(jax.make_jaxpr(attention)(q, k, v))
    assert out.dtype == jnp.bfloat16
    assert any("exp" in line and "f32" in line for line in jaxpr.splitlines())
    assert not any(" exp " in line and "bf16" in line for line in jaxpr.splitlines())


@pytest.fixture
def interpreted(monkeypatch):
    """Run the TPU kernel on the CPU in interpret mode."""
    kernel = partial(module._splash_on_device, interpret=True)
    monkeypatch.setattr(module, "_splash_on_device", kernel)


def value_and_grads(implementation):
    def total(q, k, v, w):
        return jnp.sum(attention(q, k, v, implementation) * w)

    return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))


def assert_close(actual, expected):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4)


def test_splash_attention_and_gradients_match_xla(interpreted):
    args = *qkv(1, 2, 128, 256, 64), normal(9, 1, 2, 128, 64)
    assert_close(value_and_grads("splash")(*args), value_and_grads("xla")(*args))


def test_splash_attention_ignores_padding_tokens(interpreted):
    args = *qkv(1, 2, 141, 200, 64), normal(9, 1, 2, 141, 64)
    assert_close(value_and_grads("splash")(*args), value_and_grads("xla")(*args))


@pytest.mark.parametrize("heads", [4, 1])
def test_mesh_shards_attention_by_heads_or_queries(interpreted, heads):
    # One head is not divisible by the two devices along tensor, so queries are sharded instead.
    mesh = make_mesh(MeshConfig(2, 2, 2))
    args = qkv(4, heads, 256, 128, 64)
    expected = jax.jit(attention)(*args)
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))

    @jax.jit
    def splash_and_xla(q, k, v):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return attention(q, k, v, "splash"), attention(q, k, v, "xla")

    for out in splash_and_xla(*jax.device_put(args, rows)):
        np.testing.assert_allclose(out, expected, rtol=2e-4, atol=2e-4)
        axis = 1 if heads > 1 else 2
        assert out.sharding.shard_shape(out.shape)[axis] == out.shape[axis] // 2


def test_auto_uses_xla_on_cpu_and_supports_forward_mode():
    q, k, v = qkv(1, 2, 1024, 1024, 8)
    program = str(jax.make_jaxpr(lambda *a: attention(*a, "auto"))(q, k, v))
    assert "pallas" not in program
    out, tangent = jax.jvp(lambda q: attention(q, k, v, "auto"), (q,), (q,))
    np.testing.assert_allclose(jnp.sum(out), jnp.sum(attention(q, k, v)), rtol=1e-4)
    assert np.max(np.abs(tangent)) > 0


def test_gpu_program_calls_the_cudnn_kernel(monkeypatch):
    # JAX checks for cuDNN on a GPU, which the test machine may not have.
    from jax._src.cudnn import fused_attention_stablehlo as fused

    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 90800)
    monkeypatch.setattr(fused, "check_compute_capability", lambda *_: True)
    q, k, v = (a.astype(jnp.bfloat16) for a in qkv(1, 2, 64, 64, 64))
    traced = jax.jit(lambda *a: attention(*a, "cudnn")).trace(q, k, v)
    assert "__cudnn$fmhaSoftmax" in traced.lower(lowering_platforms=("cuda",)).as_text()


def test_cudnn_refuses_float32_inputs():
    with pytest.raises(
        ValueError, match="attention inputs must be bfloat16 or float16 with at most 128"
    ):
        attention(*qkv(1, 1, 8, 8, 64), "cudnn")
