"""Tests of learning rates, AdamW, Muon and the averaged weights."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fmjax.training.ema import ema_decay_at, update_ema
from fmjax.training.optimizer import OptimizerConfig, learning_rate_at, make_optimizer, matrix_axes


def updates_of(config, params, grads, num_steps=1):
    optimizer = make_optimizer(config, 10)
    state = optimizer.init(params)
    for _ in range(num_steps):
        updates, state = optimizer.update(grads, state, params)
    return updates


def test_constant_learning_rate_follows_the_warm_up():
    config = OptimizerConfig(learning_rate=2.0, warmup_steps=4)
    rates = [float(learning_rate_at(config, 10, n)) for n in range(10)]
    assert rates == [0.5, 1.0, 1.5] + [2.0] * 7


def test_cosine_schedule_decays_to_zero_after_the_warm_up():
    config = OptimizerConfig(learning_rate=2.0, schedule="cosine", warmup_steps=2)
    rates = [float(learning_rate_at(config, 10, n)) for n in range(11)]
    expected = [1.0] + [2.0] + [1 + np.cos(np.pi * (n - 2) / 8) for n in range(2, 11)]
    np.testing.assert_allclose(rates, expected, atol=1e-6)


def test_linear_schedule_decays_to_zero():
    config = OptimizerConfig(learning_rate=2.0, schedule="linear", warmup_steps=2)
    rates = [float(learning_rate_at(config, 6, n)) for n in range(7)]
    np.testing.assert_allclose(rates, [1.0, 2.0, 2.0, 1.5, 1.0, 0.5, 0.0], atol=1e-6)


@pytest.mark.slow
def test_optimizer_uses_the_learning_rate_of_each_step():
    params = {"kernel": jnp.ones((2, 2))}
    config = OptimizerConfig(learning_rate=1e-2, warmup_steps=4, clip_norm=None)
    for n in range(1, 4):
        updates = updates_of(config, params, params, num_steps=n)
        # With equal gradients AdamW's update is the rate, up to eps and rounding.
        np.testing.assert_allclose(updates["kernel"], -1e-2 * n / 4, rtol=1e-4)


def test_gradients_are_clipped_to_the_global_norm():
    params = {"a": jnp.zeros(3), "b": jnp.zeros(1)}
    grads = {"a": jnp.zeros(3), "b": jnp.array([1e3])}
    optimizer = make_optimizer(OptimizerConfig(clip_norm=0.5), 10)
    _, state = optimizer.update(grads, optimizer.init(params), params)
    # The first moment after one step is (1 - b1) times the clipped gradient.
    np.testing.assert_allclose(optax.tree.get(state, "mu")["b"], 0.1 * 0.5, rtol=1e-6)


def test_adamw_decays_weights_by_the_rate():
    params = {"kernel": jnp.full((2, 2), 3.0)}
    zero_grads = jax.tree.map(jnp.zeros_like, params)
    updates = updates_of(OptimizerConfig(learning_rate=0.1, weight_decay=0.5), params, zero_grads)
    np.testing.assert_allclose(updates["kernel"], -0.1 * 0.5 * 3.0, rtol=1e-6)


MUON = OptimizerConfig(name="muon", learning_rate=0.1, clip_norm=None)


def test_muon_orthogonalizes_each_layer_with_the_rms_of_adamw():
    """The RMS is 0.2, and Newton-Schulz gives singular values in [0.7, 1.2]."""
    shape = (3, 16, 8)
    params = {"kernel": jnp.zeros(shape), "bias": jnp.zeros((3, 8))}
    grads = {
        "kernel": jax.random.normal(jax.random.key(0), shape),
        "bias": jnp.full((3, 8), 7.0),
    }
    updates = updates_of(MUON, params, grads)
    scale = 0.1 * 0.2 * np.sqrt(16)
    for update in updates["kernel"]:
        values = np.linalg.svd(update, compute_uv=False) / scale
        assert values.min() > 0.6
        assert values.max() < 1.3
    # Stacked biases are no matrix. They take AdamW's first step with Nesterov momentum, which is
    # (b1 (1 - b1) / (1 - b1^2) + 1) times the rate.
    expected = -0.1 * (0.9 * 0.1 / (1 - 0.9**2) + 1)
    np.testing.assert_allclose(updates["bias"], expected, rtol=1e-5)


def test_muon_treats_layers_separately():
    grad = jax.random.normal(jax.random.key(1), (2, 8, 8))
    stacked = updates_of(MUON, {"kernel": jnp.zeros((2, 8, 8))}, {"kernel": grad})["kernel"]
    for layer in range(2):
        single = updates_of(MUON, {"kernel": jnp.zeros((8, 8))}, {"kernel": grad[layer]})["kernel"]
        np.testing.assert_allclose(stacked[layer], single, rtol=1e-4, atol=1e-6)


def test_only_kernels_have_matrix_axes():
    shapes = {
        "dense": {"kernel": (4, 4), "bias": (4,)},
        "stack": {"kernel": (2, 4, 4), "bias": (2, 4), "scale": (2, 4)},
        "conv": {"kernel": (3, 3, 4, 4)},
        "embed": {"embedding": (11, 4)},
    }
    params = jax.tree.map(jnp.zeros, shapes, is_leaf=lambda x: isinstance(x, tuple))
    axes = matrix_axes(params)
    assert axes["dense"]["kernel"] == ((0,), (1,))
    assert axes["stack"]["kernel"] == ((1,), (2,))
    assert axes["conv"]["kernel"] == ((0, 1, 2), (3,))
    assert axes["dense"]["bias"] is None
    assert axes["stack"]["bias"] is None
    assert axes["stack"]["scale"] is None
    assert axes["embed"]["embedding"] is None


def test_muon_without_a_matrix_is_rejected():
    with pytest.raises(ValueError, match="params must contain a matrix named kernel"):
        make_optimizer(MUON, 10).init({"theta": jnp.zeros((4, 4))})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "adam"}, "optimizer.name must be one of adamw, muon, got 'adam' .*'adamw'"),
        ({"schedule": "cosin"}, "optimizer.schedule must be one of .*did you mean 'cosine'"),
        ({"learning_rate": 0.0}, "optimizer.learning_rate must be positive, got 0.0"),
        ({"warmup_steps": -1}, "optimizer.warmup_steps must be at least 0, got -1"),
        ({"weight_decay": -0.1}, "optimizer.weight_decay must be at least 0, got -0.1"),
        ({"b2": 1.0}, "optimizer.b2 must lie in \\[0, 1\\), got 1.0"),
        ({"clip_norm": 0.0}, "optimizer.clip_norm must be positive, got 0.0"),
    ],
)
def test_out_of_range_settings_are_rejected(change, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**change)


def test_warm_up_longer_than_the_run_is_rejected():
    with pytest.raises(ValueError, match="optimizer.warmup_steps must lie in \\[0, 5\\], got 6"):
        make_optimizer(OptimizerConfig(warmup_steps=6), 5)
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        make_optimizer(OptimizerConfig(), 0)


def test_ema_decay_increases_to_its_maximum():
    assert float(ema_decay_at(0, 0.999)) == pytest.approx(0.1)
    assert float(ema_decay_at(90, 0.999)) == pytest.approx(0.91)
    assert float(ema_decay_at(10**6, 0.999)) == pytest.approx(0.999)
    assert float(ema_decay_at(90, 0.5)) == 0.5


def test_ema_matches_its_recursion():
    values = np.random.default_rng(0).normal(size=20)
    average, expected = {"w": jnp.zeros(1)}, 0.0
    for n, value in enumerate(values):
        average = update_ema(average, {"w": jnp.full(1, value)}, n, 0.9)
        decay = min(0.9, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value
    np.testing.assert_allclose(average["w"], expected, rtol=1e-6)


@pytest.mark.slow
def test_ema_of_bfloat16_weights_is_float32():
    average = {"w": jnp.ones(1, jnp.float32)}
    average = update_ema(average, {"w": jnp.full(1, 2, jnp.bfloat16)}, 10**6, 0.9999)
    assert average["w"].dtype == jnp.float32
    np.testing.assert_allclose(average["w"], 1.0001, rtol=1e-6)
