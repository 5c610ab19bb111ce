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


def data(oracle, x0):
    """Points that the oracle's density is not negligible at."""
    return oracle.mean + oracle.std * x0 if oracle is GAUSSIAN else x0


def exact(oracle, x1):
    return oracle.log_density(jnp.ones(x1.shape[:1], x1.dtype), x1)


@pytest.mark.parametrize("oracle", [GAUSSIAN, MIXTURE], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("precise", [False, True], ids=["float32", "float64"])
def test_it_is_the_closed_form_to_one_part_in_ten_thousand(oracle, precise):
    with jax.enable_x64(precise):
        x1 = data(oracle, noise(6, 2))
        found = jax.jit(partial(log_density, oracle.velocity, steps=TIGHT))(x1)
        assert found.log_density.dtype == x1.dtype
        np.testing.assert_allclose(found.log_density, exact(oracle, x1), rtol=0, atol=1e-4)
        assert found.succeeded.all()
        if oracle is GAUSSIAN:
            np.testing.assert_allclose(found.x0, noise(6, 2), rtol=0, atol=1e-4)


EVERY_CONTROL = (
    (RK4(), FixedSteps(uniform_grid(128))),
    (None, AdaptiveSteps(1e-6, 1e-6, ErrorControl.PER_SAMPLE)),
    (None, AdaptiveSteps(1e-6, 1e-6, ErrorControl.PER_SAMPLE, slots=2)),
)


@pytest.mark.slow
@pytest.mark.parametrize(("solver", "steps"), EVERY_CONTROL, ids=["fixed", "each", "slots"])
def test_any_control_of_the_steps_will_do(solver, steps):
    x1 = noise(6, 2)
    kwargs = {} if solver is None else {"solver": solver}
    keys = jax.random.split(jax.random.key(0), 6)
    # Keys travel with their examples.
    divergence = Hutchinson(num_probes=2)
    fn = partial(log_density, MIXTURE.velocity, divergence=divergence, steps=steps, **kwargs)
    found = jax.jit(lambda x1, keys: fn(x1, keys=keys))(x1, keys)
    tight = partial(log_density, MIXTURE.velocity, divergence=divergence, steps=TIGHT)
    wanted = jax.jit(lambda x1, keys: tight(x1, keys=keys))(x1, keys)
    np.testing.assert_allclose(found.log_density, wanted.log_density, rtol=0, atol=2e-4)


def test_where_the_jacobian_is_diagonal_one_rademacher_probe_is_exact():
    x1 = data(GAUSSIAN, noise(6, 3))
    keys = jax.random.split(jax.random.key(0), 6)
    divergence = Hutchinson(num_probes=3)
    fn = partial(log_density, GAUSSIAN.velocity, divergence=divergence, steps=TIGHT)
    found = jax.jit(lambda x1: fn(x1, keys=keys))(x1)
    np.testing.assert_allclose(found.log_density, exact(GAUSSIAN, x1), rtol=0, atol=1e-4)


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
    found = np.asarray(jax.jit(lambda x1: fn(x1, keys=keys))(x1).log_density, np.float64)
    # Of 1,024 independent draws: four standard errors.
    error, allowed = found.mean() - float(exact(MIXTURE, x1)[0]), 4 * found.std() / num**0.5
    assert 0.001 < allowed < 0.2
    assert abs(error) < allowed


@pytest.mark.slow
@pytest.mark.parametrize(
    "divergence",
    [ExactDivergence(), pytest.param(Hutchinson(), marks=pytest.mark.slow)],
    ids=["exact", "probes"],
)
def test_its_gradients_are_the_score_and_that_of_the_parameters(divergence):
    x1 = data(GAUSSIAN, noise(4, 3))
    keys = jax.random.split(jax.random.key(0), 4)

    def total(x1, mean):
        oracle = dataclasses.replace(GAUSSIAN, mean=mean)
        found = log_density(oracle.velocity, x1, divergence=divergence, keys=keys, steps=TIGHT)
        return jnp.sum(found.log_density)

    for_x1, for_mean = jax.jit(jax.grad(total, (0, 1)))(x1, GAUSSIAN.mean)
    score = -(x1 - GAUSSIAN.mean) / GAUSSIAN.std**2
    np.testing.assert_allclose(for_x1, score, rtol=0, atol=1e-3)
    # The density knows x1 - mean alone. A sum of 12 numbers that agree to 1e-3.
    np.testing.assert_allclose(for_mean, -jnp.sum(score), rtol=0, atol=5e-3)


@pytest.mark.slow
def test_the_width_of_the_source_counts():
    # Noise of three times the width, carried nowhere.
    x1 = noise(4, 3)
    found = log_density(lambda t, x, cond: 0.0 * x, x1, source_scale=3.0)
    wide = jax.scipy.stats.norm.logpdf(x1, scale=3.0).sum(axis=1)
    np.testing.assert_allclose(found.log_density, wide, rtol=1e-6)


@pytest.mark.slow
def test_a_call_and_each_derivative_of_it_count_one():
    def scaled(t, x, cond=None):
        return x if cond is None else cond[:, None] * x

    guided = classifier_free(scaled, 0.0, 2.0, (0.0, 0.3))
    steps, x1, cond = FixedSteps(uniform_grid(4)), noise(8, 5), jnp.ones(8)
    fn = partial(log_density, solver=RK4(), steps=steps)
    plain = jax.jit(lambda x1, cond: fn(scaled, x1, cond).nfe)(x1, cond)
    np.testing.assert_array_equal(plain, 8 * [4 * 4 * (1 + 5)])
    # Of the 16 calls, those at t = 0, 1/8 twice, 1/4 from both sides are guided.
    found = jax.jit(lambda x1, cond: fn(guided, x1, cond).nfe)(x1, cond)
    np.testing.assert_array_equal(found, 8 * [(16 + 5) * (1 + 5)])


@pytest.mark.slow
def test_an_example_that_fails_spoils_no_other():
    x1 = noise(6, 2).at[2].set(jnp.nan)
    steps = AdaptiveSteps(1e-6, 1e-6, ErrorControl.PER_SAMPLE)
    found = jax.jit(partial(log_density, MIXTURE.velocity, steps=steps))(x1)
    np.testing.assert_array_equal(found.succeeded, np.arange(6) != 2)
    right = np.asarray(found.log_density)[[0, 1, 3, 4, 5]]
    wanted = np.asarray(exact(MIXTURE, noise(6, 2)))[[0, 1, 3, 4, 5]]
    np.testing.assert_allclose(right, wanted, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_a_batch_over_eight_devices_has_the_density_of_one_device():
    x1, fn = noise(8, 2), partial(log_density, MIXTURE.velocity, steps=TIGHT)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    found = jax.jit(fn)(jax.device_put(x1, rows))
    assert found.log_density.sharding.is_equivalent_to(rows, 1)
    np.testing.assert_allclose(found.log_density, jax.jit(fn)(x1).log_density, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("gradient", [False, True], ids=["value", "gradient"])
def test_memory_grows_as_the_points_do_and_not_as_a_jacobian(gradient):
    def temporaries(num_dims):
        def total(x1):
            def velocity(t, x, cond):
                return jnp.sin(x) * jnp.mean(x, axis=-1, keepdims=True) + t[:, None]

            steps = FixedSteps(uniform_grid(4))
            return jnp.sum(log_density(velocity, x1, solver=RK4(), steps=steps).log_density)

        fn = jax.jit(jax.grad(total) if gradient else total)
        compiled = fn.lower(jax.ShapeDtypeStruct((8, num_dims), jnp.float32)).compile()
        memory: Any = compiled.memory_analysis()
        return memory.temp_size_in_bytes

    # A Jacobian would take 16 times as much, and 8 MB of it.
    assert temporaries(512) < 6 * temporaries(128)
    assert temporaries(512) < (128 if gradient else 16) * 8 * 512 * 4


def test_bits_per_dim_of_evenly_likely_bytes_are_eight():
    width = 2 / 255
    log_p = jnp.full((3,), 10 * -np.log(256 * width))
    np.testing.assert_allclose(bits_per_dim(log_p, 10, width), 8.0, rtol=1e-6)


def test_dequantising_spreads_each_number_over_its_own_bin():
    keys, x1 = jax.random.split(jax.random.key(0), 2), jnp.zeros((2, 10_000))
    moved = np.asarray(dequantize(keys, x1, 0.5))
    assert np.all(np.abs(moved) <= 0.25)
    # The deviation of 20,000 even draws is known to 0.5 * 0.289 * sqrt(0.8 / 4 / 20,000) = 0.0005.
    np.testing.assert_allclose(moved.std(), 0.5 / 12**0.5, atol=0.002)
    np.testing.assert_array_equal(moved[1], dequantize(keys[1:], x1[1:], 0.5)[0])
    assert np.any(moved[0] != moved[1])


def test_refusals(unchecked):
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
