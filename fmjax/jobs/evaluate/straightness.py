"""Measure, write and read the straightness of the trajectories of a run."""

import json
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fmjax._arrays import Cond, Params, Points
from fmjax._checks import require
from fmjax._json import (
    AnyFloat,
    Count,
    NonNegative,
    Share,
    check_json,
    plain_json,
    read_json,
    require_lengths,
)
from fmjax._progress import COMPILING, Progress, Silent
from fmjax.config import Sampling
from fmjax.config.sampling import guidance_settings
from fmjax.metrics import Straightness, straightness
from fmjax.runs.folder import Run, write_text
from fmjax.runs.sampling.conditions import even_conds
from fmjax.runs.sampling.source_points import run_source_points
from fmjax.sharding import map_batched, on_mesh

_BATCH_SIZE = 64
_NUM_STEPS = 16
_MAX_LINES = 256
_PER_TRAJECTORY = ("s", "length_ratio", "deviation", "curvature", "cost")


class StraightnessResult(NamedTuple):
    """Straightness of the trajectories from source points to data.

    Attributes:
        step: The training step of the weights.
        num_trajectories: Number of trajectories.
        num_failed: Number of trajectories that are not finite; they are excluded.
        guidance: Guidance scale of the velocity field.
        s: Mean straightness (`fmjax.metrics.Straightness.s`); 0 for straight trajectories with
            constant speed.
        s_error: Standard error of `s`.
        length_ratio: Mean ratio of a trajectory's length to the distance between its ends; 1 for
            straight trajectories.
        times: Times at which `deviation` is given.
        deviation: Integrand of `s` at `times`, the mean over trajectories.
        midpoints: Times at which `curvature` is given.
        curvature: Mean rms of the second time derivative at `midpoints`, in data units (standard
            deviations of standardized data) per squared unit of time.
        lines: Positions of some trajectories at `times`, in data units, for data in the plane;
            otherwise empty.
        cost: Mean squared distance between the ends of a trajectory, per coordinate, in data units
            (standard deviations of standardized data) squared.
    """

    step: Count
    num_trajectories: Count
    guidance: NonNegative
    s: AnyFloat
    s_error: AnyFloat
    length_ratio: AnyFloat
    times: tuple[Share, ...]
    deviation: tuple[AnyFloat, ...]
    midpoints: tuple[Share, ...]
    curvature: tuple[AnyFloat, ...]
    lines: tuple[tuple[tuple[float, float], ...], ...] = ()
    cost: AnyFloat = float("nan")
    num_failed: Count = 0


def measure_straightness(
    run: Run, sampling: Sampling, num_trajectories: int, *, progress: Progress = Silent()
) -> StraightnessResult:
    """Measure the straightness of a run's guided trajectories and write `straightness.json`.

    Args:
        run: A trained run.
        sampling: Provides guidance and seed; its other settings have no effect.
        num_trajectories: Number of trajectories, spread evenly over classes or captions.
        progress: Receives progress reports.
    """
    mesh, planar = run.mesh, run.event_shape == (2,)
    conds, source_points = even_conds(run, num_trajectories), run_source_points(run, progress)

    def measure(params: Params, x0: Points, cond: Cond) -> Straightness:
        field = sampling.guided(run.model).velocity_fn(params)
        result = straightness(field, x0, cond, num_steps=_NUM_STEPS)
        # Positions are only drawn for data in the plane: do not copy others to the host.
        positions = result.positions if planar else x0[:, :0]
        # One copy of the times per trajectory, so that all leaves have the batch as leading axis.
        times, midpoints = (
            jnp.broadcast_to(grid, (len(x0), *grid.shape))
            for grid in (result.times, result.midpoints)
        )
        return result._replace(times=times, midpoints=midpoints, positions=positions)

    measure_batch = partial(jax.jit(on_mesh(mesh, measure)), run.params)
    with progress.task("measuring straightness", num_trajectories) as advance:
        advance(0, COMPILING)
        measured = map_batched(
            measure_batch,
            lambda indices: (
                source_points(sampling.seed, indices),
                jax.tree.map(itemgetter(indices), conds),
            ),
            num_trajectories,
            batch_size=_BATCH_SIZE,
            mesh=mesh,
            on_batch=advance,
        )
    s, ratio, deviation, curvature, cost = (
        getattr(measured, name).astype(np.float64) for name in _PER_TRAJECTORY
    )
    num_finite = int(np.isfinite(s).sum())
    result = StraightnessResult(
        step=run.step,
        num_trajectories=num_trajectories,
        guidance=guidance_settings(sampling.guidance)[0],
        s=float(np.nanmean(s)),
        s_error=float(np.nanstd(s) / np.sqrt(num_finite)) if num_finite else float("nan"),
        length_ratio=float(np.nanmean(ratio)),
        times=tuple(measured.times[0].tolist()),
        deviation=tuple(np.nanmean(deviation, axis=0).tolist()),
        midpoints=tuple(measured.midpoints[0].tolist()),
        curvature=tuple(np.nanmean(curvature, axis=0).tolist()),
        lines=_drawable(run.standardization.restore_points(measured.positions)) if planar else (),
        cost=float(np.nanmean(cost)),
        num_failed=num_trajectories - num_finite,
    )
    write_text(run.folder.straightness, json.dumps(plain_json(result._asdict()), indent=2) + "\n")
    progress.say(
        f"  straightness {result.s:.4f} +- {result.s_error:.4f} (0: straight at constant "
        f"speed), length over distance {result.length_ratio:.4f} (1: straight), transport cost "
        f"{result.cost:.4f}"
    )
    if result.num_failed:
        progress.say(
            f"  {result.num_failed} of {num_trajectories} trajectories were not finite and are "
            "excluded"
        )
    return result


def _drawable(positions: np.ndarray) -> tuple[tuple[tuple[float, float], ...], ...]:
    """The first finite trajectories, at most as many as one figure shows."""
    lines = positions[np.isfinite(positions).all(axis=(1, 2))][:_MAX_LINES]
    return tuple(tuple((x, y) for x, y in line) for line in lines.tolist())


def read_straightness(file: Path) -> StraightnessResult:
    """Read the `straightness.json` that `measure_straightness` wrote.

    Raises:
        ValueError: If the file is not a valid result.
    """
    document = read_json(file, dict[str, Any], nonfinite=True)
    if "num_paths" in document:  # The name in older versions.
        document["num_trajectories"] = document.pop("num_paths")
    result = check_json(document, StraightnessResult, str(file))
    require_lengths(str(file), times=result.times, deviation=result.deviation)
    require_lengths(str(file), midpoints=result.midpoints, curvature=result.curvature)
    for index, line in enumerate(result.lines):
        require_lengths(str(file), times=result.times, **{f"lines[{index}]": line})
    for name in ("times", "midpoints"):
        times = getattr(result, name)
        increasing = bool(times) and list(times) == sorted(times)
        require(increasing, str(file), f"hold increasing {name}", times)
    return result
