"""Pictures of a run's noise: arcs between two images, and edits of images."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fmjax._arrays import expand_like
from fmjax._json import AnyFloat, Count, NonNegative, Share
from fmjax.config import ODE_SOLVERS, guided
from fmjax.config.invert import InvertConfig
from fmjax.jobs.invert.image_examples import Examples, over_devices, rms
from fmjax.report.images import image_grid
from fmjax.runs.folder import Run
from fmjax.solvers import AdaptiveSteps, Samples, edit, interpolate, invert, sample


class Edits(NamedTuple):
    """How far edits of one strength went from the images.

    Attributes:
        strength: In [0, 1].
        nfe: Mean network evaluations of an edit.
        rmse: Mean over images of the rms over pixels of what changed.
        num_failed: Edits that did not arrive.
    """

    strength: Share
    nfe: NonNegative
    rmse: AnyFloat | None
    num_failed: Count


def _pictured(config: InvertConfig) -> dict[str, Any]:
    """What solves for the pictures."""
    steps = AdaptiveSteps(config.tolerance, config.tolerance)
    return {"solver": ODE_SOLVERS[config.solver](), "steps": steps}


def interpolation(run: Run, config: InvertConfig, shown: Examples) -> Any:
    """Rows of pairs: an image, its decoded noise, those between, the other decoded, the other.

    What lies between is decoded as of the class of the nearer end.
    """

    def encoded(params: Any, x1: Any, labels: Any) -> Any:
        return invert(run.experiment.velocity_fn(params), x1, labels, **_pictured(config)).x0

    def decoded(params: Any, x0: Any, labels: Any) -> Any:
        return _arrived(sample(run.experiment.velocity_fn(params), x0, labels, **_pictured(config)))

    num_pairs, num = len(shown.x) // 2, config.num_between
    first, second = (shown.at(slice(start, 2 * num_pairs, 2)) for start in (0, 1))
    x0 = over_devices(run, encoded)(shown.at(slice(2 * num_pairs)))
    arcs = np.asarray(interpolate(jnp.asarray(x0[::2]), jnp.asarray(x0[1::2]), num))
    labels, names = None, ()
    if first.labels is not None and second.labels is not None:
        nearer = [first.labels if 2 * i < num else second.labels for i in range(num)]
        labels = np.concatenate(nearer)
        pairs = zip(first.labels.tolist(), second.labels.tolist(), strict=True)
        names = tuple(f"{a}" if a == b else f"{a} to {b}" for a, b in pairs)
    between = over_devices(run, decoded)(Examples(arcs.reshape(-1, *run.event_shape), labels))
    columns = np.stack([first.x, *between.reshape(arcs.shape), second.x], axis=1)
    titles = ("image", *(f"{w:.2g}" for w in np.linspace(0.0, 1.0, num)), "image")
    return _grid(columns, names, titles)


def edit_all(run: Run, config: InvertConfig, shown: Examples) -> tuple[tuple[Edits, ...], Any]:
    """Each strength's figures; and rows of images: the image, its edits from weak to strong."""

    def edited(params: Any, x1: Any, labels: Any, strength: Any) -> Any:
        velocity_fn = guided(run.experiment, params, config.guidance)
        indices = jnp.arange(x1.shape[0])
        # The same noise at every strength: from column to column nothing else changes.
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(config.seed), indices)
        path = run.experiment.path
        solved = edit(velocity_fn, path, x1, keys, strength, labels, **_pictured(config))
        return _arrived(solved), solved.nfe, solved.succeeded

    asked, names = shown, ()
    if shown.labels is not None:
        names = tuple(str(label) for label in shown.labels)
        if config.target_class is not None:
            asked = Examples(shown.x, np.full_like(shown.labels, config.target_class))
            names = tuple(f"{name} to {config.target_class}" for name in names)
    program, figures, columns = over_devices(run, edited), [], [shown.x]
    for strength in config.strengths:
        x1, nfe, succeeded = program(asked, np.float32(strength))
        rmse = rms(x1 - shown.x)[succeeded]
        mean = float(rmse.mean()) if rmse.size else None
        figures.append(Edits(strength, float(nfe.mean()), mean, int(np.sum(~succeeded))))
        columns.append(x1)
    titles = ("image", *(f"{strength:g}" for strength in config.strengths))
    return tuple(figures), _grid(np.stack(columns, axis=1), names, titles)


def _arrived(solved: Samples) -> jax.Array:
    """The solved images; NaN, which a grid leaves blank, where a solve did not arrive."""
    return jnp.where(expand_like(solved.succeeded, solved.x1), solved.x1, jnp.nan)


def _grid(images: np.ndarray, row_labels: tuple[str, ...], column_labels: tuple[str, ...]) -> Any:
    """A picture of `[rows, columns, height, width, channel]`."""
    rows, columns = images.shape[:2]
    flat = images.reshape(rows * columns, *images.shape[2:])
    return image_grid(flat, columns, row_labels=row_labels, column_labels=column_labels)
