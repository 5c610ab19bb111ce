"""Everything that a reader looks for in a trained run: samples, figures of merit, the page."""

from collections.abc import Callable
from pathlib import Path

from fmjax._progress import Progress, Silent
from fmjax.studies.compare_run import compare_run
from fmjax.studies.evaluate import evaluate_run
from fmjax.studies.report import GRID, report_run
from fmjax.studies.run_folder import Run
from fmjax.studies.sample import sample_run


def make_results(run: Run, *, progress: Progress = Silent()) -> None:
    """Make the results of a trained run that its folder lacks, then the page of all."""
    parts: dict[Path, Callable[[], object]] = {
        run.folder.samples / f"{GRID}.npz": lambda: sample_run(
            run, run.config.sampling, output=run.folder.samples / GRID, progress=progress
        ),
        run.folder.evaluation: lambda: evaluate_run(
            run, run.config.evaluation, run.config.sampling, progress=progress
        ),
        run.folder.comparison: lambda: compare_run(run, run.config.compare, progress=progress),
    }
    for file, make in parts.items():
        if not file.is_file():
            make()
    report_run(run, progress=progress)
