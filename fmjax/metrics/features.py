"""What a metric on features asks of whatever computes them."""

from typing import Protocol, runtime_checkable

import jax
import numpy as np


@runtime_checkable
class FeatureExtractor(Protocol):
    """Images to features. Any function of this shape is one: `ImageClassifier.features`, yours.

    Laws: one row of features per image, in the same order; an image's features do not depend
    on the other images; equal images have equal features.
    """

    def __call__(self, images: np.ndarray | jax.Array) -> np.ndarray:
        """Features `[n, d]`, float32, of images `[n, height, width, channel]` in [-1, 1]."""
        ...
