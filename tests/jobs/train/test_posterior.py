"""Test of `configs/posterior.py`, trained by the command line, against the exact posterior."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fmjax
from fmjax.config import user_classes
from fmjax.jobs.evaluate.posterior import read_posterior
from fmjax.metrics import c2st
from fmjax.runs.load_config import load_config
from tests.simulators import LinearGaussian, TwoMoons

ROOT = Path(__file__).parents[3]
CONFIG = ROOT / "configs" / "posterior.py"
# A short training: the figures of the complete one are in docs/posterior.md.
OPTIONS = """
    --data.simulator linear_gaussian --data.num-train 100000 --data.num-test 400
    --network.num-layers 2 --training.num-steps 4000 --training.batch-size 512
    --training.checkpoint-every 4000 --sampling.num-samples 100
    --evaluation.num-samples 500 --evaluation.num-simulations 200
    --compare.num-samples 8 --compare.fixed-solvers euler --compare.num-steps 2
    --compare.tolerances 1e-2
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("posterior")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("XLA_FLAGS", None)  # The tests' flags make training slow.
    words = ["train", str(CONFIG), "--run", str(folder / "run"), *OPTIONS.split()]
    command = [sys.executable, "-m", "fmjax.cli", *words]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return fmjax.open_run(folder / "run", classes=list(user_classes(load_config(CONFIG))))


@pytest.mark.slow
def test_the_posterior_of_a_linear_gaussian_simulator_is_learned(run):
    simulator, generator = LinearGaussian(), np.random.default_rng(3)
    theta = simulator.sample_prior(generator, 4)
    observations = simulator.simulate(generator, theta)
    posterior = fmjax.Posterior(run, tolerance=1e-4)
    samples = posterior.sample(2_000, observations)
    for draws, mean in zip(samples, simulator.mean(observations), strict=True):
        # Where the exact posterior is N(0, I), sampling errors are 0.022 for the mean and at most
        # 0.032 for the covariance; the rest is what the short training has not learned.
        white = np.linalg.solve(np.linalg.cholesky(simulator.covariance()), (draws - mean).T)
        np.testing.assert_allclose(white.mean(axis=1), 0.0, atol=0.2)
        np.testing.assert_allclose(np.cov(white), np.eye(3), atol=0.25)
    exact = simulator.sample_posterior(generator, 2_000, observations)
    nats = posterior.log_prob(exact[:, :100], observations)
    error = nats - simulator.log_density(exact[:, :100], observations)
    # The mean of -error estimates the Kullback-Leibler divergence from the exact to the learned
    # posterior.
    assert -error.mean() < 0.03
    assert np.sqrt(np.mean(error**2)) < 0.3
    accuracies = [c2st(*pair) for pair in zip(exact, samples, strict=True)]
    assert np.mean(accuracies) < 0.55, accuracies


@pytest.mark.slow
def test_the_command_checks_the_posterior_and_shows_it_on_the_page(run):
    result = read_posterior(run.folder.posterior)
    assert result.num_failed == 0
    assert abs(result.coverage_90 - 0.9) < 0.08
    assert min(result.p_values) > 1e-3
    page = run.folder.report.read_text()
    assert "Marginals of the posterior for observation 1" in page
    assert (run.folder.root / "figures" / "coverage.png").is_file()


def test_the_simulators_of_the_config_are_those_of_the_exact_posteriors():
    """Compare moments, because the random numbers are used in another order."""
    data = load_config(CONFIG).data
    simulators = {"two_moons": TwoMoons(), "linear_gaussian": LinearGaussian()}
    for name, exact in simulators.items():
        num, generator = 20_000, np.random.default_rng(0)
        source = type(data)(name, num_train=num, num_test=100)
        train = source.load("train")
        assert (train.event_shape, train.conditions) == source.shape()
        theta = exact.sample_prior(generator, num)
        expected = np.concatenate([theta, exact.simulate(generator, theta)], axis=1)
        actual = np.concatenate([train.x, train.conds()], axis=1)
        for moment in (np.mean, np.std):
            # Standard errors are at most 0.011 and 0.008.
            first, second = moment(actual, axis=0), moment(expected, axis=0)
            np.testing.assert_allclose(first, second, atol=0.05)
        first, second = np.corrcoef(actual.T), np.corrcoef(expected.T)
        np.testing.assert_allclose(first, second, atol=0.04)
        test = source.load("test")
        assert len(test) == 100
        assert not np.isin(test.x, train.x).any()
