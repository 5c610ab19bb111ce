"""Sampling a DiT: fmjax against torchdiffeq's dopri5 on the same weights, on the CPU.

A small DiT is trained on the 8x8 digits for a while, so that the field is a real one, and its
weights are copied into PyTorch. fmjax solves a batch at `--tolerance`; torchdiffeq's tolerance
is tightened from 1e-1 on, then bisected, until its worst sample ends no further from a reference
than fmjax's worst does. Then the two are timed in alternation: at equal worst-sample
error, so that a step control which neglects outliers has to pay for them. A second part times
fmjax's plain fixed-step solvers against Diffrax's. Run:

    python benchmarks/sampling.py --rounds 12

The last line is one JSON object; `dopri5_speed_ratio` and `tsit5_speed_ratio` are torchdiffeq's
time over fmjax's. Takes two to three minutes on two cores.
"""

import argparse
import os
import statistics
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
from _torch_solve import TorchSolve, torch, torchdiffeq

from fmjax import solvers
from fmjax._memory import keep_freed_memory
from fmjax.networks import make_dit
from fmjax.paths import uniform_grid
from fmjax.solvers import AdaptiveSteps, FixedSteps, Samples, sample


def loosest(peer: TorchSolve, reference: np.ndarray, error: float) -> tuple[float, float, int]:
    """The largest tolerance at least as exact as `error`: it, its error, its evaluations."""

    def attempt(exponent: float) -> tuple[bool, float]:
        found = worst_error(peer(10.0**exponent), reference)
        return found <= error, found

    for exponent in -np.arange(1.0, 6.01, 0.25):
        if attempt(float(exponent))[0]:
            break
    else:
        raise SystemExit(f"torchdiffeq does not reach an error of {error:.1e}")
    good, bad = float(exponent), float(exponent) + 0.25
    for _ in range(4):
        middle = 0.5 * (good + bad)
        good, bad = (middle, bad) if attempt(middle)[0] else (good, middle)
    _, found = attempt(good)
    return 10.0**good, found, peer.calls


def compare_adaptive(
    solve: Callable[..., Samples], peer: TorchSolve, reference: np.ndarray, args: Any
) -> dict[str, Any]:
    """Our Dopri5 and Tsit5 against torchdiffeq, each at equal worst-sample error."""
    found: dict[str, Any] = {}
    steps = AdaptiveSteps(args.tolerance, args.tolerance)
    for name, solver in (("dopri5", diffrax.Dopri5()), ("tsit5", diffrax.Tsit5())):
        ours = jax.jit(partial(solve, solver=solver))
        samples = ours(steps=steps)
        error = worst_error(samples.x1, reference)
        tolerance, peer_error, peer_nfe = loosest(peer, reference, error)
        seconds = take_turns(
            {
                "fmjax": partial(lambda ours: jax.block_until_ready(ours(steps=steps)), ours),
                "torch": partial(peer, tolerance),
            },
            args.rounds,
        )
        ratios = [b / a for a, b in zip(seconds["fmjax"], seconds["torch"], strict=True)]
        found |= {
            f"{name}_speed_ratio": median_ratio(seconds["torch"], seconds["fmjax"]),
            f"{name}_speed_ratio_quartiles": spread(ratios),
            f"{name}_seconds": statistics.median(seconds["fmjax"]),
            f"{name}_torch_seconds": statistics.median(seconds["torch"]),
            f"{name}_nfe": int(samples.nfe[0]),
            f"{name}_torch_nfe": peer_nfe,
            f"{name}_error": error,
            f"{name}_torch_error": peer_error,
            f"{name}_torch_tolerance": tolerance,
        }
    return found


def compare_fixed(solve: Callable[..., Samples], args: Any) -> dict[str, Any]:
    """The plain solvers against Diffrax's of the same name, 16 steps."""
    found: dict[str, Any] = {}
    pairs = {
        "euler": (solvers.Euler(), diffrax.Euler()),
        "midpoint": (solvers.Midpoint(), diffrax.Midpoint()),
        "heun": (solvers.Heun(), diffrax.Heun()),
    }
    for name, (plain, theirs) in pairs.items():

        def take(solver: Any) -> Callable[[], Any]:
            run = jax.jit(partial(solve, solver=solver, steps=FixedSteps(uniform_grid(16))))
            return lambda: jax.block_until_ready(run())

        seconds = take_turns({"plain": take(plain), "diffrax": take(theirs)}, args.rounds)
        found[f"{name}_plain_over_diffrax"] = median_ratio(seconds["plain"], seconds["diffrax"])
    return found


def main() -> None:
    """Train, check, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--train-steps", type=int, default=200)
    args = parser.parse_args()
    kept = keep_freed_memory()  # Of the whole process, so for both candidates.
    params = train(args.train_steps)
    net = make_dit(CONFIG, EVENT_SHAPE, NUM_CLASSES)
    peer_net = TorchDiT(CONFIG, EVENT_SHAPE, NUM_CLASSES)
    copy_weights(params, peer_net)
    x0 = jax.random.normal(jax.random.key(1), (args.batch_size, *EVENT_SHAPE))
    labels = jnp.arange(args.batch_size) % NUM_CLASSES
    params = jax.device_put(params)

    def solve(*, solver: Any, steps: Any) -> Samples:
        return sample(partial(net.apply, params), x0, labels, solver=solver, steps=steps)

    tight = jax.jit(partial(solve, solver=diffrax.Dopri8()))
    reference = np.asarray(tight(steps=AdaptiveSteps(1e-6, 1e-6)).x1, np.float64)
    peer = TorchSolve(peer_net, np.asarray(x0), np.asarray(labels))
    found = compare_adaptive(solve, peer, reference, args) | compare_fixed(solve, args)
    settings = {
        "tolerance": args.tolerance,
        "batch_size": args.batch_size,
        "rounds": args.rounds,
        "train_steps": args.train_steps,
        "keeps_freed_memory": kept,
        "jax": jax.__version__,
        "diffrax": diffrax.__version__,
        "torch": torch.__version__,
        "torchdiffeq": torchdiffeq.__version__,
        "torch_threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ["OMP_WAIT_POLICY"],
    }
    report({"benchmark": "sampling"} | found | settings)


if __name__ == "__main__":
    main()
