"""Check the calibration of a run's posteriors on simulations of the test split."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fmjax._files import read_npz, write_npz
from fmjax._json import AnyFloat, Count, Share, plain_json, read_json
from fmjax._progress import Progress, Silent
from fmjax._specs import Spec
from fmjax.data import NoSuchSplit
from fmjax.metrics import (
    Coverage,
    RankHistogram,
    expected_coverage,
    rank_histogram,
    sbc_ranks,
)
from fmjax.runs.folder import Run, RunFolder, write_text
from fmjax.runs.posterior import Posterior
from fmjax.runs.sampling.conditions import network_conditions

MAX_PARAMETERS = 8
"""Largest number of parameters whose posteriors are checked after training."""
NUM_DRAWS = 63
"""Posterior samples for each simulation; ranks lie in [0, NUM_DRAWS]."""
TOLERANCE = 1e-4  # Of the solves; statistical errors are much larger.
NUM_SHOWN = 2  # Posteriors that the page shows.
NUM_SHOWN_SAMPLES = 4_000


class PosteriorResult(NamedTuple):
    """Calibration of posteriors on simulations of the test split.

    Attributes:
        step: The training step of the weights.
        num_simulations: Number of simulated pairs of parameters and observation.
        num_failed: Number of simulations in which a solve failed; they are excluded.
        num_draws: Number of posterior samples for each simulation.
        log_prob: Mean log-density of the true parameters under their posterior, in nats.
        log_prob_error: Standard error of `log_prob`.
        p_values: Probability of ranks that are at least as uneven, for each parameter, if the
            posterior is exact (`fmjax.metrics.rank_histogram`).
        coverage_50: Share of simulations whose parameters lie in the highest-density region with
            50 % of the posterior.
        coverage_90: Share of true parameters in the region with 90 % of the posterior.
    """

    step: Count
    num_simulations: Count
    num_failed: Count
    num_draws: Count
    log_prob: AnyFloat
    log_prob_error: AnyFloat
    p_values: tuple[Share, ...]
    coverage_50: Share
    coverage_90: Share


class PosteriorSamples(NamedTuple):
    """Arrays of a check of posteriors, as stored in `samples/posterior.npz`.

    Attributes:
        step: The training step of the weights.
        ranks: Rank of each true parameter among its posterior samples, `[n, parameters]`.
        log_prob: Log-density of the true parameters in nats, `[n]`.
        log_prob_samples: Log-densities of the posterior samples, `[n, draws]`.
        shown: Samples of the posteriors that the page shows, `[shown, samples, parameters]`.
        shown_true: True parameters of these posteriors, `[shown, parameters]`.
    """

    step: np.ndarray
    ranks: np.ndarray
    log_prob: np.ndarray
    log_prob_samples: np.ndarray
    shown: np.ndarray
    shown_true: np.ndarray

    def histogram(self) -> RankHistogram:
        """Return the histogram of the ranks of each parameter."""
        return rank_histogram(self.ranks, self.log_prob_samples.shape[1])

    def coverage(self, levels: np.ndarray | None = None) -> Coverage:
        """Return the expected coverage of the regions of highest density."""
        return expected_coverage(self.log_prob, self.log_prob_samples, levels=levels)


def has_posterior(run: Run) -> bool:
    """Return whether a run is the posterior of at most 8 parameters given a vector."""
    observation, event = run.conditions, run.event_shape
    is_vector = isinstance(observation, Spec) and observation.kind == "vector"
    is_small = len(event) == 1 and event[0] <= MAX_PARAMETERS
    return is_vector and is_small and run.config.source is None


def read_posterior(file: Path) -> PosteriorResult:
    """Read the `posterior.json` that `check_posterior` wrote.

    Raises:
        ValueError: If the file is not a valid result.
    """
    return read_json(file, PosteriorResult, nonfinite=True)


def read_posterior_samples(folder: RunFolder) -> PosteriorSamples | None:
    """Read `samples/posterior.npz` of a run; None if it is missing.

    Raises:
        ValueError: If the file is damaged.
    """
    file = folder.posterior_samples
    if not file.is_file():
        return None
    arrays = read_npz(file)
    try:
        return PosteriorSamples(**{name: arrays[name] for name in PosteriorSamples._fields})
    except KeyError as error:
        raise ValueError(f"file {file} must hold {error}, got {', '.join(arrays)}") from None


def check_posterior(
    run: Run, num_simulations: int, *, progress: Progress = Silent()
) -> PosteriorResult | None:
    """Check the posteriors of test observations, and write `posterior.json` and their samples.

    Args:
        run: A run for which `has_posterior` holds.
        num_simulations: Largest number of test examples.
        progress: Receives progress reports.

    Returns:
        The result; None if the data have no test split.

    Raises:
        ValueError: If fewer than two simulations can be solved.

    Reference: Talts et al. 2018, arXiv:1804.06788 (ranks); Hermans et al. 2021, arXiv:2110.06581
        (expected coverage).
    """
    try:
        test = run.config.data.load("test", progress=progress)
    except NoSuchSplit:
        progress.say("posteriors are not checked, because the data have no test split")
        return None
    num = min(num_simulations, len(test))
    indices = np.linspace(0, len(test) - 1, num).astype(int)
    theta = test.points(indices)
    observations = np.asarray(network_conditions(run, test, indices))
    posterior = Posterior(run, tolerance=TOLERANCE)
    draws = posterior.sample(NUM_DRAWS, observations, progress=progress)
    log_prob = posterior.log_prob(theta[:, None], observations, progress=progress)[:, 0]
    finite = np.all(np.isfinite(draws), axis=(1, 2))
    # A failed draw has no density; zeros keep the solver from failing for its batch.
    solvable = np.where(finite[:, None, None], draws, 0.0).astype(np.float32)
    log_prob_samples = posterior.log_prob(solvable, observations, progress=progress)
    succeeded = finite & np.isfinite(log_prob) & np.all(np.isfinite(log_prob_samples), axis=1)
    if succeeded.sum() < 2:
        raise ValueError(f"at least 2 simulations must be solved, got {succeeded.sum()}")
    shown = posterior.sample(NUM_SHOWN_SAMPLES, observations[:NUM_SHOWN], progress=progress)
    samples = PosteriorSamples(
        step=np.asarray(run.step),
        ranks=sbc_ranks(theta[succeeded], draws[succeeded]),
        log_prob=log_prob[succeeded],
        log_prob_samples=log_prob_samples[succeeded],
        shown=shown,
        shown_true=theta[:NUM_SHOWN],
    )
    result = _summarize(samples, num)
    for line in describe_posterior(result):
        progress.say(line)
    write_npz(run.folder.posterior_samples, **samples._asdict())
    text = json.dumps(plain_json(result._asdict()), indent=2) + "\n"
    write_text(run.folder.posterior, text)
    return result


def _summarize(samples: PosteriorSamples, num_simulations: int) -> PosteriorResult:
    """Compute the result of a check from its arrays."""
    num = len(samples.log_prob)
    coverage = samples.coverage(np.array([0.5, 0.9])).coverage
    return PosteriorResult(
        step=int(samples.step),
        num_simulations=num_simulations,
        num_failed=num_simulations - num,
        num_draws=samples.log_prob_samples.shape[1],
        log_prob=float(samples.log_prob.mean()),
        log_prob_error=float(samples.log_prob.std(ddof=1) / np.sqrt(num)),
        p_values=tuple(samples.histogram().p_values.tolist()),
        coverage_50=float(coverage[0]),
        coverage_90=float(coverage[1]),
    )


def describe_posterior(result: PosteriorResult) -> list[str]:
    """Describe a result in lines of text."""
    p_values = ", ".join(f"{p:.2g}" for p in result.p_values)
    lines = [
        f"posteriors of {result.num_simulations} test observations, {result.num_draws} samples "
        "each:",
        f"  log-density of the true parameters {result.log_prob:.3f} +- "
        f"{result.log_prob_error:.3f} nats",
        f"  ranks of the true parameters are uniform with p = {p_values}",
        f"  regions of 50 % and 90 % contain the true parameters in "
        f"{100 * result.coverage_50:.1f} % and {100 * result.coverage_90:.1f} %",
    ]
    if result.num_failed:
        lines.append(f"  {result.num_failed} simulations could not be solved and are excluded")
    return lines
