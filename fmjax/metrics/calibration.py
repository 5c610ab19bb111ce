"""Calibration of posteriors: ranks and coverage of the parameters that made each observation.

All functions take simulations `i = 1, ..., n`: parameters `theta_i` from the prior, an observation
`x_i` simulated with them, and draws of the estimated posterior given `x_i`. If the posterior is
exact, `theta_i` and its draws are exchangeable, so ranks are uniform and credible regions contain
`theta_i` as often as they claim. An estimate equal to the prior is calibrated, too: calibration
does not measure how much a posterior learns from the observation.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Integer
from numpy.typing import ArrayLike

from fmjax._checks import require, require_between, require_count
from fmjax._inputs import describe

# Expected simulations per bin of a rank histogram, as in Talts et al. 2018, arXiv:1804.06788.
PER_BIN = 20
NUM_LEVELS = 101


class RankHistogram(NamedTuple):
    """Histograms of ranks, one per parameter, with a test of uniformity.

    Attributes:
        counts: Number of simulations in each bin.
        edges: First rank of each bin, and after the last bin the number of ranks.
        expected: Expected counts for uniform ranks. Bins differ if they hold unequal numbers of
            ranks.
        low: Lower end of the band that contains each count with probability `band`, for uniform
            ranks.
        high: Upper end of that band, inclusive.
        p_values: Probability that uniform ranks differ at least as much from `expected`, by
            Pearson's chi-square test, for each parameter. Divide the significance level by the
            number of parameters to test all of them.
        band: Probability of the band, for each bin by itself.
    """

    counts: Integer[np.ndarray, "parameters bins"]
    edges: Integer[np.ndarray, " edges"]
    expected: Float[np.ndarray, " bins"]
    low: Float[np.ndarray, " bins"]
    high: Float[np.ndarray, " bins"]
    p_values: Float[np.ndarray, " parameters"]
    band: float


class Coverage(NamedTuple):
    """Fraction of simulations whose parameters lie in the credible region of each level.

    Attributes:
        levels: Credibility levels in [0, 1].
        coverage: Expected coverage at each level, equal to `levels` on average for an exact
            posterior. Smaller values are those of overconfident posteriors.
        low: Lower end of the band that contains the coverage of an exact posterior with
            probability `band`, at each level by itself.
        high: Upper end of that band.
        band: Probability of the band.
    """

    levels: Float[np.ndarray, " levels"]
    coverage: Float[np.ndarray, " levels"]
    low: Float[np.ndarray, " levels"]
    high: Float[np.ndarray, " levels"]
    band: float


def sbc_ranks(theta: ArrayLike, samples: ArrayLike) -> Integer[np.ndarray, "n parameters"]:
    """Compute the rank of each true parameter among posterior draws, for each parameter.

    The rank is the number of draws that are smaller than the true value, an integer from 0 to the
    number of draws. Ranks pile up at both ends for posteriors that are too narrow, in the middle
    for those that are too wide, and at one end for those that are shifted.

    Args:
        theta: True parameters, `[n, parameters]`.
        samples: Independent draws of each posterior, `[n, draws, parameters]`.

    Raises:
        ValueError: If the shapes do not match, or a value is nan.

    Reference: Talts et al. 2018, arXiv:1804.06788, theorem 1 and algorithm 1.
    """
    true, draws = _check_draws(theta, samples)
    return np.sum(draws < true[:, None], axis=1)


def rank_histogram(
    ranks: ArrayLike, num_draws: int, *, num_bins: int | None = None, band: float = 0.99
) -> RankHistogram:
    """Count ranks in bins and test whether they are uniform.

    Args:
        ranks: Ranks from `sbc_ranks`, integers `[n, parameters]`.
        num_draws: Number of posterior draws per simulation, L: ranks are 0, 1, ..., L.
        num_bins: Number of bins, from 2 to `L + 1`; None for one bin per 20 simulations within
            these limits.
        band: Probability of the band around the expected counts, below 1.

    Raises:
        ValueError: If ranks are not integers from 0 to L, or a setting is out of range.

    Reference: Talts et al. 2018, arXiv:1804.06788, section 4.
    """
    from scipy.stats import binom, chi2  # Slow to import.

    require_count("num_draws", num_draws, 1)
    table = np.asarray(ranks)
    ok = table.ndim == 2 and table.dtype.kind in "iu" and 0 not in table.shape
    require(ok, "ranks", "be integers [n, parameters]", describe(table))
    rule = f"lie in [0, {num_draws}]"
    in_range = table.min() >= 0 and table.max() <= num_draws
    require(bool(in_range), "ranks", rule, f"{table.min()} to {table.max()}")
    if num_bins is None:
        num_bins = max(2, min(num_draws + 1, len(table) // PER_BIN))
    require_count("num_bins", num_bins, 2)
    require_between("num_bins", num_bins, 2, num_draws + 1)
    require(0 < band < 1, "band", "lie in (0, 1)", band)
    edges = -(-np.arange(num_bins + 1) * (num_draws + 1) // num_bins)
    share = np.diff(edges) / (num_draws + 1)
    counts = np.stack([np.histogram(column, edges)[0] for column in table.T])
    expected = len(table) * share
    statistic = np.sum((counts - expected) ** 2 / expected, axis=1)
    return RankHistogram(
        counts=counts,
        edges=edges,
        expected=expected,
        low=binom.ppf((1 - band) / 2, len(table), share),
        high=binom.ppf((1 + band) / 2, len(table), share),
        p_values=chi2.sf(statistic, num_bins - 1),
        band=band,
    )


def expected_coverage(
    log_prob: ArrayLike,
    log_prob_samples: ArrayLike,
    *,
    levels: ArrayLike | None = None,
    band: float = 0.99,
) -> Coverage:
    """Compute the expected coverage of the highest-density regions of posteriors.

    The region of level c is the smallest one with probability c. It contains the true parameters
    if less than a fraction c of the draws has a higher density than they have. With a finite number
    of draws L, that fraction is known up to `1 / (L + 1)`; spreading it evenly over this interval
    makes the coverage of an exact posterior equal to c on average for every L. Draws with the
    density of the true parameters, as in uniform posteriors, are treated in the same way.

    Args:
        log_prob: Log-density of each posterior at the true parameters, `[n]`; -inf outside of its
            support.
        log_prob_samples: Log-densities of the same posterior at its own draws, `[n, draws]`. A
            constant that differs between posteriors has no effect.
        levels: Credibility levels in [0, 1]; None for 101 equidistant ones.
        band: Probability of the band around the levels, below 1.

    Raises:
        ValueError: If the shapes do not match, a log-density is nan or +inf, or a setting is out
            of range.

    Reference: Hermans et al. 2021, arXiv:2110.06581, section 2.
    """
    true, draws = (
        _as_reals("log_prob", log_prob, 1),
        _as_reals("log_prob_samples", log_prob_samples, 2),
    )
    _require_rows("log_prob_samples", draws, "log_prob", true)
    for name, values in (("log_prob", true), ("log_prob_samples", draws)):
        require(not np.isposinf(values).any(), name, "be less than +inf", "inf")
    higher = np.sum(draws > true[:, None], axis=1)
    return _coverage(higher, np.sum(draws == true[:, None], axis=1), draws.shape[1], levels, band)


def tarp_coverage(
    theta: ArrayLike,
    samples: ArrayLike,
    references: ArrayLike,
    *,
    levels: ArrayLike | None = None,
    band: float = 0.99,
) -> Coverage:
    """Compute the expected coverage of balls around reference points, from draws alone (TARP).

    The region of level c of a posterior is the ball around a reference point that has probability
    c. Posteriors whose density is not known can be tested in this way. For references that depend
    on the observation, correct coverage for all of them implies an exact posterior; with the same
    distribution of references for all observations, the prior passes the test, too.

    Args:
        theta: True parameters, `[n, parameters]`.
        samples: Independent draws of each posterior, `[n, draws, parameters]`.
        references: Center of the balls of each simulation, `[n, parameters]`; it may depend on the
            observation but not on the true parameters. Distances are Euclidean, so parameters
            should have comparable units.
        levels: Credibility levels in [0, 1]; None for 101 equidistant ones.
        band: Probability of the band around the levels, below 1.

    Raises:
        ValueError: If the shapes do not match, a value is nan, or a setting is out of range.

    Reference: Lemos et al. 2023, arXiv:2302.03026, section 3.
    """
    true, draws = _check_draws(theta, samples)
    centers = _as_reals("references", references, 2)
    require(centers.shape == true.shape, "references", f"have shape {true.shape}", centers.shape)
    radius = np.sum((true - centers) ** 2, axis=1)[:, None]
    squared = np.sum((draws - centers[:, None]) ** 2, axis=2)
    ties = np.sum(squared == radius, axis=1)
    return _coverage(np.sum(squared < radius, axis=1), ties, draws.shape[1], levels, band)


def _coverage(
    ranks: Integer[np.ndarray, " n"],
    ties: Integer[np.ndarray, " n"],
    num_draws: int,
    levels: ArrayLike | None,
    band: float,
) -> Coverage:
    """Compute the coverage from the number of draws that lie deeper in their region than `theta`.

    Args:
        ranks: Number of draws that lie deeper in the region than the true parameters.
        ties: Number of draws that lie as deep.
        num_draws: Number of draws of each posterior.
        levels: Credibility levels, or None.
        band: Probability of the band.
    """
    from scipy.stats import binom  # Slow to import.

    require(0 < band < 1, "band", "lie in (0, 1)", band)
    c = np.linspace(0.0, 1.0, NUM_LEVELS) if levels is None else _as_reals("levels", levels, 1)
    require(bool(np.all((c >= 0) & (c <= 1))), "levels", "lie in [0, 1]", c)
    # The level at which the region begins to contain the true parameters is uniform in
    # [ranks, ranks + ties + 1] / (num_draws + 1).
    contained = (c * (num_draws + 1) - ranks[:, None]) / (ties[:, None] + 1)
    return Coverage(
        levels=c,
        coverage=np.mean(np.clip(contained, 0.0, 1.0), axis=0),
        low=binom.ppf((1 - band) / 2, len(ranks), c) / len(ranks),
        high=binom.ppf((1 + band) / 2, len(ranks), c) / len(ranks),
        band=band,
    )


def _check_draws(theta: ArrayLike, samples: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Convert true parameters and posterior draws to float64, and check their shapes."""
    true, draws = _as_reals("theta", theta, 2), _as_reals("samples", samples, 3)
    _require_rows("samples", draws, "theta", true)
    rule = f"have {true.shape[1]} parameters, like theta"
    require(draws.shape[2] == true.shape[1], "samples", rule, draws.shape[2])
    return true, draws


def _require_rows(name: str, values: np.ndarray, like: str, rows: np.ndarray) -> None:
    rule = f"hold {len(rows)} simulations, like {like}"
    require(len(values) == len(rows), name, rule, len(values))


def _as_reals(name: str, values: ArrayLike, ndim: int) -> np.ndarray:
    """Convert real numbers without nan to a non-empty array with `ndim` axes."""
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError):  # Rows of different lengths, or no numbers.
        array = np.asarray(np.nan)
    require(array.ndim == ndim, name, f"be an array of numbers with {ndim} axes", describe(values))
    require(array.size > 0, name, "hold at least one value", f"shape {array.shape}")
    require(not np.isnan(array).any(), name, "be numbers", "nan")
    return array
