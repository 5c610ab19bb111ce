"""Gradients where an error, a norm or a distance is exactly zero, against closed forms."""

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
# x1 = exp(a) x: the derivative of its sum at a = 0, where nothing moves and no step errs.
WANTED = float(np.sum(np.asarray(X, np.float64)))


def ends(a, **settings):
    return sample(lambda t, x, cond=None: a * x, X, **settings).x1.sum()


def derivative(fn):
    """In forward mode, at zero."""
    return jax.jit(lambda a: jax.jvp(fn, (a,), (1.0,))[1])(0.0)


@pytest.mark.slow
def test_where_nothing_moves_a_sample_has_its_gradient():
    found = jax.grad(lambda a: fmjax.sample(lambda t, x, c=None: a * x, X).x1.sum())(0.0)
    assert float(found) == pytest.approx(2.27734, abs=1e-5)
    assert pytest.approx(2.27734, abs=1e-5) == WANTED


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(
            {"steps": AdaptiveSteps(control=ErrorControl.WHOLE_BATCH_RMS)},
            marks=pytest.mark.slow,
            id="whole batch",
        ),
        pytest.param({"adjoint": Adjoint.BACKSOLVE}, id="backsolve"),
        pytest.param({"solver": diffrax.Kvaerno3()}, marks=pytest.mark.slow, id="implicit"),
    ],
)
def test_so_it_has_by_every_other_way_back(settings):
    found = jax.jit(jax.grad(lambda a: ends(a, **settings)))(0.0)
    assert float(found) == pytest.approx(WANTED, rel=1e-5)


@pytest.mark.parametrize("slots", [pytest.param(None, marks=pytest.mark.slow), 2])
def test_so_it_has_forwards_with_steps_of_its_own(slots):
    steps = AdaptiveSteps(control=ErrorControl.PER_SAMPLE, slots=slots)
    found = derivative(lambda a: ends(a, steps=steps, adjoint=Adjoint.FORWARD))
    assert float(found) == pytest.approx(WANTED, rel=1e-5)


@pytest.mark.slow
def test_where_nothing_moves_a_log_density_has_its_gradients():
    # log p(x) = log N(exp(-a) x; 0, I) - 3 a: by a it is |x|^2 - 3 at zero, by x it is -x.
    def total(a, x):
        return log_density(lambda t, x, cond=None: a * x, x).log_density.sum()

    by_a, by_x = jax.jit(jax.grad(total, argnums=(0, 1)))(0.0, X)
    assert float(by_a) == pytest.approx(float(jnp.sum(X**2)) - 12.0, rel=1e-5)
    np.testing.assert_allclose(by_x, -X, rtol=1e-6)


@pytest.mark.slow
def test_a_network_of_zeros_at_its_end_learns_through_a_solve():
    # It gives zero; with b as its last bias it gives b, so that the sum of x1 grows by 4 b.
    net = make_network(MLPConfig(width=16, num_layers=2), (3,))
    params = net.init(jax.random.key(1))

    def total(params):
        return sample(lambda t, x, cond=None: net.apply(params, t, x, cond), X).x1.sum()

    gradient = jax.jit(jax.grad(total))(params)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(gradient))
    np.testing.assert_allclose(gradient["out"]["bias"], np.full(3, 4.0), rtol=1e-5)


@pytest.mark.slow
def test_rejected_steps_out_of_the_domain_of_a_field_have_no_gradient():
    # dx/dt = -2 a sqrt(x): x1 = (sqrt(x0) - a)^2. Long steps reach x < 0, where it is NaN.
    x0 = jnp.array([[1.0], [2.0]])

    def total(a):
        samples = sample(lambda t, x, cond=None: -2.0 * a * jnp.sqrt(x), x0)
        return samples.x1.sum(), samples.num_rejected

    found, num_rejected = jax.jit(jax.grad(total, has_aux=True))(0.95)
    assert (num_rejected > 0).all()
    wanted = -2.0 * float(np.sum(np.sqrt(np.asarray(x0)) - 0.95))
    assert float(found) == pytest.approx(wanted, rel=1e-2)


def test_adams_bashforth_under_vmap_has_the_gradient_of_its_first_step():
    steps = FixedSteps(uniform_grid(2))
    each = jax.vmap(jax.grad(lambda a: ends(a, solver=AdamsBashforth2(), steps=steps)))
    np.testing.assert_allclose(each(jnp.zeros(2)), np.full(2, WANTED), rtol=1e-5)


@pytest.mark.slow
def test_points_on_one_another_have_gradients_along_the_way_between_them():
    # The straight line takes the arc's place: w of the sum over w = 0, 1/2, 1 is 3/2.
    by_b = jax.grad(lambda b: interpolate(X, b, 3).sum())
    np.testing.assert_allclose(by_b(X), np.full(X.shape, 1.5), rtol=1e-6)
    of_zeros = jax.grad(lambda b: interpolate(0.0 * X, b, 3).sum())(0.0 * X)
    np.testing.assert_allclose(of_zeros, np.full(X.shape, 1.5), rtol=1e-6)


@pytest.mark.slow
def test_distances_of_zero_have_the_gradient_zero():
    by_x = jax.grad(lambda x: sliced_wasserstein(jax.random.key(2), x, X, num_projections=8))(X)
    np.testing.assert_array_equal(by_x, np.zeros(X.shape))

    def crookedness(a):
        found = straightness(lambda t, x, cond=None: a * x, X, num_steps=2)
        return found.length_ratio.sum() + found.curvature.sum()

    assert float(jax.grad(crookedness)(0.0)) == 0.0


@pytest.mark.slow
def test_an_error_of_zero_has_the_huber_gradient_zero():
    def loss(target, huber):
        path, t = AffinePath(), jnp.full(4, 0.5)
        predict = lambda t, x, cond=None: target  # noqa: E731
        return flow_matching_loss(predict, path, t, X, 2.0 * X, huber=huber).sum()

    for huber in (0.0, 1e-30, 0.1):
        np.testing.assert_array_equal(jax.grad(loss)(X, huber), np.zeros(X.shape))
