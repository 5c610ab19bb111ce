"""Sample from a trained run."""

from collections.abc import Callable

from fmjax._arrays import Params
from fmjax._progress import Progress, Silent
from fmjax.config import SamplingConfig, Steps, make_solve
from fmjax.runs.folder import Run
from fmjax.runs.sample_set import SampleSet
from fmjax.runs.sampling.batches import make_sampler
from fmjax.runs.sampling.calibrated_grid import run_grid
from fmjax.runs.sampling.conditions import SampleConditions
from fmjax.runs.sampling.source_points import run_source_points


def sample_from_run(
    run: Run,
    sampling: SamplingConfig,
    conditions: SampleConditions | None = None,
    *,
    progress: Progress = Silent(),
) -> SampleSet:
    """Generate `sampling.num_samples` samples from a run.

    Measures the calibrated time grid if `sampling` uses it and the run folder does not have it.

    Args:
        run: A trained run.
        sampling: Settings of the sampler.
        conditions: Conditions of the samples; None for an unconditional model.
        progress: Receives progress reports.
    """
    return make_run_sampler(run, sampling, conditions, progress=progress)(run.params)


def make_run_sampler(
    run: Run,
    sampling: SamplingConfig,
    conditions: SampleConditions | None = None,
    *,
    progress: Progress = Silent(),
) -> Callable[[Params], SampleSet]:
    """Make a function that samples with any weights of a run and compiles only once.

    Args:
        run: A trained run; its `params` are not used.
        sampling: Settings of the sampler.
        conditions: Conditions of the samples; None for an unconditional model.
        progress: Receives progress reports.
    """
    conditions = SampleConditions() if conditions is None else conditions
    steps = run_steps(run, sampling, progress)
    source_points = None if run.config.source is None else run_source_points(run, progress)
    solve = make_solve(run.model, sampling)
    sample_batches = make_sampler(
        run.config.path,
        solve,
        steps,
        run.event_shape,
        sampling,
        run.mesh,
        source_points=source_points,
    )

    standardization = run.standardization

    def sample(params: Params) -> SampleSet:
        samples = sample_batches(params, standardization.conds(conditions.cond), progress)
        x0 = samples.x0
        return samples._replace(
            x1=standardization.restore_points(samples.x1),
            x0=None if x0 is None else standardization.restore_points(x0),
            labels=conditions.labels,
            prompts=conditions.prompts,
            cond=conditions.arrays,
        )

    return sample


def run_steps(run: Run, sampling: SamplingConfig, progress: Progress = Silent()) -> Steps:
    """Make the solver steps of a sampling config for the schedule and calibrated grid of a run."""
    calibrated = sampling.num_steps is not None and sampling.grid == "calibrated"
    density = run_grid(run, sampling, progress=progress) if calibrated else None
    return sampling.make_steps(run.config.path.schedule, density)
