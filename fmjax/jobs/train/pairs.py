"""The pairs of source and target that a trained flow makes, on disk."""

import dataclasses
import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fmjax._checks import require
from fmjax._files import require_folder, require_space
from fmjax._locks import lock_folder
from fmjax._progress import COMPILING, Progress, Silent
from fmjax.config import ReflowConfig, guided, make_solve
from fmjax.data import (
    Dataset,
    Pairs,
    RecordManifest,
    has_records,
    missing_shards,
    open_pairs,
    pair_fields,
    prepare_records,
    write_shard,
)
from fmjax.data.records.pairs import LEAST_PER_SHARD
from fmjax.runs.folder import Run
from fmjax.runs.sampling.batches import even_batches, noise_keys
from fmjax.runs.sampling.conditions import labels_like
from fmjax.runs.sampling.run_samples import run_steps
from fmjax.runs.sampling.source_points import run_source_points
from fmjax.sharding import all_or_none, batch_sharding, is_main
from fmjax.solvers import invert
from fmjax.training.checkpoints.digests import sealed_as

_STREAM = 2**31  # Numbers of the pairs' noises; those of samples count from 0.
_MOST_SHARDS = 512


def pairs_folder(config: ReflowConfig) -> Path:
    """Where the pairs lie."""
    return Path(config.teacher) / "pairs" if config.pairs is None else Path(config.pairs)


def make_pairs(teacher: Run, config: ReflowConfig, *, progress: Progress = Silent()) -> Pairs:
    """Make the pairs that are not there yet, and open them all.

    Shard after shard, each whole or not at all: stopped, it goes on where it was. Of several
    processes each makes its share, on its own devices.

    Args:
        teacher: The flow, opened with `alone=True`.
        config: How many, and how.
        progress: Hears of every batch.

    Raises:
        ValueError: If the folder holds pairs that were made otherwise, or a pair did not arrive.
    """
    folder, manifest = pairs_folder(config), _manifest(teacher, config)
    with ExitStack() as stack:
        with all_or_none("preparing the pairs"):
            if is_main() and (not has_records(folder) or missing_shards(folder, manifest)):
                require_folder(folder, "reflow.pairs")
                stack.enter_context(lock_folder(folder, "pairs folder"))
            if is_main():
                prepare_records(folder, manifest)
                require_space(folder, manifest.num_bytes(missing_shards(folder, manifest)), "pairs")
        with all_or_none("listing the pairs"):  # Before any process adds to them.
            missing = missing_shards(folder, manifest)
        with all_or_none("making pairs"):
            mine = missing[jax.process_index() :: jax.process_count()]
            if mine:
                _make_shards(teacher, config, folder, manifest, mine, progress)
    with all_or_none("opening the pairs"):
        return open_pairs(folder, teacher.event_shape, teacher.num_classes)


