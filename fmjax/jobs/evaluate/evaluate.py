"""Measure samples of a run against its data."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from fmjax._arrays import TokenShape
from fmjax._checks import require, require_at_least
from fmjax._json import AnyFloat, Count, NonNegative, Share, plain_json, read_json
from fmjax._progress import Progress, Silent
from fmjax.config import EvaluationConfig, SamplingConfig
from fmjax.data import NoSuchSplit
from fmjax.jobs.evaluate.straightness import measure_paths
from fmjax.metrics import (
    FeatureExtractor,
    frechet_distance,
    sliced_wasserstein,
)
from fmjax.runs.folder import Run, write_text, writes
from fmjax.runs.real_data import (
    MAX_REAL,
    data_classifier,
)
from fmjax.runs.sampling.batches import require_samples_fit
from fmjax.runs.sampling.conditions import data_conditions
from fmjax.runs.sampling.files import (
    in_words,
)
from fmjax.runs.sampling.run_samples import draw_from

Halves = tuple[np.ndarray, np.ndarray]  # Indices.
Distance = Callable[[np.ndarray, np.ndarray], float]


class Evaluation(NamedTuple):
    """What was measured: distances of samples and of as many real examples.

    A distance is the higher the fewer examples there are, so only equal numbers compare.

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
        frechet: Frechet distance on the classifier's features; None without a classifier.
        frechet_halves: The same between two halves of the real data.
        frechet_test: The same between `num_test` real test examples and the training examples.
        num_test: Real test examples that are measured, at most as many as samples arrived.
        accuracy: Share of samples that the classifier takes for what was asked.
        classifier_accuracy: Its accuracy on the real test set.
        prompted: Whether samples were asked for in words, by captions of the training set.
        frechet_as_test: Frechet distance of the first `num_test` samples.
        frechet_as_half: The same of the first `num_half` samples to a half of the real data; None
            if fewer samples arrived.
        wasserstein_test: Sliced Wasserstein distance of the `num_test` real test examples.
        wasserstein_as_test: The same of the first `num_test` samples.
        wasserstein_as_half: The same of the first `num_half` samples to a half of the real data;
            None if fewer samples arrived.
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
    frechet_as_test: AnyFloat | None = None
    frechet_as_half: AnyFloat | None = None
    wasserstein_test: AnyFloat | None = None
    wasserstein_as_test: AnyFloat | None = None
    wasserstein_as_half: AnyFloat | None = None


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


@writes("evaluation.json", "paths.json")
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
    for name, number in (
        ("num_samples", evaluation.num_samples),
        ("num_paths", evaluation.num_paths),
    ):
        require_samples_fit(f"evaluation.{name}", number or 0, run.event_shape)
    train = run.config.data.load("train", progress=progress)
    num_samples = len(train) if evaluation.num_samples is None else evaluation.num_samples
    asked = data_conditions(run, train, num_samples, sampling.seed)
    drawn = draw_from(
        run, dataclasses.replace(sampling, num_samples=num_samples), asked, progress=progress
    )
    x1 = drawn.x1[drawn.succeeded]
    require_at_least("the number of samples that arrive at t = 1", len(x1), 2)
    # An even choice of a set too big to measure whole.
    real = train.points(np.linspace(0, len(train) - 1, min(len(train), MAX_REAL)).astype(int))
    yardsticks = _Yardsticks(
        real, _halves(len(real), sampling.seed), _test_points(run, len(x1), progress)
    )
    result = Evaluation(
        step=run.step,
        num_samples=num_samples,
        num_failed=num_samples - len(x1),
        num_examples=len(real),
        solver=in_words(sampling),
        nfe=float(drawn.nfe.mean()),
        num_half=len(yardsticks.halves[0]),
        num_test=len(yardsticks.test),
        prompted=isinstance(run.conditions, TokenShape),
        **yardsticks.distances("wasserstein", _wasserstein(evaluation, sampling.seed), x1),
    )
    classifier = None
    if evaluation.classifier:
        classifier = data_classifier(run.config.data, progress=progress)
    if classifier is not None:
        extractor = classifier.features if extractor is None else extractor
        result = result._replace(classifier_accuracy=classifier.test_accuracy)
        if asked.labels is not None:
            labels = asked.labels[drawn.succeeded]
            result = result._replace(accuracy=classifier.accuracy(x1, labels))
    if extractor is not None:
        of_real, test = extractor(real), yardsticks.test
        test = extractor(test) if len(test) else test
        in_features = yardsticks._replace(real=of_real, test=test)
        frechets = in_features.distances("frechet", frechet_distance, extractor(x1))
        result = result._replace(**frechets)
    for line in described(result):
        progress.say(line)
    measure_paths(run, sampling, evaluation.num_paths, progress=progress)
    # Last: where the evaluation is whole, nothing is missing.
    write_text(run.folder.evaluation, json.dumps(plain_json(result._asdict()), indent=2) + "\n")
    return result


