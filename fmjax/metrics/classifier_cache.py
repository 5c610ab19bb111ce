"""Cache trained classifiers: one .npz file per data set and training config, without pickle."""

import dataclasses
import hashlib
import json
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from fmjax._arrays import Params
from fmjax._checks import require
from fmjax._files import cache_dir, read_npz, write_atomically
from fmjax._json import EventShape, Share, Size, check_json, parse_json
from fmjax._locks import lock_file
from fmjax._progress import Progress, Silent
from fmjax._trees import flatten_dict, unflatten_dict
from fmjax.metrics.classifier import ImageClassifier, build
from fmjax.metrics.classifier_training import (
    ClassifierTraining,
    EarlyStopping,
    LabelledImages,
    train_classifier,
)
from fmjax.networks import ClassifierConfig

# Increase this when the network or its training changes without a change of the configs.
_RECIPE = 1
_ABOUT = "about"


def trained_classifier(
    train: LabelledImages,
    test: LabelledImages,
    *,
    config: ClassifierConfig = ClassifierConfig(),
    training: ClassifierTraining = ClassifierTraining(),
    stopping: EarlyStopping = EarlyStopping(),  # noqa: B008 (frozen)
    progress: Progress = Silent(),
) -> ImageClassifier:
    """Load the classifier of a data set from fmjax's cache, or train it and store it there.

    The cache key is a hash of the images and labels of both sets and of the configs; `stopping`
    is part of it only where the training set is small enough for early stopping.

    Args:
        train: Images and labels to train on.
        test: Images and labels on which `test_accuracy` is measured.
        config: Sizes of the network.
        training: Training settings.
        stopping: Early stopping for small training sets.
        progress: Receives the training steps, the training time and the accuracy.

    Raises:
        ValueError: If a set has no classes, the two sets differ in shape or number of classes, or
            the cached file is damaged.
    """
    key = _fingerprint(train, test, config, training, stopping)
    file = cache_dir() / "classifiers" / f"{key}.npz"
    if file.is_file():
        return load_classifier(file)
    with ExitStack() as stack:
        with suppress(OSError):  # The cache is not writable: train without a lock.
            stack.enter_context(lock_file(file, on_wait=progress.say))
        if file.is_file():  # Another process trained it while this one waited for the lock.
            return load_classifier(file)
        classifier = train_classifier(
            train, test, config=config, training=training, stopping=stopping, progress=progress
        )
        _try_save(file, classifier, progress)
    return classifier


def _try_save(file: Path, classifier: ImageClassifier, progress: Progress) -> None:
    """Write the classifier to the cache; report a cache that is not writable."""
    try:
        save_classifier(file, classifier)
    except OSError as error:
        progress.say(
            f"the classifier is not cached: cannot write to {file.parent} ({error.strerror})"
        )


def save_classifier(file: Path, classifier: ImageClassifier) -> None:
    """Write a classifier to one .npz file, atomically."""
    about = {
        "config": dataclasses.asdict(classifier.config),
        "event_shape": list(classifier.event_shape),
        "num_classes": classifier.num_classes,
        "test_accuracy": classifier.test_accuracy,
    }
    arrays = {_array_name(name): a for name, a in flatten_dict(classifier.params).items()}
    with write_atomically(file) as temporary:
        np.savez(temporary, **{_ABOUT: np.array(json.dumps(about))}, **arrays)


class _Description(NamedTuple):
    """The JSON text in a classifier file: all fields of `ImageClassifier` but the weights."""

    config: ClassifierConfig
    event_shape: EventShape
    num_classes: Size
    test_accuracy: Share


def load_classifier(file: Path) -> ImageClassifier:
    """Read a classifier file written by `save_classifier`.

    Raises:
        ValueError: If the file is damaged or not a classifier file.
    """
    name, rule = f"file {file}", "be a complete classifier file (delete it to train again)"
    try:
        arrays = read_npz(file)
        about = check_json(parse_json(str(arrays.pop(_ABOUT)), _ABOUT), _Description, _ABOUT)
        params = unflatten_dict({_param_name(key): a for key, a in arrays.items()})
        classifier = ImageClassifier(params=params, **about._asdict())
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{name} must {rule}, got {error!r}") from error
    network = build(classifier.config, classifier.event_shape, classifier.num_classes)
    expected = _shapes(jax.eval_shape(network.init, jax.random.key(0)))
    shapes_ok = _shapes(classifier.params) == expected
    require(shapes_ok, name, rule, "weights whose shapes do not match its config")
    return classifier


def _fingerprint(
    train: LabelledImages,
    test: LabelledImages,
    config: ClassifierConfig,
    training: ClassifierTraining,
    stopping: EarlyStopping,
) -> str:
    """Compute the cache key, a hash of everything that the trained weights depend on."""
    sets = [(images.num_classes, images.examples()) for images in (train, test)]
    recipe: tuple[object, ...] = (_RECIPE, config, training)
    if len(np.asarray(sets[0][1].x1)) < stopping.below:
        recipe = (*recipe, stopping)
    digest = hashlib.sha256(repr(recipe).encode())
    for num_classes, examples in sets:
        for array in (np.asarray(examples.x1), np.asarray(examples.cond)):
            digest.update(repr((num_classes, array.shape, array.dtype)).encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:32]


def _shapes(params: Params) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in flatten_dict(params).items()}


def _array_name(name: str) -> str:
    """Return the name under which a parameter is stored in the file."""
    return "params/" + name.replace(".", "/")


def _param_name(key: str) -> str:
    """Invert `_array_name`."""
    return key.removeprefix("params/").replace("/", ".")
