"""Paths and conversions against their definitions, in float64 where nothing else would hide."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.paths import AffinePath, Linear, Prediction, change_schedule
from tests.affine import GAUSSIAN, MIXTURE, SCHEDULES

PAIRS = list(itertools.permutations(Prediction, 2))
FLOOR = 1e-3


@pytest.fixture(params=SCHEDULES, scope="module")
def name(request):
    return request.param


@pytest.fixture
def x64():
    with jax.enable_x64():
        yield


def points(num=64, dim=3):
    """(t, x0, x1): both ends of time and times between, random points."""
    rng = np.random.default_rng(0)
    t = np.concatenate([[0, 1, 1e-3, 1 - 1e-3], rng.uniform(size=num - 4)])
    return tuple(
        jnp.asarray(a) for a in (t, rng.normal(size=(num, dim)), rng.normal(size=(num, dim)))
    )


def quantities(c, x0, x1):
    """The four predictions by their definitions; the score needs sigma > 0."""
    alpha, alpha_rate, sigma, sigma_rate = (part[:, None] for part in c)
    return {
        Prediction.VELOCITY: alpha_rate * x1 + sigma_rate * x0,
        Prediction.X1: x1,
        Prediction.X0: x0,
        Prediction.SCORE: -x0 / jnp.maximum(sigma, FLOOR),
    }


@pytest.mark.usefixtures("x64")
def test_a_path_is_its_definition(name):
    schedule, formula = SCHEDULES[name]
    t, x0, x1 = points()
    c = formula(t)
    x_t, u_t = AffinePath(schedule)(t, x0, x1)
    np.testing.assert_allclose(x_t, c.alpha[:, None] * x1 + c.sigma[:, None] * x0, atol=1e-12)
    expected = c.alpha_rate[:, None] * x1 + c.sigma_rate[:, None] * x0
    np.testing.assert_allclose(u_t, expected, rtol=1e-9, atol=1e-12)


def knows(c, source, target):
    """Where x_t and `source` tell `target`: the determinant of the module's docstring."""
    if {source, target} == {Prediction.X0, Prediction.SCORE}:
        return np.asarray(c.sigma >= FLOOR)
    determinant = {
        Prediction.VELOCITY: c.sigma * c.alpha_rate - c.alpha * c.sigma_rate,
        Prediction.X1: c.sigma,
        Prediction.X0: c.alpha,
        Prediction.SCORE: c.alpha,
    }[source]
    known = determinant >= FLOOR
    if Prediction.SCORE in (source, target):  # -x0 / sigma
        known = known & (c.sigma >= FLOOR)
    return np.asarray(known)


@pytest.mark.usefixtures("x64")
def test_every_conversion_gives_what_the_definition_says_and_comes_back(name):
    schedule, formula = SCHEDULES[name]
    path = AffinePath(schedule)

    @jax.jit
    def convert_all(t, x0, x1):
        x_t, _ = path(t, x0, x1)
        values = quantities(formula(t), x0, x1)
        there = {(a, b): path.convert(t, x_t, values[a], from_=a, to=b) for a, b in PAIRS}
        back = {(a, b): path.convert(t, x_t, there[a, b], from_=b, to=a) for a, b in PAIRS}
        return there, back

    t, x0, x1 = points()
    there, back = convert_all(t, x0, x1)
    c = formula(t)
    values = quantities(c, x0, x1)
    for a, b in PAIRS:
        known = knows(c, a, b)
        assert known.sum() >= 56  # All but the ends, or this test would test nothing.
        # Divisors of 1e-3 on values of up to 5e2 (the exploding schedule's): 1e-16 * 5e5, twice.
        np.testing.assert_allclose(there[a, b][known], values[b][known], rtol=1e-8, atol=1e-9)
        known = known & knows(c, b, a)
        np.testing.assert_allclose(back[a, b][known], values[a][known], rtol=1e-8, atol=1e-8)


@pytest.mark.slow
def test_conversions_and_their_gradients_are_finite_at_both_ends(name):
    path = AffinePath(SCHEDULES[name][0])
    t = jnp.array([0.0, 1.0])
    x, value = jnp.array([[0.3], [-2.0]]), jnp.array([[1.0], [-0.7]])

    @jax.jit
    def with_gradients(t, x, value):
        def total(t, x, value, a, b):
            converted = path.convert(t, x, value, from_=a, to=b)
            return converted.sum(), converted

        gradient = jax.grad(total, argnums=(0, 1, 2), has_aux=True)
        return [gradient(t, x, value, a, b) for a, b in PAIRS]

    for result in with_gradients(t, x, value):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result))


