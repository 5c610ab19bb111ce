"""What a source delivers: a finite set of examples, in memory or mapped from a file."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np

from fmjax._arrays import Batch, Conditions, Text, TextShape
from fmjax._checks import require, require_one_of
from fmjax._progress import Progress, Silent
from fmjax.data.tokenizer import RULE, TokenizerConfig, WordTokenizer, train_tokenizer

Split: TypeAlias = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")


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
    """

    x: np.ndarray | Rows
    labels: np.ndarray | None = None
    num_classes: int | None = None
    text: Text | None = None
    captions: Captions | None = None

    def __post_init__(self) -> None:
        kinds = self.x.dtype == np.uint8 or np.issubdtype(self.x.dtype, np.floating)
        require(kinds, "x", "be uint8 or floating", self.x.dtype)
        require(self.x.ndim >= 2, "x", "be [num_examples, *event]", f"shape {self.x.shape}")
        require(len(self.x) > 0, "x", "hold at least one example", f"shape {self.x.shape}")
        together = (self.labels is None) == (self.num_classes is None)
        require(together, "labels", "come together with num_classes", f"{self.num_classes=}")
        if self.labels is not None and self.num_classes is not None:
            integers = self.labels.shape == self.x.shape[:1] and self.labels.dtype.kind in "iu"
            found = f"{self.labels.dtype} of shape {self.labels.shape}"
            require(integers, "labels", f"be {len(self.x)} integers", found)
            low, high = int(self.labels.min()), int(self.labels.max())
            in_range = low >= 0 and high < self.num_classes
            require(in_range, "labels", f"lie in [0, {self.num_classes})", f"{low} to {high}")
        if self.text is not None:
            require(self.labels is None, "labels", "be None beside text", "labels")
            shapes = f"{self.text.tokens.shape} and {self.text.pooled.shape}"
            fits = (self.text.tokens.ndim, self.text.pooled.ndim) == (3, 2)
            fits = fits and len(self.text.tokens) == len(self.text.pooled) == len(self.x)
            rule = f"be [{len(self.x)}, tokens, width] and [{len(self.x)}, width]"
            require(fits, "text", rule, shapes)
        if self.captions is not None:
            require(self.text is None, "text", "be None beside captions", "text")
            num = len(self.captions.texts)
            require(num == len(self.x), "captions", f"be {len(self.x)} texts", num)

    def __len__(self) -> int:
        return len(self.x)

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
        points = np.array(self.x[indices], dtype=np.float32)
        if self.x.dtype == np.uint8:
            points *= np.float32(1 / 127.5)
            points -= np.float32(1)
        return points

    def classes(self, indices: slice | np.ndarray = slice(None)) -> np.ndarray | None:
        """The labels at `indices` as int32, or None for an unconditional set."""
        return None if self.labels is None else np.array(self.labels[indices], dtype=np.int32)

    def unconditional(self) -> "Dataset":
        """The same examples, for an unconditional model."""
        return Dataset(self.x)

    def examples(self, indices: slice | np.ndarray = slice(None)) -> Batch:
        """Points and conditions at `indices`: classes, tokens, or texts in float32."""
        return Batch(x1=self.points(indices), cond=self.conds(indices))

    def conds(self, indices: slice | np.ndarray = slice(None)) -> Any:
        """The conditions at `indices`."""
        if self.captions is not None:
            return np.array(self.captions.tokens[indices], np.int32)
        if self.text is not None:
            tokens, pooled = (np.array(a[indices], np.float32) for a in self.text[:2])
            return Text(tokens, pooled)
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
