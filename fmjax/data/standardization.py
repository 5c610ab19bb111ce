"""Standardization of data and conditions: subtract the mean, divide by the standard deviation."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from fmjax._arrays import Batch, Cond
from fmjax._checks import require
from fmjax._json import Positive, read_json, require_lengths
from fmjax._progress import Progress, Silent
from fmjax.data.dataset import Dataset, Indices

_X, _COND = "x", "cond"
_CHUNK = 1_024  # Examples that are read at a time.

AnyArray = TypeVar("AnyArray", np.ndarray, jax.Array)


class Moments(NamedTuple):
    """Mean and standard deviation of an array, for each index of its last axis.

    Attributes:
        mean: Means; a single one for an array with one number per example.
        std: Standard deviations; 1 where all examples have the same number.
    """

    mean: tuple[float, ...]
    std: tuple[Positive, ...]

    def standardize(self, x: AnyArray) -> AnyArray:
        """Return `(x - mean) / std`, in the type of `x` `[num, *event]`."""
        mean, std = _along_last_axis(self.mean, x), _along_last_axis(self.std, x)
        return (x - mean) / std

    def restore(self, x: AnyArray) -> AnyArray:
        """Return `mean + std * x`, the inverse of `standardize`."""
        mean, std = _along_last_axis(self.mean, x), _along_last_axis(self.std, x)
        return x * std + mean


def _along_last_axis(values: tuple[float, ...], x: np.ndarray | jax.Array) -> np.ndarray:
    return np.asarray(values, x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


@dataclass(frozen=True)
class Standardization:
    """Mean and standard deviation of the data points and of each floating-point condition.

    Vectors `[d]` are standardized per element, and images `[height, width, channels]` and sequences
    `[time, channels]` per channel. Without moments, all methods return their arguments.

    Attributes:
        moments: Moments by name: "x" are those of the data points, "cond" those of a condition that
            is one array, "cond_KEY" those of the array KEY of a condition that is a dict.
    """

    moments: Mapping[str, Moments] = field(default_factory=dict)

    def points(self, x: AnyArray) -> AnyArray:
        """Standardize data points `[num, *event]`."""
        return self.moments[_X].standardize(x) if _X in self.moments else x

    def restore_points(self, x: AnyArray) -> AnyArray:
        """Return points `[num, *event]` of the model in the units of the data."""
        return self.moments[_X].restore(x) if _X in self.moments else x

    def conds(self, cond: Cond) -> Cond:
        """Standardize the floating-point arrays of conditions; integers stay as they are."""
        if len(self.moments) == (_X in self.moments):
            return cond

        def standardize(path: tuple[object, ...], leaf: np.ndarray) -> np.ndarray:
            moments = self.moments.get(_name_of(path))
            return leaf if moments is None else moments.standardize(leaf)

        return jax.tree_util.tree_map_with_path(standardize, cond)

    def log_volume(self, event_shape: tuple[int, ...]) -> float:
        """Return the sum of `log std` over all numbers of a data point.

        The log-density of data is that of standardized data minus this sum.
        """
        if _X not in self.moments:
            return 0.0
        sum_of_channels = sum(map(math.log, self.moments[_X].std))
        return sum_of_channels * math.prod(event_shape[:-1])

    def to_json(self) -> dict[str, object]:
        """Convert to plain JSON values; `read_standardization` reads them back exactly."""
        return {name: moments._asdict() for name, moments in self.moments.items()}


@dataclass(frozen=True, eq=False)
class StandardizedDataset:
    """Standardized examples of a data set.

    Attributes:
        dataset: The data set, in data units.
        standardization: Mean and standard deviation, measured on the training split.
    """

    dataset: Dataset
    standardization: Standardization

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one data point."""
        return self.dataset.event_shape

    def points(self, indices: Indices) -> np.ndarray:
        """Return the standardized data points at `indices`."""
        return self.standardization.points(self.dataset.points(indices))

    def examples(self, indices: Indices) -> Batch:
        """Return the standardized data points and conditions at `indices`."""
        batch = self.dataset.examples(indices)
        return batch._replace(
            x1=self.standardization.points(batch.x1), cond=self.standardization.conds(batch.cond)
        )


def read_standardization(file: Path) -> Standardization:
    """Read the standardization that a training wrote.

    Raises:
        ValueError: If the file is not valid.
    """
    moments = read_json(file, dict[str, Moments])
    require(_X in moments, str(file), "hold the moments of x", list(moments))
    for name, values in moments.items():
        require_lengths(f"{file}: {name}", mean=values.mean, std=values.std)
    return Standardization(moments)


def fit_standardization(dataset: Dataset, *, progress: Progress = Silent()) -> Standardization:
    """Measure the mean and standard deviation of a training split, which is read once.

    Args:
        dataset: The training split.
        progress: Receives progress reports.

    Raises:
        ValueError: If the split has one example, encoded text, or numbers that are not finite.
    """
    rule = "be off for encoded text, whose data are standardized by their encoder"
    require(dataset.text is None, "standardize", rule, True)
    num = len(dataset)
    require(num >= 2, "data", "hold at least 2 training examples to be standardized", num)
    sums: dict[str, _Sums] = {}
    with progress.task("measuring mean and standard deviation", num) as advance:
        for first in range(0, num, _CHUNK):
            indices = np.arange(first, min(first + _CHUNK, num))
            for name, array in _floats(dataset, indices):
                sums.setdefault(name, _Sums(array)).add(array)
            advance(len(indices))
    return Standardization({name: values.moments() for name, values in sums.items()})


def _floats(dataset: Dataset, indices: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the name and the values of each floating-point array, in the units of the data."""
    yield _X, dataset.points(indices)
    for path, leaf in jax.tree_util.tree_leaves_with_path(dataset.conds(indices)):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            yield _name_of(path), leaf


def _name_of(path: tuple[object, ...]) -> str:
    """Return the name of the moments of a leaf of a condition: "cond" or "cond_KEY"."""
    return "_".join((_COND, *(str(getattr(key, "key", getattr(key, "idx", key))) for key in path)))


class _Sums:
    """Sums of the differences from the first number of each channel, and of their squares."""

    def __init__(self, array: np.ndarray) -> None:
        channels = array.reshape(-1, array.shape[-1] if array.ndim > 1 else 1)
        # A constant channel then has the differences 0 and exactly the standard deviation 0.
        self._origin = channels[0].astype(np.float64)
        self._count, self._sum, self._squares = 0, 0.0, 0.0

    def add(self, array: np.ndarray) -> None:
        """Add the numbers of some examples."""
        differences = array.reshape(-1, len(self._origin)) - self._origin
        self._count += len(differences)
        self._sum += differences.sum(axis=0)
        self._squares += np.square(differences).sum(axis=0)

    def moments(self) -> Moments:
        """Return the mean and standard deviation of each channel."""
        mean = self._sum / self._count
        variance = np.maximum(0.0, self._squares / self._count - np.square(mean))
        std = np.sqrt(variance)
        # A constant channel is only shifted; so is one whose spread float32 does not represent.
        std = np.where(std < np.finfo(np.float32).tiny, 1.0, std)
        return Moments(tuple((self._origin + mean).tolist()), tuple(std.tolist()))
