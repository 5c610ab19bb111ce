"""Measure how close the samples of a run are to its data."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from fmjax._checks import require, require_at_least
from fmjax._json import AnyFloat, Count, NonNegative, Share, plain_json, read_json
from fmjax._progress import Lines, Progress, Silent
from fmjax._specs import is_captions
from fmjax.config import EvaluationConfig, Sampling
from fmjax.data import NoSuchSplit
from fmjax.jobs.evaluate.kept_samples import evaluation_samples
from fmjax.jobs.evaluate.posterior import check_posterior, has_posterior
from fmjax.jobs.evaluate.straightness import measure_straightness
from fmjax.metrics import FeatureExtractor, frechet_distance, sliced_wasserstein
from fmjax.runs.folder import Run, write_text, writes
from fmjax.runs.real_data import MAX_REAL, data_classifier
from fmjax.runs.sampling.batches import require_samples_fit
from fmjax.runs.sampling.conditions import data_conditions
from fmjax.runs.sampling.files import describe_sampling

Halves = tuple[np.ndarray, np.ndarray]  # Indices of the examples of each half.
Distance = Callable[[np.ndarray, np.ndarray], float]


class Evaluation(NamedTuple):
    """Distances between samples and real examples, and classifier accuracies.

    Distances grow as the number of examples falls, so the fields `*_as_test` and `*_as_half`
    repeat each distance with as many samples as there are real examples to compare with.

    Attributes:
        step: The training step of the weights.
        num_samples: Number of samples.
        num_failed: Number of samples that did not reach t = 1; they are excluded.
        num_examples: Number of training examples that the samples are compared with.
        solver: Description of the sampler, such as "heun with 16 steps".
        nfe: Mean number of network evaluations per sample.
        num_half: Number of examples in the smaller half of the training examples.
        wasserstein: Sliced Wasserstein distance, in data space, between samples and training
            examples.
        wasserstein_halves: Sliced Wasserstein distance between two halves of the training
            examples.
        frechet: Frechet distance between features of samples and of training examples; None
            without a feature extractor.
        frechet_halves: Frechet distance between two halves of the training examples.
        frechet_test: Frechet distance between `num_test` test examples and the training examples.
        num_test: Number of test examples used, at most the number of samples measured.
        accuracy: Share of samples that the classifier assigns to the requested class.
        classifier_accuracy: Accuracy of the classifier on the test data.
        prompted: Whether the samples were conditioned on captions of the training data.
        frechet_as_test: Frechet distance between the first `num_test` samples and the training
            examples.
        frechet_as_half: Frechet distance between the first `num_half` samples and one half of the
            training examples; None with fewer samples.
        wasserstein_test: Sliced Wasserstein distance between `num_test` test examples and the
            training examples.
        wasserstein_as_test: Sliced Wasserstein distance between the first `num_test` samples and
            the training examples.
        wasserstein_as_half: Sliced Wasserstein distance between the first `num_half` samples and
            one half of the training examples; None with fewer samples.
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


def read_evaluation(file: Path) -> Evaluation:
    """Read the `evaluation.json` that `evaluate_run` wrote.

    Raises:
        ValueError: If the file is not a valid evaluation.
    """
    evaluation = read_json(file, Evaluation, nonfinite=True)
    for name in ("frechet_halves", "frechet_test") if evaluation.frechet is not None else ():
        required = name != "frechet_test" or evaluation.num_test > 0
        missing = required and getattr(evaluation, name) is None
        require(not missing, str(file), f"hold {name} along with frechet", "none")
    return evaluation


