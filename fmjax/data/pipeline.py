"""Shuffled batches without end, the same for any number of processes.

One grain element is one batch: its number alone decides which examples it holds and which of
them are flipped, so each process computes the global batch's indices and loads its own share
by id. The state of the pipeline is that number, for any process count. (Shuffling example by
example in grain costs some 10 microseconds of Python each; a whole batch costs about 100.)
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
from fmjax._inputs import described
from fmjax.data.dataset import Dataset

_ORDER, _FLIP, _SOURCE, _NOISE = 0, 1, 2, 3


@runtime_checkable
class Examples(Protocol):
    """A finite set of examples: a `Dataset`, or `Pairs` on disk."""

    def __len__(self) -> int: ...

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one point."""
        ...

    def examples(self, indices: np.ndarray) -> Batch:
        """The examples at `indices`, new arrays."""
        ...


@dataclass(frozen=True, eq=False)
class GlobalOrder:
    """Which examples the batches hold: every example once per epoch, in a new order each.

    Batches run on across the end of an epoch, so none is short and none is dropped.

    Attributes:
        num_examples: In the set.
        batch_size: Of the global batch.
        seed: Of the orders and the flips.
        stream: Orders of another stream have nothing to do with these.
    """

    num_examples: int
    batch_size: int
    seed: int
    stream: int = _ORDER

    def indices(self, batch: int) -> np.ndarray:
        """The examples of global batch number `batch`, `[batch_size]`."""
        place = batch * self.batch_size + np.arange(self.batch_size)
        epoch, place_in_epoch = np.divmod(place, self.num_examples)
        indices = np.empty(self.batch_size, dtype=np.int64)
        for number in range(int(epoch[0]), int(epoch[-1]) + 1):
            here = epoch == number
            order = _order_of_epoch(self.seed, self.stream, number, self.num_examples)
            indices[here] = order[place_in_epoch[here]]
        return indices

    def flips(self, batch: int) -> np.ndarray:
        """A fair coin for each place of global batch number `batch`, bool `[batch_size]`."""
        return _bits(self.batch_size, self.seed, _FLIP, batch) >> np.uint64(63) == 1

    def noise(self, batch: int, event_shape: tuple[int, ...]) -> np.ndarray:
        """Normal noise for each place of global batch number `batch`, float32."""
        from scipy.special import ndtri  # Its import takes longer than the module's.

        shape = (self.batch_size, *event_shape)
        bits = _bits(math.prod(shape), self.seed, _NOISE, batch) >> np.uint64(11)
        return ndtri((bits + 0.5) * 2.0**-53).astype(np.float32).reshape(shape)


def _bits(count: int, *entropy: int) -> np.ndarray:
    # Raw bits, because NumPy promises that only these stay the same from version to version:
    # a run resumed under another NumPy goes on in the same order.
    return np.random.PCG64(entropy).random_raw(count)


@functools.lru_cache(maxsize=4)
def _order_of_epoch(seed: int, stream: int, epoch: int, num_examples: int) -> np.ndarray:
    return np.argsort(_bits(num_examples, seed, stream, epoch), kind="stable")


class BatchIterator(Iterator[Batch]):
    """Batches of NumPy arrays, read ahead by threads; its state is the number of the next one."""

    def __init__(self, batches: grain.MapDataset, *, num_threads: int, read_ahead: int) -> None:
        options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=read_ahead)
        self._batches = iter(batches.to_iter_dataset(options))

    def __next__(self) -> Batch:
        return next(self._batches)

    def get_state(self) -> dict[str, int]:
        """How many batches were taken; those only read ahead do not count."""
        return {"next_batch": int(self._batches.get_state()["next_index"])}

    def set_state(self, state: dict[str, int]) -> None:
        """Go on from a state that `get_state` gave, under any number of processes.

        Raises:
            ValueError: If it is not such a state.
        """
        number = state.get("next_batch")
        known = isinstance(number, int) and number >= 0
        require(known, "state", "be {'next_batch': a count}, as get_state gives it", state)
        self._batches.set_state({"next_index": number})

    def close(self) -> None:
        """Stop reading ahead."""
        self._batches.close()


def batches(
    dataset: Examples,
    *,
    source: Dataset | None = None,
    source_noise: float = 0.0,
    batch_size: int,
    seed: int = 0,
    flip: bool = False,
    num_processes: int = 1,
    process_index: int = 0,
    num_threads: int = 2,
    read_ahead: int = 4,
) -> BatchIterator:
    """Shuffled batches of `dataset` without end; this process's share of each.

    The shares of all processes, in their order, are the batch that one process would get.

    Args:
        dataset: Where the examples come from.
        source: Where their source points come from, in an order of their own; None leaves them
            to the dataset, or to the noise.
        source_noise: Standard deviation of what is added to those.
        batch_size: Of the global batch, over all processes.
        seed: Of the order and the flips.
        flip: Whether to mirror images left to right, each with probability one half.
        num_processes: How many processes share a batch, as `jax.process_count()`.
        process_index: Which of them this is, as `jax.process_index()`.
        num_threads: That load batches while the device works.
        read_ahead: How many batches are loaded before they are asked for.

    Raises:
        ValueError: If the batch does not divide among the processes, the index is not that
            of a process, or points that are not images are to be flipped.
    """
    data = isinstance(dataset, Examples)
    require(data, "dataset", "be a Dataset or Pairs", described(dataset))
    require_at_least("batch_size", batch_size, 1)
    require_at_least("seed", seed, 0)
    require_at_least("num_processes", num_processes, 1)
    require(
        batch_size % num_processes == 0,
        "batch_size",
        f"be divisible by {num_processes}, the number of processes",
        batch_size,
    )
    one_of_them = 0 <= process_index < num_processes
    require(one_of_them, "process_index", f"lie in [0, {num_processes})", process_index)
    images = len(dataset.event_shape) == 3
    require(images or not flip, "flip", "be off unless x is [n, h, w, c]", dataset.event_shape)

    if source is not None:
        alike = source.event_shape == dataset.event_shape
        rule = f"have points of shape {dataset.event_shape}"
        require(alike, "source", rule, source.event_shape)
    order = GlobalOrder(len(dataset), batch_size, seed)
    share = batch_size // num_processes
    mine = slice(process_index * share, (process_index + 1) * share)

    def fetch(batch: int) -> Batch:
        examples = dataset.examples(order.indices(batch)[mine])
        if source is not None:
            others = GlobalOrder(len(source), batch_size, seed, _SOURCE)
            x0 = source.points(others.indices(batch)[mine])
            if source_noise > 0.0:
                x0 = x0 + source_noise * others.noise(batch, source.event_shape)[mine]
            examples = examples._replace(x0=x0)
        if flip:
            mirrored = order.flips(batch)[mine]
            for points in (examples.x1, examples.x0):
                if points is not None:
                    points[mirrored] = points[mirrored, :, ::-1]
        return examples

    numbers = grain.MapDataset.range(sys.maxsize)
    return BatchIterator(numbers.map(fetch), num_threads=num_threads, read_ahead=read_ahead)
