"""The calibrated time grid of a run, measured once and kept in the run folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fmjax._files import lock_outputs
from fmjax._json import Count, NonNegative, Share, read_json
from fmjax._progress import COMPILING, Progress, Silent
from fmjax.config import ClassifierFree, Sampling
from fmjax.config.sampling import guidance_settings
from fmjax.paths import Tabulated
from fmjax.runs.folder import Run, write_text
from fmjax.runs.sampling.conditions import even_conds
from fmjax.runs.sampling.source_points import run_source_points
from fmjax.solvers import calibrate

NUM_TRAJECTORIES = 32


class _Grid(NamedTuple):
    """Contents of `grid.json`."""

    step: Count
    guidance: NonNegative
    guidance_interval: list[Share]
    times: tuple[float, ...]
    density: tuple[float, ...]
    guidance_class: str | None = None  # Of a user.


def run_grid(run: Run, sampling: Sampling, *, progress: Progress = Silent()) -> Tabulated:
    """Read or measure the density of a run's calibrated time grid.

    The density is read from `grid.json` in the run folder if that file has the same weights and
    guidance; otherwise it is measured and written there.

    Args:
        run: A trained run.
        sampling: Provides the guidance; its other settings have no effect.
        progress: Receives progress reports.
    """
    scale, interval = guidance_settings(sampling.guidance)
    settings: dict[str, object] = {
        "step": run.step,
        "guidance": scale,
        "guidance_interval": list(interval),
    }
    is_known = sampling.guidance is None or isinstance(sampling.guidance, ClassifierFree)
    settings["guidance_class"] = None if is_known else repr(sampling.guidance)
    density = _read(run.folder.grid, settings)
    if density is not None:
        return density
    with lock_outputs(run.folder.grid, on_wait=progress.say):
        density = _read(run.folder.grid, settings)  # Another process may have written it.
        return _measure(run, sampling, settings, progress) if density is None else density


def _measure(
    run: Run, sampling: Sampling, settings: Mapping[str, object], progress: Progress
) -> Tabulated:
    """Measure the density and write it."""
    with progress.task("calibrating the grid", 1) as advance:
        advance(0, COMPILING)
        # Seed 1, because samples use the noise of seed 0 by default.
        x0 = run_source_points(run, progress)(1, jnp.arange(NUM_TRAJECTORIES))
        conds = even_conds(run, NUM_TRAJECTORIES)
        velocity_fn = sampling.guided(run.model).velocity_fn(run.params)
        density = calibrate(velocity_fn, x0, jax.tree.map(jnp.asarray, conds))
        advance(1)
    table = {"times": density.times, "density": density.density}
    write_text(run.folder.grid, json.dumps({**settings, **table}) + "\n")
    progress.say(f"wrote {run.folder.grid}")
    return density


def _read(file: Path, settings: Mapping[str, object]) -> Tabulated | None:
    """Read the density from a file; None if the file is invalid or has other settings."""
    try:
        grid = read_json(file, _Grid)
        if any(getattr(grid, name) != value for name, value in settings.items()):
            return None
        return Tabulated(grid.times, grid.density)
    except (OSError, ValueError):
        return None
