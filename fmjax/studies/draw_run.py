"""Samples of a trained run, as a config asks for them."""

import numpy as np

from fmjax._progress import Progress, Silent
from fmjax.config import SamplingConfig, Steps, make_solve
from fmjax.studies.calibrate import run_grid
from fmjax.studies.draw import Drawn, draw_samples
from fmjax.studies.run_folder import Run
from fmjax.studies.starts import run_starts


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


def run_steps(run: Run, sampling: SamplingConfig, progress: Progress = Silent()) -> Steps:
    """The steps that a config asks for, on the schedule and the calibrated grid of a run."""
    calibrated = sampling.num_steps is not None and sampling.grid == "calibrated"
    density = run_grid(run, sampling, progress=progress) if calibrated else None
    return sampling.make_steps(run.config.path.schedule, density)
