"""How likely a run's model finds test data: nats, and bits per dimension where data are levels."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fmjax._checks import require
from fmjax._json import AnyFloat, Count, NonNegative, Positive, plain_json, read_json
from fmjax._progress import COMPILING, Progress, Silent
from fmjax.config import build, differentiable_forwards
from fmjax.config.likelihood import LikelihoodConfig
from fmjax.data import Dataset
from fmjax.runs.folder import Run, write_text, writes
from fmjax.runs.sampling.batches import even_batches
from fmjax.runs.sampling.conditions import conds_of
from fmjax.sharding import batch_sharding
from fmjax.solvers import Likelihood, bits_per_dim, dequantize, log_density

MAX_LEVELS = 256


class LikelihoodResult(NamedTuple):
    """Means over test examples; their errors are standard errors of the mean.

    Attributes:
        step: The training step of the weights.
        num_examples: Test examples asked about.
        num_failed: How many of them did not arrive at t = 0; they are left out.
        nats: Log-density of an example, dequantised if there is a bin width.
        nats_error: Its error.
        bits_per_dim: None without bins.
        bits_error: Its error.
        bin_width: Distance of two levels of the data, in data units; None without dequantising.
        nfe: Network evaluations of an example; a derivative along a direction counts one.
        method: What solved, in words.
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


def read_likelihood(path: Path) -> LikelihoodResult:
    """Read what `likelihood_run` wrote.

    Raises:
        ValueError: If the file is not such a document.
    """
    return read_json(path, LikelihoodResult, nonfinite=True)


@writes("likelihood.json")
def likelihood_run(
    run: Run, config: LikelihoodConfig, *, progress: Progress = Silent()
) -> LikelihoodResult:
    """Find the log-density of test examples; write `likelihood.json` and say the mean.

    A model that knows classes or captions is told that of the example. Guidance is left out.

    Args:
        run: A trained run.
        config: How many examples, and how they are solved.
        progress: Hears of each batch.

    Raises:
        ValueError: If the run's data have no test split, or fewer than two examples arrived.
    """
    rule = "start from noise, whose density is known"
    require(run.config.source is None, "run", rule, "one between two data sets")
    test = run.config.data.load("test", progress=progress)
    num = len(test) if config.num_examples is None else min(config.num_examples, len(test))
    rows = np.linspace(0, len(test) - 1, num).astype(int)
    width = level_width(test) if config.dequantize else None
    conds = conds_of(run, test, rows)
    nats, nfe, succeeded = _solve_all(run, config, test.points(rows), conds, width, progress)
    arrived = nats[succeeded]
    if len(arrived) < 2:
        raise ValueError(f"at least 2 examples must arrive at t = 0, got {len(arrived)}")
    num_dims = math.prod(run.event_shape)
    error = float(arrived.std(ddof=1) / math.sqrt(len(arrived)))
    bits = None if width is None else float(bits_per_dim(arrived.mean(), num_dims, width))
    result = LikelihoodResult(
        step=run.step,
        num_examples=num,
        num_failed=num - len(arrived),
        nats=float(arrived.mean()),
        nats_error=error,
        bits_per_dim=bits,
        bits_error=None if bits is None else error / (num_dims * math.log(2.0)),
        bin_width=width,
        nfe=float(nfe.mean()),
        method=in_words(config),
    )
    path = run.folder.likelihood
    write_text(path, json.dumps(plain_json(result._asdict()), indent=2) + "\n")
    progress.say(described(result))
    progress.say(f"wrote {path}")
    return result


def level_width(dataset: Dataset) -> float | None:
    """The distance of neighbouring levels of the data; None where they are not in even levels.

    Bytes lie 2 / 255 apart. Of other data, which are delivered as they are, all numbers must
    be whole multiples of the least distance apart, at most 255 of them.
    """
    if dataset.x.dtype == np.uint8:
        return 2 / 255
    levels = np.unique(dataset.x[:])
    if not 2 <= len(levels) <= MAX_LEVELS:
        return None
    width = float(np.diff(levels).min())
    steps = (levels - levels[0]) / width
    even = np.allclose(steps, np.round(steps), atol=1e-3) and steps[-1] < MAX_LEVELS
    return width if even else None


def _solve_all(
    run: Run,
    config: LikelihoodConfig,
    x: np.ndarray,
    conds: Any,
    width: float | None,
    progress: Progress,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log-density (float64), evaluations and success of each example, batch after batch."""
    scale = float(run.config.path.start(jnp.ones((1,)))[0])
    plain = differentiable_forwards(run.config)  # The divergence is a derivative forwards.
    experiment = build(plain, run.event_shape, run.conditions)

    def solve(params: Any, indices: jax.Array, x1: jax.Array, cond: Any) -> Likelihood:
        with jax.sharding.use_abstract_mesh(run.mesh.abstract_mesh):
            keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(config.seed), indices)
            if width is not None:
                x1 = dequantize(jax.vmap(jax.random.fold_in, (0, None))(keys, 0), x1, width)
            return log_density(
                experiment.velocity_fn(params),
                x1,
                cond,
                divergence=config.make_divergence(),
                keys=jax.vmap(jax.random.fold_in, (0, None))(keys, 1),
                solver=config.make_solver(),
                steps=config.make_steps(),
                source_scale=scale,
            )

    jitted, laid = jax.jit(solve), batch_sharding(run.mesh)
    parts = []
    with progress.task("likelihood", len(x)) as advance:
        advance(0, COMPILING)
        for rows, kept in even_batches(len(x), config.batch_size, run.mesh):
            cond = None if conds is None else conds[rows]
            found = jitted(run.params, *jax.device_put((rows, x[rows], cond), laid))
            parts.append(
                [np.asarray(a)[kept] for a in (found.log_density, found.nfe, found.succeeded)]
            )
            advance(kept.stop)
    nats, nfe, succeeded = (np.concatenate(part) for part in zip(*parts, strict=True))
    return nats.astype(np.float64), nfe, succeeded


def in_words(config: LikelihoodConfig) -> str:
    """How the log-density was found: "tsit5 at tolerance 1e-05, exact divergence"."""
    how = f"at tolerance {config.rtol:g}"
    if config.num_steps is not None:
        how = f"with {config.num_steps} step{'' if config.num_steps == 1 else 's'}"
    divergence = "exact divergence"
    if config.divergence == "hutchinson":
        probes = "probe" if config.probes == 1 else "probes"
        divergence = f"{config.probes} {config.distribution} {probes}"
    return f"{config.solver} {how}, {divergence}"


def described(result: LikelihoodResult) -> str:
    """The figures in one line."""
    text = f"{result.nats:.2f} +- {result.nats_error:.2f} nats"
    if result.bits_per_dim is not None:
        text = f"{result.bits_per_dim:.4f} +- {result.bits_error:.4f} bits per dimension ({text})"
    text += f" over {result.num_examples - result.num_failed} test examples by {result.method}, "
    text += f"{result.nfe:.4g} network evaluations each"
    return text + (f"; {result.num_failed} failed" if result.num_failed else "")
