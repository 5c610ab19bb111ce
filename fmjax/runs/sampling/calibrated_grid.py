"""The calibrated grid of a run: measured once, kept beside its checkpoints."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp

from fmjax._files import lock_outputs
from fmjax._json import Count, NonNegative, Share, read_json
from fmjax._progress import COMPILING, Progress, Silent
from fmjax.config import SamplingConfig, guided
from fmjax.paths import Tabulated
from fmjax.runs.folder import Run, write_text
from fmjax.runs.sampling.conditions import even_conds
from fmjax.runs.sampling.source_points import run_source_points
from fmjax.solvers import calibrate

NUM_PATHS = 32


class _Grid(NamedTuple):
    """What `grid.json` holds."""

    step: Count
    guidance: NonNegative
    guidance_interval: list[Share]
    times: tuple[float, ...]
    density: tuple[float, ...]


def run_grid(run: Run, sampling: SamplingConfig, *, progress: Progress = Silent()) -> Tabulated:
    """The density of a run's calibrated grid under the guidance of `sampling`.

    It is read from `grid.json` in the run folder if that is of these weights and this guidance,
    and measured and written there otherwise.

    Args:
        run: A trained run.
        sampling: Its guidance counts; samples of all classes are followed.
        progress: Hears of the measurement.
    """
    asked = {
        "step": run.step,
        "guidance": sampling.guidance,
        "guidance_interval": list(sampling.guidance_interval),
    }
    kept = _read(run.folder.grid, asked)
    if kept is not None:
        return kept
    with lock_outputs(run.folder.grid, on_wait=progress.say):
        kept = _read(run.folder.grid, asked)  # Another process may have measured it.
        return _measured(run, sampling, asked, progress) if kept is None else kept


def _measured(
    run: Run, sampling: SamplingConfig, asked: dict[str, Any], progress: Progress
) -> Tabulated:
    """Measure the density and write it."""
    with progress.task("calibrating the grid", 1) as advance:
        advance(0, COMPILING)
        # Others than those of seed 0 that samples are drawn from.
        x0 = run_source_points(run, progress)(1, jnp.arange(NUM_PATHS))
        conds = even_conds(run, NUM_PATHS)
        velocity_fn = guided(
            run.experiment, run.params, sampling.guidance, sampling.guidance_interval
        )
        density = calibrate(velocity_fn, x0, None if conds is None else jnp.asarray(conds))
        advance(1)
    found = {"times": density.times, "density": density.density}
    write_text(run.folder.grid, json.dumps({**asked, **found}) + "\n")
    progress.say(f"wrote {run.folder.grid}")
    return density


def _read(path: Path, asked: dict[str, Any]) -> Tabulated | None:
    """The grid that the folder keeps, if it is whole and the one that is asked for."""
    try:
        kept = read_json(path, _Grid)
        if any(getattr(kept, name) != value for name, value in asked.items()):
            return None
        return Tabulated(kept.times, kept.density)
    except (OSError, ValueError):
        return None
