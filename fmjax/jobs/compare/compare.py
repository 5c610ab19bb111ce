"""Compare fixed and adaptive solvers on one velocity field, from the same source points.

The end points of ODE solvers are compared with an accurate Dopri8 solve. One program is compiled
for each solver: time grids are padded to the longest one, and tolerances are arguments.
"""

import itertools
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Key

from fmjax._arrays import Cond, Params, Points
from fmjax._checks import require
from fmjax._progress import COMPILING, Progress, Silent
from fmjax.jobs.compare.methods import Method, Setting
from fmjax.jobs.compare.reference import lower_reference, rmse, solve_reference
from fmjax.paths import VelocityFn
from fmjax.report.comparison import Comparison, SolverRun, StepEnds
from fmjax.solvers import Samples, SolveStats


class Metric(NamedTuple):
    """A metric of sample quality.

    Attributes:
        name: Name in tables and on axes.
        evaluate: Computes the metric of samples `[n, *event]`, float32 NumPy arrays.
        floor: Value of the metric for real data compared with real data, or None if unknown.
        higher_is_better: Whether larger values are better.
    """

    name: str
    evaluate: Callable[[np.ndarray], float]
    floor: float | None = None
    higher_is_better: bool = False


class Row(NamedTuple):
    """One row of a comparison, with its end points.

    Attributes:
        run: Errors, cost and metrics.
        x1: The end points `[batch, *event]`, float32 in host memory.
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
    keys: Key[Array, " batch"] | None = None,
    metrics: Sequence[Metric] = (),
    reference_tolerance: float | None = None,
    in_float64: bool = True,
    repeats: int = 5,
    patience: float = 0.3,
    on_row: Callable[[Row], None] = lambda row: None,
    progress: Progress = Silent(),
) -> Comparison:
    """Solve from the same `x0` with each method and setting, and measure cost, error and metrics.

    Args:
        make_velocity_fn: Returns the velocity field for given parameters, for the reference. It
            must compute in float64 if parameters, times and points are float64; otherwise the
            reference is limited to float32.
        params: The parameters, a pytree of arrays.
        x0: Source points shared by all solves, float32.
        cond: Condition of the velocity field, one per sample.
        methods: The solvers and their settings (`fmjax.jobs.compare.methods`).
        keys: Random keys of the samples, `[batch]`, for stochastic methods.
        metrics: Metrics to evaluate on the end points of each row.
        reference_tolerance: Tolerance of the reference; None means 1e-7 in float64 and 1e-6 in
            float32.
        in_float64: Whether to compute the reference in float64 if the device supports it. Disable
            it for models that do not fit in memory a second time.
        repeats: Maximum number of timed solves of each row; the median time is reported.
        patience: Seconds of solving after which a row is not timed again.
        on_row: Called with each row and its end points.
        progress: Receives a report for each compilation and row.

    Raises:
        ValueError: If there is no method with a setting.
    """
    solves = [(method, setting) for method in methods for setting in method.settings]
    require(bool(solves), "comparison", "have at least one solver with a setting", "none")
    # Each program is traced and warmed up with its cheapest setting.
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
        programs = _compile_all(itertools.chain([reference.lowered], lowered))
        exact = solve_reference(reference, programs.pop(0))
        advance(1, note="reference")
        by_solve = dict(zip(cheapest, programs, strict=True))
        for solve, steps in cheapest.items():
            # The first run also loads the program and allocates memory, so it is not timed.
            jax.block_until_ready(by_solve[solve](params, x0, keys, cond, steps))
        for method, setting in solves:
            run = partial(by_solve[method.solve], params, x0, keys, cond, setting.steps)
            samples, seconds = _time(run, repeats, patience)
            row = _row(method, setting, samples, seconds, exact.x1, metrics)
            on_row(row)
            rows.append(row.run)
            stats = samples.stats
            # With separate steps for each sample, the end times are not shown.
            if setting.tolerance is not None and stats is not None and stats.step_ends.ndim == 1:
                step_ends.append(StepEnds(method.name, setting.tolerance, _step_ends(stats)))
            advance(1, note=f"{method.name}, {row.run.setting}")
    return Comparison(
        runs=tuple(rows),
        reference=exact.info._replace(metrics=evaluate_metrics(metrics, exact.x1)),
        step_ends=tuple(step_ends),
        num_samples=len(x0),
        device=device_in_words(),
        floors={m.name: m.floor for m in metrics if m.floor is not None},
        higher_is_better=tuple(m.name for m in metrics if m.higher_is_better),
    )


def _compile_all(lowered: Iterable[jax.stages.Lowered]) -> list[Callable[..., Samples]]:
    """Compile programs in parallel, and while the next is traced: XLA releases Python's lock."""
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as threads:
        return list(threads.map(lambda low: low.compile(), lowered))


def _time(run: Callable[[], Samples], repeats: int, patience: float) -> tuple[Samples, float]:
    """Run until `patience` seconds or `repeats` runs are reached; return the median seconds."""
    seconds: list[float] = []
    while True:
        start = time.perf_counter()
        samples = jax.block_until_ready(run())
        seconds.append(time.perf_counter() - start)
        if len(seconds) >= repeats or sum(seconds) > patience:
            return samples, float(np.median(seconds))


def evaluate_metrics(metrics: Sequence[Metric], x1: np.ndarray) -> dict[str, float]:
    """Evaluate metrics; return the worst values if any sample is not finite.

    Args:
        metrics: The metrics.
        x1: Samples `[n, *event]`.
    """
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
    # Stochastic solvers have no reference end point.
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
        metrics=evaluate_metrics(metrics, x1),
        family=method.family,
    )
    return Row(run, x1.astype(np.float32))


def _step_ends(stats: SolveStats) -> tuple[float, ...]:
    times = np.asarray(stats.step_ends, np.float64)
    return tuple(times[np.isfinite(times)].tolist())


def device_in_words() -> str:
    """Describe the devices of this run, such as "2 CPU cores" or "4 x TPU v5e"."""
    device, count = jax.devices()[0], jax.device_count()
    if device.platform == "cpu":
        return f"{os.cpu_count()} CPU cores"
    return device.device_kind if count == 1 else f"{count} x {device.device_kind}"
