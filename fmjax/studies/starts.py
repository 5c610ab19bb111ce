"""Where the samples of a run start from: normal noise, or examples of other data."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fmjax._progress import Progress, Silent
from fmjax.data import NoSuchSplit
from fmjax.data.dataset import Split
from fmjax.studies.draw import noise
from fmjax.studies.run_folder import Run


def run_starts(
    run: Run, progress: Progress = Silent(), *, split: Split = "test"
) -> Callable[[int, np.ndarray | jax.Array], jax.Array]:
    """What gives the points at t = 0 of some numbers, `(seed, indices) -> [indices, *event]`.

    Normal noise; of a run between two data sets, examples of a split of the first, each once before
    any comes again (of the training split where there is no other).
    """
    path, event_shape = run.config.path, run.event_shape
    if run.config.source is None:

        @jax.jit
        def of_noise(seed: jax.Array, indices: jax.Array) -> jax.Array:
            return path.start(noise(jax.random.key(seed), indices, event_shape))

        return lambda seed, indices: of_noise(jnp.asarray(seed), jnp.asarray(indices))
    try:
        source = run.config.source.load(split, progress=progress)
    except NoSuchSplit:
        source = run.config.source.load("train", progress=progress)

    def of_data(seed: int, indices: np.ndarray | jax.Array) -> jax.Array:
        order = np.random.default_rng(seed).permutation(len(source))
        return path.start(jnp.asarray(source.points(order[np.asarray(indices) % len(source)])))

    return of_data
