"""Data set in NumPy files of the user: latents, features, or images."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fmjax._arrays import Text, TextShape
from fmjax._checks import require, require_between, require_numbers, require_one_of
from fmjax._files import is_hidden, open_npy, read_npz
from fmjax._inputs import describe
from fmjax._progress import Progress, Silent
from fmjax._specs import CondSpec, Spec, as_cond_spec
from fmjax.data.dataset import (
    MAX_CLASSES,
    SPLITS,
    Dataset,
    NoSuchSplit,
    Split,
    is_pixels,
    require_finite,
    require_labels,
)

_ARRAYS = ("x", "labels", "text", "pooled")
_COND = "cond"
_MAX_INFERRED_CLASSES = 100_000  # A higher label is probably wrong, unless num_classes is given.
_NUM_CHECKED = 512  # Examples of a mapped file whose range is checked.
_MAX_VALUE = 1.1  # Resized images slightly exceed 1.


@dataclass(frozen=True)
class ArrayData:
    """Examples in NumPy files: `train.npz` and `test.npz`, or `.npy` files for large data sets.

    An `.npz` file holds `x`, `[num_examples, *event]`, with uint8 pixels or floating-point values,
    and optionally either `labels`, or encoded prompts: `text` `[num_examples, tokens, width]` and
    `pooled` `[num_examples, width]`, or a condition of numbers: one array `cond`
    `[num_examples, *shape]`, or arrays `cond_KEY` with any keys, which the network gets as a dict
    `{KEY: array}`. Images of a condition may be uint8 pixels; other integers of a dict are labels.
    Other arrays are refused. A split that does not fit into memory can be stored as `train_x.npy`,
    `train_labels.npy`, `train_cond_KEY.npy` and so on. These files are memory-mapped, and each
    process reads only its share.

    Attributes:
        folder: Folder of the files.
        num_classes: Number of classes; None for one more than the highest label of the training
            split.
        event_shape: Shape of one data point; None to read it from the files. Set it to use the
            config before the files exist, as with `fmjax plan`.
        text: Sizes of an encoded prompt; None to read them from the files.
        cond_classes: Pairs of a key and the number of values of the integers `cond_KEY`; by default
            one more than the highest in the training split.
    """

    folder: str
    num_classes: int | None = None
    event_shape: tuple[int, ...] | None = None
    text: TextShape | None = None
    cond_classes: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        require_numbers(self, "data.")
        has_one = self.text is None or self.num_classes is None
        require(has_one, "data", "have classes or text, not both", "num_classes and text")
        if self.num_classes is not None:
            require_between("data.num_classes", self.num_classes, 1, MAX_CLASSES)
        for key, number in self.cond_classes:
            require_between(f"data.cond_classes of {key}", number, 1, MAX_CLASSES)

    def shape(self) -> tuple[tuple[int, ...], CondSpec]:
        """Return the shape of one data point and the conditions, from the config or the files."""
        conditions = as_cond_spec(self.num_classes) if self.text is None else self.text
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
        """Read or memory-map one split.

        Arrays of an `.npz` file are checked for NaN and infinity here, mapped arrays on access.

        Raises:
            ValueError: If the files of the split are missing or invalid.
        """
        folder = Path(self.folder).expanduser()
        arrays, files = _read(folder, split)
        dataset = self._dataset(folder, split, arrays, files)
        matches = self.event_shape in (None, dataset.event_shape)
        rule = f"hold examples of shape {self.event_shape}"
        require(matches, f"folder {folder}", rule, dataset.event_shape)
        for name, array in arrays.items():
            if not isinstance(array, np.memmap):
                require_finite(dataset.name_of(name), array)
        if split == "train":
            _warn_of_other_files(folder, progress)
            _warn_of_range(dataset, progress)
        return dataset

    def _dataset(
        self, folder: Path, split: Split, arrays: dict[str, np.ndarray], files: dict[str, Path]
    ) -> Dataset:
        """Build the data set of a split from its arrays."""
        name = f"folder {folder}"
        x, labels = arrays["x"], arrays.get("labels")
        unconditional = Dataset(x, files=files)  # Checks x before its use in other checks.
        keys = [name for name in arrays if _is_cond(name)]
        if keys or self.cond_classes:
            got = ", ".join(sorted(set(arrays) - {"x"}))
            rule = "hold only one kind of condition: labels, text, cond, or cond_KEY"
            is_one = len(keys) == len(arrays) - 1 and (_COND not in keys or len(keys) == 1)
            require(is_one and self.num_classes is None and self.text is None, name, rule, got)
            train, train_files = (arrays, files) if split == "train" else _read(folder, "train")
            same = set(train) == set(arrays)
            require(same, name, "hold the same arrays in both splits", f"{sorted(arrays)} of test")
            spec = _cond_spec(train, train_files, dict(self.cond_classes), name)
            return Dataset(x, cond=_cond_of(arrays), cond_spec=spec, files=files)
        if self.text is not None or not {"text", "pooled"}.isdisjoint(arrays):
            is_complete = {"text", "pooled"} <= set(arrays)
            require(is_complete, name, "hold both text and pooled", sorted(arrays))
            require(labels is None, name, "hold labels or text, not both", "both")
            dataset = Dataset(x, text=Text(arrays["text"], arrays["pooled"]), files=files)
            matches = self.text in (None, dataset.conditions)
            require(matches, name, f"hold text of {self.text}", dataset.conditions)
            return dataset
        if labels is None:
            rule = f"hold labels of {split}, because data.num_classes is {self.num_classes}"
            require(self.num_classes is None, name, rule, "none")
            return unconditional
        num_classes = self.num_classes
        if num_classes is None:
            train, train_files = (arrays, files) if split == "train" else _read(folder, "train")
            require("labels" in train, name, "hold labels of the train split too", "none")
            num_classes = _infer_num_classes(f"file {train_files['labels']}: labels", train)
        return Dataset(x, labels, num_classes, files=files)


def _is_cond(name: str) -> bool:
    """Return whether an array is a condition of numbers or a part of one."""
    return name == _COND or (name.startswith(f"{_COND}_") and len(name) > len(_COND) + 1)


def _cond_of(arrays: Mapping[str, np.ndarray]) -> np.ndarray | dict[str, np.ndarray]:
    """Return the condition of numbers: the array `cond`, or a dict of the arrays `cond_KEY`."""
    if _COND in arrays:
        return arrays[_COND]
    names = sorted(name for name in arrays if _is_cond(name))
    return {name.removeprefix(f"{_COND}_"): arrays[name] for name in names}


def _cond_spec(
    train: Mapping[str, np.ndarray],
    files: Mapping[str, Path],
    cond_classes: Mapping[str, int],
    folder: str,
) -> Spec | dict[str, Spec]:
    """Describe the condition of numbers of the training split.

    Args:
        train: Arrays of the training split.
        files: Their files.
        cond_classes: Number of values of integers by key; inferred for other keys.
        folder: Name of the folder, for error messages.
    """
    cond = _cond_of(train)
    if isinstance(cond, np.ndarray):
        name = f"file {files[_COND]}: {_COND}"
        rule = "hold floating-point numbers or images in uint8; store class labels as labels"
        has_dtype = cond.dtype.kind == "f" or is_pixels(cond)
        require(has_dtype and not cond_classes, name, rule, describe(cond))
        return Spec(cond.shape[1:])
    integers = {key for key, array in cond.items() if array.dtype.kind in "iu"}
    integers -= {key for key, array in cond.items() if is_pixels(array)}
    unknown = sorted(set(cond_classes) - integers)
    rule = "hold an integer array for each of data.cond_classes"
    require(not unknown, folder, rule, f"none of {', '.join(unknown)}")
    specs = {}
    for key, array in cond.items():
        num_values = cond_classes.get(key)
        if key in integers and num_values is None:
            num_values = _num_values(f"file {files[f'{_COND}_{key}']}: {_COND}_{key}", array)
        dtype = "int32" if key in integers else "float32"
        specs[key] = Spec(array.shape[1:], dtype, num_values=num_values)
    return specs


def _num_values(name: str, array: np.ndarray) -> int:
    """Return the number of values of integers, one more than the highest."""
    highest, bound = int(array.max(initial=0)), max(_MAX_INFERRED_CLASSES, len(array))
    require(highest < bound, name, f"be below {bound} unless data.cond_classes is set", highest)
    return highest + 1


def _infer_num_classes(name: str, arrays: dict[str, np.ndarray]) -> int:
    """Return the number of classes, one more than the highest label."""
    labels = arrays["labels"]
    require_labels(name, labels, len(np.atleast_1d(arrays["x"])))
    highest, bound = int(labels.max(initial=0)), max(_MAX_INFERRED_CLASSES, len(labels))
    rule = f"be below {bound} unless data.num_classes is set"
    require(highest < bound, name, rule, highest)
    return highest + 1


def _read(folder: Path, split: str) -> tuple[dict[str, np.ndarray], dict[str, Path]]:
    """Read or memory-map the arrays of a split; return them by name, and the file of each."""
    npz_file = folder / f"{split}.npz"
    mapped = {file.stem.removeprefix(f"{split}_"): file for file in folder.glob(f"{split}_*.npy")}
    if "x" in mapped:
        known = [name for name in mapped if name in _ARRAYS or _is_cond(name)]
        arrays = {name: open_npy(mapped[name]) for name in known}
        rule = f"hold {split}.npz or {split}_x.npy, not both"
        require(not npz_file.exists(), f"folder {folder}", rule, "both")
        for name in mapped.keys() - arrays.keys():
            names = (*_ARRAYS, _COND)
            require_one_of(f"folder {folder}: the array of {split}_*.npy", name, names)
        return arrays, {name: mapped[name] for name in arrays}
    if not npz_file.is_file():
        raise NoSuchSplit(
            f"data.folder must hold {split}.npz, written by numpy.savez({split!r}, x=..., "
            f"labels=...), or {split}_x.npy, got {folder}"
        )
    arrays = read_npz(npz_file)
    require("x" in arrays, f"file {npz_file}", "hold an array x", sorted(arrays))
    for name in arrays:
        if not _is_cond(name):
            require_one_of(f"file {npz_file}: the array", name, (*_ARRAYS, _COND))
    npy_files = sorted(file.name for file in mapped.values())
    rule = f"hold only {split}.npz, or {split}_x.npy with the other .npy files"
    require(not npy_files, f"folder {folder}", rule, npy_files)
    return arrays, dict.fromkeys(arrays, npz_file)


def _warn_of_other_files(folder: Path, progress: Progress) -> None:
    """Warn of array files that do not belong to a split."""
    names = (file.name for file in folder.iterdir() if not is_hidden(Path(file.name)))
    unused = sorted(n for n in names if n.endswith((".npz", ".npy")) and not _is_used(n))
    if unused:
        progress.say(
            f"warning: ignored {len(unused)} array files in {folder}, the first is {unused[0]}"
        )


def _is_used(file: str) -> bool:
    """Return whether a file name is that of an array, or of the arrays, of a split."""
    stem, _, suffix = file.rpartition(".")
    split, _, name = stem.partition("_")
    is_npy = suffix == "npy" and (name in _ARRAYS or _is_cond(name))
    return split in SPLITS and (is_npy or (suffix == "npz" and stem == split))


def _warn_of_range(dataset: Dataset, progress: Progress) -> None:
    """Warn of float images with a range other than [-1, 1], such as [0, 1] or [0, 255].

    Only a part of the examples of memory-mapped files is read.
    """
    x, shape = dataset.x, dataset.event_shape
    if x.dtype == np.uint8 or len(shape) != 3 or shape[-1] not in (1, 3):
        return
    is_mapped, is_large = isinstance(x, np.memmap), len(x) > _NUM_CHECKED
    indices = np.linspace(0, len(x) - 1, _NUM_CHECKED).astype(int) if is_large else slice(None)
    points = dataset.points(indices) if is_mapped else np.asarray(x)
    low, high = float(points.min()), float(points.max())
    if (low < 0 and max(-low, high) <= _MAX_VALUE) or low == high == 0:
        return
    part = f" in {_NUM_CHECKED} of its examples" if is_mapped and is_large else ""
    progress.say(
        f"warning: {dataset.name_of('x')} ranges from {low:.4g} to {high:.4g}{part}; images "
        "should be floats in [-1, 1] or uint8 pixels"
    )
