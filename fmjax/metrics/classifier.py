"""A small classifier of the data's own images: its features, and whether it knows a sample."""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fmjax._arrays import Params
from fmjax._checks import require
from fmjax.networks import ClassifierConfig, make_classifier
from fmjax.networks.classifier import Classifier

# One program serves sets of any size: the last batch is filled up, the rest thrown away.
_BATCH_SIZE = 256


@functools.lru_cache(maxsize=16)
def build(config: ClassifierConfig, event_shape: tuple[int, ...], num_classes: int) -> Classifier:
    """The network, with a jitted apply that every classifier of the same shape shares."""
    network = make_classifier(config, event_shape, num_classes)
    return network._replace(apply=jax.jit(network.apply))


@dataclass(frozen=True, eq=False)
class ImageClassifier:
    """A trained classifier of images.

    Attributes:
        config: Sizes of its network.
        event_shape: (height, width, channel) of the images it knows.
        num_classes: How many classes it tells apart.
        params: Its weights, a nested dict.
        test_accuracy: Share of the real test images that it classifies rightly, in [0, 1].
    """

    config: ClassifierConfig
    event_shape: tuple[int, ...]
    num_classes: int
    params: Params = dataclasses.field(repr=False)
    test_accuracy: float

    def features(self, images: np.ndarray | jax.Array) -> np.ndarray:
        """The layer before the logits, `[n, config.num_features]` float32, of images in [-1, 1].

        Raises:
            ValueError: If the images have not the shape that the classifier knows.
        """
        return self._run(images)[1]

    def classify(self, images: np.ndarray | jax.Array) -> np.ndarray:
        """The likeliest class of each image in [-1, 1], int32 `[n]`.

        Raises:
            ValueError: If the images have not the shape that the classifier knows.
        """
        return self._run(images)[0].argmax(axis=1).astype(np.int32)

    def accuracy(self, images: np.ndarray | jax.Array, labels: Any) -> float:
        """Share of images in [-1, 1] that it takes for what they are labelled, in [0, 1].

        Raises:
            ValueError: If there is not one label per image, or the shape is another.
        """
        labels = np.asarray(labels)
        rule = f"be one for each of {len(images)} images"
        require(labels.shape == (len(images),), "labels", rule, labels.shape)
        return float(np.mean(self.classify(images) == labels))

    def _run(self, images: np.ndarray | jax.Array) -> tuple[np.ndarray, np.ndarray]:
        """Logits and features of all images."""
        right = images.shape[1:] == self.event_shape and len(images) > 0
        shape = ", ".join(map(str, self.event_shape))
        require(right, "images", f"be [n, {shape}] with n at least 1", images.shape)
        rule = "be floating point in [-1, 1]"
        require(jnp.issubdtype(images.dtype, jnp.floating), "images", rule, images.dtype)
        apply = build(self.config, self.event_shape, self.num_classes).apply
        parts = []
        for start in range(0, len(images), _BATCH_SIZE):
            batch = jnp.asarray(images[start : start + _BATCH_SIZE], dtype=jnp.float32)
            missing = _BATCH_SIZE - len(batch)
            filled = jnp.pad(batch, ((0, missing), (0, 0), (0, 0), (0, 0)))
            parts.append([np.asarray(part)[: len(batch)] for part in apply(self.params, filled)])
        logits, features = (np.concatenate(column) for column in zip(*parts, strict=True))
        return logits, features
