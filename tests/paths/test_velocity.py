import jax
import jax.numpy as jnp
import numpy as np

from fmjax.paths import (
    AffinePath,
    Cosine,
    CountedField,
    Linear,
    Prediction,
    VelocityFn,
    change_schedule,
    evaluations,
    over_interval,
    reversed_time,
)
from fmjax.solvers import classifier_free

T = jnp.array([0.0, 0.25, 1.0])
X = jnp.arange(6.0).reshape(3, 2)


def plain(t, x, cond=None):
    return x * (1.0 + t)[:, None] + (0.0 if cond is None else cond[:, None])


def test_any_function_is_a_velocity_field_of_one_evaluation():
    assert isinstance(plain, VelocityFn)
    counts = evaluations(plain, T)
    assert counts.dtype == jnp.int32
    np.testing.assert_array_equal(counts, [1, 1, 1])


def test_reversed_time_runs_the_same_motion_backwards():
    backwards = reversed_time(plain)
    np.testing.assert_allclose(backwards(T, X, T), -plain(1.0 - T, X, T), rtol=1e-6)
    np.testing.assert_allclose(reversed_time(backwards)(T, X, T), plain(T, X, T), rtol=1e-6)


def test_a_part_of_the_motion_has_its_own_time_from_zero_to_one():
    part = over_interval(plain, 0.3, 1.0)
    np.testing.assert_allclose(part(T, X, T), 0.7 * plain(0.3 + 0.7 * T, X, T), rtol=1e-6)
    # Guided at its ends alone: these are met exactly.
    for start, end in ((0.3, 1.0), (0.7, 0.1)):
        only_start = classifier_free(plain, 0.0, 2.0, (start, start))
        only_end = classifier_free(plain, 0.0, 2.0, (end, end))
        np.testing.assert_array_equal(
            evaluations(over_interval(only_start, start, end), T), [2, 1, 1]
        )
        np.testing.assert_array_equal(
            evaluations(over_interval(only_end, start, end), T), [1, 1, 2]
        )
    there, back = over_interval(plain, 0.2, 0.6), over_interval(plain, 0.6, 0.2)
    np.testing.assert_allclose(back(1.0 - T, X), -there(T, X), rtol=1e-6)
    guided = classifier_free(plain, 0.0, 2.0, (0.0, 0.3))
    np.testing.assert_array_equal(evaluations(over_interval(guided, 0.2, 0.6), T), [2, 2, 1])
    traced = jax.jit(lambda start: over_interval(plain, start, 1.0)(T, X))(0.3)
    np.testing.assert_allclose(traced, part(T, X), rtol=1e-6)


def test_a_field_made_of_a_guided_one_costs_what_that_costs():
    # Guided for t in [0, 0.3]: of T = (0, 0.25, 1) the first two.
    guided = classifier_free(plain, 0.0, 2.0, (0.0, 0.3))
    np.testing.assert_array_equal(evaluations(guided, T), [2, 2, 1])
    np.testing.assert_array_equal(evaluations(reversed_time(guided), T), [1, 1, 2])
    predicting = AffinePath().velocity_fn(guided, Prediction.X1)
    np.testing.assert_array_equal(evaluations(predicting, T), [2, 2, 1])
    # The ratio of Linear at 0.3, 3/7, is Cosine's at 2/pi arctan(3/7) = 0.2578.
    changed = change_schedule(guided, Linear(), Cosine())
    times = jnp.array([0.0, 0.257, 0.259, 1.0])
    np.testing.assert_array_equal(evaluations(changed, times), [2, 2, 1, 1])
    for field in (reversed_time(guided), predicting, changed):
        assert isinstance(field, CountedField)
        assert isinstance(field, VelocityFn)
        assert evaluations(field, T).dtype == jnp.int32
