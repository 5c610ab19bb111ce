"""Pictures of interpolations between images and of edited images."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from fmjax._arrays import Cond, Params, Points, expand_like
from fmjax._json import AnyFloat, Count, NonNegative, Share
from fmjax.config import ODE_SOLVERS
from fmjax.config.invert import InvertConfig
from fmjax.jobs.invert.image_examples import Examples, over_devices, rms
from fmjax.report.images import image_grid
from fmjax.runs.folder import Run
from fmjax.solvers import (
    AdaptiveSteps,
    ClassifierFree,
    Samples,
    edit,
    interpolate,
    invert,
    sample,
)


class Edits(NamedTuple):
    """Difference between images and their edits of one strength.

    Attributes:
        strength: Strength of the edits, in [0, 1].
        nfe: Mean number of network evaluations per edit.
        rmse: Mean over images of the root mean square difference of pixels; None if all failed.
        num_failed: Number of edits whose solve failed.
    """

    strength: Share
    nfe: NonNegative
    rmse: AnyFloat | None
    num_failed: Count


def _solver_arguments(config: InvertConfig) -> dict[str, Any]:
    """The arguments `solver` and `steps` of the solves for pictures."""
    steps = AdaptiveSteps(config.tolerance, config.tolerance)
    return {"solver": ODE_SOLVERS[config.solver](), "steps": steps}


def interpolation(run: Run, config: InvertConfig, selected: Examples) -> Image.Image:
    """Draw interpolations between pairs of images along arcs between their noises.

    A row shows the first image, decoded points of the arc from the first noise to the second, and
    the second image. Each point is decoded with the class of the nearer image.
    """
    standardization = run.standardization

    def encode(params: Params, x1: Points, labels: Cond) -> Points:
        velocity_fn = run.model.velocity_fn(params)
        z1 = standardization.points(x1)
        return invert(velocity_fn, z1, labels, **_solver_arguments(config)).x0

    def decode(params: Params, x0: Points, labels: Cond) -> Points:
        velocity_fn = run.model.velocity_fn(params)
        solved = sample(velocity_fn, x0, labels, **_solver_arguments(config))
        return standardization.restore_points(_blank_if_failed(solved))

    num_pairs, num = len(selected.x) // 2, config.num_between
    first, second = (selected.at(slice(side, 2 * num_pairs, 2)) for side in (0, 1))
    x0 = over_devices(run, encode)(selected.at(slice(2 * num_pairs)))
    arcs = np.asarray(interpolate(jnp.asarray(x0[::2]), jnp.asarray(x0[1::2]), num))
    labels, names = None, ()
    if first.labels is not None and second.labels is not None:
        nearest = [first.labels if 2 * i < num else second.labels for i in range(num)]
        labels = np.concatenate(nearest)
        pairs = zip(_names(run, first.labels), _names(run, second.labels), strict=True)
        names = tuple(a if a == b else f"{a} to {b}" for a, b in pairs)
    decoded = over_devices(run, decode)(Examples(arcs.reshape(-1, *run.event_shape), labels))
    columns = np.stack([first.x, *decoded.reshape(arcs.shape), second.x], axis=1)
    titles = ("image", *(f"{w:.2g}" for w in np.linspace(0.0, 1.0, num)), "image")
    return _grid(columns, names, titles)


def edit_all(
    run: Run, config: InvertConfig, selected: Examples
) -> tuple[tuple[Edits, ...], Image.Image]:
    """Edit images at each strength.

    Returns:
        The results of each strength, and a picture with one row per image: the image and its edits
        from weak to strong.
    """
    standardization = run.standardization

    def edit_batch(
        params: Params, x1: Points, labels: Cond, strength: jax.Array
    ) -> tuple[jax.Array, ...]:
        velocity_fn = ClassifierFree(config.guidance)(run.model).velocity_fn(params)
        indices = jnp.arange(x1.shape[0])
        # All strengths use the same noise, so that columns differ only by the strength.
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(config.seed), indices)
        arguments = _solver_arguments(config)
        z1 = standardization.points(x1)
        solved = edit(velocity_fn, run.model.affine_path, z1, keys, strength, labels, **arguments)
        x1 = standardization.restore_points(_blank_if_failed(solved))
        return x1, solved.nfe, solved.succeeded

    inputs, names = selected, ()
    if selected.labels is not None:
        names = _names(run, selected.labels)
        if config.target_class is not None:
            targets = np.full_like(selected.labels, config.target_class)
            inputs = Examples(selected.x, targets)
            pairs = zip(names, _names(run, targets), strict=True)
            names = tuple(f"{name} to {target}" for name, target in pairs)
    program, results, columns = over_devices(run, edit_batch), [], [selected.x]
    for strength in config.strengths:
        x1, nfe, succeeded = program(inputs, np.float32(strength))
        rmse = rms(x1 - selected.x)[succeeded]
        mean = float(rmse.mean()) if rmse.size else None
        results.append(Edits(strength, float(nfe.mean()), mean, int(np.sum(~succeeded))))
        columns.append(x1)
    titles = ("image", *(f"{strength:g}" for strength in config.strengths))
    return tuple(results), _grid(np.stack(columns, axis=1), names, titles)


def _names(run: Run, labels: np.ndarray) -> tuple[str, ...]:
    """Names of the classes with these labels, or the labels if the run has no names."""
    class_names = run.class_names
    return tuple(class_names[label] if class_names else str(label) for label in labels.tolist())


def _blank_if_failed(solved: Samples) -> jax.Array:
    """The solved images, with NaN, which a grid shows as blank, for solves that failed."""
    return jnp.where(expand_like(solved.succeeded, solved.x1), solved.x1, jnp.nan)


def _grid(
    images: np.ndarray, row_labels: tuple[str, ...], column_labels: tuple[str, ...]
) -> Image.Image:
    """Draw images of shape `[rows, columns, height, width, channel]` as a labeled grid."""
    rows, columns = images.shape[:2]
    flat = images.reshape(rows * columns, *images.shape[2:])
    return image_grid(flat, columns, row_labels=row_labels, column_labels=column_labels)
