"""A small image classifier, trained on the data set, that provides features and class labels."""

import dataclasses
import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from fmjax._arrays import Params
from fmjax._checks import require
from fmjax.networks import ClassifierConfig, make_classifier
from fmjax.networks.classifier import Classifier
from fmjax.sharding import map_batched

# The last batch is padded to this size, so that one compiled program serves sets of any size.
_BATCH_SIZE = 256


@functools.lru_cache(maxsize=16)
def build(config: ClassifierConfig, event_shape: tuple[int, ...], num_classes: int) -> Classifier:
    """Build the network with a jitted `apply`, shared by all classifiers of the same shape."""
    network = make_classifier(config, event_shape, num_classes)
    return network._replace(apply=jax.jit(network.apply))


@dataclass(frozen=True, eq=False)
class ImageClassifier:
    """A trained classifier of images.

    Attributes:
        config: Sizes of the network.
        event_shape: Shape (height, width, channel) of the images.
        num_classes: Number of classes.
        params: Weights of the network, a nested dict.
        test_accuracy: Fraction of the real test images classified correctly, in [0, 1].
    """

    config: ClassifierConfig
    event_shape: tuple[int, ...]
    num_classes: int
    params: Params = dataclasses.field(repr=False)
    test_accuracy: float

    def features(self, images: np.ndarray | jax.Array) -> np.ndarray:
        """Compute the activations of the layer before the logits.

        Args:
            images: `[n, *event_shape]`, floating point in [-1, 1], with n at least 1.

        Returns:
            Features `[n, config.num_features]`, float32.

        Raises:
            ValueError: If the images have another shape or dtype.
        """
        return self._run(images)[1]

    def classify(self, images: np.ndarray | jax.Array) -> np.ndarray:
        """Predict the most likely class of each image.

        Args:
            images: `[n, *event_shape]`, floating point in [-1, 1], with n at least 1.

        Returns:
            Class labels `[n]`, int32.

        Raises:
            ValueError: If the images have another shape or dtype.
        """
        return self._run(images)[0].argmax(axis=1).astype(np.int32)

    def accuracy(self, images: np.ndarray | jax.Array, labels: ArrayLike) -> float:
        """Compute the fraction of images whose predicted class equals their label, in [0, 1].

        Args:
            images: `[n, *event_shape]`, floating point in [-1, 1], with n at least 1.
            labels: Class labels `[n]`.

        Raises:
            ValueError: If `labels` has another shape than `[n]`, or the images have another shape
                or dtype.
        """
        labels = np.asarray(labels)
        rule = f"have shape ({len(images)},), one label per image"
        require(labels.shape == (len(images),), "labels", rule, labels.shape)
        return float(np.mean(self.classify(images) == labels))

    def _run(self, images: np.ndarray | jax.Array) -> tuple[np.ndarray, np.ndarray]:
        """Compute the logits and features of all images, one batch at a time."""
        shape_ok = images.shape[1:] == self.event_shape and len(images) > 0
        shape = ", ".join(map(str, self.event_shape))
        require(shape_ok, "images", f"have shape [n, {shape}] with n at least 1", images.shape)
        rule = "be floating point in [-1, 1]"
        require(jnp.issubdtype(images.dtype, jnp.floating), "images", rule, images.dtype)
        apply = build(self.config, self.event_shape, self.num_classes).apply
        pixels = np.asarray(images).astype(np.float32)
        return map_batched(
            functools.partial(apply, self.params),
            lambda indices: (pixels[indices],),
            len(images),
            batch_size=_BATCH_SIZE,
            mesh=None,
            constant_size=True,
        )