def _manifest(teacher: Run, config: ReflowConfig) -> RecordManifest:
    sampling = dataclasses.asdict(config.sampling)
    for name in ("num_samples", "batch_size"):
        del sampling[name]
    about = {
        "teacher": teacher.config.name,
        "weights": sealed_as(teacher.folder.checkpoints / str(teacher.step)),
        "step": teacher.step,
        "sampling": sampling,
        "real_share": config.real_share,
    }
    return RecordManifest(
        pair_fields(teacher.event_shape, teacher.num_classes is not None),
        num_examples=config.num_pairs,
        examples_per_shard=max(LEAST_PER_SHARD, -(-config.num_pairs // _MOST_SHARDS)),
        about=json.loads(json.dumps(about, default=str)),
    )


class _Way(NamedTuple):
    """One direction in which pairs are made.

    Attributes:
        points: Of some numbers, where they begin.
        labels: Of some numbers, or None.
        solve: `(params, points, numbers, labels) -> (x0, x1, succeeded)`, jitted.
    """

    points: Callable[[np.ndarray], Any]
    labels: Callable[[np.ndarray], np.ndarray | None]
    solve: Callable[..., tuple[Any, Any, Any]]


def _make_shards(
    teacher: Run,
    config: ReflowConfig,
    folder: Path,
    manifest: RecordManifest,
    shards: list[int],
    progress: Progress,
) -> None:
    data = teacher.config.data.load("train", progress=progress)
    ways = (_from_source(teacher, config, data, progress), _from_data(teacher, config, data))
    numbers = np.arange(config.num_pairs)
    # Evenly among the others: pair n is real if the share of n + 1 has one more than that of n.
    real = np.floor((numbers + 1) * config.real_share) > np.floor(numbers * config.real_share)
    most = min(config.sampling.batch_size, manifest.examples_per_shard)
    with progress.task("making pairs", sum(len(manifest.examples(n)) for n in shards)) as advance:
        advance(0, COMPILING)
        for shard in shards:
            mine = np.asarray(manifest.examples(shard))
            kinds = [mine[~real[mine]], mine[real[mine]]]
            parts = [
                _solved(way, teacher, most, kind, advance)
                for way, kind in zip(ways, kinds, strict=True)
                if len(kind)
            ]
            order = np.argsort(np.concatenate(kinds))
            arrays = {
                name: np.concatenate([part[name] for part in parts])[order] for name in parts[0]
            }
            write_shard(folder, manifest, shard, arrays)


def _solved(
    way: _Way, teacher: Run, batch_size: int, numbers: np.ndarray, advance: Callable[[int], None]
) -> dict[str, np.ndarray]:
    """The pairs of some numbers, batch after batch of one size."""
    rows, parts = batch_sharding(teacher.mesh), []
    for places, kept in even_batches(len(numbers), batch_size, teacher.mesh):
        some = numbers[places]
        given = (way.points(some), _noise_numbers(some), way.labels(some))
        found = way.solve(teacher.params, *jax.device_put(given, rows))
        x0, x1, arrived = (np.asarray(a)[kept] for a in found)
        failed = int(np.sum(~arrived))
        require(failed == 0, "pairs", "arrive at the end of their path", f"{failed} that did not")
        labels = {} if given[2] is None else {"label": given[2][kept]}
        parts.append({"x0": x0, "x1": x1} | labels)
        advance(len(x0))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _noise_numbers(numbers: np.ndarray) -> np.ndarray:
    return (numbers + _STREAM).astype(np.uint32)


def _from_source(teacher: Run, config: ReflowConfig, data: Dataset, progress: Progress) -> _Way:
    """From the source to where the flow takes it."""
    sampling, mesh = config.sampling, teacher.mesh
    solve, steps = make_solve(teacher.experiment, sampling), run_steps(teacher, sampling, progress)
    # Noises and source examples that no sample of the teacher or the student starts from.
    starts, key = run_source_points(teacher, progress, split="train"), jax.random.key(sampling.seed)
    number = _noise_numbers if teacher.config.source is None else np.asarray
    all_labels = None
    if teacher.num_classes is not None:
        all_labels = labels_like(data, config.num_pairs, sampling.seed)

    @jax.jit
    def forwards(params: Any, x0: Any, numbers: Any, cond: Any) -> tuple[Any, Any, Any]:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            solved = solve(params, x0, noise_keys(key, numbers), cond, steps)
        return x0, solved.x1, solved.succeeded

    return _Way(
        lambda numbers: starts(sampling.seed, number(numbers)),
        lambda numbers: None if all_labels is None else all_labels[numbers],
        forwards,
    )


def _from_data(teacher: Run, config: ReflowConfig, data: Dataset) -> _Way:
    """From real data back to where the flow has them from."""
    sampling, mesh = config.sampling, teacher.mesh
    steps = run_steps(teacher, sampling)
    # Every example once before any comes again.
    order = np.random.default_rng(sampling.seed).permutation(len(data))

    def taken(numbers: np.ndarray) -> np.ndarray:
        return order[(numbers * config.real_share).astype(int) % len(data)]

    @jax.jit
    def backwards(params: Any, x1: Any, numbers: Any, cond: Any) -> tuple[Any, Any, Any]:
        del numbers
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            field = guided(
                teacher.experiment, params, sampling.guidance, sampling.guidance_interval
            )
            found = invert(field, x1, cond, solver=sampling.make_solver(), steps=steps)
        return found.x0, x1, found.succeeded

    return _Way(
        lambda numbers: data.points(taken(numbers)),
        lambda numbers: None if teacher.num_classes is None else data.classes(taken(numbers)),
        backwards,
    )
