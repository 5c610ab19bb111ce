"""Keep the trained classifier: one .npz per set of images and way of training, no pickle."""

import dataclasses
import hashlib
import json
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

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

# Raise this when the network or its training changes in a way that the configs do not show.
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
    """The classifier of these images: from fmjax's cache, else trained and put there.

    The cache knows a classifier by the images and labels of both sets and by its configs; by
    `stopping` only where it applies.

    Args:
        train: What to train on.
        test: What `test_accuracy` is measured on.
        config: Sizes of the network.
        training: How it is trained.
        stopping: When the training on few images ends early.
        progress: Receives the training's steps, its time and the accuracy.

    Raises:
        ValueError: If a set has no classes, the two do not match, or the cached file is damaged.
    """
    key = _fingerprint(train, test, config, training, stopping)
    path = cache_dir() / "classifiers" / f"{key}.npz"
    if path.is_file():
        return load_classifier(path)
    with ExitStack() as stack:
        with suppress(OSError):  # A cache that cannot be written.
            stack.enter_context(lock_file(path, on_wait=progress.say))
        if path.is_file():  # Another process has trained it.
            return load_classifier(path)
        classifier = train_classifier(
            train, test, config=config, training=training, stopping=stopping, progress=progress
        )
        _keep(path, classifier, progress)
    return classifier


def _keep(path: Path, classifier: ImageClassifier, progress: Progress) -> None:
    """Write the classifier to the cache; say so if that cannot be written."""
    try:
        save_classifier(path, classifier)
    except OSError as error:
        progress.say(
            f"the classifier is not kept: {path.parent} cannot be written ({error.strerror})"
        )


def save_classifier(path: Path, classifier: ImageClassifier) -> None:
    """Write a classifier as one .npz, whole or not at all."""
    about = {
        "config": dataclasses.asdict(classifier.config),
        "event_shape": list(classifier.event_shape),
        "num_classes": classifier.num_classes,
        "test_accuracy": classifier.test_accuracy,
    }
    arrays = {_key(name): value for name, value in flatten_dict(classifier.params).items()}
    with write_atomically(path) as temporary:
        np.savez(temporary, **{_ABOUT: np.array(json.dumps(about))}, **arrays)


class _About(NamedTuple):
    """What a classifier's file says of it."""

    config: ClassifierConfig
    event_shape: EventShape
    num_classes: Size
    test_accuracy: Share


def load_classifier(path: Path) -> ImageClassifier:
    """Read what `save_classifier` wrote.

    Raises:
        ValueError: If the file is damaged or something else.
    """
    name, rule = f"file {path}", "be a whole classifier file (delete it to train anew)"
    try:
        arrays = read_npz(path)
        about = check_json(parse_json(str(arrays.pop(_ABOUT)), _ABOUT), _About, _ABOUT)
        params = unflatten_dict({_name(key): a for key, a in arrays.items()})
        classifier = ImageClassifier(params=params, **about._asdict())
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{name} must {rule}, got {error!r}") from error
    network = build(classifier.config, classifier.event_shape, classifier.num_classes)
    expected = _shapes(jax.eval_shape(network.init, jax.random.key(0)))
    found = _shapes(classifier.params)
    require(found == expected, name, rule, "weights of other shapes than its config has")
    return classifier


def _fingerprint(
    train: LabelledImages,
    test: LabelledImages,
    config: ClassifierConfig,
    training: ClassifierTraining,
    stopping: EarlyStopping,
) -> str:
    """A name that changes with anything that changes the classifier."""
    sets = [(images.num_classes, images.examples()) for images in (train, test)]
    recipe: tuple[Any, ...] = (_RECIPE, config, training)
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


def _key(name: str) -> str:
    """What a parameter's array is called in the file."""
    return "params/" + name.replace(".", "/")


def _name(key: str) -> str:
    """The inverse of `_key`."""
    return key.removeprefix("params/").replace("/", ".")
