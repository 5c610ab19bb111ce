"""Tests of gradients where an error, a norm or a distance is exactly zero."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fmjax
from fmjax.losses import flow_matching_loss
from fmjax.metrics import sliced_wasserstein, straightness
from fmjax.networks import MLPConfig, make_network
from fmjax.paths import AffinePath, uniform_grid
from fmjax.solvers import (
    AdamsBashforth2,
    AdaptiveSteps,
    Adjoint,
    ErrorControl,
    FixedSteps,
    interpolate,
    log_density,
    sample,
)

X = jax.random.normal(jax.random.key(0), (4, 3))
# x1 = exp(a) x, so sum(x1) has the derivative sum(x) at a = 0. All error estimates are 0 there.
EXPECTED = float(np.sum(np.asarray(X, np.float64)))


def sum_of_x1(a, **settings):
    return sample(lambda t, x, cond=None: a * x, X, **settings).x1.sum()


def derivative(fn):
    """Forward-mode derivative at zero."""
    return jax.jit(lambda a: jax.jvp(fn, (a,), (1.0,))[1])(0.0)


@pytest.mark.slow
def test_sample_has_the_exact_gradient_for_a_zero_field():
    gradient = jax.grad(lambda a: fmjax.sample(lambda t, x, c=None: a * x, X).x1.sum())(0.0)
    assert float(gradient) == pytest.approx(2.27734, abs=1e-5)
    assert pytest.approx(2.27734, abs=1e-5) == EXPECTED


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(
            {"steps": AdaptiveSteps(control=ErrorControl.WHOLE_BATCH_RMS)},
            marks=pytest.mark.slow,
            id="batch_rms",
        ),
        pytest.param({"adjoint": Adjoint.BACKSOLVE}, id="backsolve"),
        pytest.param({"solver": diffrax.Kvaerno3()}, marks=pytest.mark.slow, id="implicit"),
    ],
)
def test_other_reverse_mode_solves_have_the_exact_gradient(settings):
    gradient = jax.jit(jax.grad(lambda a: sum_of_x1(a, **settings)))(0.0)
    assert float(gradient) == pytest.approx(EXPECTED, rel=1e-5)


@pytest.mark.parametrize("slots", [pytest.param(None, marks=pytest.mark.slow), 2])
def test_per_sample_steps_have_the_exact_forward_mode_gradient(slots):
    steps = AdaptiveSteps(control=ErrorControl.PER_SAMPLE, slots=slots)
    gradient = derivative(lambda a: sum_of_x1(a, steps=steps, adjoint=Adjoint.FORWARD))
    assert float(gradient) == pytest.approx(EXPECTED, rel=1e-5)


@pytest.mark.slow
def test_log_density_has_exact_gradients_for_a_zero_field():
    # log p(x) = log N(exp(-a) x; 0, I) - 3 a. At a = 0 its gradients are |x|^2 - 3 and -x.
    def total(a, x):
        return log_density(lambda t, x, cond=None: a * x, x).log_density.sum()

    grad_a, grad_x = jax.jit(jax.grad(total, argnums=(0, 1)))(0.0, X)
    assert float(grad_a) == pytest.approx(float(jnp.sum(X**2)) - 12.0, rel=1e-5)
    np.testing.assert_allclose(grad_x, -X, rtol=1e-6)


@pytest.mark.slow
def test_zero_initialized_network_has_gradients_through_a_solve():
    # The output is zero at initialization. A last bias b adds 4 b to the sum of x1.
    net = make_network(MLPConfig(width=16, num_layers=2), (3,))
    params = net.init(jax.random.key(1))

    def total(params):
        return sample(lambda t, x, cond=None: net.apply(params, t, x, cond), X).x1.sum()

    gradient = jax.jit(jax.grad(total))(params)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(gradient))
    np.testing.assert_allclose(gradient["out"]["bias"], np.full(3, 4.0), rtol=1e-5)


@pytest.mark.slow
def test_rejected_steps_outside_the_domain_do_not_affect_gradients():
    # dx/dt = -2 a sqrt(x) gives x1 = (sqrt(x0) - a)^2. Long steps reach x < 0, which gives NaN.
    x0 = jnp.array([[1.0], [2.0]])

    def total(a):
        samples = sample(lambda t, x, cond=None: -2.0 * a * jnp.sqrt(x), x0)
        return samples.x1.sum(), samples.stats.num_rejected

    gradient, num_rejected = jax.jit(jax.grad(total, has_aux=True))(0.95)
    assert (num_rejected > 0).all()
    expected = -2.0 * float(np.sum(np.sqrt(np.asarray(x0)) - 0.95))
    assert float(gradient) == pytest.approx(expected, rel=1e-2)


def test_adams_bashforth_has_the_exact_gradient_under_vmap():
    steps = FixedSteps(uniform_grid(2))
    gradient_fn = jax.vmap(jax.grad(lambda a: sum_of_x1(a, solver=AdamsBashforth2(), steps=steps)))
    np.testing.assert_allclose(gradient_fn(jnp.zeros(2)), np.full(2, EXPECTED), rtol=1e-5)


@pytest.mark.slow
def test_interpolation_of_equal_points_has_the_linear_gradient():
    # Equal points are interpolated linearly. The weights 0, 1/2 and 1 of b sum to 3/2.
    grad_b = jax.grad(lambda b: interpolate(X, b, 3).sum())
    np.testing.assert_allclose(grad_b(X), np.full(X.shape, 1.5), rtol=1e-6)
    grad_at_zero = jax.grad(lambda b: interpolate(0.0 * X, b, 3).sum())(0.0 * X)
    np.testing.assert_allclose(grad_at_zero, np.full(X.shape, 1.5), rtol=1e-6)


@pytest.mark.slow
def test_zero_distances_have_zero_gradients():
    grad_x = jax.grad(lambda x: sliced_wasserstein(jax.random.key(2), x, X, num_projections=8))(X)
    np.testing.assert_array_equal(grad_x, np.zeros(X.shape))

    def total_curvature(a):
        result = straightness(lambda t, x, cond=None: a * x, X, num_steps=2)
        return result.length_ratio.sum() + result.curvature.sum()

    assert float(jax.grad(total_curvature)(0.0)) == 0.0


@pytest.mark.slow
def test_zero_error_has_zero_huber_gradient():
    def loss(target, huber):
        path, t = AffinePath(), jnp.full(4, 0.5)
        predict = lambda t, x, cond=None: target  # noqa: E731
        return flow_matching_loss(predict, path, t, X, 2.0 * X, huber=huber).sum()

    for huber in (0.0, 1e-30, 0.1):
        np.testing.assert_array_equal(jax.grad(loss)(X, huber), np.zeros(X.shape))
