"""Tests of calibration against posteriors whose ranks and coverage have closed forms.

If the true posterior is N(mean, C) and the estimate N(mean, scale^2 C), the true parameters have
the standard score z ~ N(0, 1) and the draws are smaller with probability Phi(z / scale).
"""

import numpy as np
import pytest
from scipy.stats import binom, chi2, chisquare, kstest, norm

from fmjax.metrics import expected_coverage, rank_histogram, sbc_ranks, tarp_coverage
from tests.simulators import LinearGaussian

PROBLEM = LinearGaussian()
NUM = 2000


def simulations(scale, num_draws, seed=0):
    """Return theta, draws of a posterior wider than the true one by `scale`, and x."""
    generator = np.random.default_rng(seed)
    theta = PROBLEM.sample_prior(generator, NUM)
    x = PROBLEM.simulate(generator, theta)
    mean = PROBLEM.mean(x)[:, None]
    draws = mean + scale * (PROBLEM.sample_posterior(generator, num_draws, x) - mean)
    return theta, draws, x


def rank_probabilities(scale, num_draws):
    """Integrate P(rank | z) over z ~ N(0, 1): the ranks given z are binomial."""
    z = np.linspace(-9, 9, 4001)
    given_z = binom.pmf(np.arange(num_draws + 1)[:, None], num_draws, norm.cdf(z / scale))
    return given_z @ norm.pdf(z) * (z[1] - z[0])


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_ranks_follow_closed_form(scale):
    theta, draws, _ = simulations(scale, 19)
    histogram = rank_histogram(sbc_ranks(theta, draws), 19, num_bins=20)
    expected = NUM * rank_probabilities(scale, 19)
    for counts, p_value in zip(histogram.counts, histogram.p_values, strict=True):
        assert chisquare(counts, expected).pvalue > 1e-3
        assert p_value == pytest.approx(chisquare(counts).pvalue, rel=1e-6)
        assert (p_value > 1e-3) == (scale == 1.0)
        inside = (counts >= histogram.low) & (counts <= histogram.high)
        # At most 3 of 20 counts leave their 99 % band with a probability of 2e-5.
        assert (np.sum(~inside) <= 3) == (scale == 1.0)


def test_rank_is_number_of_smaller_draws():
    theta = np.array([[0.5, -1.0], [2.0, 0.0]])
    draws = np.array([[[0.0, 0.0], [1.0, 0.0], [0.4, 0.0]], [[1.0, 0.0], [1.0, -1.0], [1.9, 1.0]]])
    np.testing.assert_array_equal(sbc_ranks(theta, draws), [[2, 0], [3, 1]])


def test_p_values_of_uniform_ranks_are_uniform():
    # 1,000 parameters, with bins that hold 4 or 3 of 25 ranks.
    ranks = np.random.default_rng(1).integers(0, 25, (500, 1000))
    histogram = rank_histogram(ranks, 24, num_bins=7)
    np.testing.assert_array_equal(np.diff(histogram.edges), [4, 4, 3, 4, 3, 4, 3])
    np.testing.assert_allclose(histogram.expected, 20.0 * np.diff(histogram.edges))
    np.testing.assert_array_equal(histogram.counts.sum(axis=1), 500)
    assert kstest(histogram.p_values, "uniform").pvalue > 1e-3
    outside = (histogram.counts < histogram.low) | (histogram.counts > histogram.high)
    # The band contains at least 99 % of 7,000 counts; their standard deviation is 0.12 %.
    assert outside.mean() < 0.01 + 4 * 0.0012


@pytest.mark.parametrize(("num", "num_draws", "bins"), [(1000, 99, 50), (9, 99, 2), (900, 9, 10)])
def test_default_bins_hold_twenty_simulations(num, num_draws, bins):
    assert rank_histogram(np.zeros((num, 1), int), num_draws).counts.shape == (1, bins)


def log_densities(theta, draws, x, scale):
    """Return log-densities up to a constant of N(mean, scale^2 C) at theta and at the draws."""
    mean = PROBLEM.mean(x)[:, None]
    both = np.concatenate([theta[:, None], draws], axis=1)
    density = PROBLEM.log_density(mean + (both - mean) / scale, x)
    return density[:, 0], density[:, 1:]


