"""Invert images to noise: measure the round-trip error, interpolate and edit images."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree
from PIL import Image

from fmjax._arrays import Cond, Params, Points, is_image
from fmjax._checks import require
from fmjax._files import require_target, write_atomically
from fmjax._json import AnyFloat, Count, NonNegative, Positive, Size, plain_json, read_json
from fmjax._progress import COMPILING, Progress, Silent
from fmjax._specs import has_arrays, is_captions
from fmjax.config import ODE_SOLVERS, Steps
from fmjax.config.invert import InvertConfig
from fmjax.jobs.compare.methods import Setting, adaptive_settings, fixed_settings
from fmjax.jobs.invert.image_examples import (
    Examples,
    check_classes,
    chosen_images,
    given_images,
    over_devices,
    rms,
)
from fmjax.jobs.invert.pictures import Edits, edit_all, interpolation
from fmjax.paths import Prediction, require_conversion
from fmjax.report.images import image_bytes
from fmjax.runs.folder import Run, write_text, writes
from fmjax.solvers import ClassifierFree, invert, sample


class RoundTrip(NamedTuple):
    """Reconstruction error of one solver from image to noise to image.

    Means are over the images whose solves succeeded.

    Attributes:
        solver: Name of the solver.
        num_steps: Number of fixed steps in each direction; None for adaptive steps.
        tolerance: rtol = atol of adaptive steps; None for fixed steps.
        nfe: Mean number of network evaluations per image, both directions together.
        mean_rmse: Mean over images of the root mean square difference of pixels in [-1, 1]; None
            if no solve succeeded.
        worst_rmse: Largest root mean square difference of an image; None if no solve succeeded.
        noise_rms: Root mean square of the noise, close to sigma(0) for exact solves of a perfect
            model; None if no solve succeeded.
        num_failed: Number of images whose solve failed.
    """

    solver: str
    num_steps: Size | None
    tolerance: Positive | None
    nfe: NonNegative
    mean_rmse: AnyFloat | None
    worst_rmse: AnyFloat | None
    noise_rms: AnyFloat | None
    num_failed: Count


class Inversion(NamedTuple):
    """Round-trip errors and edits of a run.

    Attributes:
        step: The training step of the weights.
        num_images: Number of images.
        round_trips: Errors of each setting of each solver.
        edits: Results of each edit strength.
    """

    step: Count
    num_images: Count
    round_trips: tuple[RoundTrip, ...]
    edits: tuple[Edits, ...]


def read_inversion(file: Path) -> Inversion:
    """Read the `inversion.json` that `invert_run` wrote.

    Raises:
        ValueError: If the file is not a valid result.
    """
    inversion = read_json(file, Inversion, nonfinite=True)
    for index, trip in enumerate(inversion.round_trips):
        exactly_one = (trip.num_steps is None) != (trip.tolerance is None)
        got = f"{trip.num_steps} and {trip.tolerance}"
        rule = "have either num_steps or tolerance"
        require(exactly_one, f"{file}: round_trips[{index}]", rule, got)
    return inversion


@writes("inversion.json", "samples/interpolation.png", "samples/edits.png")
def invert_run(
    run: Run,
    config: InvertConfig,
    images: tuple[Path, ...] = (),
    *,
    progress: Progress = Silent(),
) -> Inversion:
    """Map images to noise and back, interpolate and edit them, and write the results.

    The results are `inversion.json`, `samples/interpolation.png` (one row per pair of images, if
    there are at least two images) and `samples/edits.png` (one row per image).

    Args:
        run: A trained run on images.
        config: Solvers and settings to measure, and settings of the pictures.
        images: Image files to use instead of test images.
        progress: Receives progress reports.

    Raises:
        ValueError: If the data of the run are not images, an image does not fit the model, the
            classes do not fit the model or the images, or the model does not support guidance.
    """
    images_ok, got = is_image(run.event_shape), f"event shape {run.event_shape}"
    require(images_ok, "run", "have images with 1 or 3 channels as its data", got)
    rule = "have noise as its source distribution to be inverted"
    require(run.config.source is None, "run", rule, "a dataset")
    rule = "be unconditional or conditioned on classes to be inverted"
    require(not is_captions(run.conditions), "run", rule, "a run conditioned on captions")
    require(not has_arrays(run.conditions), "run", rule, "a run conditioned on arrays")
    # Raise for a path or guidance that the model does not support before any solve.
    require_conversion(run.model.process, Prediction.VELOCITY)
    ClassifierFree(config.guidance)(run.model).velocity_fn(run.params)
    if config.target_class is not None:
        check_classes("target_class", (config.target_class,), run.num_classes)
    for name in ("interpolation", "edits"):
        file = run.folder.samples / f"{name}.png"
        require_target(file, f"the {name} picture", inputs=images)
    if images:
        examples = given_images(images, config.classes, run.event_shape, run.num_classes)
    else:
        require(not config.classes, "classes", "be left out without image files", config.classes)
        test = run.config.data.load("test", progress=progress)
        test = test if run.num_classes is not None else test.unconditional()
        examples = chosen_images(test, config.num_images)
    round_trips = tuple(_round_trips(run, config, examples, progress))
    selected = examples.at(slice(config.num_shown))
    # Remove the picture of an earlier call: this call writes none for a single image.
    (run.folder.samples / "interpolation.png").unlink(missing_ok=True)
    if len(selected.x) > 1:
        _write_grid(run, "interpolation", interpolation(run, config, selected), progress)
    edits, grid = edit_all(run, config, selected)
    _write_grid(run, "edits", grid, progress)
    result = Inversion(run.step, len(examples.x), round_trips, edits)
    document = {
        **result._asdict(),
        "round_trips": [trip._asdict() for trip in round_trips],
        "edits": [edit._asdict() for edit in edits],
    }
    write_text(run.folder.inversion, json.dumps(plain_json(document), indent=2) + "\n")
    progress.say(f"wrote {run.folder.inversion}")
    return result


def _settings(config: InvertConfig) -> Iterator[tuple[str, Setting]]:
    """Yield each solver with each of its settings, grouped by solver."""
    for name in config.fixed_solvers:
        yield from ((name, setting) for setting in fixed_settings(config.num_steps))
    for name in config.adaptive_solvers:
        yield from ((name, setting) for setting in adaptive_settings(config.tolerances))


def _round_trips(
    run: Run, config: InvertConfig, examples: Examples, progress: Progress
) -> list[RoundTrip]:
    programs: dict[str, Callable[..., PyTree]] = {}
    settings = list(_settings(config))
    trips = []
    with progress.task("measuring round trips", len(settings)) as advance:
        advance(0, COMPILING)
        for name, setting in settings:
            if name not in programs:
                programs[name] = over_devices(run, _make_round_trip(run, ODE_SOLVERS[name]()))
            x0, x1, nfe, succeeded = programs[name](examples, setting.steps)
            rmse = rms(x1 - examples.x)[succeeded]
            trip = RoundTrip(
                solver=name,
                num_steps=setting.num_steps,
                tolerance=setting.tolerance,
                nfe=float(nfe.mean()),
                mean_rmse=float(rmse.mean()) if rmse.size else None,
                worst_rmse=float(rmse.max()) if rmse.size else None,
                noise_rms=float(rms(x0[succeeded][None])[0]) if rmse.size else None,
                num_failed=int(np.sum(~succeeded)),
            )
            trips.append(trip)
            advance(1)
    progress.say(f"round trips of {len(examples.x)} images to noise and back (RMSE of [-1, 1]):")
    for trip in trips:
        progress.say(f"  {summarize_round_trip(trip)}")
    return trips


def _make_round_trip(run: Run, solver: Any) -> Callable[..., tuple[jax.Array, ...]]:
    """Make the function that maps images to noise and back with one solver."""
    standardization = run.standardization

    def round_trip(params: Params, x1: Points, labels: Cond, steps: Steps) -> tuple[jax.Array, ...]:
        velocity_fn = run.model.velocity_fn(params)
        z1 = standardization.points(x1)
        inverted = invert(velocity_fn, z1, labels, solver=solver, steps=steps)
        restored = sample(velocity_fn, inverted.x0, labels, solver=solver, steps=steps)
        nfe = inverted.nfe + restored.nfe
        x1 = standardization.restore_points(restored.x1)
        return inverted.x0, x1, nfe, inverted.succeeded & restored.succeeded

    return round_trip


def _write_grid(run: Run, name: str, picture: Image.Image, progress: Progress) -> None:
    file = run.folder.samples / f"{name}.png"
    with write_atomically(file) as temporary:
        temporary.write_bytes(image_bytes(picture))
    progress.say(f"wrote {file}")


def summarize_round_trip(trip: RoundTrip) -> str:
    """Summarize a round trip in one line of text."""
    steps = f"{trip.num_steps} steps" if trip.num_steps else f"tolerance {trip.tolerance:g}"
    text = f"{trip.solver}, {steps}, {trip.nfe:.4g} network evaluations: "
    if trip.mean_rmse is None:
        return text + "all solves failed"
    text += f"RMSE {trip.mean_rmse:.2e} on average, {trip.worst_rmse:.2e} at worst"
    text += f"; rms of the noise {trip.noise_rms:.3f}"
    return text + (f"; {trip.num_failed} solves failed" if trip.num_failed else "")
