"""Tests of velocity functions: time reversal, intervals and evaluation counts."""

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


def velocity_fn(t, x, cond=None):
    return x * (1.0 + t)[:, None] + (0.0 if cond is None else cond[:, None])


def test_plain_function_counts_one_evaluation():
    assert isinstance(velocity_fn, VelocityFn)
    counts = evaluations(velocity_fn, T)
    assert counts.dtype == jnp.int32
    np.testing.assert_array_equal(counts, [1, 1, 1])


def test_reversed_time_negates_velocity_and_is_involution():
    backward = reversed_time(velocity_fn)
    np.testing.assert_allclose(backward(T, X, T), -velocity_fn(1.0 - T, X, T), rtol=1e-6)
    np.testing.assert_allclose(reversed_time(backward)(T, X, T), velocity_fn(T, X, T), rtol=1e-6)


def test_over_interval_rescales_time():
    partial = over_interval(velocity_fn, 0.3, 1.0)
    np.testing.assert_allclose(partial(T, X, T), 0.7 * velocity_fn(0.3 + 0.7 * T, X, T), rtol=1e-6)
    # Guidance only at one end point, which is matched exactly.
    for start, end in ((0.3, 1.0), (0.7, 0.1)):
        only_start = classifier_free(velocity_fn, 0.0, 2.0, (start, start))
        only_end = classifier_free(velocity_fn, 0.0, 2.0, (end, end))
        np.testing.assert_array_equal(
            evaluations(over_interval(only_start, start, end), T), [2, 1, 1]
        )
        np.testing.assert_array_equal(
            evaluations(over_interval(only_end, start, end), T), [1, 1, 2]
        )
    forward, backward = over_interval(velocity_fn, 0.2, 0.6), over_interval(velocity_fn, 0.6, 0.2)
    np.testing.assert_allclose(backward(1.0 - T, X), -forward(T, X), rtol=1e-6)
    guided = classifier_free(velocity_fn, 0.0, 2.0, (0.0, 0.3))
    np.testing.assert_array_equal(evaluations(over_interval(guided, 0.2, 0.6), T), [2, 2, 1])
    traced = jax.jit(lambda start: over_interval(velocity_fn, start, 1.0)(T, X))(0.3)
    np.testing.assert_allclose(traced, partial(T, X), rtol=1e-6)


def test_derived_fields_count_evaluations_of_guided_field():
    # Guidance in [0, 0.3] applies to the first two of T = (0, 0.25, 1).
    guided = classifier_free(velocity_fn, 0.0, 2.0, (0.0, 0.3))
    np.testing.assert_array_equal(evaluations(guided, T), [2, 2, 1])
    np.testing.assert_array_equal(evaluations(reversed_time(guided), T), [1, 1, 2])
    from_x1 = AffinePath().velocity_fn(guided, Prediction.X1)
    np.testing.assert_array_equal(evaluations(from_x1, T), [2, 2, 1])
    # Linear at 0.3 and Cosine at 2/pi arctan(3/7) = 0.2578 have the same ratio, 3/7.
    changed = change_schedule(guided, Linear(), Cosine())
    times = jnp.array([0.0, 0.257, 0.259, 1.0])
    np.testing.assert_array_equal(evaluations(changed, times), [2, 2, 1, 1])
    for field in (reversed_time(guided), from_x1, changed):
        assert isinstance(field, CountedField)
        assert isinstance(field, VelocityFn)
        assert evaluations(field, T).dtype == jnp.int32
