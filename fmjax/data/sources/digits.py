"""The handwritten digits that scikit-learn bundles: 1,797 grey images of 8x8."""

from dataclasses import dataclass

import numpy as np

from fmjax._progress import Progress, Silent
from fmjax.data.dataset import Dataset, Split

_TEST_EVERY = 5


@dataclass(frozen=True)
class DigitsData:
    """Handwritten digits, `[8, 8, 1]` in [-1, 1] (from 17 grey values), ten classes.

    The split is stratified and needs no random numbers: within each class, in the order of
    the file, every fifth image is a test image. That gives 1,442 to train on and 355 to test
    on. The same 13 writers are on both sides.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI 1998.
    """

    def shape(self) -> tuple[tuple[int, ...], int | None]:
        """The shape of one example and the number of classes, without reading any."""
        return (8, 8, 1), 10

    def load(self, split: Split, *, progress: Progress = Silent()) -> Dataset:
        """The images of one split, in the order of the file."""
        from sklearn.datasets import load_digits  # Takes a second, which only digits are worth.

        pixels, target = (np.asarray(array) for array in load_digits(return_X_y=True))
        rank = np.empty(len(target), dtype=np.int64)
        for label in range(10):
            of_class = np.flatnonzero(target == label)
            rank[of_class] = np.arange(len(of_class))
        is_test = rank % _TEST_EVERY == _TEST_EVERY - 1
        chosen = is_test if split == "test" else ~is_test
        images = (pixels[chosen] / 8 - 1).astype(np.float32).reshape(-1, 8, 8, 1)
        return Dataset(x=images, labels=target[chosen].astype(np.uint8), num_classes=10)
