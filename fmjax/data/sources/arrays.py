"""Arrays that the user has made: latents, features, or images of any kind."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fmjax._arrays import Conditions, Text, TextShape
from fmjax._checks import require, require_between, require_numbers, require_one_of
from fmjax._files import is_hidden, open_npy, read_npz
from fmjax._progress import Progress, Silent
from fmjax.data.dataset import (
    MOST_CLASSES,
    SPLITS,
    Dataset,
    NoSuchSplit,
    Split,
    require_finite,
    require_labels,
)

_ARRAYS = ("x", "labels", "text", "pooled")
_ENDS = (".npz", *(f"_{name}.npy" for name in _ARRAYS))
_MOST_COUNTED = 100_000  # Classes that labels alone may say there are: else one number is wrong.
_LOOKED_AT = 512  # Examples of a mapped file, for their range.
_MOST = 1.1  # Resized images reach a little beyond 1.


@dataclass(frozen=True)
class ArrayData:
    """Examples from NumPy files: `train.npz` and `test.npz`, or `.npy` files for big sets.

    An `.npz` holds `x`, `[num_examples, *event]`, uint8 pixels or floating values, and
    optionally `labels`; or `text` `[num_examples, tokens, width]` and `pooled`
    `[num_examples, width]`, prompts as their encoders gave them; any other array is refused.
    Where a split does not fit in memory, give it as `train_x.npy`, `train_labels.npy` and so on:
    these are mapped, not read, and each process touches only its share.

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
        require_numbers(self, "data.")
        one = self.text is None or self.num_classes is None
        require(one, "data", "have classes or text, not both", "num_classes and text")
        if self.num_classes is not None:
            require_between("data.num_classes", self.num_classes, 1, MOST_CLASSES)

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

        Arrays of an `.npz` file are checked for NaN and infinity here, mapped ones as they are
        read.

        Raises:
            ValueError: If the folder has no file for it, or the file is not what it should be.
        """
        folder = Path(self.folder).expanduser()
        arrays, files = _read(folder, split)
        dataset = self._dataset(folder, split, arrays, files)
        right = self.event_shape in (None, dataset.event_shape)
        rule = f"hold examples of shape {self.event_shape}"
        require(right, f"folder {folder}", rule, dataset.event_shape)
        for name, array in arrays.items():
            if not isinstance(array, np.memmap):
                require_finite(dataset.name_of(name), array)
        if split == "train":
            _say_what_is_left_out(folder, progress)
            _say_range(dataset, progress)
        return dataset

    def _dataset(
        self, folder: Path, split: Split, arrays: dict[str, np.ndarray], files: dict[str, Path]
    ) -> Dataset:
        x, labels = arrays["x"], arrays.get("labels")
        unconditional = Dataset(x, files=files)  # Refuses x before anything is compared with it.
        if self.text is not None or not {"text", "pooled"}.isdisjoint(arrays):
            there = {"text", "pooled"} <= set(arrays)
            require(there, f"folder {folder}", "hold text and pooled together", sorted(arrays))
            require(labels is None, f"folder {folder}", "hold labels or text, not both", "both")
            dataset = Dataset(x, text=Text(arrays["text"], arrays["pooled"]), files=files)
            right = self.text in (None, dataset.conditions)
            require(right, f"folder {folder}", f"hold text of {self.text}", dataset.conditions)
            return dataset
        if labels is None:
            rule = f"hold labels of {split}, for data.num_classes {self.num_classes}"
            require(self.num_classes is None, f"folder {folder}", rule, "none")
            return unconditional
        num_classes = self.num_classes
        if num_classes is None:
            train, of_train = (arrays, files) if split == "train" else _read(folder, "train")
            there = "labels" in train
            require(there, f"folder {folder}", "label the train split too", "none")
            num_classes = _count(f"file {of_train['labels']}: labels", train)
        return Dataset(x, labels, num_classes, files=files)


def _count(name: str, arrays: dict[str, np.ndarray]) -> int:
    """How many classes there are: one more than the highest label."""
    labels = arrays["labels"]
    require_labels(name, labels, len(np.atleast_1d(arrays["x"])))
    highest, most = int(labels.max(initial=0)), max(_MOST_COUNTED, len(labels))
    rule = f"be below {most}, or data.num_classes say how many there are"
    require(highest < most, name, rule, highest)
    return highest + 1


def _read(folder: Path, split: str) -> tuple[dict[str, np.ndarray], dict[str, Path]]:
    """The arrays of a split by name, and the file of each."""
    path = folder / f"{split}.npz"
    mapped = {file.stem.removeprefix(f"{split}_"): file for file in folder.glob(f"{split}_*.npy")}
    if "x" in mapped:
        arrays = {name: open_npy(mapped[name]) for name in _ARRAYS if name in mapped}
        rule = f"hold {split}.npz or {split}_x.npy, not both"
        require(not path.exists(), f"folder {folder}", rule, "both")
        for name in mapped:
            require_one_of(f"folder {folder}: the array of {split}_*.npy", name, _ARRAYS)
        return arrays, {name: mapped[name] for name in arrays}
    if not path.is_file():
        raise NoSuchSplit(
            f"data.folder must hold {split}.npz, written by numpy.savez({split!r}, x=.., "
            f"labels=..), or {split}_x.npy, got {folder}"
        )
    arrays = read_npz(path)
    require("x" in arrays, f"file {path}", "hold an array x", sorted(arrays))
    for name in arrays:
        require_one_of(f"file {path}: the array", name, _ARRAYS)
    left = sorted(file.name for file in mapped.values())
    require(not left, f"folder {folder}", f"hold {split}.npz or {split}_x.npy with others", left)
    return arrays, dict.fromkeys(arrays, path)


def _say_what_is_left_out(folder: Path, progress: Progress) -> None:
    """Name files of arrays that are of no split."""
    known = {f"{split}{end}" for split in SPLITS for end in _ENDS}
    files = (file.name for file in folder.iterdir() if not is_hidden(Path(file.name)))
    left = sorted(n for n in files if n.endswith((".npz", ".npy")) and n not in known)
    if left:
        progress.say(
            f"warning: {len(left)} files of arrays in {folder} are left out, the first is {left[0]}"
        )


def _say_range(dataset: Dataset, progress: Progress) -> None:
    """Warn of images as floats that do not fill [-1, 1]: those in [0, 1], [0, 255] or normalised.

    Of mapped files a share of the examples is read.
    """
    x, shape = dataset.x, dataset.event_shape
    if x.dtype == np.uint8 or len(shape) != 3 or shape[-1] not in (1, 3):
        return
    mapped, part = isinstance(x, np.memmap), len(x) > _LOOKED_AT
    indices = np.linspace(0, len(x) - 1, _LOOKED_AT).astype(int) if part else slice(None)
    points = dataset.points(indices) if mapped else np.asarray(x)
    low, high = float(points.min()), float(points.max())
    if (low < 0 and max(-low, high) <= _MOST) or low == high == 0:
        return
    of = f" in {_LOOKED_AT} of its examples" if mapped and part else ""
    progress.say(
        f"warning: {dataset.name_of('x')} ranges from {low:.4g} to {high:.4g}{of}; images are "
        "meant to be floats in [-1, 1], or uint8 pixels"
    )
