"""Everything that a reader looks for in a trained run: samples, figures of merit, the page."""

from collections.abc import Callable
from pathlib import Path

from fmjax._files import lock_outputs
from fmjax._progress import Progress, Silent
from fmjax.jobs.compare.compare_run import compare_run
from fmjax.jobs.evaluate.evaluate import evaluate_run, read_evaluation
from fmjax.jobs.report.report import GRID, report_run
from fmjax.jobs.sample.sample import (
    sample_run,
)
from fmjax.report.comparison import read_json
from fmjax.runs.folder import Run
from fmjax.runs.sampling.files import (
    read_samples,
)


def make_results(run: Run, *, progress: Progress = Silent()) -> None:
    """Make the results that the run's folder lacks or has of other weights, then the page."""
    folder, config = run.folder, run.config
    grid = folder.samples / f"{GRID}.npz"
    # Each is held before it is looked at: another command may be making it.
    with lock_outputs(grid, on_wait=progress.say):
        if not _is_of_step(run.step, grid, lambda path: read_samples(path)[1]):
            sample_run(run, config.sampling, output=folder.samples / GRID, progress=progress)
            progress.part_done("samples")
    with lock_outputs(folder.evaluation, on_wait=progress.say):
        if not _is_of_step(run.step, folder.evaluation, lambda path: read_evaluation(path).step):
            evaluate_run(run, config.evaluation, config.sampling, progress=progress)
            progress.part_done("evaluation")
    with lock_outputs(folder.comparison, on_wait=progress.say):
        if not _is_of_step(run.step, folder.comparison, lambda path: read_json(path).step):
            compare_run(run, config.compare, progress=progress)
            progress.part_done("comparison")
    report_run(run, progress=progress)
    progress.part_done("page")


def _is_of_step(step: int, file: Path, read_step: Callable[[Path], int | None]) -> bool:
    """Whether the file is there, whole, and was made with the weights of this training step."""
    try:
        return file.is_file() and read_step(file) == step
    except ValueError:
        return False
