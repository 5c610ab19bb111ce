"""Sample from a velocity field in batches over all devices."""

import dataclasses
import math
import time
from collections.abc import Callable
from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from fmjax._arrays import Cond, Params, Points, PRNGKey, is_image
from fmjax._memory import require_host_memory
from fmjax._progress import COMPILING, Progress
from fmjax._specs import Spec
from fmjax.config import Sampling, SolveFn
from fmjax.paths import Process, sample_source, source_keys
from fmjax.runs.sample_set import SampleSet
from fmjax.sharding import batch_sharding, map_batched, num_shares, on_mesh, padded_batch_size
from fmjax.solvers import AdaptiveSteps, Samples


def sample_source_points(
    process: Process, key: PRNGKey, indices: jax.Array, event_shape: tuple[int, ...]
) -> jax.Array:
    """Source points of the samples at `indices`, independent of the batch size."""
    spec = Spec(event_shape)
    return sample_source(process, source_keys(key, indices), spec)


def require_samples_fit(name: str, num: int, event_shape: tuple[int, ...]) -> None:
    """Raise unless samples, labels and statistics fit into the memory of the host.

    Args:
        name: Name of the setting in the error message.
        num: Number of samples.
        event_shape: Shape of one sample.

    Raises:
        ValueError: If they do not fit.
    """
    # float32 points; int64 labels and order, int32 evaluations, bool success.
    require_host_memory(name, num * (4.0 * math.prod(event_shape) + 21.0), "samples")


def has_picture(event_shape: tuple[int, ...]) -> bool:
    """Whether samples of this shape can be shown as a picture: images and points in the plane."""
    return is_image(event_shape) or event_shape == (2,)


def even_labels(num_samples: int, num_classes: int | None) -> np.ndarray | None:
    """Sorted labels, with the same number of samples per class up to one, int32 `[num_samples]`."""
    if num_classes is None:
        return None
    return np.sort(np.arange(num_samples) % num_classes).astype(np.int32)


def noise_keys(key: PRNGKey, indices: jax.Array) -> jax.Array:
    """Keys for the noise that SDE solvers add to the samples at `indices`, `[batch]`."""
    # Fold again, because the first keys are those of the source points.
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(source_keys(key, indices), 1)


def seed_data(seed: int) -> np.ndarray:
    """Data of the key of a seed on the host, which a program takes on any mesh and process."""
    return np.asarray(jax.random.key_data(jax.random.key(seed)))


def make_batch_solver(
    process: Process,
    solve: SolveFn,
    steps: PyTree,
    event_shape: tuple[int, ...],
    mesh: jax.sharding.Mesh,
) -> Callable[..., Samples]:
    """Make a jitted function that solves one batch.

    Args:
        process: The process, whose source distribution is sampled at t = 0.
        solve: Maps source points, keys and conditions to samples.
        steps: Steps of the solver.
        event_shape: Shape of one sample.
        mesh: The mesh of devices.

    Returns:
        `(params, seed, indices, cond, x0=None) -> Samples`, with the seed from `seed_data`. Without
        `x0`, samples start from the source distribution of the process.
    """

    def solve_batch(
        params: Params,
        seed: jax.Array,
        indices: jax.Array,
        cond: Cond,
        x0: Points | None = None,
    ) -> Samples:
        key = jax.random.wrap_key_data(jnp.asarray(seed))
        if x0 is None:
            x0 = sample_source_points(process, key, indices, event_shape)
        start = jax.lax.with_sharding_constraint(x0, batch_sharding(mesh))
        return solve(params, start, noise_keys(key, indices), cond, steps)

    return jax.jit(on_mesh(mesh, solve_batch))


def max_batch_size(sampling: Sampling) -> int:
    """Largest number of samples in a batch: with streaming (`slots`), all samples are one batch.

    Slots are then idle only at the end.
    """
    streams = sampling.options.slots is not None
    return sampling.num_samples if streams else sampling.batch_size


def with_slots_in_use(steps: PyTree, sampling: Sampling, mesh: jax.sharding.Mesh) -> PyTree:
    """Return steps without slots beyond the number of samples on a device.

    They would evaluate padding.
    """
    if not isinstance(steps, AdaptiveSteps) or steps.slots is None:
        return steps
    size = padded_batch_size(sampling.num_samples, max_batch_size(sampling), mesh)
    return dataclasses.replace(steps, slots=min(steps.slots, size // num_shares(mesh)))


def make_sampler(
    program: Callable[..., Samples],
    sampling: Sampling,
    mesh: jax.sharding.Mesh,
    *,
    source_points: Callable[[int, np.ndarray], jax.Array] | None = None,
) -> Callable[[Params, Cond, Progress], SampleSet]:
    """Make a function that samples with any parameters and compiles only once.

    With several processes, every process must call the function, and each gets all samples.

    Args:
        program: Solves one batch, from `make_batch_solver`.
        sampling: Provides the number of samples, the batch size and the seed.
        mesh: The mesh of devices.
        source_points: `(seed, indices) -> x0` returns the points at t = 0; None samples them from
            the process.

    Returns:
        `(params, conds, progress) -> SampleSet`: takes the parameters, sharded over the mesh, and a
        pytree with one condition per sample, or None for an unconditional field.
    """
    num, max_size = sampling.num_samples, max_batch_size(sampling)
    seed = seed_data(sampling.seed)

    def sample(params: Params, conds: Cond, progress: Progress) -> SampleSet:
        ends = [time.perf_counter()]

        def inputs(indices: np.ndarray) -> tuple[PyTree, ...]:
            x0 = None if source_points is None else source_points(sampling.seed, indices)
            return indices, jax.tree.map(itemgetter(indices), conds), x0

        def solve_batch(indices: jax.Array, cond: Cond, x0: Points | None) -> tuple[PyTree, ...]:
            solved = program(params, seed, indices, cond, x0)
            return solved.x1, solved.nfe, solved.succeeded, x0

        with progress.task("sampling", num) as advance:
            advance(0, COMPILING)

            def on_batch(num_solved: int) -> None:
                ends.append(time.perf_counter())
                advance(num_solved)

            x1, nfe, succeeded, x0 = map_batched(
                solve_batch, inputs, num, batch_size=max_size, mesh=mesh, on_batch=on_batch
            )
        # The time of the first batch includes compilation.
        seconds = np.diff(ends)[1:] / padded_batch_size(num, max_size, mesh)
        median_seconds = float(np.median(seconds)) if len(seconds) else float("nan")
        return SampleSet(x1, None, nfe, succeeded, median_seconds, x0)

    return sample
