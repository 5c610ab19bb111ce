"""Log-densities of points under the model of a run."""

import dataclasses
from collections.abc import Callable
from functools import partial
from operator import itemgetter
from typing import NamedTuple

import jax
import numpy as np

from fmjax._arrays import Cond, Params
from fmjax._checks import require
from fmjax._progress import COMPILING, Progress, Silent
from fmjax.config import LikelihoodConfig, build, differentiable_forwards
from fmjax.runs.folder import Run
from fmjax.runs.programs import reuse_program_of_run
from fmjax.sharding import map_batched, on_mesh
from fmjax.solvers import dequantize, log_density


class LogDensities(NamedTuple):
    """Log-densities on the host, with their costs.

    Attributes:
        nats: Log-density of each point in nats, float64 `[num]`.
        nfe: Number of network evaluations of each point, `[num]`; a Jacobian-vector product counts
            as one.
        succeeded: Whether each point reached t = 0 and is finite, `[num]`.
    """

    nats: np.ndarray
    nfe: np.ndarray
    succeeded: np.ndarray


def require_density(run: Run) -> None:
    """Raise unless the source distribution of a run is noise, whose density is known."""
    rule = "have noise as its source distribution, because the likelihood needs its density"
    require(run.config.source is None, "run", rule, "a dataset")


def run_log_density(
    run: Run,
    x: np.ndarray,
    cond: Cond,
    config: LikelihoodConfig,
    *,
    bin_width: float | None = None,
    progress: Progress = Silent(),
) -> LogDensities:
    """Compute the log-density of points under the flow of a run, in batches over its mesh.

    Guidance is not applied: a guided field has a density, but not that of the data.

    Args:
        run: A trained run.
        x: Points in data units, `[num, *event]`.
        cond: Condition of each point, in data units, or None.
        config: Solver, divergence, batch size and seed; `num_examples` and `dequantize` have no
            effect.
        bin_width: Width of the bins of discrete data, over which uniform noise is added to `x`;
            None adds none.
        progress: Receives progress reports.

    Raises:
        ValueError: If the source distribution of the run is a dataset, or the process of the run
            has no density of its source distribution.
    """
    require_density(run)
    source_log_density = run.model.velocity_process.source_log_density
    standardization = run.standardization
    cond = standardization.conds(cond)
    settings = dataclasses.replace(config, num_examples=None, batch_size=1)
    program = reuse_program_of_run(
        run,
        ("log_density", settings, bin_width),
        lambda: _make_program(run, settings, bin_width, source_log_density),
    )
    with progress.task("likelihood", len(x)) as advance:
        advance(0, COMPILING)
        nats, nfe, succeeded = map_batched(
            partial(program, run.params),
            lambda indices: (indices, x[indices], jax.tree.map(itemgetter(indices), cond)),
            len(x),
            batch_size=config.batch_size,
            mesh=run.mesh,
            on_batch=advance,
        )
    log_volume = standardization.log_volume(run.event_shape)
    return LogDensities(nats.astype(np.float64) - log_volume, nfe, succeeded)


def _make_program(
    run: Run,
    config: LikelihoodConfig,
    bin_width: float | None,
    source_log_density: Callable[..., jax.Array],
) -> Callable[..., tuple[jax.Array, ...]]:
    """Make the jitted function `(params, indices, x1, cond) -> (nats, nfe, succeeded)`."""
    # The divergence uses forward-mode differentiation, which some kernels do not support.
    forward_config = differentiable_forwards(run.config)
    experiment = build(forward_config, run.event_shape, run.conditions)
    standardization = run.standardization

    def solve(
        params: Params, indices: jax.Array, x1: jax.Array, cond: Cond
    ) -> tuple[jax.Array, ...]:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(config.seed), indices)
        if bin_width is not None:
            x1 = dequantize(jax.vmap(jax.random.fold_in, (0, None))(keys, 0), x1, bin_width)
        solved = log_density(
            experiment.model.velocity_fn(params),
            standardization.points(x1),
            cond,
            divergence=config.make_divergence(),
            keys=jax.vmap(jax.random.fold_in, (0, None))(keys, 1),
            solver=config.make_solver(),
            steps=config.make_steps(),
            source_log_density=source_log_density,
        )
        return solved.log_density, solved.nfe, solved.succeeded

    return jax.jit(on_mesh(run.mesh, solve))
