"""Fixed against adaptive solvers on one velocity field, from shared starting points.

Every row of an ODE solver is measured against a tight Dopri8 solve. One program is compiled for
each solver: grids of all lengths are padded to the longest, and tolerances are arguments.
"""

import itertools
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from fmjax._arrays import Cond, Params, Points
from fmjax._checks import require
from fmjax._progress import COMPILING, Progress, Silent
from fmjax.jobs.compare.methods import Method, Setting
from fmjax.jobs.compare.reference import lower_reference, rmse, solve_reference
from fmjax.paths import VelocityFn
from fmjax.report.comparison import Comparison, SolverRun, StepEnds
from fmjax.solvers import Samples


class Metric(NamedTuple):
    """A figure of merit of the samples.

    Attributes:
        name: As it stands in tables and on axes.
        evaluate: Samples `[n, *event]`, float32 in host memory, to a number.
        floor: What real data score against real data, if known.
        higher_is_better: As of a share of good samples; a distance is better when lower.
    """

    name: str
    evaluate: Callable[[np.ndarray], float]
    floor: float | None = None
    higher_is_better: bool = False


class Row(NamedTuple):
    """One row of a comparison, with what it was measured on.

    Attributes:
        run: The figures.
        x1: The end points, float32 on the host.
    """

    run: SolverRun
    x1: np.ndarray


def compare(
    make_velocity_fn: Callable[[Params], VelocityFn],
    params: Params,
    x0: Points,
    cond: Cond = None,
    *,
    methods: Sequence[Method],
    keys: Any = None,
    metrics: Sequence[Metric] = (),
    reference_tolerance: float | None = None,
    in_float64: bool = True,
    repeats: int = 5,
    patience: float = 0.3,
    on_row: Callable[[Row], None] = lambda row: None,
    progress: Progress = Silent(),
) -> Comparison:
    """Solve from the same `x0` by every method at every setting, and measure each.

    Args:
        make_velocity_fn: The field of some parameters, for the reference; given float64
            parameters, times and points it must compute in float64 for that to be of float64.
        params: The parameters, a pytree of arrays.
        x0: Shared starting points, float32.
        cond: What the field is conditioned on.
        methods: The solvers and their settings (`fmjax.jobs.compare.methods`).
        keys: Random keys of the samples, `[batch]`, for stochastic methods.
        metrics: Evaluated on the end points of every run.
        reference_tolerance: Of the reference; None takes 1e-7 in float64, 1e-6 in float32.
        in_float64: Whether the reference is of float64, where there is that; for models too large
            to stand twice in memory it is not.
        repeats: At most so many timed solves of each row; the median counts.
        patience: Seconds after which a row is not timed again.
        on_row: Hears of each row with its end points.
        progress: Hears of each compilation and row.

    Raises:
        ValueError: If there is nothing to run.
    """
    solves = [(method, setting) for method in methods for setting in method.settings]
    require(bool(solves), "comparison", "have a solver and a setting", "none")
    # Of each program its cheapest setting, to be traced with and to warm it up.
    cheapest = {method.solve: setting.steps for method, setting in reversed(solves)}
    lowered = (
        jax.jit(solve).lower(params, x0, keys, cond, steps) for solve, steps in cheapest.items()
    )
    rows, step_ends = [], []
    with progress.task("comparing solvers", len(solves) + 1) as advance:
        advance(0, COMPILING)
        reference = lower_reference(
            make_velocity_fn, params, x0, cond, reference_tolerance, in_float64=in_float64
        )
        programs = _compiled(itertools.chain([reference.lowered], lowered))
        exact = solve_reference(reference, programs.pop(0))
        advance(1, note="reference")
        by_solve = dict(zip(cheapest, programs, strict=True))
        for solve, steps in cheapest.items():
            # A program's first run is slower by what it loads and allocates: not to be timed.
            jax.block_until_ready(by_solve[solve](params, x0, keys, cond, steps))
        for method, setting in solves:
            run = partial(by_solve[method.solve], params, x0, keys, cond, setting.steps)
            samples, seconds = _timed(run, repeats, patience)
            row = _row(method, setting, samples, seconds, exact.x1, metrics)
            on_row(row)
            rows.append(row.run)
            if setting.tolerance is not None and samples.times.ndim == 1:
                step_ends.append(StepEnds(method.name, setting.tolerance, _step_ends(samples)))
            advance(1, note=f"{method.name}, {row.run.setting}")
    return Comparison(
        runs=tuple(rows),
        reference=exact.info._replace(metrics=evaluated(metrics, exact.x1)),
        step_ends=tuple(step_ends),
        num_samples=len(x0),
        device=device_in_words(),
        floors={m.name: m.floor for m in metrics if m.floor is not None},
        higher_is_better=tuple(m.name for m in metrics if m.higher_is_better),
    )


def _compiled(lowered: Iterable[jax.stages.Lowered]) -> list[Callable[..., Samples]]:
    """Compile side by side, the first while the next is traced: XLA needs no interpreter."""
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as threads:
        return list(threads.map(lambda low: low.compile(), lowered))


def _timed(run: Callable[[], Samples], repeats: int, patience: float) -> tuple[Samples, float]:
    """Run once, and again while patience lasts, at most `repeats` times; median seconds."""
    seconds: list[float] = []
    while True:
        start = time.perf_counter()
        samples = jax.block_until_ready(run())
        seconds.append(time.perf_counter() - start)
        if len(seconds) >= repeats or sum(seconds) > patience:
            return samples, float(np.median(seconds))


def evaluated(metrics: Sequence[Metric], x1: np.ndarray) -> dict[str, float]:
    """The metrics of finite samples; infinite ones have none but the worst."""
    if not np.all(np.isfinite(x1)):
        return {m.name: 0.0 if m.higher_is_better else float("inf") for m in metrics}
    return {metric.name: float(metric.evaluate(x1.astype(np.float32))) for metric in metrics}


def _row(
    method: Method,
    setting: Setting,
    samples: Samples,
    seconds: float,
    exact: np.ndarray,
    metrics: Sequence[Metric],
) -> Row:
    x1 = np.asarray(samples.x1, np.float64)
    # Noise along the way leads elsewhere: there is no end point to be right or wrong about.
    errors = np.full(len(x1), np.nan) if method.family == "stochastic" else rmse(x1, exact)
    run = SolverRun(
        solver=method.name,
        steps=setting.num_steps,
        tolerance=setting.tolerance,
        nfe_mean=float(np.mean(samples.nfe)),
        nfe_max=int(np.max(samples.nfe)),
        rmse_mean=float(np.mean(errors)),
        rmse_worst=float(np.max(errors)),
        seconds=seconds,
        succeeded=float(np.mean(samples.succeeded)),
        metrics=evaluated(metrics, x1),
        family=method.family,
    )
    return Row(run, x1.astype(np.float32))


def _step_ends(samples: Samples) -> tuple[float, ...]:
    times = np.asarray(samples.times, np.float64)
    return tuple(times[np.isfinite(times)].tolist())


def device_in_words() -> str:
    """What the work runs on: "2 CPU cores", "4 x TPU v5e"."""
    device, count = jax.devices()[0], jax.device_count()
    if device.platform == "cpu":
        return f"{os.cpu_count()} CPU cores"
    return device.device_kind if count == 1 else f"{count} x {device.device_kind}"