def evaluate(
    run: Run,
    evaluation: EvaluationConfig | None = None,
    sampling: Sampling | None = None,
    *,
    extractor: FeatureExtractor | None = None,
    progress: Progress = Lines(),  # noqa: B008 (has no state)
) -> Evaluation:
    """Measure how close samples of a run are to its data, as `fmjax evaluate`.

    The result is also written to `evaluation.json` in the run folder, for its report, next to
    `straightness.json` and, for the posterior of a few parameters given a vector, the calibration
    `posterior.json`.

    Args:
        run: A trained run, from `fmjax.train` or `fmjax.open_run`.
        evaluation: Number of samples, projections and trajectories; None takes those of the run.
        sampling: Settings of the sampler; None takes those of the run.
        extractor: Features for the Frechet distance; None uses the features of a classifier that
            is trained on the data of the run.
        progress: Receives progress reports; by default lines on standard error.

    Raises:
        ValueError: If fewer than two samples reach t = 1, or another process evaluates the run.
    """
    return evaluate_run(
        run,
        run.config.evaluation if evaluation is None else evaluation,
        run.config.sampling if sampling is None else sampling,
        extractor=extractor,
        progress=progress,
    )


@writes(
    "evaluation.json",
    "straightness.json",
    "posterior.json",
    "samples/evaluation.npz",
    "samples/posterior.npz",
)
def evaluate_run(
    run: Run,
    evaluation: EvaluationConfig,
    sampling: Sampling,
    *,
    extractor: FeatureExtractor | None = None,
    progress: Progress = Silent(),
) -> Evaluation:
    """Sample with conditions of the training data, measure the samples and write the results.

    The samples are kept in the run folder, and used again by an evaluation of the same weights with
    the same settings of the sampler.

    Args:
        run: A trained run.
        evaluation: Number of samples, projections and paths.
        sampling: Settings of the sampler.
        extractor: Features for the Frechet distance; None uses the features of the classifier
            that is trained on the data of the run.
        progress: Receives progress reports.

    Raises:
        ValueError: If fewer than two samples reach t = 1.
    """
    for name, number in (
        ("num_samples", evaluation.num_samples),
        ("num_trajectories", evaluation.num_trajectories),
    ):
        require_samples_fit(f"evaluation.{name}", number or 0, run.event_shape)
    train = run.config.data.load("train", progress=progress)
    num_samples = len(train) if evaluation.num_samples is None else evaluation.num_samples
    conditions = data_conditions(run, train, num_samples, sampling.seed)
    samples = evaluation_samples(
        run, dataclasses.replace(sampling, num_samples=num_samples), conditions, progress=progress
    )
    x1 = samples.x1[samples.succeeded]
    require_at_least("the number of samples that reach t = 1", len(x1), 2)
    # Evenly spaced examples, because large datasets take too long to measure in full.
    real = train.points(np.linspace(0, len(train) - 1, min(len(train), MAX_REAL)).astype(int))
    references = _References(
        real, _halves(len(real), sampling.seed), _test_points(run, len(x1), progress)
    )
    result = Evaluation(
        step=run.step,
        num_samples=num_samples,
        num_failed=num_samples - len(x1),
        num_examples=len(real),
        solver=describe_sampling(sampling),
        nfe=float(samples.nfe.mean()),
        num_half=len(references.halves[0]),
        num_test=len(references.test),
        prompted=is_captions(run.conditions),
        **references.distances("wasserstein", _wasserstein(evaluation, sampling.seed), x1),
    )
    classifier = None
    if evaluation.classifier:
        classifier = data_classifier(run.config.data, progress=progress)
    if classifier is not None:
        extractor = classifier.features if extractor is None else extractor
        result = result._replace(classifier_accuracy=classifier.test_accuracy)
        if conditions.labels is not None:
            labels = conditions.labels[samples.succeeded]
            result = result._replace(accuracy=classifier.accuracy(x1, labels))
    if extractor is not None:
        real_features, test_features = extractor(real), references.test
        test_features = extractor(test_features) if len(test_features) else test_features
        in_features = references._replace(real=real_features, test=test_features)
        frechet_fields = in_features.distances("frechet", frechet_distance, extractor(x1))
        result = result._replace(**frechet_fields)
    for line in summarize_evaluation(result):
        progress.say(line)
    measure_straightness(run, sampling, evaluation.num_trajectories, progress=progress)
    if has_posterior(run):
        check_posterior(run, evaluation.num_simulations, progress=progress)
    # Written last, so that a complete evaluation.json implies that all other files are complete.
    write_text(run.folder.evaluation, json.dumps(plain_json(result._asdict()), indent=2) + "\n")
    return result


