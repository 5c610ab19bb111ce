"""Infinite shuffled batches, identical for any number of processes.

One element of the grain pipeline is one batch. The batch number alone determines its examples and
flips, so each process computes the indices of the global batch and loads its share of them. The
state of the pipeline is the batch number, for any number of processes. (Shuffling single examples
in grain costs about 10 microseconds of Python per example; a batch costs about 100.)
"""

import functools
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import grain
import numpy as np

from fmjax._arrays import Batch
from fmjax._checks import require, require_at_least
from fmjax._inputs import describe

_ORDER, _FLIP, _SOURCE, _NOISE = 0, 1, 2, 3


@runtime_checkable
class Examples(Protocol):
    """A finite set of examples, such as a `Dataset` in memory or `Pairs` on disk."""

    def __len__(self) -> int: ...

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one data point."""
        ...

    def examples(self, indices: np.ndarray) -> Batch:
        """Return the examples at `indices` as new arrays."""
        ...


@runtime_checkable
class SourcePoints(Protocol):
    """A finite set of source points, such as a `Dataset` without its conditions."""

    def __len__(self) -> int: ...

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one point."""
        ...

    def points(self, indices: np.ndarray) -> np.ndarray:
        """Return the points at `indices` as a new array."""
        ...


@dataclass(frozen=True, eq=False)
class GlobalOrder:
    """Order of the examples in the batches: each example once per epoch, reshuffled every epoch.

    Batches continue across the end of an epoch, so no batch is smaller and no example is dropped.

    Attributes:
        num_examples: Number of examples in the data set.
        batch_size: Size of the global batch.
        seed: Seed of the order, the flips and the noise.
        stream: Number of the random stream; different streams give independent orders.
    """

    num_examples: int
    batch_size: int
    seed: int
    stream: int = _ORDER

    def indices(self, batch: int) -> np.ndarray:
        """Return the indices of the examples of global batch number `batch`, `[batch_size]`."""
        positions = batch * self.batch_size + np.arange(self.batch_size)
        epochs, offsets = np.divmod(positions, self.num_examples)
        indices = np.empty(self.batch_size, dtype=np.int64)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            in_epoch = epochs == epoch
            order = _epoch_order(self.seed, self.stream, epoch, self.num_examples)
            indices[in_epoch] = order[offsets[in_epoch]]
        return indices

    def flips(self, batch: int) -> np.ndarray:
        """Return which examples of global batch `batch` are mirrored, bool `[batch_size]`."""
        return _bits(self.batch_size, self.seed, _FLIP, batch) >> np.uint64(63) == 1

    def noise(self, batch: int, event_shape: tuple[int, ...]) -> np.ndarray:
        """Return standard normal noise for global batch `batch`, float32 `[batch_size, *event]`."""
        from scipy.special import ndtri  # Slow to import.

        shape = (self.batch_size, *event_shape)
        bits = _bits(math.prod(shape), self.seed, _NOISE, batch) >> np.uint64(11)
        return ndtri((bits + 0.5) * 2.0**-53).astype(np.float32).reshape(shape)


def _bits(count: int, *entropy: int) -> np.ndarray:
    """Return `count` random uint64 numbers."""
    # Only raw bits are guaranteed to be the same in every version of NumPy, so that a run resumed
    # under another version continues in the same order.
    return np.random.PCG64(entropy).random_raw(count)


@functools.lru_cache(maxsize=4)
def _epoch_order(seed: int, stream: int, epoch: int, num_examples: int) -> np.ndarray:
    """Return the random permutation of the examples in one epoch."""
    return np.argsort(_bits(num_examples, seed, stream, epoch), kind="stable")


