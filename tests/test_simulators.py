"""Tests of the reference problems in `tests/simulators.py` against quadrature and sampling."""

import numpy as np
import pytest

from tests.simulators import LinearGaussian, TwoMoons

LINEAR, MOONS = LinearGaussian(), TwoMoons()


def observations(problem, num, seed=0):
    generator = np.random.default_rng(seed)
    theta = problem.sample_prior(generator, num)
    return theta, problem.simulate(generator, theta)


def test_linear_posterior_matches_importance_sampling():
    # 100,000 draws of the prior weighted by the likelihood. The relative variance of the weights
    # gives the number of effective draws, and the tolerance is 4 standard errors.
    generator = np.random.default_rng(1)
    theta = LINEAR.sample_prior(generator, 100_000)
    for x in observations(LINEAR, 2)[1]:
        weights = np.exp(LINEAR.log_likelihood(theta, x))
        weights /= weights.sum()
        effective = 1 / np.sum(weights**2)
        assert effective > 500
        mean, covariance = LINEAR.mean(x[None])[0], LINEAR.covariance()
        std = np.sqrt(np.diag(covariance))
        error = np.abs(weights @ theta - mean) / std
        assert error.max() < 4 / np.sqrt(effective)
        offset = (theta - mean) / std
        correlation = covariance / np.outer(std, std)
        # The variance of a product of two standard normal variables is at most 2.
        error = np.abs(offset.T @ (weights[:, None] * offset) - correlation)
        assert error.max() < 4 * np.sqrt(2 / effective)


def test_linear_log_density_satisfies_bayes_rule():
    """log p(theta | x) - log p(x | theta) - log p(theta) = -log p(x) for every theta."""
    _, x = observations(LINEAR, 1)
    theta = LINEAR.sample_prior(np.random.default_rng(2), 50)
    log_prior = -0.5 * np.sum(theta**2 + np.log(2 * np.pi), axis=1)
    evidence = LINEAR.log_likelihood(theta, x) + log_prior - LINEAR.log_density(theta[None], x)[0]
    # x ~ N(b, A A^T + diag(noise_std^2)).
    covariance = LINEAR.matrix @ LINEAR.matrix.T + np.diag(LINEAR.noise_std**2)
    offset = x[0] - LINEAR.offset
    squared = offset @ np.linalg.solve(covariance, offset)
    expected = -0.5 * (squared + np.linalg.slogdet(2 * np.pi * covariance)[1])
    np.testing.assert_allclose(evidence, expected, rtol=1e-10)


def test_linear_posterior_draws_have_posterior_moments():
    _, x = observations(LINEAR, 2)
    draws = LINEAR.sample_posterior(np.random.default_rng(3), 40_000, x)
    assert draws.shape == (2, 40_000, 3)
    std = np.sqrt(np.diag(LINEAR.covariance()))
    for mean, points in zip(LINEAR.mean(x), draws, strict=True):
        assert np.abs((points.mean(axis=0) - mean) / std).max() < 4 / np.sqrt(40_000)
        error = (np.cov(points.T) - LINEAR.covariance()) / np.outer(std, std)
        assert np.abs(error).max() < 4 * np.sqrt(2 / 40_000)


# The crescents of the second observation leave the prior's support, those of the third are cut off
# at s = 0.
@pytest.mark.parametrize("x", [(-0.3, 0.2), (-0.8, -0.3), (0.3, 0.05)])
def test_two_moons_draws_match_posterior_on_grid(x):
    x, num, num_draws = np.array(x), 800, 20_000
    middle = (np.arange(num) + 0.5) / num * 2 - 1
    grid = np.stack(np.meshgrid(middle, middle, indexing="ij"), axis=-1)
    density = np.exp(MOONS.log_density(grid.reshape(-1, 2), x)).reshape(num, num) * (2 / num) ** 2
    # The crescents are about 120 cells long, so an edge through them contributes an error of up to
    # one row in 120. On a grid of 3201^2 points the sums differ from 1 by 5e-4, 7e-6 and 1e-3.
    assert density.sum() == pytest.approx(1, abs=8e-3)
    density /= density.sum()
    draws = MOONS.sample_posterior(np.random.default_rng(4), num_draws, x[None])[0]
    for axis in (0, 1):
        exact = np.cumsum(density.sum(axis=1 - axis))
        below = np.searchsorted(np.sort(draws[:, axis]), middle + 1 / num) / num_draws
        # Kolmogorov: the difference exceeds 1.95 / sqrt(n) with probability 0.001.
        assert np.abs(exact - below).max() < 1.95 / np.sqrt(num_draws) + 8e-3
    positive = density[grid.sum(axis=-1) > 0].sum() + density[grid.sum(axis=-1) == 0].sum() / 2
    assert np.mean(draws.sum(axis=1) > 0) == pytest.approx(positive, abs=2 / np.sqrt(num_draws))


def test_two_moons_draws_explain_observation():
    theta, x = observations(MOONS, 20)
    draws = MOONS.sample_posterior(np.random.default_rng(5), 100, x)
    assert np.isfinite(MOONS.log_likelihood(draws, x[:, None])).all()
    assert np.isfinite(MOONS.log_likelihood(theta, x)).all()
    assert np.abs(draws).max() <= 1


def test_two_moons_likelihood_integrates_to_one_over_observations():
    num = 400
    middle = (np.arange(num) + 0.5) / num * 0.4 - 0.2
    x = np.stack(np.meshgrid(middle, middle, indexing="ij"), axis=-1)
    theta = np.array([0.2, 0.3])
    center = np.array([-0.5 / np.sqrt(2) + 0.25, 0.1 / np.sqrt(2)])
    density = np.exp(MOONS.log_likelihood(theta, x + center))
    assert density.sum() * (0.4 / num) ** 2 == pytest.approx(1, abs=1e-3)
