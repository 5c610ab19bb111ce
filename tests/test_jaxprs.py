"""Tests of the comparison of jaxprs and of the hoisting of their constants."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax._jaxprs import hoist_constants, jaxpr_key

X = jax.ShapeDtypeStruct((3, 3), jnp.float32)
W = jnp.arange(9.0).reshape(3, 3)


def key_of(fn, *args, differentiated=False):
    closed = jax.make_jaxpr(lambda *args: fn(*args))(*(args or (X,)))
    return jaxpr_key(closed.jaxpr, differentiated=differentiated)


def multiply(weight):
    return lambda x: jnp.where(x > 0.0, x @ weight, 0.0)


def scale(factor):
    return lambda x: jax.lax.scan(lambda x, _: (x * factor, None), x, length=2)[0]


def jitted(weight):
    return jax.jit(multiply(weight))


def with_rule(factor):
    fn = jax.custom_jvp(jnp.sin)
    fn.defjvp(lambda x, dx: (jnp.sin(x[0]), factor * jnp.cos(x[0]) * dx[0]))
    return fn


def test_jaxprs_with_other_constants_have_equal_keys():
    assert key_of(multiply(W)) == key_of(multiply(W + 1.0))
    assert hash(key_of(multiply(W))) == hash(key_of(multiply(W + 1.0)))
    assert key_of(multiply(W)) == key_of(multiply(np.asarray(W)))
    assert key_of(scale(2.0)) == key_of(scale(2.0))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (scale(2.0), scale(3.0)),
        (scale(0.0), scale(-0.0)),
        (lambda x: jnp.sum(x, 0), lambda x: jnp.sum(x, 1)),
        (lambda x: (x, x + 1.0), lambda x: (x + 1.0, x)),
        (lambda x: x - x.T, lambda x: x.T - x),
        (jitted(W), jitted(W + 1.0)),
        (multiply(W), multiply(W.astype(jnp.bfloat16))),
    ],
)
def test_jaxprs_of_other_results_have_different_keys(first, second):
    assert key_of(first) == key_of(first)
    assert key_of(first) != key_of(second)


def test_arguments_of_other_dtypes_have_different_keys():
    assert key_of(jnp.sin) != key_of(jnp.sin, jax.ShapeDtypeStruct((3, 3), jnp.float16))


def test_custom_derivatives_are_compared_if_they_are_computed():
    first, second = with_rule(1.0), with_rule(2.0)
    assert key_of(first) == key_of(second)
    assert key_of(first, differentiated=True) != key_of(second, differentiated=True)


def test_callbacks_are_compared_by_identity():
    def callback(function):
        return lambda x: jax.pure_callback(function, X, x)

    def first(x):
        return x

    assert key_of(callback(first)) == key_of(callback(first))
    assert key_of(callback(first)) != key_of(callback(lambda x: x))


def test_arrays_of_jitted_functions_become_constants():
    def doubled(weight):
        return hoist_constants(jax.make_jaxpr(lambda x: 2.0 * jitted(weight)(x))(X))

    first, second = doubled(W), doubled(3.0 * W)
    keys = [jaxpr_key(closed.jaxpr, differentiated=False) for closed in (first, second)]
    assert keys[0] == keys[1]
    (result,) = jax.core.eval_jaxpr(second.jaxpr, second.consts, W)
    np.testing.assert_allclose(result, 2.0 * multiply(3.0 * W)(W))


def test_arrays_of_jitted_functions_inside_of_loops_stay():
    closed = jax.make_jaxpr(lambda x: jax.lax.map(jitted(W), x))(jnp.ones((2, 3, 3)))
    assert hoist_constants(closed) is closed