def _test_points(run: Run, most: int, progress: Progress) -> np.ndarray:
    """The first real test examples, at most `most`; none where there are no test data."""
    try:
        test = run.config.data.load("test", progress=progress)
    except NoSuchSplit:
        return np.empty(0)
    same = test.event_shape == run.event_shape
    require(same, "test data", f"be of shape {run.event_shape}", test.event_shape)
    return test.points(slice(most))


class _Yardsticks(NamedTuple):
    """Real examples, or their features, that samples are compared with.

    Attributes:
        real: Training examples.
        halves: Indices of two halves of them.
        test: Test examples, no more than there are samples; may be none.
    """

    real: np.ndarray
    halves: Halves
    test: np.ndarray

    def distances(self, name: str, distance: Distance, x1: np.ndarray) -> dict[str, float]:
        """The fields of an `Evaluation` that hold a distance of samples or of real examples."""
        first, second = (self.real[half] for half in self.halves)
        found = {name: distance(x1, self.real), f"{name}_halves": distance(first, second)}
        if len(first) <= len(x1):
            found[f"{name}_as_half"] = distance(x1[: len(first)], second)
        num = len(self.test)
        if num:
            found[f"{name}_test"] = distance(self.test, self.real)
            found[f"{name}_as_test"] = distance(x1[:num], self.real)
        return found


def _wasserstein(evaluation: EvaluationConfig, seed: int) -> Distance:
    """The sliced Wasserstein distance with the number of projections of a config."""

    def distance(x: np.ndarray, y: np.ndarray) -> float:
        key, num = jax.random.key(seed), evaluation.num_projections
        return float(sliced_wasserstein(key, x, y, num_projections=num))

    return distance


def _halves(num: int, seed: int) -> Halves:
    order = np.random.default_rng(seed).permutation(num)
    return order[: num // 2], order[num // 2 :]


def in_equal_numbers(result: Evaluation, name: str, precision: str) -> tuple[str, ...]:
    """Distances of real examples, each with that of as many samples.

    Args:
        result: From `evaluate_run`.
        name: Of the distance: "frechet" or "wasserstein".
        precision: Format of a number, as ".3f".
    """
    test, as_test, halves, as_half = (
        None if value is None else format(value, precision)
        for field in ("test", "as_test", "halves", "as_half")
        for value in [getattr(result, f"{name}_{field}")]
    )
    found = []
    if test is not None and as_test is not None:
        num = result.num_test
        found.append(f"{num:,} samples: {as_test}, {num:,} real test examples: {test}")
    if halves is not None and as_half is not None:
        half = f"to half of the training examples, {result.num_half:,} samples"
        found.append(f"{half}: {as_half}, the other half: {halves}")
    return tuple(found)


def described(result: Evaluation) -> list[str]:
    """The figures, a line each, with those of real examples to compare them with."""
    lines = [
        f"{result.num_samples} samples by {result.solver}, {result.nfe:.4g} network evaluations "
        f"each, against {result.num_examples} training examples:"
    ]
    for name, title, precision in (
        ("wasserstein", "sliced Wasserstein distance", ".4f"),
        ("frechet", "Frechet distance", ".3f"),
    ):
        distance = getattr(result, name)
        if distance is not None:
            equal = "; ".join(in_equal_numbers(result, name, precision))
            lines.append(f"  {title} {distance:{precision}}" + (f" ({equal})" if equal else ""))
    if result.num_failed:
        lines.append(f"  {result.num_failed} did not arrive at t = 1 and are not measured")
    if result.accuracy is not None:
        asked = "what the prompt asked for" if result.prompted else "the class asked for"
        lines.append(
            f"  recognised as {asked}: {100 * result.accuracy:.2f} % "
            f"(the classifier's accuracy on real test images: "
            f"{100 * (result.classifier_accuracy or 0):.2f} %)"
        )
    return lines
