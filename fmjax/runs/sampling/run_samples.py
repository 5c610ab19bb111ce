"""Sample from a trained run."""

import dataclasses
from collections.abc import Callable

from jaxtyping import PyTree

from fmjax._arrays import Params
from fmjax._progress import Progress, Silent
from fmjax.config import Sampling, make_solve
from fmjax.runs.folder import Run
from fmjax.runs.programs import reuse_program_of_run
from fmjax.runs.sample_set import SampleSet
from fmjax.runs.sampling.batches import make_batch_solver, make_sampler, with_slots_in_use
from fmjax.runs.sampling.calibrated_grid import run_grid
from fmjax.runs.sampling.conditions import SampleConditions
from fmjax.runs.sampling.source_points import run_source_points
from fmjax.solvers import Samples, needs_calibration


def sample_from_run(
    run: Run,
    sampling: Sampling,
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
    sampling: Sampling,
    conditions: SampleConditions | None = None,
    *,
    progress: Progress = Silent(),
) -> Callable[[Params], SampleSet]:
    """Make a function that samples with any weights of a run and compiles only once.

    A function for the same run and solver that was made before shares its program.

    Args:
        run: A trained run; its `params` are not used.
        sampling: Settings of the sampler.
        conditions: Conditions of the samples; None for an unconditional model.
        progress: Receives progress reports.
    """
    conditions = SampleConditions() if conditions is None else conditions
    steps = with_slots_in_use(run_steps(run, sampling, progress), sampling, run.mesh)
    source_points = None if run.config.source is None else run_source_points(run, progress)
    # The settings of the solve itself; the others are arguments of the program.
    solver = dataclasses.replace(sampling, num_samples=1, batch_size=1, seed=0, prompts=())

    def make_program() -> Callable[..., Samples]:
        solve = make_solve(run.model, sampling)
        return make_batch_solver(run.model.process, solve, steps, run.event_shape, run.mesh)

    program = reuse_program_of_run(run, ("sample", solver, steps), make_program)
    sample_batches = make_sampler(program, sampling, run.mesh, source_points=source_points)

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


def run_steps(run: Run, sampling: Sampling, progress: Progress = Silent()) -> PyTree:
    """Make the solver steps of a sampling config for the schedule and calibrated grid of a run."""
    is_calibrated = needs_calibration(sampling.sampler)
    density = run_grid(run, sampling, progress=progress) if is_calibrated else None
    return sampling.steps(run.model, density)
