"""Streaming a trained DiT's samples through slots, against solving them batch by batch.

A small DiT is trained on the 8x8 digits for a while. Then `--num-samples` noises are solved by
Dopri5 at each tolerance in four ways: streamed through `--slots` slots, and in batches of as
many, each sample with its own steps (`own`), all with the same (`shared`), and by torchdiffeq's
dopri5 on the same weights (`torch`). They take turns. Run:

    python benchmarks/streaming.py

Errors are the first `NUM_CHECKED` samples', against a Dopri8 solve at 1e-7 in float64. The last
line is one JSON object. `overhead` is streaming's time over what its samples' evaluations cost at
the least: their mean number, times the samples, times the network's own time for one example in
batches of the slots, timed right before and after. `idle` is the part of it that no neighbour
on the machine can disturb: batched evaluations made over those that full slots would have taken.
`at_equal_error` is between the tolerances, at worst-sample errors that all four reach.
`--num-samples 512 --tolerances 1e-3 1e-4` is a short run.
"""

import argparse
import heapq
import math
import statistics
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from _digits import CONFIG, EVENT_SHAPE, NUM_CLASSES, train, worst_error
from _measure import median_ratio, report, spread, take_turns
from _torch_dit import TorchDiT, copy_weights
from _torch_solve import TorchSolve, torch

from fmjax._memory import keep_freed_memory
from fmjax.jobs.compare.reference import lower_reference, solve_reference
from fmjax.networks import make_dit
from fmjax.solvers import AdaptiveSteps, ErrorControl, Samples, sample

Solve = Callable[[float], Any]
NUM_CALLS = 64
NUM_CHECKED = 256
LOOSE = 0.1
# Of Dopri5: evaluations of a step whose first is the last one's, and to choose the first step.
NUM_STAGES, NUM_OPENING = 6, 2


def ours(velocity_fn: Any, x0: Any, labels: Any, size: int, control: Any, slots: Any) -> Solve:
    """Solve in batches of `size`; one program serves all tolerances."""

    @jax.jit
    def solve(x0: jax.Array, labels: jax.Array, tolerance: jax.Array) -> Samples:
        steps = AdaptiveSteps(tolerance, tolerance, control, slots=slots)
        return sample(velocity_fn, x0, labels, solver=diffrax.Dopri5(), steps=steps)

    def call(tolerance: float) -> Samples:
        parts = [
            solve(x0[i : i + size], labels[i : i + size], jnp.float32(tolerance))
            for i in range(0, len(x0), size)
        ]
        return jax.tree.map(lambda *a: np.concatenate(a), *parts)

    return call


def theirs(peer_net: TorchDiT, x0: Any, labels: Any, size: int) -> Solve:
    """The same by torchdiffeq."""
    batches = [
        TorchSolve(peer_net, np.asarray(x0[i : i + size]), np.asarray(labels[i : i + size]))
        for i in range(0, len(x0), size)
    ]
    return lambda tolerance: np.concatenate([batch(tolerance) for batch in batches])


def network_alone(velocity_fn: Any, x0: Any, labels: Any) -> Callable[[], Any]:
    """`NUM_CALLS` evaluations of one batch, one after the other."""

    @jax.jit
    def call(x0: jax.Array, labels: jax.Array) -> jax.Array:
        def step(i: Any, x: jax.Array) -> jax.Array:
            t = jnp.full(x.shape[:1], i / NUM_CALLS, x.dtype)
            return x + velocity_fn(t, x, labels) / NUM_CALLS

        return jax.lax.fori_loop(0, NUM_CALLS, step, x0)

    return lambda: jax.block_until_ready(call(x0, labels))


def batches_streamed(num_attempts: np.ndarray, slots: int) -> int:
    """Attempts that the loop makes with all its slots, until the queue's last sample arrives."""
    free_from = [0] * slots
    for attempts in num_attempts:  # The next in the queue takes the slot that is free first.
        heapq.heapreplace(free_from, free_from[0] + int(attempts))
    return max(free_from)


