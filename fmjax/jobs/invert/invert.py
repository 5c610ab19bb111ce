"""Images to noise and back: the error of the way, arcs between images, and edits of them."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fmjax._arrays import (
    TokenShape,
    is_image,
)
from fmjax._checks import require
from fmjax._files import require_target, write_atomically
from fmjax._json import (
    AnyFloat,
    Count,
    NonNegative,
    Positive,
    Size,
    plain_json,
    read_json,
)
from fmjax._progress import COMPILING, Progress, Silent
from fmjax.config import ODE_SOLVERS, guided
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
from fmjax.report.images import image_bytes
from fmjax.runs.folder import Run, write_text, writes
from fmjax.solvers import invert, sample


class RoundTrip(NamedTuple):
    """What one solver loses from image to noise to image; means are over what arrived.

    Attributes:
        solver: Its name.
        num_steps: In each direction, where they are fixed.
        tolerance: rtol = atol, where they adapt.
        nfe: Mean network evaluations of an image, both directions together.
        mean_rmse: Mean over images of the rms over pixels of what differs, in units of pixels
            in [-1, 1]; None where none arrived.
        worst_rmse: The largest of them.
        noise_rms: Rms of the noise; of exact solves of a perfect model about sigma(0).
        num_failed: Images that did not arrive.
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
    """What was measured of a run.

    Attributes:
        step: The training step of the weights.
        num_images: How many went there and back.
        round_trips: One for each setting of each solver.
        edits: One for each strength.
    """

    step: Count
    num_images: Count
    round_trips: tuple[RoundTrip, ...]
    edits: tuple[Edits, ...]


def read_inversion(path: Path) -> Inversion:
    """Read what `invert_run` wrote.

    Raises:
        ValueError: If the file is not such a document.
    """
    found = read_json(path, Inversion, nonfinite=True)
    for place, trip in enumerate(found.round_trips):
        one = (trip.num_steps is None) != (trip.tolerance is None)
        got = f"{trip.num_steps} and {trip.tolerance}"
        require(one, f"{path}: round_trips[{place}]", "have num_steps or a tolerance", got)
    return found


@writes("inversion.json", "samples/interpolation.png", "samples/edits.png")
def invert_run(
    run: Run,
    config: InvertConfig,
    images: tuple[Path, ...] = (),
    *,
    progress: Progress = Silent(),
) -> Inversion:
    """Send images to noise and back, interpolate and edit them; write what came of it.

    That is `inversion.json`, `samples/interpolation.png` (a row for each pair of images, if
    there is one) and `samples/edits.png` (a row for each image).

    Args:
        run: A trained run on images.
        config: What is measured and shown.
        images: Files to take in place of test images.
        progress: Hears of each part.

    Raises:
        ValueError: If the run is not of images, an image is not as the model takes it, the classes
            do not fit the model or the images, or it cannot be guided.
    """
    pictured, got = is_image(run.event_shape), f"event shape {run.event_shape}"
    require(pictured, "run", "be of images with 1 or 3 channels", got)
    rule = "start from noise to be inverted"
    require(run.config.source is None, "run", rule, "one between two data sets")
    rule = "be of a model of classes or of none to be inverted"
    require(not isinstance(run.conditions, TokenShape), "run", rule, "one of captions")
    # Before the work, what the edits would refuse.
    guided(run.experiment, run.params, config.guidance)
    if config.target_class is not None:
        check_classes("target_class", (config.target_class,), run.num_classes)
    for name in ("interpolation", "edits"):
        picture = run.folder.samples / f"{name}.png"
        require_target(picture, "the picture of results", inputs=images)
    if images:
        examples = given_images(images, config.classes, run.event_shape, run.num_classes)
    else:
        require(not config.classes, "classes", "go with images that are given", config.classes)
        test = run.config.data.load("test", progress=progress)
        test = test if run.num_classes is not None else test.unconditional()
        examples = chosen_images(test, config.num_images)
    round_trips = tuple(_round_trips(run, config, examples, progress))
    shown = examples.at(slice(config.num_shown))
    # Of other images, from before.
    (run.folder.samples / "interpolation.png").unlink(missing_ok=True)
    if len(shown.x) > 1:
        _write_grid(run, "interpolation", interpolation(run, config, shown), progress)
    edits, grid = edit_all(run, config, shown)
    _write_grid(run, "edits", grid, progress)
    result = Inversion(run.step, len(examples.x), round_trips, edits)
    document = {
        **result._asdict(),
        "round_trips": [each._asdict() for each in round_trips],
        "edits": [each._asdict() for each in edits],
    }
    write_text(run.folder.inversion, json.dumps(plain_json(document), indent=2) + "\n")
    progress.say(f"wrote {run.folder.inversion}")
    return result


def _settings(config: InvertConfig) -> Iterator[tuple[str, Setting]]:
    """Each solver with each of its settings, those of one solver together."""
    for name in config.fixed_solvers:
        yield from ((name, setting) for setting in fixed_settings(config.num_steps))
    for name in config.adaptive_solvers:
        yield from ((name, setting) for setting in adaptive_settings(config.tolerances))


def _round_trips(
    run: Run, config: InvertConfig, examples: Examples, progress: Progress
) -> list[RoundTrip]:
    programs: dict[str, Callable[..., Any]] = {}
    settings = list(_settings(config))
    found = []
    with progress.task("to noise and back", len(settings)) as advance:
        advance(0, COMPILING)
        for name, setting in settings:
            if name not in programs:
                programs[name] = over_devices(run, _there_and_back(run, ODE_SOLVERS[name]()))
            x0, x1, nfe, succeeded = programs[name](examples, setting.steps)
            rmse = rms(x1 - examples.x)[succeeded]
            mean, worst, noise = None, None, None
            if rmse.size:
                mean, worst = float(rmse.mean()), float(rmse.max())
                noise = float(rms(x0[succeeded][None])[0])
            asked = (name, setting.num_steps, setting.tolerance, float(nfe.mean()))
            found.append(RoundTrip(*asked, mean, worst, noise, int(np.sum(~succeeded))))
            advance(1)
    progress.say(f"{len(examples.x)} images to noise and back (rms of what differs in [-1, 1]):")
    for each in found:
        progress.say(f"  {described(each)}")
    return found


def _there_and_back(run: Run, solver: Any) -> Callable[..., Any]:
    def solve(params: Any, x1: Any, labels: Any, steps: Any) -> Any:
        velocity_fn = run.experiment.velocity_fn(params)
        there = invert(velocity_fn, x1, labels, solver=solver, steps=steps)
        back = sample(velocity_fn, there.x0, labels, solver=solver, steps=steps)
        return there.x0, back.x1, there.nfe + back.nfe, there.succeeded & back.succeeded

    return solve


def _write_grid(run: Run, name: str, picture: Any, progress: Progress) -> None:
    path = run.folder.samples / f"{name}.png"
    with write_atomically(path) as temporary:
        temporary.write_bytes(image_bytes(picture))
    progress.say(f"wrote {path}")


def described(trip: RoundTrip) -> str:
    """One line of the figures."""
    steps = f"{trip.num_steps} steps" if trip.num_steps else f"tolerance {trip.tolerance:g}"
    text = f"{trip.solver}, {steps}, {trip.nfe:.4g} network evaluations: "
    if trip.mean_rmse is None:
        return text + "none arrived"
    text += f"{trip.mean_rmse:.2e} on average, {trip.worst_rmse:.2e} at worst"
    text += f"; noise of rms {trip.noise_rms:.3f}"
    return text + (f"; {trip.num_failed} did not arrive" if trip.num_failed else "")
