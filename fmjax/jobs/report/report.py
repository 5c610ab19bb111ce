"""Write the HTML report of a run or a study from the files in its folder."""

import json
import math
from pathlib import Path

from fmjax._arrays import is_image
from fmjax._progress import Progress, Silent
from fmjax.config import StudyConfig, num_parameters, to_json
from fmjax.jobs.evaluate.evaluate import Evaluation, in_equal_numbers, read_evaluation
from fmjax.jobs.evaluate.posterior import read_posterior, read_posterior_samples
from fmjax.jobs.evaluate.straightness import read_straightness
from fmjax.jobs.report.tables import likelihood_tables, round_trip_tables, straightness_tables
from fmjax.paths import AffinePath
from fmjax.report.comparison import Comparison, read_json
from fmjax.report.content import (
    CornerPlot,
    KeyNumber,
    LossCurve,
    NamedPicture,
    PosteriorChecks,
    Report,
    SampleGrid,
    SamplePoints,
    StraightnessPlot,
)
from fmjax.report.gallery import GalleryEntry, read_gallery
from fmjax.report.page import write_report
from fmjax.runs.extensions import read_extensions
from fmjax.runs.folder import Run, RunFolder
from fmjax.runs.sampling.files import describe_sampling, read_samples, sample_grid
from fmjax.training import read_metrics


def report_run(run: Run, *, progress: Progress = Silent()) -> Path:
    """Write `report.html` and `figures/` into the run folder.

    Sections whose files do not exist yet (samples, comparison, evaluation) are omitted.

    Returns:
        The file of the page.
    """
    folder, config = run.folder, run.config
    evaluation = read_evaluation(folder.evaluation) if folder.evaluation.is_file() else None
    comparison = read_json(folder.comparison) if folder.comparison.is_file() else None
    report = Report(
        title=config.name,
        summary=_summary(run),
        key_numbers=(
            *(() if evaluation is None else _key_numbers(evaluation)),
            *_posterior_numbers(folder),
        ),
        samples=_samples(run),
        comparison=comparison,
        loss=_loss_curve(folder.metrics),
        straightness=_straightness_plot(folder),
        config=json.loads(to_json(config)),
        gallery=_gallery(folder),
        tables=(*likelihood_tables(folder), *round_trip_tables(folder)),
        pictures=_pictures(folder),
        posterior=_posterior(folder),
    )
    return _write(report, folder, progress)


def report_study(config: StudyConfig, folder: Path, *, progress: Progress = Silent()) -> Path:
    """Write `report.html` and `figures/` into the folder of a study.

    Args:
        config: The study.
        folder: The folder in which `run_study` has written `comparison.json`.
        progress: Receives progress reports and conclusions from the comparison.

    Returns:
        The file of the page.

    Raises:
        ValueError: If the folder has no `comparison.json`, or a file in it is damaged.
    """
    files = RunFolder(folder)
    if not files.comparison.is_file():
        raise ValueError(f"study folder {folder} must hold comparison.json, got no such file")
    num_samplings = config.num_seeds * sum(len(config.samplings_of(run)) for run in config.runs)
    models = _counted(len(config.all_trainings), "model")
    seeds = ""
    if config.num_seeds > 1:
        seeds = (
            f" Numbers are means over {config.num_seeds} seeds ± their standard deviation; "
            "pictures are of the first seed."
        )
    report = Report(
        title=config.name,
        summary=f"{models} trained on the same data, {_counted(num_samplings, 'sampling run')} "
        f"with {config.num_samples:,} samples each.{seeds}",
        comparison=read_json(files.comparison),
        tables=straightness_tables([folder / run.name for run in config.all_trainings]),
        config={run.name: json.loads(to_json(run)) for run in config.runs},
        gallery=_gallery(files),
    )
    return _write(report, files, progress)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _write(report: Report, folder: RunFolder, progress: Progress) -> Path:
    page = write_report(report, folder.root)
    _say_advice(report.comparison, progress)
    progress.say(f"wrote {page}")
    return page


def _summary(run: Run) -> str:
    millions = num_parameters(run.params) / 1e6
    extensions = read_extensions(run.folder, run.config.training.num_steps)
    network = type(run.config.network).__name__.removesuffix("Config")
    path = run.config.path
    is_affine = isinstance(path, AffinePath)
    path_name = f"{type(path.schedule).__name__} schedule" if is_affine else type(path).__name__
    return (
        f"{network} with {millions:.3g} million parameters, {path_name}, "
        f"{run.model.prediction} prediction, {run.step:,} training steps with batches of "
        f"{run.config.training.batch_size} examples."
        + ("" if run.config.start_from is None else f" Started from run {run.config.start_from}.")
        + "".join(f" {extension}." for extension in extensions)
    )


