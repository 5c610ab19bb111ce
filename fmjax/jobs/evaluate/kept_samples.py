"""Samples of an evaluation, kept in the run folder and used again with the same settings."""

import dataclasses
import hashlib
import json
import math
from pathlib import Path

import jax
import numpy as np
from jaxtyping import PyTree

from fmjax._files import read_npz, require_space, write_atomically
from fmjax._progress import Progress
from fmjax.config import (
    CompareConfig,
    EvaluationConfig,
    OptimizerConfig,
    Sampling,
    TrainingConfig,
    to_json,
)
from fmjax.runs.folder import Run
from fmjax.runs.sampling.batches import SampleSet
from fmjax.runs.sampling.conditions import SampleConditions
from fmjax.runs.sampling.run_samples import sample_from_run
from fmjax.sharding import MeshConfig

_BYTES_PER_SAMPLE = 5  # Its number of network evaluations, int32, and success, bool.


def evaluation_samples(
    run: Run, sampling: Sampling, conditions: SampleConditions, *, progress: Progress
) -> SampleSet:
    """Return samples for an evaluation: those of the run folder, or new ones, which are kept there.

    The file `samples/evaluation.npz` has the samples together with the step and a digest of the
    weights, the settings of the sampler and the model, and a digest of the conditions. If any of
    them differs, or the file is damaged, samples are generated and the file is replaced. The mesh
    is not compared, because samples do not depend on it.

    Args:
        run: A trained run.
        sampling: Settings of the sampler.
        conditions: Conditions of the samples.
        progress: Receives progress reports.

    Raises:
        ValueError: If the disk does not have space for the samples.
    """
    file, origin = run.folder.evaluation_samples, _origin(run, sampling, conditions)
    samples = _read(file, origin, sampling.num_samples, run.event_shape)
    if samples is not None:
        progress.say(f"using the {len(samples.x1)} samples in {file}")
        return samples._replace(
            labels=conditions.labels, prompts=conditions.prompts, cond=conditions.arrays
        )
    num_bytes = sampling.num_samples * (4 * math.prod(run.event_shape) + _BYTES_PER_SAMPLE)
    require_space(file.parent, num_bytes, f"{sampling.num_samples} samples")
    samples = sample_from_run(run, sampling, conditions, progress=progress)
    with write_atomically(file) as temporary:
        # Not compressed: floats hardly shrink, and compression would take longer than sampling.
        np.savez(
            temporary,
            x1=samples.x1,
            nfe=samples.nfe,
            succeeded=samples.succeeded,
            origin=np.asarray(origin),
        )
    return samples


def _origin(run: Run, sampling: Sampling, conditions: SampleConditions) -> str:
    """Describe, as JSON, all that determines the samples of a run."""
    config = dataclasses.replace(
        run.config,
        sampling=sampling,
        # These do not affect samples.
        optimizer=OptimizerConfig(),
        training=TrainingConfig(),
        mesh=MeshConfig(),
        compare=CompareConfig(),
        evaluation=EvaluationConfig(),
    )
    return json.dumps(
        {
            "step": run.step,
            "weights": _digest(run.params),
            "conditions": _digest(conditions.cond),
            "config": json.loads(to_json(config)),
        }
    )


def _digest(tree: PyTree) -> str:
    """Compute a digest of the names, types, shapes and values of all arrays of a pytree."""
    digest = hashlib.sha256()
    for key_path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(key_path)} {array.dtype} {array.shape}\0".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _read(
    file: Path, origin: str, num_samples: int, event_shape: tuple[int, ...]
) -> SampleSet | None:
    """Read samples; None if the file is missing or damaged, or the samples have another origin."""
    if not file.is_file():
        return None
    try:
        arrays = read_npz(file)
        if arrays["origin"].tolist() != origin:
            return None
        samples = SampleSet(arrays["x1"], None, arrays["nfe"], arrays["succeeded"])
    except (KeyError, ValueError):
        return None
    is_complete = samples.x1.shape == (num_samples, *event_shape)
    return samples if is_complete else None
