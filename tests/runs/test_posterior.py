"""Tests of `fmjax.Posterior` on a run whose posterior is known in closed form."""

import dataclasses

import numpy as np
import pytest

import fmjax
from fmjax.data import ToyData
from fmjax.runs import posterior as module
from tests.exact_posterior import SIMULATOR, exact_run

GENERATOR = np.random.default_rng(0)
X = SIMULATOR.simulate(GENERATOR, SIMULATOR.sample_prior(GENERATOR, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def posterior(tmp_path_factory):
    run = exact_run(tmp_path_factory.mktemp("exact"))
    return fmjax.Posterior(run, batch_size=8_192)


@pytest.fixture(scope="module")
def theta(posterior):
    return posterior.sample(2_730, X, seed=1)


def test_samples_have_the_mean_and_covariance_of_the_closed_form(theta):
    assert (theta.shape, theta.dtype) == ((3, 2_730, 3), np.float32)
    cholesky = np.linalg.cholesky(SIMULATOR.covariance())
    for samples, mean in zip(theta, SIMULATOR.mean(X), strict=True):
        # Whitened, the means have the standard error 0.019 and the covariances at most 0.027.
        white = np.linalg.solve(cholesky, (samples - mean).T)
        np.testing.assert_allclose(white.mean(axis=1), 0.0, atol=0.08)
        np.testing.assert_allclose(np.cov(white), np.eye(3), atol=0.11)


def test_log_densities_equal_the_closed_form_at_any_parameters(posterior, theta):
    far = SIMULATOR.mean(X)[:, None] + np.linspace(-2, 2, 5)[:, None]
    points = np.concatenate([theta[:, :4], far], axis=1).astype(np.float32)
    nats = posterior.log_prob(points, X)
    assert (nats.shape, nats.dtype) == ((3, 9), np.float64)
    np.testing.assert_allclose(nats, SIMULATOR.log_density(points, X), rtol=1e-4, atol=1e-3)


@pytest.mark.slow
def test_one_observation_has_no_axis_of_observations(posterior, theta):
    few = posterior.sample(40, X[0], seed=1)
    np.testing.assert_allclose(few, theta[0, :40], atol=1e-3)
    nats = posterior.log_prob(few, X[0])
    assert nats.shape == (40,)
    np.testing.assert_allclose(nats, SIMULATOR.log_density(few[None], X[:1])[0], atol=1e-3)


@pytest.mark.slow
def test_further_calls_reuse_the_compiled_programs(posterior):
    first = posterior.sample(33, X[0])
    posterior.log_prob(first, X[0])
    programs = posterior._sample_program, posterior._log_prob_program
    sizes = [program._cache_size() for program in programs]
    other = posterior.sample(50, X[1], seed=5)
    posterior.log_prob(other[:45], X[2])
    assert [program._cache_size() for program in programs] == sizes
    assert not np.allclose(first, other[:33])


@pytest.mark.slow
def test_one_device_equals_eight(posterior, tmp_path):
    alone = fmjax.Posterior(exact_run(tmp_path, num_devices=1), batch_size=8_192)
    theta = posterior.sample(20, X)
    np.testing.assert_allclose(alone.sample(20, X), theta, atol=1e-5)
    nats = posterior.log_prob(theta, X)
    np.testing.assert_allclose(alone.log_prob(theta, X), nats, atol=1e-4)


@pytest.mark.slow
def test_without_standardization_the_posterior_is_the_same(tmp_path):
    posterior = fmjax.Posterior(exact_run(tmp_path, standardized=False))
    theta = posterior.sample(8, X)
    np.testing.assert_allclose(
        posterior.log_prob(theta, X), SIMULATOR.log_density(theta, X), atol=1e-3
    )


@pytest.mark.slow
def test_failed_solves_are_nan(posterior, monkeypatch):
    tight = dataclasses.replace(posterior, tolerance=1e-3)
    steps = fmjax.AdaptiveSteps(1e-3, 1e-3, max_steps=1)
    monkeypatch.setattr(module.Posterior, "_steps", steps)
    assert np.isnan(tight.sample(4, X[0])).all()


def test_dicts_of_observations_are_converted_together():
    specs = {"image": module.Spec((2, 2)), "mass": module.Spec(())}
    both = {"mass": np.arange(3.0), "image": np.ones((3, 2, 2))}
    cond, sizes = module._as_rows(both, specs, "observation")
    assert (cond["image"].shape, cond["mass"].shape, sizes) == ((3, 2, 2), (3,), [3, 3])
    cond, sizes = module._as_rows({"mass": 1, "image": np.ones((2, 2))}, specs, "observation")
    assert (cond["image"].shape, cond["mass"].shape, sizes) == ((1, 2, 2), (1,), [None, None])
    with pytest.raises(ValueError, match="observation must be a dict of image, mass, got"):
        module._as_rows({"mass": 1.0}, specs, "observation")
    with pytest.raises(ValueError, match=r"observation\['mass'\] must be a number or have shape"):
        module._as_rows({"mass": np.ones((3, 1)), "image": np.ones((2, 2))}, specs, "observation")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p.sample(4, X[0, :7]), r"observation must have shape \[8\] or \[n, 8\], got"),
        (lambda p: p.sample(4, X[:0]), r"observation must have shape"),
        (lambda p: p.sample(4, [[1.0], [2.0, 3.0]]), "observation must be an array of numbers"),
        (lambda p: p.sample(4, np.full(8, np.nan)), "observation must hold finite numbers"),
        (lambda p: p.sample(0, X[0]), "num must be"),
        (lambda p: p.sample(4, X[0], seed=-1), "seed must be"),
        (
            lambda p: p.log_prob(np.zeros((4, 2)), X[0]),
            r"theta must have shape \[num, 3\], got \(4, 2\)",
        ),
        (
            lambda p: p.log_prob(np.zeros((4, 3)), X),
            r"theta must have shape \[3, num, 3\], got \(4, 3\)",
        ),
        (lambda p: dataclasses.replace(p, tolerance=0.0), "tolerance must be"),
        (lambda p: dataclasses.replace(p, batch_size=0), "batch_size must be"),
        (
            lambda p: fmjax.Posterior(p.run._replace(conditions=None)),
            "run must be conditioned on floating-point numbers, the observation, got None",
        ),
        (
            lambda p: fmjax.Posterior(
                p.run._replace(config=dataclasses.replace(p.run.config, source=ToyData()))
            ),
            "run must have noise as its source distribution, got a dataset",
        ),
    ],
)
def test_bad_input_is_refused_in_one_line(posterior, call, message):
    with pytest.raises(ValueError, match=message):
        call(posterior)
