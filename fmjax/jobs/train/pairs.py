"""Generate pairs of source point and data point with a trained flow, and store them on disk."""

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from fmjax._arrays import Cond, Params, Points
from fmjax._checks import require
from fmjax._files import require_folder, require_space
from fmjax._locks import lock_folder
from fmjax._progress import COMPILING, Progress, Silent
from fmjax.config import ReflowConfig, make_solve
from fmjax.config.sampling import flat_settings
from fmjax.data import (
    Dataset,
    Pairs,
    RecordManifest,
    StandardizedDataset,
    has_records,
    missing_shards,
    open_pairs,
    pair_fields,
    prepare_records,
    write_shard,
)
from fmjax.data.records.pairs import MIN_PAIRS_PER_SHARD
from fmjax.runs.folder import Run
from fmjax.runs.sampling.batches import noise_keys
from fmjax.runs.sampling.conditions import labels_like
from fmjax.runs.sampling.run_samples import run_steps
from fmjax.runs.sampling.source_points import run_source_points
from fmjax.sharding import all_or_none, is_main, map_batched, on_mesh
from fmjax.solvers import OdeSampler, invert
from fmjax.training.checkpoints.digests import sealed_as

# Index of the noise of the first pair. Samples use the indices from 0, so that pairs and samples
# have different noise.
_FIRST_NOISE_INDEX = 2**31
_MAX_SHARDS = 512


def pairs_folder(config: ReflowConfig) -> Path:
    """Return the folder of the reflow pairs of a config."""
    return Path(config.teacher) / "pairs" if config.pairs is None else Path(config.pairs)


