"""Arrays that the user has made: latents, features, or images of any kind."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fmjax._checks import require
from fmjax._files import read_npz
from fmjax._progress import Progress, Silent
from fmjax.data.dataset import Dataset, NoSuchSplit, Split


@dataclass(frozen=True)
class ArrayData:
    """Examples from NumPy files: `train.npz` and `test.npz`, or `.npy` files for big sets.

    An `.npz` holds `x`, `[num_examples, *event]`, uint8 pixels or floating values, and
    optionally `labels`. Where a split does not fit in memory, give it as `train_x.npy` and
    `train_labels.npy`: these are mapped, not read, and each process touches only its share.

    Attributes:
        folder: With these files.
        num_classes: How many classes the labels count; None for one more than the highest
            label of the training split.
        event_shape: Of one example; None for whatever the files hold. Given, it is known where
            there are no files yet, as for `fmjax plan`.
    """

    folder: str
    num_classes: int | None = None
    event_shape: tuple[int, ...] | None = None

    def shape(self) -> tuple[tuple[int, ...], int | None]:
        """The shape of one example and the number of classes, as given or as the files have it."""
        if self.event_shape is not None:
            return self.event_shape, self.num_classes
        train = self.load("train")
        return train.event_shape, train.num_classes

    def load(self, split: Split, *, progress: Progress = Silent()) -> Dataset:
        """Read or map one split.

        Raises:
            ValueError: If the folder has no file for it, or the file is not what it should be.
        """
        folder = Path(self.folder).expanduser()
        x, labels = _read(folder, split)
        right = self.event_shape is None or x.shape[1:] == self.event_shape
        rule = f"hold examples of shape {self.event_shape}"
        require(right, f"folder {folder}", rule, x.shape[1:])
        if labels is None:
            return Dataset(x=x)
        num_classes = self.num_classes
        if num_classes is None:
            counted = labels if split == "train" else _read(folder, "train")[1]
            require(counted is not None, f"folder {folder}", "label the train split too", "none")
            num_classes = int(np.max(counted)) + 1  # type: ignore[arg-type]
        return Dataset(x=x, labels=labels, num_classes=num_classes)


def _read(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray | None]:
    mapped = folder / f"{split}_x.npy"
    if mapped.is_file():
        labels = folder / f"{split}_labels.npy"
        return _open_npy(mapped), _open_npy(labels) if labels.is_file() else None
    path = folder / f"{split}.npz"
    if not path.is_file():
        raise NoSuchSplit(
            f"data.folder must hold {split}.npz, written by numpy.savez({split!r}, x=.., "
            f"labels=..), or {split}_x.npy, got {folder}"
        )
    arrays = read_npz(path)
    require("x" in arrays, f"file {path}", "hold an array x", sorted(arrays))
    return arrays["x"], arrays.get("labels")


def _open_npy(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"file {path} must be a whole .npy file, got {error}") from error
