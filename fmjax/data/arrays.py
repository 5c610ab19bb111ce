"""Arrays that the user has made: latents, features, or images of any kind."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fmjax._arrays import Conditions, Text, TextShape
from fmjax._checks import require
from fmjax._files import read_npz
from fmjax._progress import Progress, Silent
from fmjax.data.dataset import Dataset, NoSuchSplit, Split

_ARRAYS = ("x", "labels", "text", "pooled")


@dataclass(frozen=True)
class ArrayData:
    """Examples from NumPy files: `train.npz` and `test.npz`, or `.npy` files for big sets.

    An `.npz` holds `x`, `[num_examples, *event]`, uint8 pixels or floating values, and
    optionally `labels`; or `text` `[num_examples, tokens, width]` and `pooled`
    `[num_examples, width]`, prompts as their encoders gave them. Where a split does not fit in
    memory, give it as `train_x.npy`, `train_labels.npy` and so on: these are mapped, not read, and
    each process touches only its share.

    Attributes:
        folder: With these files.
        num_classes: How many classes the labels count; None for one more than the highest
            label of the training split.
        event_shape: Of one example; None for whatever the files hold. Given, it is known where
            there are no files yet, as for `fmjax plan`.
        text: The same of a prompt.
    """

    folder: str
    num_classes: int | None = None
    event_shape: tuple[int, ...] | None = None
    text: TextShape | None = None

    def __post_init__(self) -> None:
        one = self.text is None or self.num_classes is None
        require(one, "data", "have classes or text, not both", "num_classes and text")

    def shape(self) -> tuple[tuple[int, ...], Conditions]:
        """The shape of one example and its classes or text, as given or as the files have it."""
        conditions = self.num_classes if self.text is None else self.text
        if self.event_shape is not None and conditions is not None:
            return self.event_shape, conditions
        try:
            train = self.load("train")
        except NoSuchSplit:
            if self.event_shape is None:
                raise
            return self.event_shape, None
        return train.event_shape, train.conditions

    def load(self, split: Split, *, progress: Progress = Silent()) -> Dataset:
        """Read or map one split.

        Raises:
            ValueError: If the folder has no file for it, or the file is not what it should be.
        """
        folder = Path(self.folder).expanduser()
        arrays = _read(folder, split)
        x, labels = arrays["x"], arrays.get("labels")
        right = self.event_shape is None or x.shape[1:] == self.event_shape
        rule = f"hold examples of shape {self.event_shape}"
        require(right, f"folder {folder}", rule, x.shape[1:])
        if "text" in arrays or self.text is not None:
            return self._with_text(folder, arrays)
        if labels is None:
            return Dataset(x=x)
        num_classes = self.num_classes
        if num_classes is None:
            counted = labels if split == "train" else _read(folder, "train").get("labels")
            require(counted is not None, f"folder {folder}", "label the train split too", "none")
            num_classes = int(np.max(counted)) + 1  # type: ignore[arg-type]
        return Dataset(x=x, labels=labels, num_classes=num_classes)

    def _with_text(self, folder: Path, arrays: Mapping[str, np.ndarray]) -> Dataset:
        there = {"text", "pooled"} <= set(arrays)
        require(there, f"folder {folder}", "hold text and pooled together", sorted(arrays))
        dataset = Dataset(arrays["x"], text=Text(arrays["text"], arrays["pooled"]))
        right = self.text is None or dataset.conditions == self.text
        require(right, f"folder {folder}", f"hold text of {self.text}", dataset.conditions)
        return dataset


def _read(folder: Path, split: str) -> Mapping[str, np.ndarray]:
    if (folder / f"{split}_x.npy").is_file():
        files = {name: folder / f"{split}_{name}.npy" for name in _ARRAYS}
        return {name: _open_npy(file) for name, file in files.items() if file.is_file()}
    path = folder / f"{split}.npz"
    if not path.is_file():
        raise NoSuchSplit(
            f"data.folder must hold {split}.npz, written by numpy.savez({split!r}, x=.., "
            f"labels=..), or {split}_x.npy, got {folder}"
        )
    arrays = read_npz(path)
    require("x" in arrays, f"file {path}", "hold an array x", sorted(arrays))
    return arrays


def _open_npy(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"file {path} must be a whole .npy file, got {error}") from error
