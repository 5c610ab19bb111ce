"""Finite data sets, in memory or read from files, and the protocol of data sources."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np

from fmjax._arrays import Batch, Cond, Text, TextShape
from fmjax._checks import require, require_between, require_one_of, require_unicode
from fmjax._inputs import describe, require_mask, require_weight
from fmjax._progress import Progress, Silent
from fmjax._specs import CondSpec, class_spec
from fmjax.data.tokenizer import RULE, TokenizerConfig, WordTokenizer, train_tokenizer

Indices: TypeAlias = slice | np.ndarray
"""Indices of examples: a slice or an integer array."""
Split: TypeAlias = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")
MAX_CLASSES = 2**31 - 2
"""Maximum number of classes: class labels and the null class are int32."""


@runtime_checkable
class Rows(Protocol):
    """Array-like examples, indexed by the first axis and read or decoded on access."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array, `(num_examples, *event)`."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """Data type of the array."""
        ...

    @property
    def ndim(self) -> int:
        """Number of axes."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Indices) -> np.ndarray: ...


class Captions(NamedTuple):
    """One caption per example, as text and as tokens.

    Attributes:
        texts: The captions.
        tokens: Token ids of the captions, int32 `[num_examples, num_tokens]`.
        tokenizer: Tokenizer whose vocabulary was learned from the training split.
        config: Configuration of the tokenizer.
        training_texts: Texts from which the tokenizer learned its vocabulary.
    """

    texts: list[str]
    tokens: np.ndarray
    tokenizer: WordTokenizer
    config: TokenizerConfig
    training_texts: Sequence[str]

    def with_rule(self, rule: int) -> "Captions":
        """Return these captions, split into words by another version of the tokenizer's rule."""
        if rule == self.tokenizer.rule:
            return self
        return tokenize_captions(self.texts, self.training_texts, self.config, rule=rule)

    def warnings(self) -> list[str]:
        """Return warnings of captions that are too long or have no word of the vocabulary."""
        warnings = []
        if long := self.tokenizer.cut(self.texts):
            warnings.append(
                f"warning: {len(long)} captions are longer than tokenizer.num_tokens "
                f"({self.config.num_tokens}) and are truncated; the first is {long[0]!r}"
            )
        if wordless := self.tokenizer.wordless(self.tokens):
            warnings.append(
                f"warning: {len(wordless)} of {len(self.texts)} captions have no word of the "
                f"vocabulary and count as empty; the first is {self.texts[wordless[0]]!r}"
            )
        return warnings


def tokenize_captions(
    texts: list[str], training_texts: Sequence[str], config: TokenizerConfig, *, rule: int = RULE
) -> Captions:
    """Tokenize the captions of a split with the vocabulary of the training split."""
    tokenizer = train_tokenizer(training_texts, config, rule=rule)
    return Captions(texts, tokenizer.encode(texts), tokenizer, config, training_texts)


def require_labels(name: str, labels: np.ndarray, num: int) -> None:
    """Raise unless the labels are `num` integers."""
    is_valid = labels.shape == (num,) and labels.dtype.kind in "iu"
    require(is_valid, name, f"be {num} integers", describe(labels))


def require_finite(name: str, values: np.ndarray, numbers: np.ndarray | None = None) -> None:
    """Raise if an example contains NaN or infinity.

    Args:
        name: Name of the array, for the error message.
        values: The examples, `[num, *event]`, of any type.
        numbers: Indices of the examples in the data set, `[num]`; None for 0 to `num - 1`.

    Raises:
        ValueError: Names the first invalid value and the index of its example.
    """
    if np.issubdtype(values.dtype, np.integer) or values.size == 0:
        return
    with np.errstate(invalid="ignore"):
        # The common case, without a boolean array of the same size.
        if np.isfinite(values.min()) and np.isfinite(values.max()):
            return
    finite = np.isfinite(values.reshape(len(values), -1))
    row = int(np.argmin(finite.all(axis=1)))
    value = values[row].reshape(-1)[np.argmin(finite[row])]
    index = row if numbers is None else numbers[row]
    require(False, name, "hold finite numbers", f"{value} in example {index}")


