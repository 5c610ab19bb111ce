"""Measure samples of a run against its data."""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fmjax._arrays import TokenShape
from fmjax._checks import require, require_at_least
from fmjax._json import AnyFloat, Count, NonNegative, Share, plain_json, read_json
from fmjax._progress import Progress, Silent
from fmjax.config import EvaluationConfig, SamplingConfig
from fmjax.data import CaptionedClasses, DataConfig, Dataset, IdxData, NoSuchSplit
from fmjax.metrics import (
    FeatureExtractor,
    ImageClassifier,
    frechet_distance,
    sliced_wasserstein,
    trained_classifier,
)
from fmjax.studies.asked import asked_like
from fmjax.studies.draw import is_image
from fmjax.studies.draw_run import draw_from
from fmjax.studies.paths import measure_paths
from fmjax.studies.run_folder import Run, write_text
from fmjax.studies.sample import in_words

Halves = tuple[np.ndarray, np.ndarray]  # Indices.
MAX_REAL = 60_000  # Real examples that samples are held against, at most.


class Evaluation(NamedTuple):
    """What was measured; each distance beside the one between two halves of the real data.

    Attributes:
        step: The training step of the weights.
        num_samples: Samples drawn.
        num_failed: How many of them did not arrive at t = 1; they are not measured.
        num_examples: Real training examples that they are held against.
        solver: What drew them, in words.
        nfe: Mean network evaluations of a sample.
        num_half: Real examples in the smaller of the halves.
        wasserstein: Sliced Wasserstein distance in data space.
        wasserstein_halves: The same between two halves of the real data.
        frechet: Frechet distance on the classifier's features; None without classes.
        frechet_halves: The same between two halves of the real data.
        frechet_test: The same between real test examples, at most as many as samples were
            drawn, and the training examples. Fewer examples score higher.
        num_test: How many test examples those are.
        accuracy: Share of samples that the classifier takes for what was asked.
        classifier_accuracy: Its accuracy on the real test set.
        prompted: Whether samples were asked for in words, by captions of the training set.
    """

    step: Count
    num_samples: Count
    num_failed: Count
    num_examples: Count
    solver: str
    nfe: NonNegative
    num_half: Count
    wasserstein: AnyFloat
    wasserstein_halves: AnyFloat
    frechet: AnyFloat | None = None
    frechet_halves: AnyFloat | None = None
    frechet_test: AnyFloat | None = None
    num_test: Count = 0
    accuracy: Share | None = None
    classifier_accuracy: Share | None = None
    prompted: bool = False


def read_evaluation(path: Path) -> Evaluation:
    """Read what `evaluate_run` wrote.

    Raises:
        ValueError: If the file is not such a document.
    """
    found = read_json(path, Evaluation, nonfinite=True)
    for each in ("frechet_halves", "frechet_test") if found.frechet is not None else ():
        needed = each != "frechet_test" or found.num_test > 0
        missing = needed and getattr(found, each) is None
        require(not missing, str(path), f"hold {each} along with frechet", "none")
    return found


def data_classifier(data: DataConfig, *, progress: Progress = Silent()) -> ImageClassifier | None:
    """The classifier of some data, trained once and kept; None for what has no classes."""
    if isinstance(data, CaptionedClasses):
        data = data.data
    if isinstance(data, IdxData):  # It learns to tell all classes apart, whichever are asked for.
        data = dataclasses.replace(data, classes=())
    train = data.load("train", progress=progress)
    if train.num_classes is None or not is_image(train.event_shape):
        return None
    test = test_split(data, progress)
    return None if test is None else trained_classifier(train, test, progress=progress)


def test_split(data: DataConfig, progress: Progress) -> Dataset | None:
    """The test data, or None, and that is said, where there are none."""
    try:
        return data.load("test", progress=progress)
    except NoSuchSplit as error:
        progress.say(f"without test data: {error}")
        return None


