"""Tests of affine paths and of conversions between predictions against their definitions."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.paths import AffinePath, Linear, Prediction, change_schedule
from tests.affine import GAUSSIAN, MIXTURE, SCHEDULES

PAIRS = list(itertools.permutations(Prediction, 2))
MIN_DIVISOR = 1e-3


@pytest.fixture(params=SCHEDULES, scope="module")
def name(request):
    return request.param


@pytest.fixture
def x64():
    with jax.enable_x64():
        yield


def random_points(num=64, dim=3):
    """Return times t, which include both ends, and random points x0 and x1."""
    rng = np.random.default_rng(0)
    t = np.concatenate([[0, 1, 1e-3, 1 - 1e-3], rng.uniform(size=num - 4)])
    return tuple(
        jnp.asarray(array)
        for array in (t, rng.normal(size=(num, dim)), rng.normal(size=(num, dim)))
    )


def true_predictions(c, x0, x1):
    """Return the four predictions by their definitions, with sigma bounded in the score."""
    alpha, alpha_rate, sigma, sigma_rate = (column[:, None] for column in c)
    return {
        Prediction.VELOCITY: alpha_rate * x1 + sigma_rate * x0,
        Prediction.X1: x1,
        Prediction.X0: x0,
        Prediction.SCORE: -x0 / jnp.maximum(sigma, MIN_DIVISOR),
    }


@pytest.mark.usefixtures("x64")
def test_path_point_and_velocity_match_definition(name):
    schedule, formula = SCHEDULES[name]
    t, x0, x1 = random_points()
    c = formula(t)
    x_t, u_t = AffinePath(schedule)(t, x0, x1)
    np.testing.assert_allclose(x_t, c.alpha[:, None] * x1 + c.sigma[:, None] * x0, atol=1e-12)
    expected = c.alpha_rate[:, None] * x1 + c.sigma_rate[:, None] * x0
    np.testing.assert_allclose(u_t, expected, rtol=1e-9, atol=1e-12)


def determined_times(c, from_, to):
    """Return a mask of the times at which x_t and one prediction determine another."""
    if {from_, to} == {Prediction.X0, Prediction.SCORE}:
        return np.asarray(c.sigma >= MIN_DIVISOR)
    determinant = {
        Prediction.VELOCITY: c.sigma * c.alpha_rate - c.alpha * c.sigma_rate,
        Prediction.X1: c.sigma,
        Prediction.X0: c.alpha,
        Prediction.SCORE: c.alpha,
    }[from_]
    determined = determinant >= MIN_DIVISOR
    if Prediction.SCORE in (from_, to):  # The score is -x0 / sigma.
        determined = determined & (c.sigma >= MIN_DIVISOR)
    return np.asarray(determined)


@pytest.mark.usefixtures("x64")
def test_conversions_match_definitions_and_round_trip(name):
    schedule, formula = SCHEDULES[name]
    path = AffinePath(schedule)

    @jax.jit
    def convert_all(t, x0, x1):
        x_t, _ = path(t, x0, x1)
        values = true_predictions(formula(t), x0, x1)
        converted = {(a, b): path.convert(t, x_t, values[a], from_=a, to=b) for a, b in PAIRS}
        restored = {(a, b): path.convert(t, x_t, converted[a, b], from_=b, to=a) for a, b in PAIRS}
        return converted, restored

    t, x0, x1 = random_points()
    converted, restored = convert_all(t, x0, x1)
    c = formula(t)
    values = true_predictions(c, x0, x1)
    for a, b in PAIRS:
        determined = determined_times(c, a, b)
        assert determined.sum() >= 56  # All times except those close to the ends.
        # Rounding errors of 1e-16 in values of up to 500 are divided by 1e-3 in each conversion.
        np.testing.assert_allclose(
            converted[a, b][determined], values[b][determined], rtol=1e-8, atol=1e-9
        )
        determined = determined & determined_times(c, b, a)
        np.testing.assert_allclose(
            restored[a, b][determined], values[a][determined], rtol=1e-8, atol=1e-8
        )


@pytest.mark.slow
def test_conversions_and_gradients_are_finite_at_both_ends(name):
    path = AffinePath(SCHEDULES[name][0])
    t = jnp.array([0.0, 1.0])
    x, value = jnp.array([[0.3], [-2.0]]), jnp.array([[1.0], [-0.7]])

    @jax.jit
    def convert_with_gradients(t, x, value):
        def total(t, x, value, a, b):
            converted = path.convert(t, x, value, from_=a, to=b)
            return converted.sum(), converted

        gradient = jax.grad(total, argnums=(0, 1, 2), has_aux=True)
        return [gradient(t, x, value, a, b) for a, b in PAIRS]

    for result in convert_with_gradients(t, x, value):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result))


def test_conversion_to_same_prediction_is_identity():
    t, x0, x1 = random_points()
    for prediction in Prediction:
        assert AffinePath().convert(t, x0, x1, from_=prediction, to=prediction) is x1
        point_weight, value_weight = AffinePath().conversion_weights(
            t, from_=prediction, to=prediction
        )
        assert (point_weight == 0).all()
        assert (value_weight == 1).all()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("target", [GAUSSIAN, MIXTURE], ids=["gaussian", "mixture"])
def test_velocity_fn_recovers_velocity_from_any_prediction(name, target):
    schedule, formula = SCHEDULES[name]
    path = AffinePath(schedule)
    t = jnp.linspace(0.04, 0.98, 25)  # 0.04^2 is above the minimum divisor.
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(25, 2))) * (formula(t).sigma[:, None] + 1)

    def velocities(t, x):
        # `cond` is the name of the prediction; `velocity_fn` passes it on unchanged.
        def predict(t, x, cond):
            return getattr(target.posterior(formula(t), x), cond)

        return [
            path.velocity_fn(predict, prediction)(t, x, str(prediction))
            for prediction in Prediction
        ]

    expected = target.posterior(formula(t), x).velocity
    for velocity in jax.jit(velocities)(t, x):
        np.testing.assert_allclose(velocity, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.usefixtures("x64")
def test_score_is_gradient_of_log_density(name):
    """Compare the converted score with automatic differentiation of the log density."""
    schedule, formula = SCHEDULES[name]
    t = jnp.linspace(0.02, 0.98, 9)
    x = jnp.asarray(np.random.default_rng(2).normal(size=(9, 2)))

    @jax.jit
    def scores(t, x):
        gradient = jax.grad(lambda x: MIXTURE.log_density(formula(t), x).sum())(x)
        velocity = MIXTURE.posterior(formula(t), x).velocity
        score = AffinePath(schedule).convert(
            t, x, velocity, from_=Prediction.VELOCITY, to=Prediction.SCORE
        )
        return gradient, score

    gradient, score = scores(t, x)
    np.testing.assert_allclose(score, gradient, rtol=1e-8, atol=1e-8)


def changed_and_expected(trained, target, times):
    """Return the velocity changed from schedule `trained` to `target`, and the exact one."""
    (trained, trained_formula), (target, target_formula) = SCHEDULES[trained], SCHEDULES[target]

    def velocity_fn(t, x, cond=None):
        return MIXTURE.posterior(trained_formula(t), x).velocity

    x = jnp.asarray(np.random.default_rng(3).normal(size=(len(times), 2)), times.dtype)
    with jax.disable_jit():  # Faster than the compilation of 25 programs.
        changed = change_schedule(velocity_fn, trained, target)(times, x)
        return changed, MIXTURE.posterior(target_formula(times), x).velocity


def signal_to_noise(name, t):
    """Return the signal-to-noise ratio, with sigma bounded by 1e-30."""
    c = SCHEDULES[name][1](t)
    return c.alpha / jnp.maximum(c.sigma, 1e-30)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("trained", SCHEDULES)
@pytest.mark.parametrize("target", SCHEDULES)
def test_changed_schedule_has_velocity_of_target_schedule(trained, target):
    t = jnp.linspace(0.001, 0.999, 41)
    low, high = signal_to_noise(trained, jnp.array([0.0, 1.0]))
    reached = (signal_to_noise(target, t) > low) & (signal_to_noise(target, t) < high)
    assert reached.sum() >= 20
    changed, expected = changed_and_expected(trained, target, t)
    # Bisection finds the time to 2^-40; the rates amplify this error up to 1e3 times.
    np.testing.assert_allclose(changed[reached], expected[reached], rtol=1e-6, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("trained", SCHEDULES)
@pytest.mark.parametrize("target", SCHEDULES)
def test_changed_schedule_is_accurate_at_both_ends(trained, target):
    ends = jnp.array([0.0, 1.0])
    changed, expected = changed_and_expected(trained, target, ends)
    assert np.isfinite(changed).all()
    trained_ratio, target_ratio = signal_to_noise(trained, ends), signal_to_noise(target, ends)
    # If the trained schedule does not reach the ratio at an end, the nearest ratio is used. The
    # error of the posterior means is then at most the difference of the ratios times the size of
    # the points, about 6. The rates of the target schedule amplify it.
    gap = np.maximum(
        [trained_ratio[0] - target_ratio[0], 1 / trained_ratio[1] - 1 / target_ratio[1]], 0
    )
    c = SCHEDULES[target][1](ends)
    tolerance = 2e-3 + 6 * gap * (1 + np.abs(c.alpha_rate) + np.abs(c.sigma_rate))
    size = 1 + np.abs(expected).max(axis=1)
    assert (np.abs(changed - expected) <= (tolerance * size)[:, None]).all()


def test_changed_schedule_passes_condition_through():
    changed = change_schedule(lambda t, x, cond: cond + 0 * x, Linear(), Linear())
    t, x, cond = jnp.array([0.5]), jnp.ones((1, 2)), jnp.array([[3.0, 4.0]])
    np.testing.assert_allclose(changed(t, x, cond), cond, rtol=1e-5)


@pytest.mark.usefixtures("unchecked")
def test_invalid_divisor_and_x0_shape_are_refused():
    with pytest.raises(ValueError, match="min_divisor must be at least 0.0, got -0.1"):
        AffinePath(min_divisor=-0.1)
    with pytest.raises(ValueError, match=r"x0 must have the shape of x1, \(4, 1\), got \(4,\)"):
        AffinePath()(jnp.zeros(4), jnp.zeros(4), jnp.zeros((4, 1)))