def at_tolerance(
    ways: dict[str, Solve], network: Any, exact: np.ndarray, tolerance: float, args: Any
) -> dict[str, Any]:
    """Seconds, errors and evaluations of each way."""
    ends: dict[str, Any] = {}

    def timed(name: str) -> None:
        ends[name] = ways[name](tolerance)

    candidates = {name: partial(timed, name) for name in ways}
    around = {"before": network, "streaming": candidates.pop("streaming"), "after": network}
    seconds = take_turns(around | candidates, args.rounds, warmup=0)
    streamed = ends["streaming"]
    full = float(streamed.nfe.sum()) / args.slots
    attempts = streamed.num_accepted + streamed.num_rejected
    made = (
        NUM_STAGES * batches_streamed(attempts, args.slots)
        + NUM_OPENING * len(attempts) / args.slots
    )
    network_seconds = [
        0.5 * (a + b) for a, b in zip(seconds["before"], seconds["after"], strict=True)
    ]
    least = [full * s / NUM_CALLS for s in network_seconds]
    low, high = spread([a / b for a, b in zip(seconds["streaming"], least, strict=True)])
    return {
        "tolerance": tolerance,
        "nfe_mean": float(streamed.nfe.mean()),
        "nfe_most": int(streamed.nfe.max()),
        "overhead": median_ratio(seconds["streaming"], least),
        "overhead_quartiles": (low, high),
        "idle": made / full,
        "network_milliseconds": 1e3 * statistics.median(network_seconds) / NUM_CALLS,
        "seconds": {name: statistics.median(seconds[name]) for name in ways},
        "error": {
            name: worst_error(getattr(end, "x1", end)[: len(exact)], exact)
            for name, end in ends.items()
        },
    }


def at_equal_error(rows: list[dict[str, Any]], names: Any) -> list[dict[str, Any]]:
    """Each way's seconds at errors that all of them reach, on the line between tolerances."""
    logs = {
        n: sorted((math.log(r["error"][n]), math.log(r["seconds"][n])) for r in rows) for n in names
    }
    low = max(each[0][0] for each in logs.values())
    high = min(each[-1][0] for each in logs.values())
    errors = [e for e in (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5) if low <= math.log(e) <= high]
    return [
        {"error": e, "seconds": {n: math.exp(_between(logs[n], math.log(e))) for n in logs}}
        for e in errors
    ]


def _between(points: list[tuple[float, float]], x: float) -> float:
    xs, ys = zip(*points, strict=True)
    return float(np.interp(x, xs, ys))


def main() -> None:
    """Train, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-samples", type=int, default=2048)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--tolerances", type=float, nargs="+", default=[1e-3, 1e-4, 1e-5, 1e-6])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--train-steps", type=int, default=300)
    args = parser.parse_args()
    if args.num_samples % args.slots:
        parser.error("--num-samples must be a multiple of --slots")
    keep_freed_memory()  # Of the whole process, so for all candidates.
    params = train(args.train_steps)
    net = make_dit(CONFIG, EVENT_SHAPE, NUM_CLASSES)
    peer_net = TorchDiT(CONFIG, EVENT_SHAPE, NUM_CLASSES)
    copy_weights(params, peer_net)
    velocity_fn = partial(net.apply, jax.device_put(params))
    x0 = jax.random.normal(jax.random.key(1), (args.num_samples, *EVENT_SHAPE))
    labels = jnp.arange(args.num_samples) % NUM_CLASSES
    own, size = ErrorControl.PER_SAMPLE, args.slots
    ways = {
        "streaming": ours(velocity_fn, x0, labels, len(x0), own, args.slots),
        "own": ours(velocity_fn, x0, labels, size, own, None),
        "shared": ours(velocity_fn, x0, labels, size, ErrorControl.LARGEST_SAMPLE, None),
        "torch": theirs(peer_net, x0, labels, size),
    }
    program = lower_reference(
        lambda params: partial(net.apply, params), params, x0[:NUM_CHECKED], labels[:NUM_CHECKED]
    )
    exact = solve_reference(program, program.lowered.compile())
    print(exact.info, file=sys.stderr, flush=True)
    network = network_alone(velocity_fn, x0[:size], labels[:size])
    network()
    for way in ways.values():
        way(LOOSE)  # Compiles.
    rows = []
    for tolerance in args.tolerances:
        rows.append(at_tolerance(ways, network, exact.x1, tolerance, args))
        print(rows[-1], file=sys.stderr, flush=True)  # It takes minutes: something to look at.
    settings = {
        "num_samples": args.num_samples,
        "slots": args.slots,
        "rounds": args.rounds,
        "uncertainty": exact.info.uncertainty,
        "jax": jax.__version__,
        "torch": torch.__version__,
    }
    found = {"rows": rows, "at_equal_error": at_equal_error(rows, ways)}
    report({"benchmark": "streaming"} | found | settings)


if __name__ == "__main__":
    main()
