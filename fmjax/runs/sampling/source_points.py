"""Source points of the samples of a run: from its process, or examples of a dataset."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fmjax._progress import Progress, Silent
from fmjax.data import NoSuchSplit, StandardizedDataset
from fmjax.data.dataset import Split
from fmjax.paths import AffinePath
from fmjax.runs.folder import Run
from fmjax.runs.sampling.batches import sample_source_points


def run_source_points(
    run: Run, progress: Progress = Silent(), *, split: Split = "test"
) -> Callable[[int, np.ndarray | jax.Array], jax.Array]:
    """Make the function that returns source points, `(seed, indices) -> x0 [indices, *event]`.

    Source points are samples of the process, or, for a run whose source distribution is a dataset,
    examples of that dataset in random order, standardized like the data, plus the noise
    `config.source_noise`. All examples are used once before any is repeated.

    Args:
        run: A trained run.
        progress: Receives progress reports.
        split: Split of the source dataset; the training split is used if it does not exist.
    """
    process, event_shape, scale = run.model.process, run.event_shape, run.config.source_noise

    @jax.jit
    def from_process(seed: jax.Array, indices: jax.Array) -> jax.Array:
        return sample_source_points(process, jax.random.key(seed), indices, event_shape)

    if run.config.source is None:
        return lambda seed, indices: from_process(jnp.asarray(seed), jnp.asarray(indices))
    try:
        dataset = run.config.source.load(split, progress=progress)
    except NoSuchSplit:
        dataset = run.config.source.load("train", progress=progress)

    examples = StandardizedDataset(dataset, run.standardization)

    @jax.jit
    def normal(seed: jax.Array, indices: jax.Array) -> jax.Array:
        key = jax.random.key(seed)
        return sample_source_points(AffinePath(), key, indices, event_shape)

    def from_dataset(seed: int, indices: np.ndarray | jax.Array) -> jax.Array:
        order = np.random.default_rng(seed).permutation(len(dataset))
        points = jnp.asarray(examples.points(order[np.asarray(indices) % len(dataset)]))
        if scale > 0.0:
            points += scale * normal(jnp.asarray(seed), jnp.asarray(indices))
        return points

    return from_dataset
