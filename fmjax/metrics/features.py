"""Protocol of the feature extractors that metrics on features use."""

from typing import Protocol, runtime_checkable

import jax
import numpy as np


@runtime_checkable
class FeatureExtractor(Protocol):
    """A function from images to features, such as `ImageClassifier.features`.

    It returns one row of features per image, in the same order. The features of an image do not
    depend on the other images, and equal images have equal features.
    """

    def __call__(self, images: np.ndarray | jax.Array) -> np.ndarray:
        """Compute float32 features `[n, d]` of images `[n, height, width, channel]` in [-1, 1]."""
        ...
