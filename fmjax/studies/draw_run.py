"""Samples of a trained run, as a config asks for them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fmjax._progress import Progress, Silent
from fmjax.config import SamplingConfig, Steps, make_solve
from fmjax.data import NoSuchSplit
from fmjax.studies.calibrate import run_grid
from fmjax.studies.draw import Drawn, draw_samples, noise
from fmjax.studies.run_folder import Run


def draw_from(
    run: Run, sampling: SamplingConfig, labels: np.ndarray | None, *, progress: Progress = Silent()
) -> Drawn:
    """Draw `sampling.num_samples` samples of a run, with these labels.

    A calibrated grid is measured if the run has none yet.
    """
    return draw_samples(
        run.config.path, make_solve(run.experiment, sampling), run_steps(run, sampling, progress),
        run.params, run.event_shape, labels, sampling, run.mesh,
        starts=None if run.config.source is None else run_starts(run, progress),
        progress=progress,
    )  # fmt: skip


def run_starts(
    run: Run, progress: Progress = Silent()
) -> Callable[[int, np.ndarray | jax.Array], jax.Array]:
    """What gives the points at t = 0 of some numbers, `(seed, indices) -> [indices, *event]`.

    Normal noise; of a run between two data sets, test examples of the first (training ones where
    it has no others).
    """
    path, event_shape = run.config.path, run.event_shape
    if run.config.source is None:

        @jax.jit
        def of_noise(seed: jax.Array, indices: jax.Array) -> jax.Array:
            return path.start(noise(jax.random.key(seed), indices, event_shape))

        return lambda seed, indices: of_noise(jnp.asarray(seed), jnp.asarray(indices))
    try:
        source = run.config.source.load("test", progress=progress)
    except NoSuchSplit:
        source = run.config.source.load("train", progress=progress)

    def of_data(seed: int, indices: np.ndarray | jax.Array) -> jax.Array:
        order = np.random.default_rng(seed).permutation(len(source))
        return path.start(jnp.asarray(source.points(order[np.asarray(indices) % len(source)])))

    return of_data


def run_steps(run: Run, sampling: SamplingConfig, progress: Progress = Silent()) -> Steps:
    """The steps that a config asks for, on the schedule and the calibrated grid of a run."""
    calibrated = sampling.num_steps is not None and sampling.grid == "calibrated"
    density = run_grid(run, sampling, progress=progress) if calibrated else None
    return sampling.make_steps(run.config.path.schedule, density)
