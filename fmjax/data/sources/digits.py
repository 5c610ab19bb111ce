"""The handwritten digits of scikit-learn: 1,797 grayscale images of 8x8, ten classes."""

from dataclasses import dataclass

import numpy as np

from fmjax._progress import Progress, Silent
from fmjax._specs import CondSpec, class_spec
from fmjax.data.dataset import Dataset, Split

_TEST_EVERY = 5


@dataclass(frozen=True)
class DigitsData:
    """Handwritten digits, `[8, 8, 1]` in [-1, 1] (from 17 gray values), ten classes.

    The split is stratified and deterministic: within each class, in the order of the file, every
    fifth image is a test image. There are 1,442 training and 355 test images. Both splits contain
    all 13 writers.

    Reference: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI 1998.
    """

    def shape(self) -> tuple[tuple[int, ...], CondSpec]:
        """Return the shape of one data point and the number of classes, without reading files."""
        return (8, 8, 1), class_spec(10)

    def load(self, split: Split, *, progress: Progress = Silent()) -> Dataset:
        """Load the images of one split, in the order of the file."""
        from sklearn.datasets import load_digits  # Slow to import.

        pixels, target = (np.asarray(array) for array in load_digits(return_X_y=True))
        rank = np.empty(len(target), dtype=np.int64)
        for label in range(10):
            indices = np.flatnonzero(target == label)
            rank[indices] = np.arange(len(indices))
        is_test = rank % _TEST_EVERY == _TEST_EVERY - 1
        chosen = is_test if split == "test" else ~is_test
        images = (pixels[chosen] / 8 - 1).astype(np.float32).reshape(-1, 8, 8, 1)
        labels = target[chosen].astype(np.uint8)
        return Dataset(images, labels, num_classes=10, class_names=tuple("0123456789"))