def evaluate_run(
    run: Run,
    evaluation: EvaluationConfig,
    sampling: SamplingConfig,
    *,
    extractor: FeatureExtractor | None = None,
    progress: Progress = Silent(),
) -> Evaluation:
    """Draw samples with the training set's labels or captions, measure them, write the result.

    Args:
        run: A trained run.
        evaluation: How many samples and projections.
        sampling: How they are drawn.
        extractor: Features for the Frechet distance; None takes those of the classifier that
            is trained on the run's own data.
        progress: Hears of each part.

    Raises:
        ValueError: If fewer than two samples arrived at t = 1.
    """
    train = run.config.data.load("train", progress=progress)
    num_samples = len(train) if evaluation.num_samples is None else evaluation.num_samples
    asked = asked_like(run, train, num_samples, sampling.seed)
    drawn = draw_from(
        run, dataclasses.replace(sampling, num_samples=num_samples), asked, progress=progress
    )
    x1 = drawn.x1[drawn.succeeded]
    require_at_least("the number of samples that arrive at t = 1", len(x1), 2)
    # An even choice of a set too big to measure whole.
    real = train.points(np.linspace(0, len(train) - 1, min(len(train), MAX_REAL)).astype(int))
    halves = _halves(len(real), sampling.seed)
    result = Evaluation(
        step=run.step,
        num_samples=num_samples,
        num_failed=num_samples - len(x1),
        num_examples=len(real),
        solver=in_words(sampling),
        nfe=float(drawn.nfe.mean()),
        num_half=len(halves[0]),
        prompted=isinstance(run.conditions, TokenShape),
        **_in_data_space(x1, real, halves, evaluation, sampling.seed),
    )
    classifier = data_classifier(run.config.data, progress=progress)
    if classifier is not None:
        extractor = classifier.features if extractor is None else extractor
        result = result._replace(classifier_accuracy=classifier.test_accuracy)
        if asked.labels is not None:
            labels = asked.labels[drawn.succeeded]
            result = result._replace(accuracy=classifier.accuracy(x1, labels))
    if extractor is not None:
        test = test_split(run.config.data, progress)
        some = None if test is None else test.points(slice(num_samples))
        result = result._replace(**_in_feature_space(extractor, x1, real, halves, some))
    write_text(run.folder.evaluation, json.dumps(plain_json(result._asdict()), indent=2) + "\n")
    for line in described(result):
        progress.say(line)
    measure_paths(run, sampling, evaluation.num_paths, progress=progress)
    return result


def _in_data_space(
    x1: np.ndarray, real: np.ndarray, halves: Halves, evaluation: EvaluationConfig, seed: int
) -> dict[str, Any]:
    """The sliced Wasserstein distances of an `Evaluation`."""

    def distance(x: np.ndarray, y: np.ndarray) -> float:
        key, num = jax.random.key(seed), evaluation.num_projections
        return float(sliced_wasserstein(key, x, y, num_projections=num))

    first, second = (real[half] for half in halves)
    return {"wasserstein": distance(x1, real), "wasserstein_halves": distance(first, second)}


def _in_feature_space(
    extractor: FeatureExtractor,
    x1: np.ndarray,
    real: np.ndarray,
    halves: Halves,
    test: np.ndarray | None,
) -> dict[str, Any]:
    """The Frechet distances of an `Evaluation`; without test examples there is one less."""
    of_real = extractor(real)
    first, second = (of_real[half] for half in halves)
    found: dict[str, Any] = {
        "frechet": frechet_distance(extractor(x1), of_real),
        "frechet_halves": frechet_distance(first, second),
    }
    if test is not None:
        found["frechet_test"] = frechet_distance(extractor(test), of_real)
        found["num_test"] = len(test)
    return found


def _halves(num: int, seed: int) -> Halves:
    order = np.random.default_rng(seed).permutation(num)
    return order[: num // 2], order[num // 2 :]


def described(result: Evaluation) -> list[str]:
    """The figures, a line each, with what to hold them against."""
    halves = f"two halves of the real data, {result.num_half} each"
    lines = [
        f"{result.num_samples} samples by {result.solver}, {result.nfe:.4g} network evaluations "
        f"each, against {result.num_examples} training examples:",
        f"  sliced Wasserstein distance {result.wasserstein:.4f} "
        f"({halves}: {result.wasserstein_halves:.4f})",
    ]
    if result.num_failed:
        lines.append(f"  {result.num_failed} did not arrive at t = 1 and are not measured")
    if result.frechet is not None:
        test = ""
        if result.num_test:
            test = f"{result.num_test} real test examples: {result.frechet_test:.3f}; "
        lines.append(
            f"  Frechet distance {result.frechet:.3f} ({test}{halves}: {result.frechet_halves:.3f})"
        )
    if result.accuracy is not None:
        asked = "what the prompt asked for" if result.prompted else "the class asked for"
        lines.append(
            f"  recognised as {asked}: {100 * result.accuracy:.2f} % "
            f"(the classifier's accuracy on real test images: "
            f"{100 * (result.classifier_accuracy or 0):.2f} %)"
        )
    return lines
