"""Tests of log-densities of flows against closed forms."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.paths import Linear, uniform_grid
from fmjax.solvers import (
    RK4,
    AdaptiveSteps,
    ErrorControl,
    ExactDivergence,
    FixedSteps,
    Hutchinson,
    Probe,
    bits_per_dim,
    classifier_free,
    dequantize,
    log_density,
)
from tests.oracles import GaussianMixture
from tests.solvers.table import GAUSSIAN, noise

MIXTURE = GaussianMixture(Linear())
TIGHT = AdaptiveSteps(1e-6, 1e-6)


def typical_points(oracle, x0):
    """Points at which the density of the oracle is not negligible."""
    return oracle.mean + oracle.std * x0 if oracle is GAUSSIAN else x0


def exact_log_density(oracle, x1):
    return oracle.log_density(jnp.ones(x1.shape[:1], x1.dtype), x1)


@pytest.mark.parametrize("oracle", [GAUSSIAN, MIXTURE], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("precise", [False, True], ids=["float32", "float64"])
def test_log_density_matches_closed_form(oracle, precise):
    with jax.enable_x64(precise):
        x1 = typical_points(oracle, noise(6, 2))
        result = jax.jit(partial(log_density, oracle.velocity, steps=TIGHT))(x1)
        assert result.log_density.dtype == x1.dtype
        np.testing.assert_allclose(
            result.log_density, exact_log_density(oracle, x1), rtol=0, atol=1e-4
        )
        assert result.succeeded.all()
        if oracle is GAUSSIAN:
            np.testing.assert_allclose(result.x0, noise(6, 2), rtol=0, atol=1e-4)


SOLVERS_AND_STEPS = (
    (RK4(), FixedSteps(uniform_grid(128))),
    (None, AdaptiveSteps(1e-6, 1e-6, ErrorControl.PER_SAMPLE)),
    (None, AdaptiveSteps(1e-6, 1e-6, ErrorControl.PER_SAMPLE, slots=2)),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("solver", "steps"), SOLVERS_AND_STEPS, ids=["fixed", "per_sample", "slots"]
)
def test_log_density_does_not_depend_on_step_control(solver, steps):
    x1 = noise(6, 2)
    kwargs = {} if solver is None else {"solver": solver}
    keys = jax.random.split(jax.random.key(0), 6)
    divergence = Hutchinson(num_probes=2)  # Probes depend on the key of each example.
    fn = partial(log_density, MIXTURE.velocity, divergence=divergence, steps=steps, **kwargs)
    result = jax.jit(lambda x1, keys: fn(x1, keys=keys))(x1, keys)
    tight = partial(log_density, MIXTURE.velocity, divergence=divergence, steps=TIGHT)
    expected = jax.jit(lambda x1, keys: tight(x1, keys=keys))(x1, keys)
    np.testing.assert_allclose(result.log_density, expected.log_density, rtol=0, atol=2e-4)


def test_rademacher_probes_are_exact_for_diagonal_jacobian():
    x1 = typical_points(GAUSSIAN, noise(6, 3))
    keys = jax.random.split(jax.random.key(0), 6)
    divergence = Hutchinson(num_probes=3)
    fn = partial(log_density, GAUSSIAN.velocity, divergence=divergence, steps=TIGHT)
    result = jax.jit(lambda x1: fn(x1, keys=keys))(x1)
    np.testing.assert_allclose(
        result.log_density, exact_log_density(GAUSSIAN, x1), rtol=0, atol=1e-4
    )


@pytest.mark.slow
@pytest.mark.parametrize("probe", Probe)
def test_hutchinson_is_unbiased(probe):
    num = 1024
    x1 = jnp.broadcast_to(jnp.array([-0.6, 1.2]), (num, 2))
    keys = jax.random.split(jax.random.key(1), num)
    fn = partial(
        log_density,
        MIXTURE.velocity,
        divergence=Hutchinson(1, probe),
        solver=RK4(),
        steps=FixedSteps(uniform_grid(64)),
    )
    estimates = np.asarray(jax.jit(lambda x1: fn(x1, keys=keys))(x1).log_density, np.float64)
    error = estimates.mean() - float(exact_log_density(MIXTURE, x1)[0])
    tolerance = 4 * estimates.std() / num**0.5  # Four standard errors.
    assert 0.001 < tolerance < 0.2
    assert abs(error) < tolerance


@pytest.mark.slow
@pytest.mark.parametrize(
    "divergence",
    [ExactDivergence(), pytest.param(Hutchinson(), marks=pytest.mark.slow)],
    ids=["exact", "probes"],
)
def test_gradients_match_the_score(divergence):
    x1 = typical_points(GAUSSIAN, noise(4, 3))
    keys = jax.random.split(jax.random.key(0), 4)

    def total(x1, mean):
        oracle = dataclasses.replace(GAUSSIAN, mean=mean)
        result = log_density(oracle.velocity, x1, divergence=divergence, keys=keys, steps=TIGHT)
        return jnp.sum(result.log_density)

    grad_x1, grad_mean = jax.jit(jax.grad(total, (0, 1)))(x1, GAUSSIAN.mean)
    score = -(x1 - GAUSSIAN.mean) / GAUSSIAN.std**2
    np.testing.assert_allclose(grad_x1, score, rtol=0, atol=1e-3)
    # The density depends only on x1 - mean. The sum has 12 terms, each accurate to 1e-3.
    np.testing.assert_allclose(grad_mean, -jnp.sum(score), rtol=0, atol=5e-3)


@pytest.mark.slow
def test_source_scale_sets_the_source_width():
    x1 = noise(4, 3)
    result = log_density(lambda t, x, cond: 0.0 * x, x1, source_scale=3.0)
    expected = jax.scipy.stats.norm.logpdf(x1, scale=3.0).sum(axis=1)
    np.testing.assert_allclose(result.log_density, expected, rtol=1e-6)


@pytest.mark.slow
def test_nfe_counts_calls_and_derivatives():
    def scaled(t, x, cond=None):
        return x if cond is None else cond[:, None] * x

    guided = classifier_free(scaled, 0.0, 2.0, (0.0, 0.3))
    steps, x1, cond = FixedSteps(uniform_grid(4)), noise(8, 5), jnp.ones(8)
    fn = partial(log_density, solver=RK4(), steps=steps)
    plain_nfe = jax.jit(lambda x1, cond: fn(scaled, x1, cond).nfe)(x1, cond)
    np.testing.assert_array_equal(plain_nfe, 8 * [4 * 4 * (1 + 5)])
    # 5 of the 16 calls are guided: at t = 0, twice at 1/8, and at 1/4 in two steps.
    guided_nfe = jax.jit(lambda x1, cond: fn(guided, x1, cond).nfe)(x1, cond)
    np.testing.assert_array_equal(guided_nfe, 8 * [(16 + 5) * (1 + 5)])


@pytest.mark.slow
def test_failed_example_does_not_affect_others():
    x1 = noise(6, 2).at[2].set(jnp.nan)
    steps = AdaptiveSteps(1e-6, 1e-6, ErrorControl.PER_SAMPLE)
    result = jax.jit(partial(log_density, MIXTURE.velocity, steps=steps))(x1)
    np.testing.assert_array_equal(result.succeeded, np.arange(6) != 2)
    remaining = np.asarray(result.log_density)[[0, 1, 3, 4, 5]]
    expected = np.asarray(exact_log_density(MIXTURE, noise(6, 2)))[[0, 1, 3, 4, 5]]
    np.testing.assert_allclose(remaining, expected, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_log_density_is_the_same_on_eight_devices():
    x1, fn = noise(8, 2), partial(log_density, MIXTURE.velocity, steps=TIGHT)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    batch_sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    result = jax.jit(fn)(jax.device_put(x1, batch_sharding))
    assert result.log_density.sharding.is_equivalent_to(batch_sharding, 1)
    np.testing.assert_allclose(result.log_density, jax.jit(fn)(x1).log_density, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("gradient", [False, True], ids=["value", "gradient"])
def test_memory_grows_linearly_with_the_dimension(gradient):
    def temporary_bytes(num_dims):
        def total(x1):
            def velocity(t, x, cond):
                return jnp.sin(x) * jnp.mean(x, axis=-1, keepdims=True) + t[:, None]

            steps = FixedSteps(uniform_grid(4))
            return jnp.sum(log_density(velocity, x1, solver=RK4(), steps=steps).log_density)

        fn = jax.jit(jax.grad(total) if gradient else total)
        compiled = fn.lower(jax.ShapeDtypeStruct((8, num_dims), jnp.float32)).compile()
        memory: Any = compiled.memory_analysis()
        return memory.temp_size_in_bytes

    # A Jacobian would grow 16-fold, to 8 MB.
    assert temporary_bytes(512) < 6 * temporary_bytes(128)
    assert temporary_bytes(512) < (128 if gradient else 16) * 8 * 512 * 4


def test_bits_per_dim_of_uniform_bytes_is_eight():
    width = 2 / 255
    log_p = jnp.full((3,), 10 * -np.log(256 * width))
    np.testing.assert_allclose(bits_per_dim(log_p, 10, width), 8.0, rtol=1e-6)


def test_dequantize_adds_uniform_noise_within_the_bin():
    keys, x1 = jax.random.split(jax.random.key(0), 2), jnp.zeros((2, 10_000))
    noisy = np.asarray(dequantize(keys, x1, 0.5))
    assert np.all(np.abs(noisy) <= 0.25)
    # Standard error for 20,000 uniform samples: 0.5 * 0.289 * sqrt(0.8 / 4 / 20,000) = 0.0005.
    np.testing.assert_allclose(noisy.std(), 0.5 / 12**0.5, atol=0.002)
    np.testing.assert_array_equal(noisy[1], dequantize(keys[1:], x1[1:], 0.5)[0])
    assert np.any(noisy[0] != noisy[1])


def test_invalid_arguments_raise_value_error(unchecked):
    keys, x1 = jax.random.split(jax.random.key(0), 6), noise()
    with pytest.raises(ValueError, match="num_probes must be at least 1, got 0"):
        Hutchinson(0)
    with pytest.raises(ValueError, match="keys must be given for Hutchinson, one per example"):
        log_density(GAUSSIAN.velocity, x1, divergence=Hutchinson())
    with pytest.raises(ValueError, match="source_scale must be positive, got 0"):
        log_density(GAUSSIAN.velocity, x1, source_scale=0.0)
    with pytest.raises(ValueError, match=r"velocity_fn must return shape \(6, 3\), got \(6,\)"):
        log_density(lambda t, x, cond: t, x1)
    with pytest.raises(ValueError, match="bin_width must be positive, got 0"):
        dequantize(keys, x1, 0.0)
    with pytest.raises(ValueError, match="bin_width must be positive, got -1"):
        bits_per_dim(x1, 3, -1.0)
    with pytest.raises(ValueError, match="num_dims must be at least 1, got 0"):
        bits_per_dim(x1, 0, 1.0)
