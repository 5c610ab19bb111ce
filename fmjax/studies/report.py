"""The page of a run or a study, made anew from what its folder holds."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fmjax._progress import Progress, Silent
from fmjax.config import StudyConfig, num_parameters, solver_title, to_json
from fmjax.report.comparison import Comparison, power_of_ten, read_json
from fmjax.report.gallery import GalleryEntry, read_gallery
from fmjax.report.page import (
    Cell,
    KeyNumber,
    LossCurve,
    NamedPicture,
    PathShape,
    Report,
    SampleGrid,
    SamplePoints,
    Table,
    write_report,
)
from fmjax.studies.draw import is_image
from fmjax.studies.evaluate import Evaluation, read_evaluation
from fmjax.studies.invert import RoundTrip
from fmjax.studies.likelihood import LikelihoodResult
from fmjax.studies.paths import read_paths
from fmjax.studies.run_folder import Run, RunFolder
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
        paths=_path_shape(folder),
        config=json.loads(to_json(config)),
        gallery=_gallery(folder),
        tables=(*_likelihood(folder), *_round_trips(folder)),
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
            (len(config.runs), "training"),
            (sum(len(config.ways(run)) for run in config.runs), "sampling"),
        )
    )
    report = Report(
        title=config.name,
        summary=f"{runs} on the same data, {ways} of them, {config.num_samples:,} samples a row.",
        comparison=read_json(folder.comparison),
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
    if row_labels:
        caption += " One row per class."
    return SampleGrid(images, columns, row_labels, caption)


def _path_shape(folder: RunFolder) -> PathShape | None:
    if not folder.paths.is_file():
        return None
    found = read_paths(folder.paths)
    caption = (
        f"Mean of {found.num_paths} paths. The area on the left is the straightness, "
        f"{found.s:.4g}; a path is {found.length_ratio:.4g} times as long as the distance of its "
        "ends. Where paths bend, few steps go wrong."
    )
    return PathShape(
        found.times, found.deviation, found.midpoints, found.curvature, caption, found.lines
    )


def _gallery(folder: RunFolder) -> tuple[GalleryEntry, ...]:
    return read_gallery(folder.gallery) if folder.gallery.is_file() else ()


def _likelihood(folder: RunFolder) -> tuple[Table, ...]:
    """What `fmjax likelihood` found."""
    path = folder.likelihood
    if not path.is_file():
        return ()
    found = _parsed(path, lambda document: LikelihoodResult(**document))
    rows = [("nats of an example", found.nats, found.nats_error)]
    if found.bits_per_dim is not None and found.bits_error is not None:
        rows.insert(0, ("bits per dimension", found.bits_per_dim, found.bits_error))
    cells = [
        (name, Cell(f"{mean:.5g}", mean), Cell(f"{error:.2g}", error)) for name, mean, error in rows
    ]
    note = (
        f"Mean over {found.num_examples - found.num_failed:,} test examples by {found.method}; "
        f"{found.nfe:.4g} network evaluations each."
    )
    return (Table("Likelihood", ("of test data", "mean", "standard error"), cells, note),)


def _round_trips(folder: RunFolder) -> tuple[Table, ...]:
    """What `fmjax invert` found to be lost from image to noise to image."""
    if not folder.inversion.is_file():
        return ()
    num_images, trips = _parsed(
        folder.inversion,
        lambda document: (
            document["num_images"],
            [RoundTrip(**trip) for trip in document["round_trips"]],
        ),
    )
    rows = [_trip_row(trip, num_images) for trip in trips]
    columns = ("solver", "setting", "evaluations", "RMSE, mean", "RMSE, worst", "rms of the noise",
               "arrived")  # fmt: skip
    note = (
        f"What differs after the way to noise and back, of {num_images:,} images with "
        "pixels in [-1, 1]; evaluations are of both directions together."
    )
    return (Table("To noise and back", columns, rows, note),)


def _trip_row(trip: RoundTrip, num_images: int) -> list[str | float | Cell]:
    if trip.tolerance is None:
        steps = trip.num_steps or 0
        family, setting = "fixed", Cell("1 step" if steps == 1 else f"{steps} steps", steps)
    else:
        family = "adaptive"
        setting = Cell(f"tolerance {power_of_ten(trip.tolerance)}", 1 / trip.tolerance)
    errors = (trip.mean_rmse, trip.worst_rmse, trip.noise_rms)
    arrived = num_images - trip.num_failed
    return [
        Cell(solver_title(trip.solver), kind=family),
        setting,
        trip.nfe,
        *(math.nan if error is None else error for error in errors),
        Cell(f"{arrived} of {num_images}", arrived, "bad" if trip.num_failed else ""),
    ]


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


def _parsed(path: Path, parse: Callable[[Any], Any]) -> Any:
    try:
        return parse(json.loads(path.read_text(encoding="utf-8")))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} must be one that fmjax wrote, got {error}") from error


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
