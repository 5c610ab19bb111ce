"""The page of a run or a study, made anew from what its folder holds."""

import json
import math
from pathlib import Path

from fmjax._arrays import (
    is_image,
)
from fmjax._progress import Progress, Silent
from fmjax.config import StudyConfig, num_parameters, to_json
from fmjax.jobs.evaluate.evaluate import Evaluation, in_equal_numbers, read_evaluation
from fmjax.jobs.evaluate.straightness import read_paths
from fmjax.jobs.report.tables import likelihood_tables, path_tables, round_trip_tables
from fmjax.report.comparison import Comparison, read_json
from fmjax.report.gallery import GalleryEntry, read_gallery
from fmjax.report.page import (
    KeyNumber,
    LossCurve,
    NamedPicture,
    PathShape,
    Report,
    SampleGrid,
    SamplePoints,
    write_report,
)
from fmjax.runs.folder import Run, RunFolder
from fmjax.runs.sampling.files import (
    grid_of,
    in_words,
    read_samples,
)
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
        paths=_path_shape(folder),
        config=json.loads(to_json(config)),
        gallery=_gallery(folder),
        tables=(*likelihood_tables(folder), *round_trip_tables(folder)),
        pictures=_pictures(folder),
    )
    return _write(report, folder, progress)


def report_study(config: StudyConfig, path: Path, *, progress: Progress = Silent()) -> Path:
    """Write `report.html` and `figures/` into a study's folder.

    Args:
        config: The study.
        path: Its folder, where `run_study` has written its table.
        progress: Hears of what the table says.

    Returns:
        The path of the page.

    Raises:
        ValueError: If the folder holds no table, or a file in it is damaged.
    """
    folder = RunFolder(path)
    if not folder.comparison.is_file():
        raise ValueError(f"study folder {path} must hold comparison.json, got no such file")
    runs, ways = (
        f"{number} {noun}{'' if number == 1 else 's'}"
        for number, noun in (
            (len(config.all_trainings), "training"),
            (config.num_seeds * sum(len(config.ways(run)) for run in config.runs), "sampling"),
        )
    )
    seeds = ""
    if config.num_seeds > 1:
        seeds = (
            f" Figures are means over {config.num_seeds} seeds ± their standard deviation, "
            "pictures are of the first."
        )
    report = Report(
        title=config.name,
        summary=f"{runs} on the same data, {ways} of them, {config.num_samples:,} samples each."
        + seeds,
        comparison=read_json(folder.comparison),
        tables=path_tables([path / run.name for run in config.all_trainings]),
        config={run.name: json.loads(to_json(run)) for run in config.runs},
        gallery=_gallery(folder),
    )
    return _write(report, folder, progress)


def _write(report: Report, folder: RunFolder, progress: Progress) -> Path:
    page = write_report(report, folder.path)
    _say_advice(report.comparison, progress)
    progress.say(f"wrote {page}")
    return page


def _summary(run: Run) -> str:
    millions = num_parameters(run.params) / 1e6
    kind = type(run.config.network).__name__.removesuffix("Config")
    schedule = type(run.config.path.schedule).__name__
    return (
        f"{kind} with {millions:.3g} million parameters, {schedule} schedule, "
        f"{run.experiment.prediction} prediction, {run.step:,} steps of "
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
    if not is_image(run.event_shape):
        return None
    images, columns, row_labels = grid_of(drawn)
    if drawn.labels is not None:
        caption += f" {'Prompts' if drawn.prompts else 'Classes'} one below the other."
    if drawn.x0 is not None:
        caption += " Above each what it was made from."
    return SampleGrid(images, columns, row_labels, caption)


def _path_shape(folder: RunFolder) -> PathShape | None:
    if not folder.paths.is_file():
        return None
    found = read_paths(folder.paths)
    caption = (
        f"Mean of {found.num_paths} paths. The area on the left is the straightness, "
        f"{found.s:.4g}; a path is {found.length_ratio:.4g} times as long as the distance of its "
        "ends. Where paths bend, few steps go wrong."
        + ("" if math.isnan(found.cost) else f" Transport cost E |x1 - x0|²: {found.cost:.4g}.")
        + (f" {found.num_failed} were not finite." if found.num_failed else "")
    )
    return PathShape(
        found.times, found.deviation, found.midpoints, found.curvature, caption, found.lines
    )


def _gallery(folder: RunFolder) -> tuple[GalleryEntry, ...]:
    return read_gallery(folder.gallery) if folder.gallery.is_file() else ()


PICTURES = {
    "interpolation": ("Between two images", "Arcs between the noises of two images, decoded."),
    "edits": ("Edits", "From weak to strong: noise put on an image, and taken off again."),
}


def _pictures(folder: RunFolder) -> tuple[NamedPicture, ...]:
    paths = {name: folder.samples / f"{name}.png" for name in PICTURES}
    return tuple(
        NamedPicture(PICTURES[name][0], path.read_bytes(), PICTURES[name][1])
        for name, path in paths.items()
        if path.is_file()
    )


def _key_numbers(evaluation: Evaluation) -> tuple[KeyNumber, ...]:
    numbers = []
    for name, title in (("frechet", "Frechet distance"), ("wasserstein", "Sliced Wasserstein")):
        distance = getattr(evaluation, name)
        if distance is not None:
            drawn = f"{evaluation.num_samples:,} samples by {evaluation.solver}"
            note = "; ".join((drawn, *in_equal_numbers(evaluation, name, ".3g")))
            numbers.append(KeyNumber(title, f"{distance:.3g}", note))
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
