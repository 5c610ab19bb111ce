"""The page of a run, made anew from what its folder holds."""

import json
from pathlib import Path

from fmjax._progress import Progress, Silent
from fmjax.config import num_parameters, to_json
from fmjax.report.comparison import Comparison, read_json
from fmjax.report.page import (
    KeyNumber,
    LossCurve,
    Report,
    SampleGrid,
    SamplePoints,
    write_report,
)
from fmjax.studies.evaluate import Evaluation, read_evaluation
from fmjax.studies.run_folder import Run
from fmjax.studies.sample import grid_of, in_words, read_samples
from fmjax.training import read_metrics

GRID = "grid"  # The samples that the page shows: samples/grid.png and samples/grid.npz.


def report_run(run: Run, *, progress: Progress = Silent()) -> Path:
    """Write `report.html` and `figures/` into the run folder.

    What has not been made yet (samples, comparison, evaluation) is left out of the page.

    Returns:
        The path of the page.
    """
    folder, config = run.folder, run.config
    evaluation = read_evaluation(folder.evaluation) if folder.evaluation.is_file() else None
    comparison = read_json(folder.comparison) if folder.comparison.is_file() else None
    report = Report(
        title=config.name,
        summary=_summary(run),
        key_numbers=() if evaluation is None else _key_numbers(evaluation),
        samples=_samples(run),
        comparison=comparison,
        loss=_loss_curve(folder.metrics),
        config=json.loads(to_json(config)),
    )
    page = write_report(report, folder.path)
    _say_advice(comparison, progress)
    progress.say(f"wrote {page}")
    return page


def _summary(run: Run) -> str:
    millions = num_parameters(run.params) / 1e6
    kind = type(run.config.network).__name__.removesuffix("Config")
    schedule = type(run.config.path.schedule).__name__
    return (
        f"{kind} with {millions:.3g} million parameters, {schedule} schedule, "
        f"{run.config.loss.prediction} prediction, {run.step:,} steps of "
        f"{run.config.training.batch_size} examples."
    )


def _samples(run: Run) -> SampleGrid | SamplePoints | None:
    path = run.folder.samples / f"{GRID}.npz"
    if not path.is_file():
        return None
    drawn, _ = read_samples(path)
    caption = f"{len(drawn.x1)} samples by {in_words(run.config.sampling)}."
    if run.event_shape == (2,):
        real = run.config.data.load("train").examples().x1[: len(drawn.x1)]
        return SamplePoints(drawn.x1, real, caption)
    if len(run.event_shape) != 3 or run.event_shape[-1] not in (1, 3):
        return None
    images, columns, row_labels = grid_of(drawn)
    if row_labels:
        caption += " One row per class."
    return SampleGrid(images, columns, row_labels, caption)


def _key_numbers(evaluation: Evaluation) -> tuple[KeyNumber, ...]:
    numbers = []
    halves = f"two halves of the real data, {evaluation.num_half:,} each"
    if evaluation.frechet is not None:
        note = f"{evaluation.num_samples:,} samples by {evaluation.solver}; "
        if evaluation.num_test:
            note += f"{evaluation.num_test:,} test images: {evaluation.frechet_test:.3g}; "
        note += f"{halves}: {evaluation.frechet_halves:.3g}"
        numbers.append(KeyNumber("Frechet distance", f"{evaluation.frechet:.3g}", note))
    note = f"{halves}: {evaluation.wasserstein_halves:.3g}"
    numbers.append(KeyNumber("Sliced Wasserstein", f"{evaluation.wasserstein:.3g}", note))
    if evaluation.accuracy is not None and evaluation.classifier_accuracy is not None:
        note = f"of real test images: {100 * evaluation.classifier_accuracy:.1f} %"
        numbers.append(KeyNumber("Recognised samples", f"{100 * evaluation.accuracy:.1f} %", note))
    return tuple(numbers)


def _loss_curve(path: Path) -> LossCurve | None:
    if not path.is_file():
        return None
    lines = [line for line in read_metrics(path) if "loss" in line]
    if not lines:
        return None
    return LossCurve(tuple(line["step"] for line in lines), tuple(line["loss"] for line in lines))


def _say_advice(comparison: Comparison | None, progress: Progress) -> None:
    from fmjax.report.advice import sentences

    for sentence in () if comparison is None else sentences(comparison):
        progress.say(sentence)