def _samples(run: Run) -> SampleGrid | SamplePoints | None:
    file = run.folder.sample_grid
    if not file.is_file():
        return None
    samples, _ = read_samples(file)
    caption = f"{len(samples.x1)} samples by {describe_sampling(run.config.sampling)}."
    if run.event_shape == (2,):
        real = run.config.data.load("train", progress=Silent()).points(slice(len(samples.x1)))
        return SamplePoints(samples.x1, real, caption)
    if not is_image(run.event_shape):
        return None
    images, columns, row_labels = sample_grid(samples, run.class_names)
    if samples.labels is not None:
        caption += f" One row per {'prompt' if samples.prompts else 'class'}."
    if samples.x0 is not None:
        caption += " Each sample is shown below its source point."
    return SampleGrid(images, columns, row_labels, caption)


def _straightness_plot(folder: RunFolder) -> StraightnessPlot | None:
    if not folder.straightness.is_file():
        return None
    result = read_straightness(folder.straightness)
    caption = (
        f"Mean over {result.num_trajectories} trajectories. The area under the left curve is the "
        f"straightness, {result.s:.4g}; a trajectory is {result.length_ratio:.4g} times as long as "
        "the distance between its ends. Solvers with few steps make errors where trajectories bend."
        + ("" if math.isnan(result.cost) else f" Transport cost E |x1 - x0|²: {result.cost:.4g}.")
        + (f" {result.num_failed} trajectories were not finite." if result.num_failed else "")
    )
    return StraightnessPlot(
        result.times,
        result.deviation,
        result.midpoints,
        result.curvature,
        caption,
        result.lines,
    )


def _gallery(folder: RunFolder) -> tuple[GalleryEntry, ...]:
    return read_gallery(folder.gallery) if folder.gallery.is_file() else ()


PICTURES = {
    "interpolation": (
        "Interpolation between two images",
        "Points on the arc between the noises of two images, decoded.",
    ),
    "edits": ("Edits", "Images with noise added and removed again, from weak to strong noise."),
}


def _pictures(folder: RunFolder) -> tuple[NamedPicture, ...]:
    files = {name: folder.samples / f"{name}.png" for name in PICTURES}
    return tuple(
        NamedPicture(PICTURES[name][0], file.read_bytes(), PICTURES[name][1])
        for name, file in files.items()
        if file.is_file()
    )


def _key_numbers(evaluation: Evaluation) -> tuple[KeyNumber, ...]:
    numbers = []
    for name, title in (("frechet", "Frechet distance"), ("wasserstein", "Sliced Wasserstein")):
        distance = getattr(evaluation, name)
        if distance is not None:
            samples = f"{evaluation.num_samples:,} samples by {evaluation.solver}"
            note = "; ".join((samples, *in_equal_numbers(evaluation, name, ".3g")))
            numbers.append(KeyNumber(title, f"{distance:.3g}", note))
    if evaluation.accuracy is not None and evaluation.classifier_accuracy is not None:
        note = f"real test images: {100 * evaluation.classifier_accuracy:.1f} %"
        numbers.append(KeyNumber("Recognized samples", f"{100 * evaluation.accuracy:.1f} %", note))
    return tuple(numbers)


def _posterior(folder: RunFolder) -> PosteriorChecks | None:
    samples = read_posterior_samples(folder)
    if samples is None:
        return None
    corners = tuple(
        CornerPlot(
            theta,
            true,
            caption=f"{len(theta):,} samples of the posterior of a test observation, and the "
            "parameters that it was simulated with. The regions of highest density have 50, 90 and "
            "99 % of the samples.",
        )
        for theta, true in zip(samples.shown, samples.shown_true, strict=True)
    )
    coverages = {"regions of highest density": samples.coverage()}
    return PosteriorChecks(corners, samples.histogram(), coverages)


def _posterior_numbers(folder: RunFolder) -> tuple[KeyNumber, ...]:
    if not folder.posterior.is_file():
        return ()
    result = read_posterior(folder.posterior)
    num = result.num_simulations - result.num_failed
    note = f"mean over {num:,} test observations, ± {result.log_prob_error:.2g}"
    log_prob = KeyNumber("Log-density of true parameters", f"{result.log_prob:.3f} nats", note)
    note = f"of 90 % regions over {num:,} test observations; of 50 % regions: "
    note += f"{100 * result.coverage_50:.1f} %"
    return log_prob, KeyNumber("Coverage", f"{100 * result.coverage_90:.1f} %", note)


def _loss_curve(file: Path) -> LossCurve | None:
    if not file.is_file():
        return None
    lines = [line for line in read_metrics(file) if "loss" in line]
    if not lines:
        return None
    return LossCurve(tuple(line["step"] for line in lines), tuple(line["loss"] for line in lines))


def _say_advice(comparison: Comparison | None, progress: Progress) -> None:
    from fmjax.report.advice import sentences

    for sentence in () if comparison is None else sentences(comparison):
        progress.say(sentence)
