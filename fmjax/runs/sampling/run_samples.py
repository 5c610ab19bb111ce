"""Samples of a trained run, as a config asks for them."""

from collections.abc import Callable

from fmjax._arrays import Params
from fmjax._progress import Progress, Silent
from fmjax.config import SamplingConfig, Steps, make_solve
from fmjax.runs.folder import Run
from fmjax.runs.sampling.batches import Drawn, make_draw_samples
from fmjax.runs.sampling.calibrated_grid import run_grid
from fmjax.runs.sampling.conditions import SampleConditions
from fmjax.runs.sampling.source_points import run_source_points


def draw_from(
    run: Run,
    sampling: SamplingConfig,
    asked: SampleConditions | None = None,
    *,
    progress: Progress = Silent(),
) -> Drawn:
    """Draw `sampling.num_samples` samples of a run that are asked to be this.

    A calibrated grid is measured if the run has none yet.
    """
    return make_draw_from(run, sampling, asked, progress=progress)(run.params)


def make_draw_from(
    run: Run,
    sampling: SamplingConfig,
    asked: SampleConditions | None = None,
    *,
    progress: Progress = Silent(),
) -> Callable[[Params], Drawn]:
    """Make `draw_from` as a function of the weights, compiled once. `run.params` are not used."""
    asked = SampleConditions() if asked is None else asked
    steps = run_steps(run, sampling, progress)
    starts = None if run.config.source is None else run_source_points(run, progress)
    solve = make_solve(run.experiment, sampling)
    draw = make_draw_samples(
        run.config.path, solve, steps, run.event_shape, sampling, run.mesh, starts=starts
    )

    def draw_with(params: Params) -> Drawn:
        drawn = draw(params, asked.cond, progress)
        return drawn._replace(labels=asked.labels, prompts=asked.prompts)

    return draw_with


def run_steps(run: Run, sampling: SamplingConfig, progress: Progress = Silent()) -> Steps:
    """The steps that a config asks for, on the schedule and the calibrated grid of a run."""
    calibrated = sampling.num_steps is not None and sampling.grid == "calibrated"
    density = run_grid(run, sampling, progress=progress) if calibrated else None
    return sampling.make_steps(run.config.path.schedule, density)
