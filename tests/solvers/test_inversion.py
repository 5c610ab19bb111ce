"""Tests of inversion, interpolation and editing against closed forms."""

from functools import partial

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.paths import AffinePath, Cosine, Linear, edm_grid, shifted_grid, uniform_grid
from fmjax.solvers import (
    RK4,
    AdaptiveSteps,
    ErrorControl,
    Euler,
    FixedSteps,
    Heun,
    Midpoint,
    classifier_free,
    edit,
    interpolate,
    invert,
    sample,
)
from tests.oracles import GaussianMixture
from tests.solvers.table import GAUSSIAN, CountedField, exact_x1, noise

MIXTURE = GaussianMixture(Cosine())
TIGHT = AdaptiveSteps(1e-6, 1e-6)
KEYS = jax.random.split(jax.random.key(3), 6)


def test_invert_matches_the_inverse_flow_map():
    x0 = noise()
    result = jax.jit(partial(invert, GAUSSIAN.velocity, steps=TIGHT))(exact_x1(x0))
    np.testing.assert_allclose(result.x0, x0, rtol=0, atol=2e-5)
    assert result.succeeded.all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("solver", "steps", "tolerance"),
    [
        (Heun(), FixedSteps(uniform_grid(64)), 2e-2),
        (RK4(), FixedSteps(shifted_grid(64, 2.0)), 1e-4),
        (diffrax.Tsit5(), TIGHT, 1e-4),
        (diffrax.Dopri5(), AdaptiveSteps(1e-6, 1e-6, ErrorControl.PER_SAMPLE, slots=2), 1e-4),
    ],
    ids=["heun", "rk4", "tsit5", "dopri5-slots"],
)
def test_sampling_from_inverted_data_recovers_the_data(solver, steps, tolerance):
    x1 = jnp.concatenate([jnp.asarray(MIXTURE.means), jnp.asarray(MIXTURE.means) + 0.25])

    @jax.jit
    def round_trip(x1):
        inverted = invert(MIXTURE.velocity, x1, solver=solver, steps=steps)
        return inverted, sample(MIXTURE.velocity, inverted.x0, solver=solver, steps=steps)

    inverted, recovered = round_trip(x1)
    assert inverted.succeeded.all()
    assert recovered.succeeded.all()
    np.testing.assert_allclose(recovered.x1, x1, rtol=0, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("padding", [0, 3])
def test_grid_is_traversed_backwards(padding):
    """Each backward Midpoint step evaluates the field at its start and at its middle."""
    times = jnp.concatenate([edm_grid(4), jnp.ones(padding)])
    evaluated_times = []

    def field(t, x, cond=None):
        jax.debug.callback(lambda t: evaluated_times.append(float(t)), t[0])
        return 0.0 * x

    def run(times):
        return invert(field, jnp.ones((2, 3)), solver=Midpoint(), steps=FixedSteps(times)).nfe

    nfe = (jax.jit(run) if padding else run)(times)
    jax.effects_barrier()
    grid = np.asarray(edm_grid(4), np.float64)[::-1]
    midpoints = (grid[:-1] + grid[1:]) / 2
    expected = np.stack([grid[:-1], midpoints], axis=1).ravel()
    # Callbacks arrive in any order. All times differ.
    np.testing.assert_allclose(sorted(evaluated_times), sorted(expected), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(nfe, 8)


def test_nfe_counts_guided_calls_twice():
    field, steps = CountedField(GAUSSIAN.velocity), FixedSteps(uniform_grid(4))
    fn = jax.jit(partial(invert, field, solver=Heun(), steps=steps))
    result, calls = field.count_calls(fn, noise())
    np.testing.assert_array_equal(result.nfe, calls)

    def scaled(t, x, cond=None):
        return x if cond is None else cond[:, None] * x

    # Euler's backward steps start at 1, 3/4, 1/2 and 1/4. Only the last one is guided.
    guided = classifier_free(scaled, 0.0, 2.0, (0.0, 0.3))
    result = invert(guided, noise(), jnp.ones(6), solver=Euler(), steps=steps)
    np.testing.assert_array_equal(result.nfe, 5)


@pytest.mark.slow
def test_nan_point_fails_without_affecting_others():
    x1 = noise().at[2, 0].set(jnp.nan)
    steps = AdaptiveSteps(1e-3, 1e-3, ErrorControl.PER_SAMPLE, max_steps=64)
    fn = jax.jit(partial(invert, GAUSSIAN.velocity, solver=diffrax.Bosh3(), steps=steps))
    actual, expected = fn(x1), fn(noise())
    np.testing.assert_array_equal(actual.succeeded, np.arange(6) != 2)
    np.testing.assert_array_equal(np.delete(actual.x0, 2, 0), np.delete(expected.x0, 2, 0))


def test_invalid_points_are_refused(unchecked):
    steps = FixedSteps(uniform_grid(2))
    integers = jnp.zeros((2, 3), jnp.uint8)
    with pytest.raises(ValueError, match="x1 must be floating point, got uint8"):
        invert(GAUSSIAN.velocity, integers, solver=RK4(), steps=steps)
    with pytest.raises(ValueError, match="x1 must be floating point, got uint8"):
        edit(GAUSSIAN.velocity, AffinePath(), integers, KEYS[:2], 0.5)
    with pytest.raises(ValueError, match=r"velocity_fn must return shape \(6, 3\), got \(6, 1\)"):
        invert(lambda t, x, cond: x[:, :1], noise(), solver=RK4(), steps=steps)


def test_arc_connects_its_ends_with_linear_norms():
    a, b = noise(4, 3, 5), 2.0 * noise(4, 3, 5, seed=1)
    arc = interpolate(a, b, 5)
    assert arc.shape == (5, 4, 3, 5)
    np.testing.assert_allclose(arc[0], a, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(arc[-1], b, rtol=1e-5, atol=1e-6)
    norms = np.linalg.norm(arc.reshape(5, 4, -1), axis=-1)
    np.testing.assert_allclose(norms, np.linspace(norms[0], norms[-1], 5), rtol=1e-5)


def test_arc_has_uniform_angles():
    a, b = jnp.array([[1.0, 0.0]]), jnp.array([[-3.0, 3.0]])
    arc = interpolate(a, b, 4)[:, 0]
    angles = np.degrees(np.arctan2(arc[:, 1], arc[:, 0]))
    np.testing.assert_allclose(angles, [0.0, 45.0, 90.0, 135.0], atol=1e-4)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([2.0], [-1.0]),
        ([1.0], [3.0]),
        ([1.0, 2.0], [2.0, 4.0]),
        ([1.0, 2.0], [-1.0, -2.0]),
        ([0.0, 0.0], [1.0, 2.0]),
        ([0.0], [0.0]),
    ],
    ids=["opposite", "along", "parallel", "half-circle", "from-zero", "both-zero"],
)
def test_interpolation_is_linear_without_a_unique_arc(a, b):
    a, b = jnp.array([a]), jnp.array([b])
    np.testing.assert_allclose(interpolate(a, b, 3)[1], (a + b) / 2, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_interpolated_noise_is_isotropic():
    """Unit vectors have mean zero and second moments I / 4.

    A component u of a uniform direction in 4 dimensions has variance 1/4. Its square has variance
    E u^4 - 1/16 = 3/24 - 1/16 = 1/16, and its product with another component 1/24. Five standard
    errors of 4,096 arcs are 5 x 0.5 / 64 and 5 x 0.25 / 64.
    """
    arc = interpolate(noise(4096, 4), noise(4096, 4, seed=1), 3)[1]
    unit = np.asarray(arc / jnp.linalg.norm(arc, axis=1, keepdims=True), np.float64)
    np.testing.assert_allclose(unit.mean(0), 0.0, atol=0.04)
    np.testing.assert_allclose(unit.T @ unit / len(unit), np.eye(4) / 4, atol=0.02)


def test_invalid_interpolation_arguments_are_refused(unchecked):
    with pytest.raises(ValueError, match=r"b must have the shape of a, \(6, 3\), got \(6, 2\)"):
        interpolate(noise(), noise(6, 2), 3)
    with pytest.raises(ValueError, match="num must be at least 2, got 1"):
        interpolate(noise(), noise(), 1)


def edit_gaussian(strength, x1, keys=KEYS, **solving):
    path = AffinePath(Cosine())
    return edit(GAUSSIAN.velocity, path, x1, keys, strength, **(solving or {"steps": TIGHT}))


@pytest.mark.slow
def test_strength_0_keeps_the_data_and_strength_1_resamples():
    x1 = exact_x1(noise())
    fn = jax.jit(edit_gaussian)  # One program for all strengths.
    unchanged, resampled = fn(0.0, x1), fn(1.0, x1)
    np.testing.assert_array_equal(unchanged.x1, x1)
    x0 = jax.vmap(lambda key: jax.random.normal(key, (3,)))(KEYS)
    np.testing.assert_allclose(resampled.x1, exact_x1(x0), rtol=0, atol=2e-5)
    assert unchanged.succeeded.all()
    assert resampled.succeeded.all()


def test_edit_follows_the_flow_from_the_noised_point():
    x1 = exact_x1(noise())
    x0 = jax.vmap(lambda key: jax.random.normal(key, (3,)))(KEYS)
    t = jnp.full(6, 0.7)
    x_t = AffinePath(Cosine())(t, x0, x1).x_t
    # The flow preserves the standard score from t = 0.7 to t = 1.
    low, high = (GAUSSIAN.flow_map(t, jnp.full((6, 3), z)) for z in (0.0, 1.0))
    expected = GAUSSIAN.mean + GAUSSIAN.std * (x_t - low) / (high - low)
    result = jax.jit(edit_gaussian)(0.3, x1)
    np.testing.assert_allclose(result.x1, expected, rtol=0, atol=2e-5)


@pytest.mark.slow
def test_edited_data_keep_the_data_distribution():
    """4,096 samples have standard errors of 0.0078 for the mean and 0.0055 for the deviation."""
    num = 4096
    x1 = exact_x1(noise(num, 2))
    keys = jax.random.split(jax.random.key(5), num)
    fn = jax.jit(partial(edit_gaussian, solver=RK4(), steps=FixedSteps(uniform_grid(8))))
    edited = np.asarray(fn(0.6, x1, keys).x1, np.float64)
    np.testing.assert_allclose(edited.mean(0), 1.0, atol=0.035)
    np.testing.assert_allclose(edited.std(0), 0.5, atol=0.025)
    # The correlation of the standard scores is alpha std / c at t = 0.4, which is
    # tan(36 deg) std / sqrt(1 + (tan(36 deg) std)^2) = 0.341, with a standard error of 0.014.
    correlation = np.corrcoef(edited[:, 0], np.asarray(x1)[:, 0])[0, 1]
    np.testing.assert_allclose(correlation, 0.341, atol=0.07)


@pytest.mark.slow
def test_invert_and_edit_are_the_same_on_eight_devices():
    x1, keys = exact_x1(noise(8, 2)), jax.random.split(jax.random.key(1), 8)
    steps = FixedSteps(uniform_grid(4))

    def invert_and_edit(x1, keys):
        inverted = invert(GAUSSIAN.velocity, x1, solver=RK4(), steps=steps)
        return inverted.x0, edit(
            GAUSSIAN.velocity, AffinePath(Linear()), x1, keys, 0.5, solver=RK4(), steps=steps
        ).x1

    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    batch_sharding = jax.NamedSharding(mesh, jax.P("data"))
    single_device = jax.jit(invert_and_edit)(x1, keys)
    sharded = jax.jit(invert_and_edit)(
        jax.device_put(x1, batch_sharding), jax.device_put(keys, batch_sharding)
    )
    for expected, actual in zip(single_device, sharded, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_strength_outside_0_to_1_is_refused(strength):
    with pytest.raises(ValueError, match=r"strength must lie in \[0.0, 1.0\], got"):
        edit_gaussian(strength, noise())


@pytest.mark.parametrize("keys", [KEYS[:3], jnp.zeros(6, jnp.uint32)], ids=["few", "raw"])
def test_invalid_keys_are_refused(keys):
    with pytest.raises(ValueError, match=r"keys must be typed keys of shape \(6,\), one per"):
        edit_gaussian(0.5, noise(), keys)
