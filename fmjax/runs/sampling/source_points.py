"""Where the samples of a run start from: normal noise, or examples of other data."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fmjax._progress import Progress, Silent
from fmjax.data import NoSuchSplit
from fmjax.data.dataset import Split
from fmjax.runs.folder import Run
from fmjax.runs.sampling.batches import noise


def run_source_points(
    run: Run, progress: Progress = Silent(), *, split: Split = "test"
) -> Callable[[int, np.ndarray | jax.Array], jax.Array]:
    """What gives the points at t = 0 of some numbers, `(seed, indices) -> [indices, *event]`.

    Normal noise; of a run between two data sets, examples of a split of the first, each once before
    any comes again (of the training split where there is no other), with the noise of the config.
    """
    path, event_shape, scale = run.config.path, run.event_shape, run.config.source_noise

    @jax.jit
    def noises(seed: jax.Array, indices: jax.Array) -> jax.Array:
        return noise(jax.random.key(seed), indices, event_shape)

    if run.config.source is None:
        of_noise = jax.jit(lambda seed, indices: path.start(noises(seed, indices)))
        return lambda seed, indices: of_noise(jnp.asarray(seed), jnp.asarray(indices))
    try:
        source = run.config.source.load(split, progress=progress)
    except NoSuchSplit:
        source = run.config.source.load("train", progress=progress)

    def of_data(seed: int, indices: np.ndarray | jax.Array) -> jax.Array:
        order = np.random.default_rng(seed).permutation(len(source))
        points = jnp.asarray(source.points(order[np.asarray(indices) % len(source)]))
        if scale > 0.0:
            points += scale * noises(jnp.asarray(seed), jnp.asarray(indices))
        return path.start(points)

    return of_data
