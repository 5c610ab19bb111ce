"""A study: several trainings, each sampled in several ways, measured alike, in one table."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fmjax._arrays import TokenShape
from fmjax._checks import require
from fmjax._files import read_npz, require_folder, write_npz
from fmjax._locks import lock_folder
from fmjax._progress import Progress, Silent
from fmjax.config import (
    Config,
    SamplingConfig,
    StudyConfig,
    build,
    is_stochastic,
    make_solve,
    solver_title,
    to_json,
)
from fmjax.jobs.compare.compare import device_in_words
from fmjax.jobs.compare.compare_run import NUM_SHOWN
from fmjax.jobs.evaluate.straightness import measure_paths, read_paths
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
from fmjax.runs.real_data import (
    MAX_REAL,
    data_classifier,
    test_split,
)
from fmjax.runs.sampling.batches import Drawn, require_samples_fit
from fmjax.runs.sampling.conditions import SampleConditions, labels_like
from fmjax.runs.sampling.files import (
    settings_name,
)
from fmjax.runs.sampling.run_samples import draw_from

HIGHER_IS_BETTER = ("Precision", "Recall", "Recognised")
MIN_FEATURE_SAMPLES = 4  # Samples that have a third neighbour, and so precision and recall.


def run_study(config: StudyConfig, path: Path, *, progress: Progress = Silent()) -> Comparison:
    """Train every run, sample it in every way, measure it, and write the table.

    What is there already is kept: trainings are resumed, and rows of the same weights and
    settings are not drawn again. `PATH/NAME` are the run folders, `PATH/comparison.json` and
    `.csv` the table, `PATH/gallery.npz` some samples of every row.

    Args:
        config: The study.
        path: Its folder.
        progress: Hears of every part.

    Raises:
        ValueError: If the data have no classes to measure by, or a run's folder holds
            something else.
    """
    # Whatever can refuse does so before hours of training.
    for run_config in config.runs:
        rule = "be left on in a study, which measures samples by the classifier"
        classifier = run_config.evaluation.classifier
        require(classifier, f"evaluation.classifier of {run_config.name}", rule, classifier)
        _require_samplings(run_config, config.ways(run_config))
    event_shape, _ = config.runs[0].data.shape()
    require_samples_fit("num_samples", config.num_samples, event_shape)
    require_samples_fit("num_paths", config.num_paths, event_shape)
    require_folder(path)
    require_no_run(path)
    with lock_folder(path, "study folder"):
        for training in config.all_trainings:
            with lock_run(path / training.name, _in_study(training, config, path)):
                pass
        return _run_study(config, path, progress)


def _run_study(config: StudyConfig, path: Path, progress: Progress) -> Comparison:
    """`run_study`, while the folder is held."""
    folder, rows, gallery = RunFolder(path), [], []
    measure = _measure_of(config, progress)
    comparison = Comparison(
        runs=(),
        num_samples=config.num_samples,
        device=device_in_words(),
        floors=measure.floors,
        higher_is_better=HIGHER_IS_BETTER,
    )
    for run_config in config.runs:
        runs = [_trained(each, config, path, progress) for each in config.trainings(run_config)]
        for sampling in config.ways(run_config):
            found = [
                _row(
                    run,
                    replace(sampling, seed=sampling.seed + nth),
                    config.num_samples,
                    path / "rows",
                    measure,
                    progress,
                )
                for nth, run in enumerate(runs)
            ]
            rows.append(mean_row([row for row, _ in found]))
            gallery.append(GalleryEntry.of(*found[0]))
        # After each: a study that is stopped leaves a table of what it has.
        comparison = comparison._replace(runs=tuple(rows))
        write_csv(comparison, folder.comparison.with_suffix(".csv"))
        write_gallery(gallery, folder.gallery)
        write_json(comparison, folder.comparison)
    progress.say(f"wrote {folder.comparison} and {folder.comparison.with_suffix('.csv')}")
    return comparison


def _in_study(config: Config, study: StudyConfig, path: Path) -> Config:
    """The config of a training, with its teacher in the study's folder."""
    names = {training.name for training in study.all_trainings}
    if config.reflow is None or config.reflow.teacher not in names:
        return config
    teacher = str((path / config.reflow.teacher).resolve())
    return replace(config, reflow=replace(config.reflow, teacher=teacher))


def _trained(config: Config, study: StudyConfig, path: Path, progress: Progress) -> Run:
    """Train one of the study's and follow its paths."""
    run = train(_in_study(config, study, path), path / config.name, progress=progress)
    if run.folder.paths.is_file():
        known = read_paths(run.folder.paths)
        if (known.step, known.num_paths, known.guidance) == (run.step, study.num_paths, 1.0):
            return run
    measure_paths(run, SamplingConfig(), study.num_paths, progress=progress)
    return run


