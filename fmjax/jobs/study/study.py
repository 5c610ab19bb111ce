"""Run a study: train several configs, sample each with several settings, and tabulate metrics."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fmjax._checks import require
from fmjax._files import read_npz, require_folder, write_npz
from fmjax._locks import lock_folder
from fmjax._progress import Progress, Silent
from fmjax._specs import is_captions
from fmjax.config import (
    Config,
    Sampling,
    StudyConfig,
    build,
    is_stochastic,
    solver_title,
    to_json,
)
from fmjax.config.sampling import guidance_settings
from fmjax.jobs.compare.compare import device_in_words
from fmjax.jobs.compare.compare_run import NUM_SHOWN
from fmjax.jobs.evaluate.straightness import measure_straightness, read_straightness
from fmjax.jobs.study.seeds import mean_row
from fmjax.jobs.train.prepare import lock_run
from fmjax.jobs.train.train import train
from fmjax.metrics import (
    ImageClassifier,
    PrecisionRecall,
    frechet_distance,
    high_frequency_share,
    precision_recall,
)
from fmjax.paths import Tabulated
from fmjax.report.comparison import (
    AS_REAL,
    Comparison,
    SolverRun,
    row_from_json,
    row_to_json,
    write_csv,
    write_json,
)
from fmjax.report.gallery import GalleryEntry, write_gallery
from fmjax.runs.folder import Run, RunFolder, require_no_run, write_text
from fmjax.runs.real_data import MAX_REAL, data_classifier, test_split
from fmjax.runs.sample_set import SampleSet
from fmjax.runs.sampling.batches import require_samples_fit
from fmjax.runs.sampling.conditions import SampleConditions, labels_like
from fmjax.runs.sampling.files import settings_name
from fmjax.runs.sampling.run_samples import sample_from_run

HIGHER_IS_BETTER = ("Precision", "Recall", "Recognised")
MIN_FEATURE_SAMPLES = 4  # Precision and recall use the third nearest neighbor of each sample.


def run_study(config: StudyConfig, folder: Path, *, progress: Progress = Silent()) -> Comparison:
    """Train all runs of a study, sample and measure each, and write the table.

    Existing results are kept: trainings are resumed, and samples are not computed again for rows
    with the same weights and settings. The study folder contains the run folders (`NAME/`), the
    table (`comparison.json` and `comparison.csv`) and some samples of each row (`gallery.npz`).

    Args:
        config: The study.
        folder: The study folder.
        progress: Receives progress reports.

    Returns:
        The table, with one row for each run and sampling.

    Raises:
        ValueError: If the data have no class labels for the classifier, a sampling does not fit its
            run, or a run folder contains another run or other files.
    """
    # All checks precede the training, which may take hours.
    for run_config in config.runs:
        rule = "be True in a study, which measures samples with the classifier"
        classifier = run_config.evaluation.classifier
        require(classifier, f"evaluation.classifier of {run_config.name}", rule, classifier)
        _require_samplings(run_config, config.samplings_of(run_config))
    event_shape, _ = config.runs[0].data.shape()
    require_samples_fit("num_samples", config.num_samples, event_shape)
    require_samples_fit("num_trajectories", config.num_trajectories, event_shape)
    require_folder(folder)
    require_no_run(folder)
    with lock_folder(folder, "study folder"):
        for training in config.all_trainings:
            with lock_run(folder / training.name, _in_study(training, config, folder)):
                pass
        return _run_study(config, folder, progress)


def _run_study(config: StudyConfig, folder: Path, progress: Progress) -> Comparison:
    """Implement `run_study`, after its checks and with the study folder locked."""
    files, rows, gallery = RunFolder(folder), [], []
    measure = _make_measure(config, progress)
    comparison = Comparison(
        runs=(),
        num_samples=config.num_samples,
        device=device_in_words(),
        floors=measure.floors,
        higher_is_better=HIGHER_IS_BETTER,
    )
    for run_config in config.runs:
        runs = [
            _train_and_measure_straightness(training, config, folder, progress)
            for training in config.trainings(run_config)
        ]
        for sampling in config.samplings_of(run_config):
            seed_rows = [
                _row(
                    run,
                    replace(sampling, seed=sampling.seed + offset),
                    config.num_samples,
                    folder / "rows",
                    measure,
                    progress,
                )
                for offset, run in enumerate(runs)
            ]
            rows.append(mean_row([row for row, _ in seed_rows]))
            gallery.append(GalleryEntry.of(*seed_rows[0]))
        # Written after each run, so that an interrupted study leaves a table.
        comparison = comparison._replace(runs=tuple(rows))
        write_csv(comparison, files.comparison.with_suffix(".csv"))
        write_gallery(gallery, files.gallery)
        write_json(comparison, files.comparison)
    progress.say(f"wrote {files.comparison} and {files.comparison.with_suffix('.csv')}")
    return comparison


def _in_study(config: Config, study: StudyConfig, folder: Path) -> Config:
    """Replace the name of a teacher that belongs to the study by its run folder."""
    names = {training.name for training in study.all_trainings}
    if config.reflow is None or config.reflow.teacher not in names:
        return config
    teacher = str((folder / config.reflow.teacher).resolve())
    return replace(config, reflow=replace(config.reflow, teacher=teacher))


def _train_and_measure_straightness(
    config: Config, study: StudyConfig, folder: Path, progress: Progress
) -> Run:
    """Train one run of the study and measure the straightness of its trajectories."""
    run = train(_in_study(config, study, folder), folder / config.name, progress=progress)
    if run.folder.straightness.is_file():
        result = read_straightness(run.folder.straightness)
        if (result.step, result.num_trajectories, result.guidance) == (
            run.step,
            study.num_trajectories,
            1.0,
        ):
            return run
    measure_straightness(run, Sampling(), study.num_trajectories, progress=progress)
    return run


class _Measure(NamedTuple):
    """Metrics of samples, with the real data to which they are compared.

    Attributes:
        classifier: Classifier that computes features and predicts labels.
        labels: Class labels of the samples, with the class frequencies of the training set.
        real_features: Features of training examples.
        subset_features: Features of a random subset with as many examples as there are samples.
        floors: Value of each metric for test examples.
    """

    classifier: ImageClassifier
    labels: np.ndarray
    real_features: np.ndarray
    subset_features: np.ndarray
    floors: dict[str, float]

    def __call__(self, x1: np.ndarray, labels: np.ndarray | None) -> dict[str, float]:
        """Compute the metrics of finite samples; return the worst values if there are too few.

        Args:
            x1: Finite samples, `[num, *event]`.
            labels: Class labels with which they were generated, `[num]`, or None.
        """
        if len(x1) < MIN_FEATURE_SAMPLES:
            worst = {
                "Frechet distance": float("inf"),
                "Precision": 0.0,
                "Recall": 0.0,
                AS_REAL: float("nan"),
            }
            return worst if labels is None else worst | {"Recognised": 0.0}
        features = self.classifier.features(x1)
        shares = precision_recall(features, self.subset_features)
        metrics = {
            "Frechet distance": frechet_distance(features, self.real_features),
            **{name.capitalize(): getattr(shares, name) for name in PrecisionRecall._fields},
            AS_REAL: high_frequency_share(x1),
        }
        if labels is not None:
            metrics["Recognised"] = self.classifier.accuracy(x1, labels)
        return metrics


def _require_samplings(run: Config, samplings: tuple[Sampling, ...]) -> None:
    """Raise unless the run can be trained, and sampled with each of the settings."""
    event_shape, conditions = run.data.shape()
    rule = "be class labels or None in a study"
    has_captions = is_captions(conditions)
    require(not has_captions, f"conditions of {run.name}", rule, "captions")
    experiment = build(run, event_shape, conditions if run.conditional else None)
    for sampling in samplings:
        is_guidable = run.conditional and run.loss.label_drop > 0
        rule = f"have guidance 1 for {run.name}, which has no classes or has loss.label_drop = 0"
        scale = guidance_settings(sampling.guidance)[0]
        require(scale == 1.0 or is_guidable, "samplings", rule, scale)
        sampling.check(experiment.model)
        # Any calibrated grid serves for this check.
        sampling.steps(experiment.model, Tabulated())


def _make_measure(config: StudyConfig, progress: Progress) -> _Measure:
    """Load the classifier and real data, and measure the test examples for the floors."""
    data, num_samples = config.runs[0].data, config.num_samples
    classifier, test = data_classifier(data, progress=progress), test_split(data, progress)
    if classifier is None or test is None or test.labels is None:
        raise ValueError("study data must be images with classes and a test set, got other data")
    train_set = data.load("train", progress=progress)
    limit = min(len(train_set), len(test))
    rule = f"be at most {limit}, the number of examples in the smaller of training and test set"
    require(num_samples <= limit, "num_samples", rule, num_samples)
    with progress.task("measuring real data", 1) as advance:
        indices = np.linspace(0, len(train_set) - 1, min(len(train_set), MAX_REAL)).astype(int)
        features = classifier.features(train_set.points(indices))
        subset = np.random.default_rng(0).permutation(len(features))[:num_samples]
        labels = labels_like(train_set, num_samples, 0)
        measure = _Measure(classifier, labels, features, features[subset], {})
        first = slice(num_samples)
        floors = measure(test.points(first), test.labels[first])
        advance(1)
    return measure._replace(floors=floors)


def _row(
    run: Run,
    sampling: Sampling,
    num_samples: int,
    folder: Path,
    measure: _Measure,
    progress: Progress,
) -> tuple[SolverRun, np.ndarray]:
    """Compute one row and some of its samples, or read them from files of the same weights."""
    sampling = replace(sampling, num_samples=num_samples)
    # The file name contains a digest of the config, because a run may have been replaced by another
    # run with the same name and number of steps.
    digest = hashlib.sha256(to_json(run.config).encode()).hexdigest()[:12]
    stem = f"{run.config.name}-step{run.step}-{digest}-{settings_name(sampling)}"
    row_file, images_file = folder / f"{stem}.json", folder / f"{stem}.npz"
    try:
        return row_from_json(row_file.read_text(encoding="utf-8")), read_npz(images_file)["images"]
    except (OSError, KeyError, ValueError):
        pass  # The files are missing or incomplete: sample again.
    progress.say(f"{run.config.name}: {settings_name(sampling)}")
    labels = None if run.num_classes is None else measure.labels
    samples = sample_from_run(run, sampling, SampleConditions.of_classes(labels), progress=progress)
    row = _measured_row(run, sampling, samples, measure)
    # The first sample of each class.
    selected = np.unique(measure.labels, return_index=True)[1][:NUM_SHOWN]
    write_npz(images_file, images=samples.x1[selected])
    write_text(row_file, row_to_json(row))
    return row, samples.x1[selected]


def _measured_row(run: Run, sampling: Sampling, samples: SampleSet, measure: _Measure) -> SolverRun:
    """Measure samples and describe how they were computed."""
    succeeded = samples.succeeded
    labels = None if samples.labels is None else samples.labels[succeeded]
    options = sampling.options
    title = solver_title(options.solver)
    if options.grid not in (None, "uniform"):
        title += f", {options.grid} grid"
    fixed = options.rtol is None
    stochastic = is_stochastic(options.solver)
    return SolverRun(
        model=run.config.name,
        solver=title,
        family="stochastic" if stochastic else "fixed" if fixed else "adaptive",
        steps=options.num_steps,
        tolerance=options.rtol,
        nfe_mean=float(samples.nfe.mean()),
        nfe_max=int(samples.nfe.max()),
        rmse_mean=float("nan"),
        rmse_worst=float("nan"),
        seconds=samples.seconds * len(samples.x1),
        succeeded=float(succeeded.mean()),
        metrics=measure(samples.x1[succeeded], labels),
    )
