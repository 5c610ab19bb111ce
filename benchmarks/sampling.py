"""Benchmark of sampling a DiT: fmjax against torchdiffeq's dopri5 with the same weights, on a CPU.

A small DiT is trained on the 8x8 digits, so that its velocity field is realistic, and its weights
are copied to PyTorch. fmjax solves a batch at `--tolerance`. For torchdiffeq, the largest tolerance
is determined at which its worst sample has at most the error of the worst sample of fmjax: it is
decreased from 1e-1 and then bisected. Then both are timed in alternation. Because the worst-sample
errors are equal, a step control that neglects outliers has no advantage. A second part times the
fixed-step solvers of fmjax against those of Diffrax. Run:

    python benchmarks/sampling.py --rounds 12

The last line is one JSON object; `dopri5_speed_ratio` and `tsit5_speed_ratio` are the time of
torchdiffeq divided by that of fmjax. The benchmark takes two to three minutes on two cores.
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


def find_largest_tolerance(
    torch_solve: TorchSolve, reference: np.ndarray, error: float
) -> tuple[float, float, int]:
    """Return the largest tolerance of torchdiffeq with at most this error.

    Args:
        torch_solve: The solve of torchdiffeq.
        reference: Exact samples.
        error: Largest allowed worst-sample error.

    Returns:
        The tolerance, its worst-sample error, and its number of network evaluations.
    """

    def error_at(exponent: float) -> float:
        return worst_error(torch_solve(10.0**exponent), reference)

    for exponent in -np.arange(1.0, 6.01, 0.25):
        if error_at(float(exponent)) <= error:
            break
    else:
        raise SystemExit(f"torchdiffeq does not reach an error of {error:.1e}")
    accepted, rejected = float(exponent), float(exponent) + 0.25
    for _ in range(4):
        middle = 0.5 * (accepted + rejected)
        accepted, rejected = (middle, rejected) if error_at(middle) <= error else (accepted, middle)
    return 10.0**accepted, error_at(accepted), torch_solve.calls


def compare_adaptive(
    solve: Callable[..., Samples],
    torch_solve: TorchSolve,
    reference: np.ndarray,
    args: argparse.Namespace,
) -> dict[str, object]:
    """Compare Dopri5 and Tsit5 of fmjax with torchdiffeq, each at equal worst-sample error."""
    results: dict[str, object] = {}
    steps = AdaptiveSteps(args.tolerance, args.tolerance)
    for name, solver in (("dopri5", diffrax.Dopri5()), ("tsit5", diffrax.Tsit5())):
        jitted = jax.jit(partial(solve, solver=solver))
        samples = jitted(steps=steps)
        error = worst_error(samples.x1, reference)
        tolerance, torch_error, torch_nfe = find_largest_tolerance(torch_solve, reference, error)
        seconds = take_turns(
            {
                "fmjax": partial(lambda jitted: jax.block_until_ready(jitted(steps=steps)), jitted),
                "torch": partial(torch_solve, tolerance),
            },
            args.rounds,
        )
        ratios = [b / a for a, b in zip(seconds["fmjax"], seconds["torch"], strict=True)]
        results |= {
            f"{name}_speed_ratio": median_ratio(seconds["torch"], seconds["fmjax"]),
            f"{name}_speed_ratio_quartiles": spread(ratios),
            f"{name}_seconds": statistics.median(seconds["fmjax"]),
            f"{name}_torch_seconds": statistics.median(seconds["torch"]),
            f"{name}_nfe": int(samples.nfe[0]),
            f"{name}_torch_nfe": torch_nfe,
            f"{name}_error": error,
            f"{name}_torch_error": torch_error,
            f"{name}_torch_tolerance": tolerance,
        }
    return results


def compare_fixed(solve: Callable[..., Samples], args: argparse.Namespace) -> dict[str, object]:
    """Compare fixed-step solvers of fmjax with those of Diffrax, with 16 steps."""
    results: dict[str, object] = {}
    pairs = {
        "euler": (solvers.Euler(), diffrax.Euler()),
        "midpoint": (solvers.Midpoint(), diffrax.Midpoint()),
        "heun": (solvers.Heun(), diffrax.Heun()),
    }
    steps = FixedSteps(uniform_grid(16))
    for name, (plain, diffrax_solver) in pairs.items():

        def make_call(solver: object) -> Callable[[], object]:
            jitted = jax.jit(partial(solve, solver=solver, steps=steps))
            return lambda: jax.block_until_ready(jitted())

        calls = {"plain": make_call(plain), "diffrax": make_call(diffrax_solver)}
        seconds = take_turns(calls, args.rounds)
        results[f"{name}_plain_over_diffrax"] = median_ratio(seconds["plain"], seconds["diffrax"])
    return results


def main() -> None:
    """Train, measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--train-steps", type=int, default=200)
    args = parser.parse_args()
    kept = keep_freed_memory()  # This applies to the process, so to both candidates.
    params = train(args.train_steps)
    net = make_dit(CONFIG, EVENT_SHAPE, NUM_CLASSES)
    torch_net = TorchDiT(CONFIG, EVENT_SHAPE, NUM_CLASSES)
    copy_weights(params, torch_net)
    x0 = jax.random.normal(jax.random.key(1), (args.batch_size, *EVENT_SHAPE))
    labels = jnp.arange(args.batch_size) % NUM_CLASSES
    params = jax.device_put(params)

    def solve(*, solver: Any, steps: FixedSteps | AdaptiveSteps) -> Samples:
        return sample(partial(net.apply, params), x0, labels, solver=solver, steps=steps)

    reference_solve = jax.jit(partial(solve, solver=diffrax.Dopri8()))
    reference = np.asarray(reference_solve(steps=AdaptiveSteps(1e-6, 1e-6)).x1, np.float64)
    torch_solve = TorchSolve(torch_net, np.asarray(x0), np.asarray(labels))
    results = compare_adaptive(solve, torch_solve, reference, args) | compare_fixed(solve, args)
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
    report({"benchmark": "sampling"} | results | settings)


if __name__ == "__main__":
    main()
