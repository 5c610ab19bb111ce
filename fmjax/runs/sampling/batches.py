"""Drawing samples from a velocity field, batch after batch, over all devices."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from fmjax._arrays import (
    Params,
    PRNGKey,
    is_image,
)
from fmjax._memory import require_host_memory
from fmjax._progress import COMPILING, Progress, Silent
from fmjax.config import SamplingConfig, SolveFn, Steps
from fmjax.paths import AffinePath
from fmjax.sharding import batch_sharding, num_shares
from fmjax.solvers import AdaptiveSteps, Samples


class Drawn(NamedTuple):
    """Samples on the host.

    Attributes:
        x1: The samples, float32 `[num, *event]`.
        labels: What each was asked to be, a class or the number of a prompt, or None.
        nfe: Network evaluations of each.
        succeeded: Whether its solve arrived.
        seconds: Wall time of one sample, the median of the batches after the first; NaN if
            there is but one.
        x0: Where each came from, if that is an example of other data.
        prompts: By the labels, of a model of captions.
    """

    x1: np.ndarray
    labels: np.ndarray | None
    nfe: np.ndarray
    succeeded: np.ndarray
    seconds: float = float("nan")
    x0: np.ndarray | None = None
    prompts: tuple[str, ...] = ()


def noise(key: PRNGKey, indices: jax.Array, event_shape: tuple[int, ...]) -> jax.Array:
    """Normal noise of the samples numbered `indices`: each its own, whatever the batch."""
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, indices)
    return jax.vmap(lambda k: jax.random.normal(k, event_shape, jnp.float32))(keys)


def require_samples_fit(name: str, num: int, event_shape: tuple[int, ...]) -> None:
    """Raise unless samples on the host, with their numbers and conditions, fit its memory.

    Args:
        name: The setting that says how many there are.
        num: How many.
        event_shape: Of one.

    Raises:
        ValueError: If they do not fit.
    """
    # float32 points; int64 labels and order, int32 evaluations, and whether they arrived.
    require_host_memory(name, num * (4.0 * math.prod(event_shape) + 21.0), "samples")


def has_picture(event_shape: tuple[int, ...]) -> bool:
    """Whether samples of this shape are drawn: images and points in the plane."""
    return is_image(event_shape) or event_shape == (2,)


def even_labels(num_samples: int, num_classes: int | None) -> np.ndarray | None:
    """Labels in rising order, each class as often as the others (give or take one)."""
    if num_classes is None:
        return None
    return np.sort(np.arange(num_samples) % num_classes).astype(np.int32)


def noise_keys(key: PRNGKey, indices: jax.Array) -> jax.Array:
    """Keys for the noise along the way of the samples numbered `indices`, `[batch]`."""
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, indices)
    # Not the keys themselves: `noise` draws from those.
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, 1)


def even_batches(
    num: int, at_once: int, mesh: jax.sharding.Mesh
) -> Iterator[tuple[np.ndarray, slice]]:
    """The numbers below `num` in batches of one size, so that one program serves all.

    Args:
        num: How many there are.
        at_once: How many make a batch at most, but for rounding up.
        mesh: The devices.

    Yields:
        The numbers of a batch, `batch_size` of them, and the part of it to keep: the last batch
        is filled up with the last number.
    """
    size = batch_size(num, at_once, mesh)
    for first in range(0, num, size):
        yield np.minimum(np.arange(first, first + size), num - 1), slice(0, min(size, num - first))


def batch_size(num: int, at_once: int, mesh: jax.sharding.Mesh) -> int:
    """Of `even_batches`: a multiple of the parts that the mesh cuts a batch into."""
    shares = num_shares(mesh)
    return -(-min(at_once, num) // shares) * shares


def make_draw(
    path: AffinePath,
    solve: SolveFn,
    steps: Steps,
    event_shape: tuple[int, ...],
    seed: int,
    mesh: jax.sharding.Mesh,
) -> Callable[..., Samples]:
    """What draws the samples of some numbers, jitted.

    `(params, indices, cond, x0) -> Samples`; without `x0` they start from normal noise.
    """

    def draw(params: Params, indices: jax.Array, cond: Any, x0: Any = None) -> Samples:
        # Lets networks name the mesh axes without being handed the mesh.
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            key = jax.random.key(seed)
            x0 = path.start(noise(key, indices, event_shape)) if x0 is None else x0
            x0 = jax.lax.with_sharding_constraint(x0, batch_sharding(mesh))
            return solve(params, x0, noise_keys(key, indices), cond, steps)

    return jax.jit(draw)


def draw_samples(
    path: AffinePath,
    solve: SolveFn,
    steps: Steps,
    params: Params,
    event_shape: tuple[int, ...],
    conds: Any,
    sampling: SamplingConfig,
    mesh: jax.sharding.Mesh,
    *,
    starts: Callable[[int, np.ndarray], jax.Array] | None = None,
    progress: Progress = Silent(),
) -> Drawn:
    """Solve `sampling.num_samples` noises to samples.

    Args:
        path: Says how much noise there is at t = 0.
        solve: Takes noise, keys and labels to samples.
        steps: Given to it; not traced, for a grid whose numbers are known is a plain scan.
        params: The parameters, laid over the mesh.
        event_shape: Of one sample.
        conds: A condition for each sample, or None for an unconditional field.
        sampling: Number of samples, batch size and seed.
        mesh: The devices.
        starts: Gives the points at t = 0 of a seed and some numbers; None takes normal noise.
        progress: Hears of each batch.
    """
    draw = make_draw_samples(path, solve, steps, event_shape, sampling, mesh, starts=starts)
    return draw(params, conds, progress)


def make_draw_samples(
    path: AffinePath,
    solve: SolveFn,
    steps: Steps,
    event_shape: tuple[int, ...],
    sampling: SamplingConfig,
    mesh: jax.sharding.Mesh,
    *,
    starts: Callable[[int, np.ndarray], jax.Array] | None = None,
) -> Callable[[Params, Any, Progress], Drawn]:
    """Make `draw_samples` as a function of the parameters, compiled once.

    Samples that stream are one batch: slots run dry at its end only. On the devices of several
    processes all of them must call it, and each gets all samples.

    Returns:
        `(params, conds, progress) -> Drawn`, with the arguments of `draw_samples`.
    """
    num = sampling.num_samples
    at_once = num if sampling.slots is not None else sampling.batch_size
    if isinstance(steps, AdaptiveSteps) and steps.slots is not None:
        # More than there are samples on a device would be evaluated for nobody.
        on_a_device = batch_size(num, at_once, mesh) // num_shares(mesh)
        steps = dataclasses.replace(steps, slots=min(steps.slots, on_a_device))
    rows = batch_sharding(mesh)
    program = make_draw(path, solve, steps, event_shape, sampling.seed, mesh)
    gather = jax.jit(lambda arrays: arrays, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def on_host(array: jax.Array) -> np.ndarray:
        return np.asarray(array if array.is_fully_addressable else gather(array))

    def draw(params: Params, conds: Any, progress: Progress) -> Drawn:
        parts, seconds, sources = [], [], []
        with progress.task("sampling", num) as advance:
            advance(0, COMPILING)
            for indices, kept in even_batches(num, at_once, mesh):
                began = time.perf_counter()
                cond = jax.device_put(jax.tree.map(itemgetter(indices), conds), rows)
                x0 = None
                if starts is not None:
                    points = np.asarray(starts(sampling.seed, indices))
                    x0 = jax.device_put(points, rows)
                    sources.append(points[kept])
                solved = program(params, jax.device_put(indices, rows), cond, x0)
                found = (solved.x1, solved.nfe, solved.succeeded)
                parts.append([on_host(array)[kept] for array in found])
                seconds.append((time.perf_counter() - began) / len(indices))
                advance(kept.stop)
        x1, nfe, succeeded = (np.concatenate(part) for part in zip(*parts, strict=True))
        # The first batch waits for the compiler.
        typical = float(np.median(seconds[1:])) if len(seconds) > 1 else float("nan")
        x0 = np.concatenate(sources) if sources else None
        return Drawn(x1, None, nfe, succeeded, typical, x0)

    return draw
