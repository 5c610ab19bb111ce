"""Tests of each solver family with exact networks against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.config import Sampling, make_solve
from fmjax.paths import AffinePath, Cosine, Prediction, VelocityNet
from fmjax.solvers import EulerMaruyama, GridSteps, IncreasingRate, Model, SdeSampler, SigmaRate
from tests.oracles import Gaussian

PATH = AffinePath(Cosine())
ORACLE = Gaussian(Cosine(), mean=1.0, std=0.5)
X0 = jax.random.normal(jax.random.key(0), (2048, 4))


def exact_model(prediction):
    """Return a model with an exact network; label 1 is the null condition."""

    def apply(params, t, x, cond=None):
        value = PATH.convert(t, x, ORACLE.velocity(t, x), from_=Prediction.VELOCITY, to=prediction)
        return value if cond is None else jnp.where(cond[:, None] == 1, 0.0, value)

    net = VelocityNet(lambda key: {}, apply)
    return Model(net, PATH, prediction, null_cond=1)


def run_solver(sampling, prediction=Prediction.VELOCITY, cond=None):
    keys = jax.random.split(jax.random.key(1), len(X0))
    solve, steps = (
        make_solve(exact_model(prediction), sampling),
        sampling.steps(exact_model(prediction)),
    )
    return jax.jit(lambda x0, keys: solve({}, x0, keys, cond, steps))(X0, keys)


@pytest.mark.parametrize(
    ("sampling", "atol"),
    [
        (Sampling.of(solver="rk4", num_steps=16), 1e-4),
        (Sampling.of(solver="tsit5", slots=100, rtol=1e-6, atol=1e-6), 1e-4),
        # The method has second order on this path and grid.
        (Sampling.of(solver="dpm_solver_pp_2m", num_steps=128), 0.01),
    ],
)
def test_deterministic_solvers_reach_the_flow_map(sampling, atol):
    samples = run_solver(sampling)
    assert samples.succeeded.all()
    expected = ORACLE.flow_map(jnp.ones(len(X0)), X0)
    np.testing.assert_allclose(samples.x1, expected, atol=atol)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling.of(solver="euler_maruyama", num_steps=128),
        Sampling.of(solver="stochastic_heun", num_steps=64, rate="constant", rate_scale=0.5),
        pytest.param(Sampling.of(solver="shark", rtol=1e-2, atol=1e-2), marks=pytest.mark.slow),
        Sampling.of(solver="ancestral", num_steps=128),
    ],
)
def test_stochastic_solvers_have_the_mean_and_std_of_the_data(sampling):
    samples = run_solver(sampling)
    assert samples.succeeded.all()
    # The standard errors of 8,192 values are 0.0055 and 0.004; steps of 1/128 add as much.
    np.testing.assert_allclose(samples.x1.mean(), 1.0, atol=0.03)
    np.testing.assert_allclose(samples.x1.std(), 0.5, atol=0.03)


def test_guidance_extrapolates_from_the_null_prediction():
    """If the null prediction is zero, a scale of 2 doubles the prediction."""
    sampling = Sampling.of(solver="euler", num_steps=1, guidance=2.0)
    cond = jnp.zeros(len(X0), jnp.int32)
    samples = run_solver(sampling, Prediction.VELOCITY, cond)
    expected = X0 + 2.0 * ORACLE.velocity(jnp.zeros(len(X0)), X0)
    np.testing.assert_allclose(samples.x1, expected, rtol=1e-5, atol=1e-5)
    assert (samples.nfe == 2).all()


def test_the_default_rate_is_sigma_of_the_schedule():
    sampling = Sampling.of(solver="euler_maruyama", num_steps=4, rate_scale=2.0, rate_power=0.5)
    assert sampling.sampler.rate == SigmaRate(2.0, None, 0.5)
    explicit = SdeSampler(EulerMaruyama(), GridSteps(4), SigmaRate(2.0, Cosine(), 0.5))
    np.testing.assert_array_equal(run_solver(sampling).x1, run_solver(Sampling(explicit)).x1)
    increasing = sampling.with_names(rate="increasing", rate_scale=3.0).sampler.rate
    assert increasing == IncreasingRate(3.0)
