"""Finite data sets, in memory or read from files, and the protocol of data sources."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax
import numpy as np
from jaxtyping import PyTree

from fmjax._arrays import Batch, Cond, Text, TextShape
from fmjax._checks import require, require_between, require_one_of, require_unicode
from fmjax._inputs import describe, require_mask, require_weight
from fmjax._progress import Progress, Silent
from fmjax._specs import CondSpec, Spec, as_cond_spec, class_spec, named_arrays
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
        files: Files of the arrays `x`, `labels`, `text` and `pooled`, and of the arrays of `cond`
            (`cond` or `cond_KEY`), for error messages.
        class_names: Name of each class, or None if unknown.
        cond: Condition of each example instead of labels or text: an array of floating-point
            numbers or uint8 pixels `[num_examples, *shape]`, or a dict of arrays, which may also
            be integers. Images `[num_examples, height, width, channels]` of type uint8 are scaled
            to [-1, 1]. None without such a condition.
        cond_spec: Description of `cond`, which integers need for their number of values; None
            derives it from the arrays.
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
    cond: Cond = None
    cond_spec: CondSpec = None
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
        if self.cond is not None:
            self._require_cond()
        else:
            require(self.cond_spec is None, "cond_spec", "be None without cond", self.cond_spec)
        self._check_weight_and_mask()

    def _require_cond(self) -> None:
        """Raise unless `cond` has one row per example and fits `cond_spec`."""
        for name in ("labels", "text", "captions"):
            got = f"cond and {name}"
            require(getattr(self, name) is None, "cond", f"be None if {name} are given", got)
        arrays = named_arrays(self.cond)
        require(bool(arrays), "cond", "be an array or a dict of arrays", describe(self.cond))
        distinct = len(arrays) == len(jax.tree.leaves(self.cond))
        require(distinct, "cond", "hold arrays with different names", sorted(arrays))
        for name, array in arrays.items():
            rule = f"be an array of {len(self.x)} examples"
            fits = hasattr(array, "dtype") and array.ndim >= 1 and len(array) == len(self.x)
            require(fits and 0 not in array.shape, self.name_of(name), rule, describe(array))
            is_number = array.dtype.kind in "fiu"
            require(is_number, self.name_of(name), "hold floats or integers", array.dtype)
        derived = _derived_specs(self.cond)
        if self.cond_spec is None:
            for name, spec in named_arrays(derived).items():
                rule = "have its number of values in cond_spec, because it holds integers"
                require(spec is not None, self.name_of(name), rule, "none")
            object.__setattr__(self, "cond_spec", as_cond_spec(derived))
        object.__setattr__(self, "cond_spec", as_cond_spec(self.cond_spec))
        require_cond_fits(self.cond, self.cond_spec, self.name_of)
        rule = "hold floating-point numbers (class labels are the array labels)"
        is_array = not isinstance(self.cond_spec, Spec) or self.cond_spec.num_values is None
        require(is_array, self.name_of("cond"), rule, describe(self.cond))

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
        if self.cond is not None:
            return self.cond_spec
        if self.text is None:
            return None if self.num_classes is None else class_spec(self.num_classes)
        (_, num_tokens, width), (_, pooled_width) = self.text.tokens.shape, self.text.pooled.shape
        return TextShape(num_tokens, width, pooled_width)

    def points(self, indices: Indices = slice(None)) -> np.ndarray:
        """Return the data points at `indices` as a new float32 array; pixels are in [-1, 1]."""
        points = self._as_float32("x", self.x, indices)
        return _scale_pixels(points) if self.x.dtype == np.uint8 else points

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
        if self.cond is not None:
            return self._cond_at(self.cond, "cond", indices)
        return self.classes(indices)

    def _cond_at(self, cond: Any, name: str, indices: Indices) -> Cond:
        """Return the arrays of a condition at `indices`, as float32 and int32."""
        if isinstance(cond, Mapping):
            parts = {key: (cond[key], f"{name}_{key}") for key in sorted(cond)}
            return {key: self._cond_at(part, path, indices) for key, (part, path) in parts.items()}
        assert cond is not None
        values = as_cond_array(cond[indices])
        require_finite(self.name_of(name), values, np.arange(len(self))[indices])
        return values


def _scale_pixels(values: np.ndarray) -> np.ndarray:
    """Scale float32 pixels from [0, 255] to [-1, 1] in place."""
    values *= np.float32(1 / 127.5)
    values -= np.float32(1)
    return values


def as_cond_array(array: np.ndarray) -> np.ndarray:
    """Return an array of a condition as float32 or int32, with pixels scaled to [-1, 1]."""
    if is_pixels(array):
        return _scale_pixels(np.array(array, np.float32))
    with np.errstate(over="ignore", invalid="ignore"):  # To infinity, which is refused later.
        return np.array(array, np.int32 if array.dtype.kind in "iu" else np.float32)


def is_pixels(array: np.ndarray) -> bool:
    """Return whether an array of a condition holds images in uint8."""
    return array.dtype == np.uint8 and array.ndim == 4


def _derived_specs(cond: PyTree) -> PyTree:
    """Return the specs of the arrays of a condition; None for integers."""
    if isinstance(cond, Mapping):
        return {key: _derived_specs(part) for key, part in cond.items()}
    is_integer = cond.dtype.kind in "iu" and not is_pixels(cond)
    return None if is_integer else Spec(cond.shape[1:])


def require_cond_fits(
    cond: Cond, cond_spec: CondSpec, name_of: Callable[[str], str] = str, name: str = "cond"
) -> None:
    """Raise unless the arrays of a condition have the names, shapes and types of its specs.

    Args:
        cond: Arrays `[num, *shape]`, or a dict of them.
        cond_spec: Specs with the same structure.
        name_of: Returns the name of an array in error messages.
        name: Name of a condition that is a single array (`fmjax._specs.named_arrays`).
    """
    arrays, specs = named_arrays(cond, name), named_arrays(cond_spec, name)
    same = set(arrays) == set(specs)
    got = ", ".join(sorted(arrays)) or "nothing"
    require(same, name_of(name or "cond"), f"hold the arrays {', '.join(sorted(specs))}", got)
    for key, spec in specs.items():
        array = arrays[key]
        shape = f"[num, {', '.join(map(str, spec.shape))}]" if spec.shape else "[num]"
        require(array.shape[1:] == spec.shape, name_of(key), f"have shape {shape}", array.shape)
        is_integer = array.dtype.kind in "iu" and not is_pixels(array)
        type_name = "floating-point numbers" if spec.num_values is None else "integers"
        fits = is_integer == (spec.num_values is not None)
        require(fits, name_of(key), f"hold {type_name}", describe(array))
        if spec.num_values is not None:
            low, high = int(array.min()), int(array.max())
            in_range = low >= 0 and high < spec.num_values
            require(in_range, name_of(key), f"lie in [0, {spec.num_values})", f"{low} to {high}")


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
        ValueError: If the split is unknown, the data are missing or damaged, or `data.load` does
            not return a `Dataset`.
    """
    require_one_of("split", split, SPLITS)
    dataset = data.load(split, progress=progress)  # type: ignore[arg-type]
    name = f"{type(data).__name__}.load"
    require(isinstance(dataset, Dataset), name, "return a Dataset", describe(dataset))
    return dataset
