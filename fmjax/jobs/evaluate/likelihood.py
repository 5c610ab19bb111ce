"""Log-likelihood of test data under a run's model, in nats and in bits per dimension."""

import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fmjax._json import AnyFloat, Count, NonNegative, Positive, plain_json, read_json
from fmjax._progress import Progress, Silent
from fmjax.config.likelihood import LikelihoodConfig
from fmjax.data import Dataset
from fmjax.runs.folder import Run, write_text, writes
from fmjax.runs.log_density import require_density, run_log_density
from fmjax.runs.sampling.conditions import network_conditions
from fmjax.solvers import bits_per_dim

MAX_LEVELS = 256


class LikelihoodResult(NamedTuple):
    """Mean log-likelihood of test examples, with standard errors of the mean.

    Attributes:
        step: The training step of the weights.
        num_examples: Number of test examples.
        num_failed: Number of examples that did not reach t = 0; they are excluded.
        nats: Mean log-density of an example, of dequantized data if `bin_width` is set.
        nats_error: Standard error of `nats`.
        bits_per_dim: Mean bits per dimension; None if `bin_width` is None.
        bits_error: Standard error of `bits_per_dim`.
        bin_width: Distance between neighboring levels of the data, in data units; None without
            dequantization.
        nfe: Mean number of network evaluations per example; a Jacobian-vector product counts as
            one evaluation.
        method: Description of the solver and the divergence, such as "tsit5 at tolerance 1e-05,
            exact divergence".
    """

    step: Count
    num_examples: Count
    num_failed: Count
    nats: AnyFloat
    nats_error: AnyFloat
    bits_per_dim: AnyFloat | None
    bits_error: AnyFloat | None
    bin_width: Positive | None
    nfe: NonNegative
    method: str


def read_likelihood(file: Path) -> LikelihoodResult:
    """Read the `likelihood.json` that `likelihood_run` wrote.

    Raises:
        ValueError: If the file is not a valid result.
    """
    return read_json(file, LikelihoodResult, nonfinite=True)


@writes("likelihood.json")
def likelihood_run(
    run: Run, config: LikelihoodConfig, *, progress: Progress = Silent()
) -> LikelihoodResult:
    """Compute the log-density of test examples, report the mean and write `likelihood.json`.

    Conditional models get the class or caption of each example. Guidance is not applied.

    Args:
        run: A trained run.
        config: Number of examples, and settings of the solver and the divergence.
        progress: Receives progress reports.

    Raises:
        ValueError: If the data have no test split, fewer than two examples reach t = 0, or the
            source distribution of the run is a dataset.
    """
    require_density(run)
    test = run.config.data.load("test", progress=progress)
    num = len(test) if config.num_examples is None else min(config.num_examples, len(test))
    indices = np.linspace(0, len(test) - 1, num).astype(int)
    width = level_width(test) if config.dequantize else None
    conds = network_conditions(run, test, indices)
    points = test.points(indices)
    solved = run_log_density(run, points, conds, config, bin_width=width, progress=progress)
    nats = solved.nats[solved.succeeded]
    if len(nats) < 2:
        raise ValueError(f"at least 2 examples must reach t = 0, got {len(nats)}")
    num_dims = math.prod(run.event_shape)
    error = float(nats.std(ddof=1) / math.sqrt(len(nats)))
    bits = None if width is None else float(bits_per_dim(nats.mean(), num_dims, width))
    result = LikelihoodResult(
        step=run.step,
        num_examples=num,
        num_failed=num - len(nats),
        nats=float(nats.mean()),
        nats_error=error,
        bits_per_dim=bits,
        bits_error=None if bits is None else error / (num_dims * math.log(2.0)),
        bin_width=width,
        nfe=float(solved.nfe.mean()),
        method=describe_method(config),
    )
    file = run.folder.likelihood
    write_text(file, json.dumps(plain_json(result._asdict()), indent=2) + "\n")
    progress.say(summarize_likelihood(result))
    progress.say(f"wrote {file}")
    return result


def level_width(dataset: Dataset) -> float | None:
    """Distance between neighboring levels of the data; None if the levels are not evenly spaced.

    Bytes, which are scaled to [-1, 1], are 2 / 255 apart. Other data count as evenly spaced if all
    differences between values are integer multiples, up to 255, of the smallest difference.
    """
    if dataset.x.dtype == np.uint8:
        return 2 / 255
    levels = np.unique(dataset.x[:])
    if not 2 <= len(levels) <= MAX_LEVELS:
        return None
    width = float(np.diff(levels).min())
    multiples = (levels - levels[0]) / width
    even = np.allclose(multiples, np.round(multiples), atol=1e-3) and multiples[-1] < MAX_LEVELS
    return width if even else None


def describe_method(config: LikelihoodConfig) -> str:
    """Describe the method, such as "tsit5 at tolerance 1e-05, exact divergence"."""
    steps = f"at tolerance {config.rtol:g}"
    if config.num_steps is not None:
        steps = f"with {config.num_steps} step{'' if config.num_steps == 1 else 's'}"
    divergence = "exact divergence"
    if config.divergence == "hutchinson":
        probes = "probe" if config.probes == 1 else "probes"
        divergence = f"{config.probes} {config.distribution} {probes}"
    return f"{config.solver} {steps}, {divergence}"


def summarize_likelihood(result: LikelihoodResult) -> str:
    """Summarize a result in one line of text."""
    text = f"{result.nats:.2f} +- {result.nats_error:.2f} nats"
    if result.bits_per_dim is not None:
        text = f"{result.bits_per_dim:.4f} +- {result.bits_error:.4f} bits per dimension ({text})"
    text += f" over {result.num_examples - result.num_failed} test examples by {result.method}, "
    text += f"{result.nfe:.4g} network evaluations each"
    return text + (f"; {result.num_failed} failed" if result.num_failed else "")
