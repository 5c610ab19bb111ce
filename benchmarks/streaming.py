"""Benchmark of streaming the samples of a DiT through slots, against solving fixed batches.

A small DiT is trained on the 8x8 digits. Then `--num-samples` source points are solved by Dopri5 at
each tolerance in four ways, in alternation: `streaming`, through `--slots` slots; and in batches of
this size with separate steps for each sample (`own`), with the same steps for all (`shared`), and
by torchdiffeq's dopri5 with the same weights (`torch`). Run:

    python benchmarks/streaming.py

Errors are those of the first `NUM_CHECKED` samples, against a Dopri8 solve at 1e-7 in float64. The
last line is one JSON object. `overhead` is the time of streaming divided by the least possible cost
of its network evaluations: their mean number, times the number of samples, times the time of the
network per example in batches of the size of the slots, which is measured right before and after.
`idle` is the part of it that does not depend on other processes: the batched evaluations that were
computed, divided by those that full slots would need. `at_equal_error` interpolates between the
tolerances, to worst-sample errors that all four ways reach. A short run has the options
`--num-samples 512 --tolerances 1e-3 1e-4`.
"""

import argparse
import heapq
import math
import statistics
import sys
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeAlias

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from _digits import CONFIG, EVENT_SHAPE, NUM_CLASSES, train, worst_error
from _measure import median_ratio, report, spread, take_turns
from _torch_dit import TorchDiT, copy_weights
from _torch_solve import TorchSolve, torch
from jaxtyping import Array, Int

from fmjax._arrays import Points
from fmjax._memory import keep_freed_memory
from fmjax.jobs.compare.reference import lower_reference, solve_reference
from fmjax.networks import make_dit
from fmjax.paths import VelocityFn
from fmjax.solvers import AdaptiveSteps, ErrorControl, Samples, sample

Labels: TypeAlias = Int[Array, " batch"]
# The argument is the tolerance. torchdiffeq returns only the samples.
Solve = Callable[[float], Samples | np.ndarray]
NUM_CALLS = 64
NUM_CHECKED = 256
WARMUP_TOLERANCE = 0.1
# Network evaluations of Dopri5 per attempted step, whose first stage reuses the last stage of the
# previous step, and for the choice of the first step size.
NUM_STAGES, NUM_FIRST_EVALUATIONS = 6, 2


def make_solve(
    velocity_fn: VelocityFn,
    x0: Points,
    labels: Labels,
    batch_size: int,
    control: ErrorControl,
    slots: int | None,
) -> Solve:
    """Return the solve of fmjax in batches; one compiled program serves all tolerances."""

    @jax.jit
    def solve(x0: Points, labels: Labels, tolerance: jax.Array) -> Samples:
        steps = AdaptiveSteps(tolerance, tolerance, control, slots=slots)
        return sample(velocity_fn, x0, labels, solver=diffrax.Dopri5(), steps=steps)

    def call(tolerance: float) -> Samples:
        batches = [
            solve(x0[i : i + batch_size], labels[i : i + batch_size], jnp.float32(tolerance))
            for i in range(0, len(x0), batch_size)
        ]
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *batches)

    return call


def make_torch_solve(torch_net: TorchDiT, x0: Points, labels: Labels, batch_size: int) -> Solve:
    """Return the solve of torchdiffeq in batches."""
    batches = [
        TorchSolve(
            torch_net, np.asarray(x0[i : i + batch_size]), np.asarray(labels[i : i + batch_size])
        )
        for i in range(0, len(x0), batch_size)
    ]
    return lambda tolerance: np.concatenate([batch(tolerance) for batch in batches])


def make_network_calls(velocity_fn: VelocityFn, x0: Points, labels: Labels) -> Callable[[], object]:
    """Return a function that evaluates the network `NUM_CALLS` times in sequence on one batch."""

    @jax.jit
    def call(x0: Points, labels: Labels) -> Points:
        def step(i: jax.Array, x: Points) -> Points:
            t = jnp.full(x.shape[:1], i / NUM_CALLS, x.dtype)
            return x + velocity_fn(t, x, labels) / NUM_CALLS

        return jax.lax.fori_loop(0, NUM_CALLS, step, x0)

    return lambda: jax.block_until_ready(call(x0, labels))


def count_streamed_batches(num_attempts: np.ndarray, slots: int) -> int:
    """Return the number of attempted steps of all slots until the last sample is finished.

    Args:
        num_attempts: Attempted steps of each sample, in the order of the queue.
        slots: Number of slots.
    """
    free_from = [0] * slots
    for attempts in num_attempts:  # The next sample enters the slot that is free first.
        heapq.heapreplace(free_from, free_from[0] + int(attempts))
    return max(free_from)