@pytest.mark.parametrize("scale", [0.7, 1.0, 1.5])
def test_coverage_follows_closed_form(scale):
    """The region of level c is the ellipsoid with radius scale * r, with chi2.cdf(r^2) = c."""
    theta, draws, x = simulations(scale, 199)
    result = expected_coverage(*log_densities(theta, draws, x, scale))
    exact = chi2.cdf(scale**2 * chi2.ppf(result.levels, 3), 3)
    # 4 standard errors, and 1 / 200 for the resolution of 199 draws.
    tolerance = 4 * np.sqrt(exact * (1 - exact) / NUM) + 1 / 200
    assert np.all(np.abs(result.coverage - exact) <= tolerance)
    inside = (result.coverage >= result.low) & (result.coverage <= result.high)
    assert inside.all() == (scale == 1.0)


@pytest.mark.parametrize("scale", [0.7, 1.0, 1.5])
def test_ball_coverage_around_means_follows_closed_form(scale):
    """Balls around the mean of a spherical Gaussian are its highest-density regions."""
    generator = np.random.default_rng(2)
    mean = 3 * generator.standard_normal((NUM, 3))
    theta = mean + generator.standard_normal((NUM, 3))
    draws = mean[:, None] + scale * generator.standard_normal((NUM, 199, 3))
    result = tarp_coverage(theta, draws, mean)
    exact = chi2.cdf(scale**2 * chi2.ppf(result.levels, 3), 3)
    tolerance = 4 * np.sqrt(exact * (1 - exact) / NUM) + 1 / 200
    assert np.all(np.abs(result.coverage - exact) <= tolerance)


def test_ball_coverage_detects_shifted_posterior():
    theta, draws, x = simulations(1.0, 99)
    references = PROBLEM.mean(x) + np.random.default_rng(3).standard_normal((NUM, 3))
    exact = tarp_coverage(theta, draws, references)
    assert np.all((exact.coverage >= exact.low) & (exact.coverage <= exact.high))
    shifted = tarp_coverage(theta, draws + 0.5, PROBLEM.mean(x) + 1.0)
    assert np.any((shifted.coverage < shifted.low) | (shifted.coverage > shifted.high))


def test_coverage_of_equally_likely_ranks_is_exact():
    """One simulation of each rank, as an exact posterior has on average."""
    draws = np.tile(np.arange(7.0), (8, 1))
    result = expected_coverage(np.arange(8.0) - 0.5, draws, levels=[0.0, 0.03, 0.5, 0.77, 1.0])
    np.testing.assert_allclose(result.coverage, result.levels, atol=1e-12)
    assert not np.any((result.coverage < result.low) | (result.coverage > result.high))


def test_coverage_of_uniform_posteriors_is_exact():
    result = expected_coverage(np.zeros(3), np.zeros((3, 10)))
    np.testing.assert_allclose(result.coverage, result.levels, atol=1e-12)


def test_true_parameters_outside_support_are_covered_only_at_level_one():
    result = expected_coverage(np.full(2, -np.inf), np.zeros((2, 9)), levels=[0.5, 0.9, 1.0])
    np.testing.assert_allclose(result.coverage, [0.0, 0.0, 1.0], atol=1e-12)


TWO, DRAWS = np.zeros((2, 3)), np.zeros((2, 5, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sbc_ranks(np.zeros(3), DRAWS), "theta must be an array of numbers with 2 axes"),
        (lambda: sbc_ranks(TWO, DRAWS[:1]), "samples must hold 2 simulations, like theta, got 1"),
        (lambda: sbc_ranks(TWO, DRAWS[..., :2]), "samples must have 3 parameters, like theta, got"),
        (lambda: sbc_ranks(TWO * np.nan, DRAWS), "theta must be numbers, got nan"),
        (lambda: sbc_ranks(TWO, DRAWS[:, :0]), "samples must hold at least one value, got shape"),
        (lambda: rank_histogram(TWO, 5), r"ranks must be integers \[n, parameters\], got float64"),
        (lambda: rank_histogram([[6]], 5), r"ranks must lie in \[0, 5\], got 6 to 6"),
        (lambda: rank_histogram([[1]], 5, num_bins=7), r"num_bins must lie in \[2, 6\], got 7"),
        (lambda: rank_histogram([[1]], 5, band=1.0), r"band must lie in \(0, 1\), got 1.0"),
        (lambda: expected_coverage([0.0], TWO), "log_prob_samples must hold 1 simulations, like"),
        (lambda: expected_coverage([np.inf], TWO[:1]), r"log_prob must be less than \+inf, got"),
        (lambda: expected_coverage([0.0], TWO[:1], levels=[2.0]), r"levels must lie in \[0, 1\]"),
        (lambda: tarp_coverage(TWO, DRAWS, TWO[:1]), r"references must have shape \(2, 3\), got"),
    ],
)
def test_invalid_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