def make_pairs(teacher: Run, config: ReflowConfig, *, progress: Progress = Silent()) -> Pairs:
    """Generate the missing pairs and open all pairs.

    Each shard is written completely or not at all, so an interrupted call can be repeated and
    continues with the next shard. Each process of a run generates a part of the shards on its local
    devices.

    Args:
        teacher: The flow that generates the pairs, opened with `alone=True`.
        config: Number of pairs, sampling settings, and folder.
        progress: Receives a report for each batch.

    Raises:
        ValueError: If the folder contains pairs made with other settings, or a trajectory did not
            reach its end.
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
        with all_or_none("listing the pairs"):  # Before any process writes one.
            missing = missing_shards(folder, manifest)
        with all_or_none("making pairs"):
            shards = missing[jax.process_index() :: jax.process_count()]
            if shards:
                _make_shards(teacher, config, folder, manifest, shards, progress)
    with all_or_none("opening the pairs"):
        return open_pairs(folder, teacher.event_shape, teacher.num_classes)


def _manifest(teacher: Run, config: ReflowConfig) -> RecordManifest:
    """Describe the pairs by the teacher's weights and the settings that determine them."""
    sampling = flat_settings(config.sampling)
    for name in ("num_samples", "batch_size"):
        del sampling[name]
    origin = {
        "teacher": teacher.config.name,
        "weights": sealed_as(teacher.folder.checkpoints / str(teacher.step)),
        "step": teacher.step,
        "sampling": sampling,
        "real_share": config.real_share,
    }
    return RecordManifest(
        pair_fields(teacher.event_shape, teacher.num_classes is not None),
        num_examples=config.num_pairs,
        examples_per_shard=max(MIN_PAIRS_PER_SHARD, -(-config.num_pairs // _MAX_SHARDS)),
        origin=json.loads(json.dumps(origin, default=str)),
    )


_SolvePairs = Callable[..., tuple[jax.Array, jax.Array, jax.Array]]


class _Direction(NamedTuple):
    """A way to generate pairs: from source points to data points, or the reverse.

    Attributes:
        points: Returns the known points of the pairs with the given indices.
        labels: Returns the class labels of the pairs with the given indices, or None.
        solve: `(params, points, noise_indices, labels) -> (x0, x1, succeeded)`, jitted.
    """

    points: Callable[[np.ndarray], np.ndarray | jax.Array]
    labels: Callable[[np.ndarray], np.ndarray | None]
    solve: _SolvePairs


def _make_shards(
    teacher: Run,
    config: ReflowConfig,
    folder: Path,
    manifest: RecordManifest,
    shards: list[int],
    progress: Progress,
) -> None:
    """Generate and write shards of pairs, part of them from real data points."""
    data = teacher.config.data.load("train", progress=progress)
    directions = (_from_source(teacher, config, data, progress), _from_data(teacher, config, data))
    indices = np.arange(config.num_pairs)
    # Pairs from real data are spread evenly: pair n is one of them if the first n + 1 pairs contain
    # more of them than the first n.
    is_real = np.floor((indices + 1) * config.real_share) > np.floor(indices * config.real_share)
    batch_size = min(config.sampling.batch_size, manifest.examples_per_shard)
    with progress.task("making pairs", sum(len(manifest.examples(n)) for n in shards)) as advance:
        advance(0, COMPILING)
        for shard in shards:
            in_shard = np.asarray(manifest.examples(shard))
            by_direction = [in_shard[~is_real[in_shard]], in_shard[is_real[in_shard]]]
            parts = [
                _solve_pairs(direction, teacher, batch_size, pairs, advance)
                for direction, pairs in zip(directions, by_direction, strict=True)
                if len(pairs)
            ]
            order = np.argsort(np.concatenate(by_direction))
            arrays = {
                name: np.concatenate([part[name] for part in parts])[order] for name in parts[0]
            }
            write_shard(folder, manifest, shard, arrays)


def _solve_pairs(
    direction: _Direction,
    teacher: Run,
    batch_size: int,
    indices: np.ndarray,
    advance: Callable[[int], None],
) -> dict[str, np.ndarray]:
    """Generate the pairs with the given indices, in batches of one size."""

    def inputs(positions: np.ndarray) -> tuple[PyTree, ...]:
        batch = indices[positions]
        return direction.points(batch), _noise_indices(batch), direction.labels(batch)

    def solve(x: jax.Array, noise_indices: jax.Array, labels: Cond) -> dict[str, jax.Array]:
        x0, x1, succeeded = direction.solve(teacher.params, x, noise_indices, labels)
        label = {} if labels is None else {"label": labels}
        return {"x0": x0, "x1": x1, "succeeded": succeeded} | label

    pairs = map_batched(
        solve,
        inputs,
        len(indices),
        batch_size=batch_size,
        mesh=teacher.mesh,
        on_batch=advance,
    )
    failed = int(np.sum(~pairs.pop("succeeded")))
    rule = "reach the end of their trajectories"
    require(failed == 0, "pairs", rule, f"{failed} that did not")
    return pairs


def _noise_indices(indices: np.ndarray) -> np.ndarray:
    return (indices + _FIRST_NOISE_INDEX).astype(np.uint32)


def _from_source(
    teacher: Run, config: ReflowConfig, data: Dataset, progress: Progress
) -> _Direction:
    """Solve from source points to data points."""
    sampling, mesh = config.sampling, teacher.mesh
    solve, steps = (
        make_solve(teacher.model, sampling),
        run_steps(teacher, sampling, progress),
    )
    # Samples of the teacher and the student start from other noise and other source examples.
    source_points = run_source_points(teacher, progress, split="train")
    key = jax.random.key(sampling.seed)
    source_indices = _noise_indices if teacher.config.source is None else np.asarray
    all_labels = None
    if teacher.num_classes is not None:
        all_labels = labels_like(data, config.num_pairs, sampling.seed)

    def forwards(
        params: Params, x0: Points, noise_indices: jax.Array, cond: Cond
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        samples = solve(params, x0, noise_keys(key, noise_indices), cond, steps)
        return x0, samples.x1, samples.succeeded

    return _Direction(
        lambda indices: source_points(sampling.seed, source_indices(indices)),
        lambda indices: None if all_labels is None else all_labels[indices],
        jax.jit(on_mesh(mesh, forwards)),
    )


def _from_data(teacher: Run, config: ReflowConfig, data: Dataset) -> _Direction:
    """Solve from real data points back to source points."""
    sampling, mesh = config.sampling, teacher.mesh
    sampler, steps = sampling.sampler, run_steps(teacher, sampling)
    model = sampling.guided(teacher.model)
    assert isinstance(sampler, OdeSampler)  # Checked by `ReflowConfig`.
    # All examples are used once before any is repeated.
    order = np.random.default_rng(sampling.seed).permutation(len(data))

    examples = StandardizedDataset(data, teacher.standardization)

    def data_indices(indices: np.ndarray) -> np.ndarray:
        return order[(indices * config.real_share).astype(int) % len(data)]

    def backwards(
        params: Params, x1: Points, noise_indices: jax.Array, cond: Cond
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        del noise_indices
        field = model.velocity_fn(params)
        result = invert(field, x1, cond, solver=sampler.solver, steps=steps)
        return result.x0, x1, result.succeeded

    def labels(indices: np.ndarray) -> np.ndarray | None:
        return None if teacher.num_classes is None else data.classes(data_indices(indices))

    return _Direction(
        lambda indices: examples.points(data_indices(indices)),
        labels,
        jax.jit(on_mesh(mesh, backwards)),
    )