def measure_at_tolerance(
    solves: dict[str, Solve],
    network: Callable[[], object],
    exact: np.ndarray,
    tolerance: float,
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Measure seconds, errors and network evaluations of each way at one tolerance.

    Args:
        solves: The ways to solve, by name.
        network: Evaluates the network `NUM_CALLS` times.
        exact: The first samples without solver error.
        tolerance: Both tolerances.
        args: Options of the command line.
    """
    results: dict[str, Any] = {}

    def solve(name: str) -> None:
        results[name] = solves[name](tolerance)

    candidates = {name: partial(solve, name) for name in solves}
    streaming_candidates = {
        "before": network,
        "streaming": candidates.pop("streaming"),
        "after": network,
    }
    seconds = take_turns(streaming_candidates | candidates, args.rounds, warmup=0)
    streamed = results["streaming"]
    full_batches = float(streamed.nfe.sum()) / args.slots
    attempts = streamed.stats.num_accepted + streamed.stats.num_rejected
    computed_batches = (
        NUM_STAGES * count_streamed_batches(attempts, args.slots)
        + NUM_FIRST_EVALUATIONS * len(attempts) / args.slots
    )
    network_seconds = [
        0.5 * (a + b) for a, b in zip(seconds["before"], seconds["after"], strict=True)
    ]
    min_seconds = [full_batches * s / NUM_CALLS for s in network_seconds]
    low, high = spread([a / b for a, b in zip(seconds["streaming"], min_seconds, strict=True)])
    return {
        "tolerance": tolerance,
        "nfe_mean": float(streamed.nfe.mean()),
        "nfe_most": int(streamed.nfe.max()),
        "overhead": median_ratio(seconds["streaming"], min_seconds),
        "overhead_quartiles": (low, high),
        "idle": computed_batches / full_batches,
        "network_milliseconds": 1e3 * statistics.median(network_seconds) / NUM_CALLS,
        "seconds": {name: statistics.median(seconds[name]) for name in solves},
        "error": {
            name: worst_error(getattr(result, "x1", result)[: len(exact)], exact)
            for name, result in results.items()
        },
    }


def interpolate_to_equal_error(
    rows: list[dict[str, Any]], names: Iterable[str]
) -> list[dict[str, Any]]:
    """Interpolate the seconds of each way to errors that all of them reach.

    The interpolation is linear in the logarithms.

    Args:
        rows: Results of `measure_at_tolerance` at each tolerance.
        names: Names of the ways.
    """
    logs = {
        name: sorted((math.log(row["error"][name]), math.log(row["seconds"][name])) for row in rows)
        for name in names
    }
    low = max(points[0][0] for points in logs.values())
    high = min(points[-1][0] for points in logs.values())
    errors = [e for e in (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5) if low <= math.log(e) <= high]
    return [
        {"error": e, "seconds": {n: math.exp(_interpolate(logs[n], math.log(e))) for n in logs}}
        for e in errors
    ]


def _interpolate(points: list[tuple[float, float]], x: float) -> float:
    xs, ys = zip(*points, strict=True)
    return float(np.interp(x, xs, ys))


def main() -> None:
    """Train, measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-samples", type=int, default=2048)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--tolerances", type=float, nargs="+", default=[1e-3, 1e-4, 1e-5, 1e-6])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--train-steps", type=int, default=300)
    args = parser.parse_args()
    if args.num_samples % args.slots:
        parser.error("--num-samples must be a multiple of --slots")
    keep_freed_memory()  # This applies to the process, so to all candidates.
    params = train(args.train_steps)
    net = make_dit(CONFIG, EVENT_SHAPE, NUM_CLASSES)
    torch_net = TorchDiT(CONFIG, EVENT_SHAPE, NUM_CLASSES)
    copy_weights(params, torch_net)
    velocity_fn = partial(net.apply, jax.device_put(params))
    x0 = jax.random.normal(jax.random.key(1), (args.num_samples, *EVENT_SHAPE))
    labels = jnp.arange(args.num_samples) % NUM_CLASSES
    make = partial(make_solve, velocity_fn, x0, labels)
    per_sample_control, size = ErrorControl.PER_SAMPLE, args.slots
    solves = {
        "streaming": make(len(x0), per_sample_control, args.slots),
        "own": make(size, per_sample_control, None),
        "shared": make(size, ErrorControl.LARGEST_SAMPLE, None),
        "torch": make_torch_solve(torch_net, x0, labels, size),
    }
    program = lower_reference(
        lambda params: partial(net.apply, params), params, x0[:NUM_CHECKED], labels[:NUM_CHECKED]
    )
    exact = solve_reference(program, program.lowered.compile())
    print(exact.info, file=sys.stderr, flush=True)
    network = make_network_calls(velocity_fn, x0[:size], labels[:size])
    network()  # Compile.
    for solve in solves.values():
        solve(WARMUP_TOLERANCE)  # Compile.
    rows = []
    for tolerance in args.tolerances:
        rows.append(measure_at_tolerance(solves, network, exact.x1, tolerance, args))
        print(rows[-1], file=sys.stderr, flush=True)  # Progress, as each row takes minutes.
    settings = {
        "num_samples": args.num_samples,
        "slots": args.slots,
        "rounds": args.rounds,
        "uncertainty": exact.info.uncertainty,
        "jax": jax.__version__,
        "torch": torch.__version__,
    }
    results = {"rows": rows, "at_equal_error": interpolate_to_equal_error(rows, solves)}
    report({"benchmark": "streaming"} | results | settings)


if __name__ == "__main__":
    main()