@dataclass(frozen=True, eq=False)
class Dataset:
    """The examples of one split, returned as float32.

    Attributes:
        x: Data points, `[num_examples, *event]`. Pixels in uint8 are scaled from [0, 255] to
            [-1, 1]; floating-point values are only converted to float32.
        labels: Integer class label of each example, in [0, num_classes), or None.
        num_classes: Number of classes, or None without labels.
        text: Encoded prompt of each example, instead of labels, or None.
        captions: Caption of each example, or None. If present, captions are the condition, even
            if there are labels.
        files: Files of the arrays `x`, `labels`, `text` and `pooled`, for error messages.
        class_names: Name of each class, or None if unknown.
        weight: Weight of the training loss of each example, `[num_examples]`, finite and at least
            0, or None for equal weights.
        mask: True for each element of `x` that counts in the training loss, bool, as `Batch.mask`
            with all examples; None counts all. Metrics of samples use all elements.
    """

    x: np.ndarray | Rows
    labels: np.ndarray | None = None
    num_classes: int | None = None
    text: Text | None = None
    captions: Captions | None = None
    files: Mapping[str, Path] = field(default_factory=dict)
    class_names: tuple[str, ...] | None = None
    weight: np.ndarray | None = None
    mask: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name, value in (("x", self.x), ("labels", self.labels)):
            is_array = hasattr(value, "dtype") or (name == "labels" and value is None)
            require(is_array, name, "be an array", describe(value))
        x, shape = self.name_of("x"), f"shape {self.x.shape}"
        has_dtype = self.x.dtype == np.uint8 or np.issubdtype(self.x.dtype, np.floating)
        require(has_dtype, x, "be uint8 or floating point", self.x.dtype)
        require(self.x.ndim >= 2, x, "be [num_examples, *event]", shape)
        require(len(self.x) > 0, x, "hold at least one example", shape)
        require(0 not in self.x.shape, x, "hold at least one number per example", shape)
        is_consistent = (self.labels is None) == (self.num_classes is None)
        rule = "be given together with num_classes"
        require(is_consistent, "labels", rule, f"{self.num_classes=}")
        if self.labels is not None and self.num_classes is not None:
            name = self.name_of("labels")
            require_labels(name, self.labels, len(self.x))
            low, high = int(self.labels.min()), int(self.labels.max())
            in_range = low >= 0 and high < self.num_classes
            require(in_range, name, f"lie in [0, {self.num_classes})", f"{low} to {high}")
            require_between("num_classes", self.num_classes, 1, MAX_CLASSES)
        if self.class_names is not None:
            has_all = len(self.class_names) == self.num_classes
            rule = f"hold a name for each of {self.num_classes} classes"
            require(has_all, "class_names", rule, len(self.class_names))
            require_unicode("class_names", *self.class_names)
        if self.text is not None:
            require(self.labels is None, "labels", "be None if text is given", "labels")
            shapes = f"{self.text.tokens.shape} and {self.text.pooled.shape}"
            fits = (self.text.tokens.ndim, self.text.pooled.ndim) == (3, 2)
            fits = fits and len(self.text.tokens) == len(self.text.pooled) == len(self.x)
            rule = f"be [{len(self.x)}, tokens, width] and [{len(self.x)}, width]"
            require(fits, self.name_of("text"), rule, shapes)
            for name, array in (("text", self.text.tokens), ("pooled", self.text.pooled)):
                is_valid = np.issubdtype(array.dtype, np.floating) and 0 not in array.shape
                rule = "hold floating-point numbers"
                require(is_valid, self.name_of(name), rule, describe(array))
        if self.captions is not None:
            require(self.text is None, "text", "be None if captions are given", "text")
            num = len(self.captions.texts)
            require(num == len(self.x), "captions", f"hold {len(self.x)} texts", num)
        self._check_weight_and_mask()

    def _check_weight_and_mask(self) -> None:
        """Raise unless weights and masks suit the data points."""
        if self.weight is not None:
            name = self.name_of("weight")
            require_weight(name, self.weight, len(self.x))
            require_finite(name, self.weight)
            low, high = self.weight.min().item(), self.weight.max().item()
            require(low >= 0 and high > 0, name, "be at least 0, some above 0", f"{low} to {high}")
        if self.mask is not None:
            require_mask(self.name_of("mask"), self.mask, self.x.shape)

    def __len__(self) -> int:
        return len(self.x)

    def name_of(self, array: str) -> str:
        """Return the name of an array for error messages, with its file if known."""
        return f"file {self.files[array]}: {array}" if array in self.files else array

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one data point."""
        return self.x.shape[1:]

    @property
    def conditions(self) -> CondSpec:
        """Conditions of a model of these examples: captions, text, classes or None."""
        if self.captions is not None:
            return self.captions.config.shape
        if self.text is None:
            return None if self.num_classes is None else class_spec(self.num_classes)
        (_, num_tokens, width), (_, pooled_width) = self.text.tokens.shape, self.text.pooled.shape
        return TextShape(num_tokens, width, pooled_width)

    def points(self, indices: Indices = slice(None)) -> np.ndarray:
        """Return the data points at `indices` as a new float32 array; pixels are in [-1, 1]."""
        points = self._as_float32("x", self.x, indices)
        if self.x.dtype == np.uint8:
            points *= np.float32(1 / 127.5)
            points -= np.float32(1)
        return points

    def _as_float32(self, name: str, array: np.ndarray | Rows, indices: Indices) -> np.ndarray:
        """Return float32 copies of the rows at `indices`, after checks of shape and values."""
        # A value beyond float32 overflows to infinity, which the check below refuses.
        with np.errstate(over="ignore", invalid="ignore"):
            values = np.array(array[indices], dtype=np.float32)
        is_slice = isinstance(indices, slice)
        num = len(range(*indices.indices(len(self)))) if is_slice else len(indices)
        shape = (num, *array.shape[1:])
        # Arrays of users may decode their rows on access, wrongly.
        require(values.shape == shape, self.name_of(name), f"return rows {shape}", values.shape)
        if array.dtype != np.uint8:
            require_finite(self.name_of(name), values, np.arange(len(self))[indices])
        return values

    def classes(self, indices: Indices = slice(None)) -> np.ndarray | None:
        """Return the class labels at `indices` as int32, or None without labels."""
        return None if self.labels is None else np.array(self.labels[indices], dtype=np.int32)

    def unconditional(self) -> "Dataset":
        """Return a data set with the same points, weights and masks, and no conditions."""
        return Dataset(self.x, files=self.files, weight=self.weight, mask=self.mask)

    def examples(self, indices: Indices = slice(None)) -> Batch:
        """Return the data points, conditions, weights and masks at `indices`."""
        weight = None if self.weight is None else np.array(self.weight[indices], np.float32)
        mask = None if self.mask is None else np.array(self.mask[indices])
        return Batch(self.points(indices), self.conds(indices), weight=weight, mask=mask)

    def conds(self, indices: Indices = slice(None)) -> Cond:
        """Return the conditions at `indices`: int32 tokens or labels, float32 text, or None."""
        if self.captions is not None:
            return np.array(self.captions.tokens[indices], np.int32)
        if self.text is not None:
            tokens = self._as_float32("text", self.text.tokens, indices)
            return Text(tokens, self._as_float32("pooled", self.text.pooled, indices))
        return self.classes(indices)


class NoSuchSplit(ValueError):
    """Raised when a data source has no such split; damaged data raise other errors."""


@runtime_checkable
class DataSource(Protocol):
    """Configuration of a data set that can be loaded.

    `load` must return the same arrays every time, and the train and test splits must share no
    example. `shape` must match the loaded data.
    """

    def shape(self) -> tuple[tuple[int, ...], CondSpec]:
        """Return the shape of one data point, and the conditions (None: unconditional)."""
        ...

    def load(self, split: Split, *, progress: Progress) -> Dataset:
        """Read, generate or download one split."""
        ...


def load(data: DataSource, split: str = "train", *, progress: Progress = Silent()) -> Dataset:
    """Read, generate or download one split of a data set.

    Args:
        data: Configuration of the data set, such as `DigitsData()`.
        split: "train" or "test".
        progress: Receives progress reports, such as those of downloads.

    Raises:
        ValueError: If the split is unknown, or the data are missing or damaged.
    """
    require_one_of("split", split, SPLITS)
    return data.load(split, progress=progress)  # type: ignore[arg-type]