class _Measure(NamedTuple):
    """What samples are held against.

    Attributes:
        classifier: Its features, and its opinion of labels.
        labels: What samples are asked to be: the shares of the training set.
        real: Features of training examples.
        as_many: Of some of them, as many as there are samples.
        floors: What test examples score.
    """

    classifier: ImageClassifier
    labels: np.ndarray
    real: np.ndarray
    as_many: np.ndarray
    floors: dict[str, float]

    def __call__(self, x1: np.ndarray, labels: np.ndarray | None) -> dict[str, float]:
        """The metrics of finite samples; the worst if they are too few to tell."""
        if len(x1) < MIN_FEATURE_SAMPLES:
            worst = {
                "Frechet distance": float("inf"),
                "Precision": 0.0,
                "Recall": 0.0,
                AS_REAL: float("nan"),
            }
            return worst if labels is None else worst | {"Recognised": 0.0}
        features = self.classifier.features(x1)
        shares = precision_recall(features, self.as_many)
        found = {
            "Frechet distance": frechet_distance(features, self.real),
            **{name.capitalize(): getattr(shares, name) for name in PrecisionRecall._fields},
            AS_REAL: high_frequency_share(x1),
        }
        if labels is not None:  # Of samples that were asked to be something.
            found["Recognised"] = self.classifier.accuracy(x1, labels)
        return found


def _require_samplings(run: Config, samplings: tuple[SamplingConfig, ...]) -> None:
    """Raise unless the run can be trained, and sampled in each of these ways."""
    event_shape, conditions = run.data.shape()
    rule = "be classes or none for a study"
    words = isinstance(conditions, TokenShape)
    require(not words, f"conditions of {run.name}", rule, "captions")
    experiment = build(run, event_shape, conditions if run.conditional else None)
    for sampling in samplings:
        guided = sampling.guidance == 1.0 or (run.conditional and run.loss.label_drop > 0)
        require(
            guided,
            "samplings",
            f'be without guidance for {run.name}, which knows no "no class"',
            sampling.guidance,
        )
        make_solve(experiment, sampling)
        sampling.make_steps(run.path.schedule, Tabulated())  # Any calibrated grid would do.


def _measure_of(config: StudyConfig, progress: Progress) -> _Measure:
    data, num_samples = config.runs[0].data, config.num_samples
    classifier, test = data_classifier(data, progress=progress), test_split(data, progress)
    if classifier is None or test is None or test.labels is None:
        raise ValueError("study data must be images with classes and a test set, got others")
    train_set = data.load("train", progress=progress)
    enough = num_samples <= min(len(train_set), len(test))
    require(enough, "num_samples", f"be at most the {len(test)} test examples", num_samples)
    with progress.task("measuring real data", 1) as advance:
        each = np.linspace(0, len(train_set) - 1, min(len(train_set), MAX_REAL)).astype(int)
        real = classifier.features(train_set.points(each))
        some = np.random.default_rng(0).permutation(len(real))[:num_samples]
        measure = _Measure(classifier, labels_like(train_set, num_samples, 0), real, real[some], {})
        held = slice(num_samples)
        floors = measure(test.points(held), test.labels[held])
        advance(1)
    return measure._replace(floors=floors)


def _row(
    run: Run,
    sampling: SamplingConfig,
    num_samples: int,
    folder: Path,
    measure: _Measure,
    progress: Progress,
) -> tuple[SolverRun, np.ndarray]:
    """One row and some of its samples, from its files if they are of these weights."""
    asked = replace(sampling, num_samples=num_samples)
    # By more than their names: a training may have been replaced by another of as many steps.
    config = hashlib.sha256(to_json(run.config).encode()).hexdigest()[:12]
    stem = folder / f"{run.config.name}-step{run.step}-{config}-{settings_name(asked)}"
    figures, pictures = stem.with_name(stem.name + ".json"), stem.with_name(stem.name + ".npz")
    try:
        return row_from_json(figures.read_text(encoding="utf-8")), read_npz(pictures)["images"]
    except (OSError, KeyError, ValueError):
        pass  # Not there, or cut short: drawn again.
    progress.say(f"{run.config.name}: {settings_name(asked)}")
    labels = None if run.num_classes is None else measure.labels
    drawn = draw_from(run, asked, SampleConditions.of_classes(labels), progress=progress)
    row = _figures(run, asked, drawn, measure)
    # One of each class, where the labels come in random order.
    first = np.unique(measure.labels, return_index=True)[1][:NUM_SHOWN]
    write_npz(pictures, images=drawn.x1[first])
    write_text(figures, row_to_json(row))
    return row, drawn.x1[first]


def _figures(run: Run, sampling: SamplingConfig, drawn: Drawn, measure: _Measure) -> SolverRun:
    arrived = drawn.succeeded
    fixed = sampling.num_steps is not None
    stochastic = is_stochastic(sampling.solver)
    return SolverRun(
        model=run.config.name,
        solver=solver_title(sampling.solver)
        + (f", {sampling.grid} grid" if fixed and sampling.grid != "uniform" else ""),
        family="stochastic" if stochastic else "fixed" if fixed else "adaptive",
        steps=sampling.num_steps,
        tolerance=None if fixed else sampling.rtol,
        nfe_mean=float(drawn.nfe.mean()),
        nfe_max=int(drawn.nfe.max()),
        rmse_mean=float("nan"),
        rmse_worst=float("nan"),
        seconds=drawn.seconds * len(drawn.x1),
        succeeded=float(arrived.mean()),
        metrics=measure(drawn.x1[arrived], None if drawn.labels is None else drawn.labels[arrived]),
    )