def test_a_quantity_converts_to_itself_untouched():
    t, x0, x1 = points()
    for kind in Prediction:
        assert AffinePath().convert(t, x0, x1, from_=kind, to=kind) is x1
        on_point, on_value = AffinePath().conversion_weights(t, from_=kind, to=kind)
        assert (on_point == 0).all()
        assert (on_value == 1).all()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("target", [GAUSSIAN, MIXTURE], ids=["gaussian", "mixture"])
def test_a_network_that_predicts_any_quantity_moves_points_by_the_true_velocity(name, target):
    schedule, formula = SCHEDULES[name]
    path = AffinePath(schedule)
    t = jnp.linspace(0.04, 0.98, 25)  # 0.04^2 is still above the least divisor.
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(25, 2))) * (formula(t).sigma[:, None] + 1)

    def velocities(t, x):
        # cond names the quantity: every VelocityFn hands it to the network as it is.
        def predict(t, x, cond):
            return getattr(target.posterior(formula(t), x), cond)

        return [path.velocity_fn(predict, kind)(t, x, str(kind)) for kind in Prediction]

    expected = target.posterior(formula(t), x).velocity
    for velocity in jax.jit(velocities)(t, x):
        np.testing.assert_allclose(velocity, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.usefixtures("x64")
def test_the_score_is_the_gradient_of_the_log_density(name):
    """The oracle is checked by a second road; then the library's score against it."""
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


def changed_and_true(trained, wanted, times):
    """The field of `wanted` made of that of `trained`, and the field it should be."""
    (trained, trained_formula), (wanted, wanted_formula) = SCHEDULES[trained], SCHEDULES[wanted]

    def field(t, x, cond=None):
        return MIXTURE.posterior(trained_formula(t), x).velocity

    x = jnp.asarray(np.random.default_rng(3).normal(size=(len(times), 2)), times.dtype)
    with jax.disable_jit():  # Five operations at a time, rather than 25 programs.
        changed = change_schedule(field, trained, wanted)(times, x)
        return changed, MIXTURE.posterior(wanted_formula(times), x).velocity


def ratio(name, t):
    """Signal over noise, no more than 1e30."""
    c = SCHEDULES[name][1](t)
    return c.alpha / jnp.maximum(c.sigma, 1e-30)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("trained", SCHEDULES)
@pytest.mark.parametrize("wanted", SCHEDULES)
def test_a_changed_schedule_has_the_wanted_schedules_field(trained, wanted):
    r = jnp.linspace(0.001, 0.999, 41)
    low, high = ratio(trained, jnp.array([0.0, 1.0]))
    reached = (ratio(wanted, r) > low) & (ratio(wanted, r) < high)
    assert reached.sum() >= 20
    changed, expected = changed_and_true(trained, wanted, r)
    # Bisection finds the time to 2^-40; the rates magnify that up to 1e3 times.
    np.testing.assert_allclose(changed[reached], expected[reached], rtol=1e-6, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("trained", SCHEDULES)
@pytest.mark.parametrize("wanted", SCHEDULES)
def test_a_changed_schedule_is_right_at_the_very_ends_of_time(trained, wanted):
    ends = jnp.array([0.0, 1.0])
    changed, expected = changed_and_true(trained, wanted, ends)
    assert np.isfinite(changed).all()
    had, asked = ratio(trained, ends), ratio(wanted, ends)
    # An end that the trained schedule never reaches is taken at its nearest ratio. Means of x1
    # and x0 are then off by up to the difference times the points' size, of about 6, and the
    # wanted rates magnify that.
    gap = np.maximum([had[0] - asked[0], 1 / had[1] - 1 / asked[1]], 0)
    c = SCHEDULES[wanted][1](ends)
    tolerance = 2e-3 + 6 * gap * (1 + np.abs(c.alpha_rate) + np.abs(c.sigma_rate))
    size = 1 + np.abs(expected).max(axis=1)
    assert (np.abs(changed - expected) <= (tolerance * size)[:, None]).all()


def test_a_changed_schedule_hands_the_condition_on():
    changed = change_schedule(lambda t, x, cond: cond + 0 * x, Linear(), Linear())
    t, x, cond = jnp.array([0.5]), jnp.ones((1, 2)), jnp.array([[3.0, 4.0]])
    np.testing.assert_allclose(changed(t, x, cond), cond, rtol=1e-5)


@pytest.mark.usefixtures("unchecked")
def test_a_divisor_or_a_source_without_sense_is_refused():
    with pytest.raises(ValueError, match="min_divisor must be at least 0.0, got -0.1"):
        AffinePath(min_divisor=-0.1)
    with pytest.raises(ValueError, match=r"x0 must have the shape of x1, \(4, 1\), got \(4,\)"):
        AffinePath()(jnp.zeros(4), jnp.zeros(4), jnp.zeros((4, 1)))
