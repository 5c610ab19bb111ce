"""How straight the paths of a run are: measured, kept, and read again."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fmjax._checks import require
from fmjax._json import (
    AnyFloat,
    Count,
    NonNegative,
    Share,
    plain_json,
    read_json,
    require_lengths,
)
from fmjax._progress import COMPILING, Progress, Silent
from fmjax.config import SamplingConfig, guided
from fmjax.metrics import Straightness, straightness
from fmjax.runs.folder import Run, write_text
from fmjax.runs.sampling.batches import even_batches
from fmjax.runs.sampling.conditions import even_conds
from fmjax.runs.sampling.source_points import run_source_points
from fmjax.sharding import batch_sharding

_TOGETHER = 64
_NUM_STEPS = 16
_MOST_LINES = 256
_OF_EACH = ("s", "length_ratio", "deviation", "curvature", "cost")


class PathsResult(NamedTuple):
    """How straight the paths are, over some noises.

    Attributes:
        step: The training step of the weights.
        num_paths: How many were followed.
        num_failed: Of those, how many were not finite and do not count.
        guidance: Scale of the field.
        s: Mean straightness (`fmjax.metrics.Straightness.s`); 0 is straight.
        s_error: Its standard error.
        length_ratio: Mean length over the distance of the ends; 1 is straight.
        times: Of the deviation.
        deviation: What `s` is the integral of, the mean over paths.
        midpoints: Of the curvature.
        curvature: Mean rms of the second derivative, data units per squared unit of time.
        lines: Of points in the plane, where some paths are at `times`.
        cost: Mean squared distance of the ends per coordinate.
    """

    step: Count
    num_paths: Count
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


def measure_paths(
    run: Run, sampling: SamplingConfig, num_paths: int, *, progress: Progress = Silent()
) -> PathsResult:
    """Follow paths of the run's field, guided as asked, and write how straight they are.

    Args:
        run: A trained run.
        sampling: Its guidance and seed count.
        num_paths: How many noises; each class or caption as often.
        progress: Hears of each batch.
    """
    mesh, rows, planar = run.mesh, batch_sharding(run.mesh), run.event_shape == (2,)
    conds, starts = even_conds(run, num_paths), run_source_points(run, progress)

    @jax.jit
    def measured(params, x0, cond):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            field = guided(run.experiment, params, sampling.guidance, sampling.guidance_interval)
            found = straightness(field, x0, cond, num_steps=_NUM_STEPS)
        return found if planar else found._replace(positions=x0[:, :0])  # Not to the host.

    parts: list[Straightness] = []
    with progress.task("measuring paths", num_paths) as advance:
        advance(0, COMPILING)
        for some, kept in even_batches(num_paths, _TOGETHER, mesh):
            cond = None if conds is None else jax.device_put(conds[some], rows)
            x0 = jax.device_put(starts(sampling.seed, some), rows)
            found = jax.device_get(measured(run.params, x0, cond))
            each = {name: getattr(found, name)[kept] for name in (*_OF_EACH, "positions")}
            parts.append(found._replace(**each))
            advance(kept.stop)
    s, ratio, deviation, curvature, cost = (
        np.concatenate([getattr(part, name) for part in parts]).astype(np.float64)
        for name in _OF_EACH
    )
    num_finite = int(np.isfinite(s).sum())
    result = PathsResult(
        step=run.step,
        num_paths=num_paths,
        guidance=sampling.guidance,
        s=float(np.nanmean(s)),
        s_error=float(np.nanstd(s) / np.sqrt(num_finite)) if num_finite else float("nan"),
        length_ratio=float(np.nanmean(ratio)),
        times=tuple(parts[0].times.tolist()),
        deviation=tuple(np.nanmean(deviation, axis=0).tolist()),
        midpoints=tuple(parts[0].midpoints.tolist()),
        curvature=tuple(np.nanmean(curvature, axis=0).tolist()),
        lines=_drawable([part.positions for part in parts]) if planar else (),
        cost=float(np.nanmean(cost)),
        num_failed=num_paths - num_finite,
    )
    write_text(run.folder.paths, json.dumps(plain_json(result._asdict()), indent=2) + "\n")
    progress.say(
        f"  straightness {result.s:.4f} +- {result.s_error:.4f} (0: straight paths at constant "
        f"speed), length over distance {result.length_ratio:.4f} (1: straight), transport cost "
        f"{result.cost:.4f}"
    )
    if result.num_failed:
        progress.say(f"  {result.num_failed} of {num_paths} paths were not finite and do not count")
    return result


def _drawable(positions: Sequence[Any]) -> Any:
    """Finite paths, no more than a picture holds."""
    lines = np.concatenate(positions)
    return lines[np.isfinite(lines).all(axis=(1, 2))][:_MOST_LINES].tolist()


def read_paths(path: Path) -> PathsResult:
    """Read what `measure_paths` wrote.

    Raises:
        ValueError: If the file is not such a document.
    """
    found = read_json(path, PathsResult, nonfinite=True)
    require_lengths(str(path), times=found.times, deviation=found.deviation)
    require_lengths(str(path), midpoints=found.midpoints, curvature=found.curvature)
    for place, line in enumerate(found.lines):
        require_lengths(str(path), times=found.times, **{f"lines[{place}]": line})
    for name in ("times", "midpoints"):
        times = getattr(found, name)
        rising = bool(times) and list(times) == sorted(times)
        require(rising, str(path), f"hold rising {name}", times)
    return found