class BatchIterator(Iterator[Batch]):
    """Iterator over prefetched batches of NumPy arrays, whose state is a batch number."""

    def __init__(self, batches: grain.MapDataset, *, num_threads: int, read_ahead: int) -> None:
        options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=read_ahead)
        self._batches = iter(batches.to_iter_dataset(options))

    def __next__(self) -> Batch:
        return next(self._batches)

    def get_state(self) -> dict[str, int]:
        """Return the number of consumed batches; prefetched batches do not count."""
        return {"next_batch": int(self._batches.get_state()["next_index"])}

    def set_state(self, state: dict[str, int]) -> None:
        """Continue from a state returned by `get_state`, for any number of processes.

        Raises:
            ValueError: If `state` is not a state of `get_state`.
        """
        number = state.get("next_batch")
        is_valid = isinstance(number, int) and number >= 0
        require(is_valid, "state", "be {'next_batch': count}, as returned by get_state", state)
        self._batches.set_state({"next_index": number})

    def close(self) -> None:
        """Stop prefetching; the iterator yields no more batches."""
        self._batches.close()


def batches(
    dataset: Examples,
    *,
    source: SourcePoints | None = None,
    source_noise: float = 0.0,
    batch_size: int,
    seed: int = 0,
    flip: bool = False,
    num_processes: int = 1,
    process_index: int = 0,
    num_threads: int = 2,
    read_ahead: int = 4,
) -> BatchIterator:
    """Iterate over infinite shuffled batches of `dataset`, this process's share of each.

    The shares of all processes, concatenated in process order, are the batch of a single process.

    Args:
        dataset: The examples.
        source: Data set of source points, shuffled independently; None if `dataset` has source
            points or they are sampled from the source distribution.
        source_noise: Standard deviation of Gaussian noise added to the points of `source`.
        batch_size: Size of the global batch, over all processes.
        seed: Seed of the order, the flips and the noise.
        flip: Whether to mirror each image horizontally with probability one half.
        num_processes: Number of processes that share a batch, as `jax.process_count()`.
        process_index: Index of this process, as `jax.process_index()`.
        num_threads: Number of threads that load batches.
        read_ahead: Number of batches to prefetch.

    Raises:
        ValueError: If `batch_size` is not divisible by `num_processes`, `process_index` is out of
            range, `flip` is set for points that are not images, or the points of `source` have
            another shape.
    """
    is_examples = isinstance(dataset, Examples)
    require(is_examples, "dataset", "be a Dataset or Pairs", describe(dataset))
    require_at_least("batch_size", batch_size, 1)
    require_at_least("seed", seed, 0)
    require_at_least("num_processes", num_processes, 1)
    require(
        batch_size % num_processes == 0,
        "batch_size",
        f"be divisible by {num_processes}, the number of processes",
        batch_size,
    )
    in_range = 0 <= process_index < num_processes
    require(in_range, "process_index", f"lie in [0, {num_processes})", process_index)
    has_images = len(dataset.event_shape) == 3
    require(has_images or not flip, "flip", "be off unless x is [n, h, w, c]", dataset.event_shape)

    if source is not None:
        same_shape = source.event_shape == dataset.event_shape
        rule = f"have points of shape {dataset.event_shape}"
        require(same_shape, "source", rule, source.event_shape)
    order = GlobalOrder(len(dataset), batch_size, seed)
    share_size = batch_size // num_processes
    share = slice(process_index * share_size, (process_index + 1) * share_size)

    def fetch(batch: int) -> Batch:
        examples = dataset.examples(order.indices(batch)[share])
        if source is not None:
            source_order = GlobalOrder(len(source), batch_size, seed, _SOURCE)
            x0 = source.points(source_order.indices(batch)[share])
            if source_noise > 0.0:
                x0 = x0 + source_noise * source_order.noise(batch, source.event_shape)[share]
            examples = examples._replace(x0=x0)
        if flip:
            mirrored = order.flips(batch)[share]
            for points in (examples.x1, examples.x0, examples.mask):
                if points is not None and points.ndim > 2:
                    points[mirrored] = points[mirrored, :, ::-1]
        return examples

    numbers = grain.MapDataset.range(sys.maxsize)
    return BatchIterator(numbers.map(fetch), num_threads=num_threads, read_ahead=read_ahead)
