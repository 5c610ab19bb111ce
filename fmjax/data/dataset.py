"""What a source delivers: a finite set of examples, in memory or mapped from a file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np

from fmjax._arrays import Batch, Conditions, Text, TextShape
from fmjax._checks import require, require_between, require_one_of
from fmjax._inputs import described
from fmjax._progress import Progress, Silent
from fmjax.data.tokenizer import RULE, TokenizerConfig, WordTokenizer, train_tokenizer

Split: TypeAlias = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")
MOST_CLASSES = 2**31 - 2
"""Classes and the class of no condition are numbered in int32."""


@runtime_checkable
class Rows(Protocol):
    """What is read like an array by its first axis: files that are decoded when asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """As of an array."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """As of an array."""
        ...

    @property
    def ndim(self) -> int:
        """As of an array."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Any) -> np.ndarray: ...


class Captions(NamedTuple):
    """A text for each example.

    Attributes:
        texts: The texts.
        tokens: Their words as numbers, int32 `[num_examples, num_tokens]`.
        tokenizer: What made these; it learned the words of the training split.
        config: How it was made.
        training_texts: The texts that it learned from.
    """

    texts: list[str]
    tokens: np.ndarray
    tokenizer: WordTokenizer
    config: TokenizerConfig
    training_texts: Sequence[str]

    def by_rule(self, rule: int) -> "Captions":
        """The same captions, split into words by another version of the tokenizer's rule."""
        if rule == self.tokenizer.rule:
            return self
        return captions_of(self.texts, self.training_texts, self.config, rule=rule)


def captions_of(
    texts: list[str], training_texts: Sequence[str], config: TokenizerConfig, *, rule: int = RULE
) -> Captions:
    """The captions of a split, in the words of the training split."""
    tokenizer = train_tokenizer(training_texts, config, rule=rule)
    return Captions(texts, tokenizer.encode(texts), tokenizer, config, training_texts)


def require_labels(name: str, labels: np.ndarray, num: int) -> None:
    """Raise unless the labels are `num` integers."""
    right = labels.shape == (num,) and labels.dtype.kind in "iu"
    found = f"{labels.dtype} of shape {labels.shape}"
    require(right, name, f"be {num} integers", found)


def require_finite(name: str, values: np.ndarray, numbers: np.ndarray | None = None) -> None:
    """Raise if a number of an example is NaN or infinite.

    Args:
        name: Where the examples come from.
        values: `[num, *event]` of any type.
        numbers: The indices of these examples, `[num]`; None counts from 0.

    Raises:
        ValueError: With the name, the index of the first such example, and what it holds.
    """
    if np.issubdtype(values.dtype, np.integer) or values.size == 0:
        return
    with np.errstate(invalid="ignore"):
        if np.isfinite(values.min()) and np.isfinite(values.max()):  # Without a copy of its size.
            return
    finite = np.isfinite(values.reshape(len(values), -1))
    row = int(np.argmin(finite.all(axis=1)))
    found = values[row].reshape(-1)[np.argmin(finite[row])]
    number = row if numbers is None else numbers[row]
    require(False, name, "hold finite numbers", f"{found} in example {number}")