def _test_points(run: Run, max_num: int, progress: Progress) -> np.ndarray:
    """The first `max_num` test examples, or an empty array if there is no test split."""
    try:
        test = run.config.data.load("test", progress=progress)
    except NoSuchSplit:
        return np.empty(0)
    same_shape = test.event_shape == run.event_shape
    require(same_shape, "test data", f"have shape {run.event_shape}", test.event_shape)
    return test.points(slice(max_num))


class _References(NamedTuple):
    """Real examples, or their features, that samples are compared with.

    Attributes:
        real: Training examples.
        halves: Indices of two halves of the training examples.
        test: Test examples, at most as many as samples; may be empty.
    """

    real: np.ndarray
    halves: Halves
    test: np.ndarray

    def distances(self, name: str, distance: Distance, x1: np.ndarray) -> dict[str, float]:
        """The fields of `Evaluation` for one distance, of samples `x1` and of real examples."""
        first, second = (self.real[half] for half in self.halves)
        fields = {name: distance(x1, self.real), f"{name}_halves": distance(first, second)}
        if len(first) <= len(x1):
            fields[f"{name}_as_half"] = distance(x1[: len(first)], second)
        num_test = len(self.test)
        if num_test:
            fields[f"{name}_test"] = distance(self.test, self.real)
            fields[f"{name}_as_test"] = distance(x1[:num_test], self.real)
        return fields


def _wasserstein(evaluation: EvaluationConfig, seed: int) -> Distance:
    """The sliced Wasserstein distance with the configured number of projections."""

    def distance(x: np.ndarray, y: np.ndarray) -> float:
        key, num_projections = jax.random.key(seed), evaluation.num_projections
        return float(sliced_wasserstein(key, x, y, num_projections=num_projections))

    return distance


def _halves(num: int, seed: int) -> Halves:
    """Split the indices below `num` at random into two halves."""
    order = np.random.default_rng(seed).permutation(num)
    return order[: num // 2], order[num // 2 :]


def in_equal_numbers(result: Evaluation, name: str, precision: str) -> tuple[str, ...]:
    """Describe the distance of samples and that of equally many real examples, for comparison.

    Args:
        result: Result of `evaluate_run`.
        name: Name of the distance, "frechet" or "wasserstein".
        precision: Format of a number, such as ".3f".
    """
    test, as_test, halves, as_half = (
        None if value is None else format(value, precision)
        for field in ("test", "as_test", "halves", "as_half")
        for value in [getattr(result, f"{name}_{field}")]
    )
    descriptions = []
    if test is not None and as_test is not None:
        num = result.num_test
        descriptions.append(f"{num:,} samples: {as_test}, {num:,} real test examples: {test}")
    if halves is not None and as_half is not None:
        half = f"to half of the training examples, {result.num_half:,} samples"
        descriptions.append(f"{half}: {as_half}, the other half: {halves}")
    return tuple(descriptions)


def summarize_evaluation(result: Evaluation) -> list[str]:
    """Summarize an evaluation in lines of text, one metric per line."""
    lines = [
        f"{result.num_samples} samples by {result.solver}, {result.nfe:.4g} network evaluations "
        f"each, compared with {result.num_examples} training examples:"
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
        lines.append(f"  {result.num_failed} samples did not reach t = 1 and are excluded")
    if result.accuracy is not None:
        requested = "the class named in the prompt" if result.prompted else "the requested class"
        lines.append(
            f"  recognized as {requested}: {100 * result.accuracy:.2f} % "
            f"(the classifier's accuracy on real test images: "
            f"{100 * (result.classifier_accuracy or 0):.2f} %)"
        )
    return lines
