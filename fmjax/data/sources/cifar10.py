"""CIFAR-10: 50,000 training and 10,000 test color images of 32x32, ten classes."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fmjax._checks import require
from fmjax._progress import Progress, Silent
from fmjax._specs import CondSpec, class_spec
from fmjax.data.dataset import Dataset, Split

CLASS_NAMES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
"""Names of the ten classes of CIFAR-10, as published."""

_PIXELS = 3 * 32 * 32
_FILES: dict[str, tuple[str, ...]] = {
    "train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    "test": ("test_batch.bin",),
}


@dataclass(frozen=True)
class Cifar10Data:
    """The binary version of CIFAR-10, images `[32, 32, 3]` uint8 of ten classes.

    Attributes:
        folder: The folder `cifar-10-batches-bin` of the published archive.

    Reference: A. Krizhevsky 2009, Learning multiple layers of features from tiny images.
    """

    folder: str

    def shape(self) -> tuple[tuple[int, ...], CondSpec]:
        """Return the shape of one data point and the number of classes, without reading files."""
        return (32, 32, 3), class_spec(10)

    def load(self, split: Split, *, progress: Progress = Silent()) -> Dataset:
        """Read one split of the data set.

        Raises:
            ValueError: If a file is missing or does not consist of complete records.
        """
        folder = Path(self.folder).expanduser()
        records = np.concatenate([_read(folder / name) for name in _FILES[split]])
        channels_first = records[:, 1:].reshape(-1, 3, 32, 32)
        images = np.ascontiguousarray(channels_first.transpose(0, 2, 3, 1))
        labels = records[:, 0].copy()
        return Dataset(images, labels, num_classes=10, class_names=CLASS_NAMES)


def _read(file: Path) -> np.ndarray:
    """Read records of one label byte and 3,072 bytes of pixels, channel by channel."""
    if not file.is_file():
        raise ValueError(
            f"data.folder must hold {file.name} of CIFAR-10's binary version (unpack "
            f"https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz), got {file.parent}"
        )
    content = np.fromfile(file, dtype=np.uint8)
    is_complete = len(content) > 0 and len(content) % (1 + _PIXELS) == 0
    rule = f"hold complete records of {1 + _PIXELS} bytes"
    require(is_complete, f"file {file}", rule, f"{len(content)} bytes")
    records = content.reshape(-1, 1 + _PIXELS)
    highest = int(records[:, 0].max())
    require(highest < 10, f"file {file}", "hold labels 0 to 9", highest)
    return records
