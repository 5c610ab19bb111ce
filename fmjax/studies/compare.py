"""Fixed against adaptive solvers on one velocity field, from shared starting points.

Every row is measured against a tight Dopri8 solve. One program is compiled for each solver:
grids of all lengths are padded to the longest, and tolerances are arguments.
"""

import itertools
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fmjax._arrays import Cond, Params, Points
from fmjax._checks import require
from fmjax._progress import Progress, Silent
from fmjax.report.comparison import Comparison, SolverRun, StepEnds
from fmjax.solvers import AdaptiveSteps, ErrorControl, FixedSteps, Samples, sample
from fmjax.studies.reference import lower_reference, rmse, solve_reference
from fmjax.times import uniform_grid
from fmjax.velocity import VelocityFn


class Metric(NamedTuple):
    """A figure of merit of the samples, in which lower is better.

    Attributes:
        name: As it stands in tables and on axes.
        evaluate: Samples `[n, *event]`, float32 in host memory, to a number.
        floor: What real data score against real data, if known.
    """

    name: str
    evaluate: Callable[[np.ndarray], float]
    floor: float | None = None


class _Solve(NamedTuple):
    """One setting of one compiled solver; `argument` is its grid or its tolerance."""

    solver: str
    steps: int | None
    tolerance: float | None
    argument: jax.Array


def compare(
    make_velocity_fn: Callable[[Params], VelocityFn],
    params: Params,
    x0: Points,
    cond: Cond = None,
    *,
    fixed: Mapping[str, Any],
    num_steps: Sequence[int],
    adaptive: Mapping[str, Any],
    tolerances: Sequence[float],
    control: ErrorControl = ErrorControl.LARGEST_SAMPLE,
    metrics: Sequence[Metric] = (),
    reference_tolerance: float | None = None,
    repeats: int = 5,
    patience: float = 0.3,
    progress: Progress = Silent(),
) -> Comparison:
    """Solve from the same `x0` with every solver at every setting, and measure each.

    Args:
        make_velocity_fn: The field of some parameters; given float64 parameters, times and
            points it must compute in float64 for the reference to be one of float64.
        params: The parameters, a pytree of arrays.
        x0: Shared starting points, float32.
        cond: What the field is conditioned on.
        fixed: Solvers that take fixed steps, by name.
        num_steps: Their steps, on uniform grids.
        adaptive: Diffrax solvers that adapt their steps, by other names.
        tolerances: Their tolerances, relative and absolute alike.
        control: Whose error decides the adaptive steps.
        metrics: Evaluated on the end points of every run.
        reference_tolerance: Of the reference; None takes 1e-7 in float64, 1e-6 in float32.
        repeats: At most so many timed solves of each row; the median counts.
        patience: Seconds after which a row is not timed again.
        progress: Hears of each compilation and row.

    Raises:
        ValueError: If there is nothing to run, or a number of steps or a tolerance is out of
            its range.
    """
    for name, values in (("num_steps", num_steps), ("tolerances", tolerances)):
        require(min(values, default=1) > 0, name, "be positive", tuple(values))
    solves = _plan(num_steps, tolerances, tuple(fixed), tuple(adaptive))
    require(bool(solves), "comparison", "have a solver and a setting", "none")
    solvers = {**fixed, **adaptive}

    def lowered(name: str, argument: jax.Array) -> jax.stages.Lowered:
        def solve(params: Params, x0: Points, cond: Cond, argument: jax.Array) -> Samples:
            steps = (
                AdaptiveSteps(argument, argument, control)
                if name in adaptive
                else FixedSteps(argument)
            )
            return sample(make_velocity_fn(params), x0, cond, solver=solvers[name], steps=steps)

        return jax.jit(solve).lower(params, x0, cond, argument)

    rows, step_ends = [], []
    with progress.task("comparing solvers", len(solves) + 1) as advance:
        reference = lower_reference(make_velocity_fn, params, x0, cond, reference_tolerance)
        arguments = {s.solver: s.argument for s in reversed(solves)}  # each one's cheapest
        programs = _compiled(
            itertools.chain([reference.lowered], itertools.starmap(lowered, arguments.items()))
        )
        exact = solve_reference(reference, programs.pop(0))
        advance(1, note="reference")
        by_name = dict(zip(arguments, programs, strict=True))
        for name, value in arguments.items():
            # A program's first run is slower by what it loads and allocates: not to be timed.
            jax.block_until_ready(by_name[name](params, x0, cond, value))
        for s in solves:
            program = by_name[s.solver]
            samples, seconds = _timed(
                lambda program=program, s=s: program(params, x0, cond, s.argument),
                repeats,
                patience,
            )
            rows.append(_row(s, samples, seconds, exact.x1, metrics))
            if s.tolerance is not None and samples.times.ndim == 1:
                step_ends.append(StepEnds(s.solver, s.tolerance, _step_ends(samples)))
            advance(1, note=f"{s.solver}, {rows[-1].setting}")
    return Comparison(
        runs=tuple(rows),
        reference=exact.info._replace(metrics=_evaluated(metrics, exact.x1)),
        step_ends=tuple(step_ends),
        num_samples=len(x0),
        device=_device_in_words(),
        floors={m.name: m.floor for m in metrics if m.floor is not None},
    )


def _plan(
    num_steps: Sequence[int],
    tolerances: Sequence[float],
    fixed: Sequence[str],
    adaptive: Sequence[str],
) -> list[_Solve]:
    longest = max(num_steps, default=1)
    grids = {
        n: jnp.concatenate([uniform_grid(n), jnp.ones(longest - n)]) for n in sorted(num_steps)
    }
    return [
        *(_Solve(name, n, None, grids[n]) for name, n in itertools.product(fixed, grids)),
        *(
            _Solve(name, None, tolerance, jnp.float32(tolerance))
            for name, tolerance in itertools.product(adaptive, sorted(tolerances, reverse=True))
        ),
    ]


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


def _evaluated(metrics: Sequence[Metric], x1: np.ndarray) -> dict[str, float]:
    """The metrics of finite samples; infinite ones have no distance but an infinite one."""
    if not np.all(np.isfinite(x1)):
        return {metric.name: float("inf") for metric in metrics}
    return {metric.name: float(metric.evaluate(x1.astype(np.float32))) for metric in metrics}


def _row(
    s: _Solve, samples: Samples, seconds: float, exact: np.ndarray, metrics: Sequence[Metric]
) -> SolverRun:
    x1 = np.asarray(samples.x1, np.float64)
    errors = rmse(x1, exact)
    return SolverRun(
        solver=s.solver,
        steps=s.steps,
        tolerance=s.tolerance,
        nfe_mean=float(np.mean(samples.nfe)),
        nfe_max=int(np.max(samples.nfe)),
        rmse_mean=float(np.mean(errors)),
        rmse_worst=float(np.max(errors)),
        seconds=seconds,
        succeeded=float(np.mean(samples.succeeded)),
        metrics=_evaluated(metrics, x1),
    )


def _step_ends(samples: Samples) -> tuple[float, ...]:
    times = np.asarray(samples.times, np.float64)
    return tuple(times[np.isfinite(times)].tolist())


def _device_in_words() -> str:
    device, count = jax.devices()[0], jax.device_count()
    if device.platform == "cpu":
        return f"{os.cpu_count()} CPU cores"
    return device.device_kind if count == 1 else f"{count} x {device.device_kind}"
