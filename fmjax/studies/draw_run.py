"""Samples of a trained run, as a config asks for them."""

from fmjax._progress import Progress, Silent
from fmjax.config import SamplingConfig, Steps, make_solve
from fmjax.studies.asked import Asked
from fmjax.studies.calibrate import run_grid
from fmjax.studies.draw import Drawn, draw_samples
from fmjax.studies.run_folder import Run
from fmjax.studies.starts import run_starts


def draw_from(
    run: Run, sampling: SamplingConfig, asked: Asked | None = None, *, progress: Progress = Silent()
) -> Drawn:
    """Draw `sampling.num_samples` samples of a run that are asked to be this.

    A calibrated grid is measured if the run has none yet.
    """
    asked = Asked() if asked is None else asked
    drawn = draw_samples(
        run.config.path, make_solve(run.experiment, sampling), run_steps(run, sampling, progress),
        run.params, run.event_shape, asked.cond, sampling, run.mesh,
        starts=None if run.config.source is None else run_starts(run, progress),
        progress=progress,
    )  # fmt: skip
    return drawn._replace(labels=asked.labels, prompts=asked.prompts)


def run_steps(run: Run, sampling: SamplingConfig, progress: Progress = Silent()) -> Steps:
    """The steps that a config asks for, on the schedule and the calibrated grid of a run."""
    calibrated = sampling.num_steps is not None and sampling.grid == "calibrated"
    density = run_grid(run, sampling, progress=progress) if calibrated else None
    return sampling.make_steps(run.config.path.schedule, density)