@dataclass(frozen=True, eq=False)
class Dataset:
    """Examples of one split, delivered as float32.

    Attributes:
        x: `[num_examples, *event]`. uint8 means pixels 0 to 255, delivered in [-1, 1]; any
            floating type is delivered as it is, in float32.
        labels: Integer class of each example, in `0 .. num_classes - 1`, or None.
        num_classes: How many classes there are, or None for a set without.
        text: Instead of labels a prompt for each example, as encoders gave it, or None.
        captions: A text for each example, which is then its condition, not the label; or None.
        files: The files of x, labels, text and pooled, where they are known: errors name them.
    """

    x: np.ndarray | Rows
    labels: np.ndarray | None = None
    num_classes: int | None = None
    text: Text | None = None
    captions: Captions | None = None
    files: Mapping[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in (("x", self.x), ("labels", self.labels)):
            array = hasattr(value, "dtype") or (name == "labels" and value is None)
            require(array, name, "be an array", described(value))
        x, shape = self.name_of("x"), f"shape {self.x.shape}"
        kinds = self.x.dtype == np.uint8 or np.issubdtype(self.x.dtype, np.floating)
        require(kinds, x, "be uint8 or floating", self.x.dtype)
        require(self.x.ndim >= 2, x, "be [num_examples, *event]", shape)
        require(len(self.x) > 0, x, "hold at least one example", shape)
        require(0 not in self.x.shape, x, "hold at least one number in each example", shape)
        together = (self.labels is None) == (self.num_classes is None)
        require(together, "labels", "come together with num_classes", f"{self.num_classes=}")
        if self.labels is not None and self.num_classes is not None:
            name = self.name_of("labels")
            require_labels(name, self.labels, len(self.x))
            low, high = int(self.labels.min()), int(self.labels.max())
            in_range = low >= 0 and high < self.num_classes
            require(in_range, name, f"lie in [0, {self.num_classes})", f"{low} to {high}")
            require_between("num_classes", self.num_classes, 1, MOST_CLASSES)
        if self.text is not None:
            require(self.labels is None, "labels", "be None beside text", "labels")
            shapes = f"{self.text.tokens.shape} and {self.text.pooled.shape}"
            fits = (self.text.tokens.ndim, self.text.pooled.ndim) == (3, 2)
            fits = fits and len(self.text.tokens) == len(self.text.pooled) == len(self.x)
            rule = f"be [{len(self.x)}, tokens, width] and [{len(self.x)}, width]"
            require(fits, self.name_of("text"), rule, shapes)
            for name, array in (("text", self.text.tokens), ("pooled", self.text.pooled)):
                right = np.issubdtype(array.dtype, np.floating) and 0 not in array.shape
                found = f"{array.dtype} of shape {array.shape}"
                require(right, self.name_of(name), "hold floating numbers", found)
        if self.captions is not None:
            require(self.text is None, "text", "be None beside captions", "text")
            num = len(self.captions.texts)
            require(num == len(self.x), "captions", f"be {len(self.x)} texts", num)

    def __len__(self) -> int:
        return len(self.x)

    def name_of(self, array: str) -> str:
        """An array's name for errors, with its file where that is known."""
        return f"file {self.files[array]}: {array}" if array in self.files else array

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        return self.x.shape[1:]

    @property
    def conditions(self) -> Conditions:
        """What a model of these examples is conditioned on."""
        if self.captions is not None:
            return self.captions.config.shape
        if self.text is None:
            return self.num_classes
        (_, num_tokens, width), (_, pooled_width) = self.text.tokens.shape, self.text.pooled.shape
        return TextShape(num_tokens, width, pooled_width)

    def points(self, indices: slice | np.ndarray = slice(None)) -> np.ndarray:
        """The examples at `indices` as a new float32 array; pixels in [-1, 1]."""
        points = self._as_float32("x", self.x, indices)
        if self.x.dtype == np.uint8:
            points *= np.float32(1 / 127.5)
            points -= np.float32(1)
        return points

    def _as_float32(
        self, name: str, array: np.ndarray | Rows, indices: slice | np.ndarray
    ) -> np.ndarray:
        """New float32 copies of the examples at `indices`, which are checked to be finite."""
        with np.errstate(
            over="ignore", invalid="ignore"
        ):  # What float32 does not hold is refused as infinite.
            values = np.array(array[indices], dtype=np.float32)
        if array.dtype != np.uint8:
            require_finite(self.name_of(name), values, np.arange(len(self))[indices])
        return values

    def classes(self, indices: slice | np.ndarray = slice(None)) -> np.ndarray | None:
        """The labels at `indices` as int32, or None for an unconditional set."""
        return None if self.labels is None else np.array(self.labels[indices], dtype=np.int32)

    def unconditional(self) -> "Dataset":
        """The same examples, for an unconditional model."""
        return Dataset(self.x, files=self.files)

    def examples(self, indices: slice | np.ndarray = slice(None)) -> Batch:
        """Points and conditions at `indices`: classes, tokens, or texts in float32."""
        return Batch(x1=self.points(indices), cond=self.conds(indices))

    def conds(self, indices: slice | np.ndarray = slice(None)) -> Any:
        """The conditions at `indices`."""
        if self.captions is not None:
            return np.array(self.captions.tokens[indices], np.int32)
        if self.text is not None:
            tokens = self._as_float32("text", self.text.tokens, indices)
            return Text(tokens, self._as_float32("pooled", self.text.pooled, indices))
        return self.classes(indices)


class NoSuchSplit(ValueError):
    """The data are there, but not this split of them. Damaged data are another error."""


@runtime_checkable
class Source(Protocol):
    """Numbers and names that say where examples come from.

    Laws: `load` gives the same arrays every time; train and test share no example; `shape` is
    the event shape of what it gives, and its classes or text.
    """

    def shape(self) -> tuple[tuple[int, ...], Conditions]:
        """The shape of one example and what it comes with (None: nothing)."""
        ...

    def load(self, split: Split, *, progress: Progress) -> Dataset:
        """Read, make or download the examples of one split."""
        ...


def load(source: Source, split: str = "train", *, progress: Progress = Silent()) -> Dataset:
    """Read, make or download the examples of one split.

    Args:
        source: Which data, e.g. `DigitsData()`.
        split: "train" or "test".
        progress: Hears about downloads.

    Raises:
        ValueError: If the split is unknown, or what `source` names is missing or damaged.
    """
    require_one_of("split", split, SPLITS)
    return source.load(split, progress=progress)  # type: ignore[arg-type]
