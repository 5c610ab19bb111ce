"""Make the results of a trained run: samples, evaluation, comparison and report."""

from collections.abc import Callable
from pathlib import Path

from fmjax._files import lock_outputs
from fmjax._progress import Progress, Silent
from fmjax.jobs.compare.compare_run import compare_run
from fmjax.jobs.evaluate.evaluate import evaluate_run, read_evaluation
from fmjax.jobs.report.report import report_run
from fmjax.jobs.sample.sample import sample_run
from fmjax.report.comparison import read_json
from fmjax.runs.folder import Run
from fmjax.runs.sampling.files import read_samples


def make_results(run: Run, *, progress: Progress = Silent()) -> None:
    """Make the results that are missing or belong to other weights, then write the report."""
    folder, config = run.folder, run.config
    grid = folder.sample_grid
    # Each file is locked before it is read, because another command may be writing it.
    with lock_outputs(grid, on_wait=progress.say):
        if not _is_of_step(run.step, grid, lambda file: read_samples(file)[1]):
            sample_run(run, config.sampling, output=grid, progress=progress)
            progress.part_done("samples")
    with lock_outputs(folder.evaluation, on_wait=progress.say):
        if not _is_of_step(run.step, folder.evaluation, lambda file: read_evaluation(file).step):
            evaluate_run(run, config.evaluation, config.sampling, progress=progress)
            progress.part_done("evaluation")
    with lock_outputs(folder.comparison, on_wait=progress.say):
        if not _is_of_step(run.step, folder.comparison, lambda file: read_json(file).step):
            compare_run(run, config.compare, progress=progress)
            progress.part_done("comparison")
    report_run(run, progress=progress)
    progress.part_done("page")


def _is_of_step(step: int, file: Path, read_step: Callable[[Path], int | None]) -> bool:
    """Whether the file exists, is complete and belongs to the weights of this training step."""
    try:
        return file.is_file() and read_step(file) == step
    except ValueError:
        return False
