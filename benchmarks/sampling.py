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

# PyTorch's threads wait for one another by spinning, which takes seconds a call where other
# programs want the cores too. Must be set before torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import torch
import torchdiffeq
from _measure import median_ratio, report, spread, take_turns
from _torch_dit import TorchDiT, copy_weights

from fmjax import solvers
from fmjax._arrays import Batch
from fmjax._memory import keep_freed_memory
from fmjax.data import DigitsData
from fmjax.losses import flow_matching_objective
from fmjax.networks import DiTConfig, make_dit
from fmjax.paths import AffinePath
from fmjax.solvers import AdaptiveSteps, FixedSteps, Samples, sample
from fmjax.times import uniform_grid
from fmjax.training import OptimizerConfig, init_state, make_mesh, make_optimizer, make_train_step

NUM_CLASSES = 10


def train(config: DiTConfig, num_steps: int, batch_size: int = 128) -> dict[str, Any]:
    """Weights after `num_steps` on the digits."""
    data = DigitsData().load("train")
    x, labels = data.points(), np.asarray(data.labels)
    net, mesh = make_dit(config, x.shape[1:], NUM_CLASSES), make_mesh()
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-3), num_steps)
    state, sharding = init_state(net, optimizer, jax.random.key(0), mesh)
    objective = flow_matching_objective(net, AffinePath())
    step = make_train_step(objective, optimizer, mesh=mesh, state_sharding=sharding, ema_decay=0.99)
    rng = np.random.default_rng(0)
    for _ in range(num_steps):
        rows = rng.integers(0, len(x), batch_size)
        state, _ = step(state, Batch(jnp.asarray(x[rows]), jnp.asarray(labels[rows], jnp.int32)))
    return jax.device_get(state.ema_params)


def worst_error(x1: Any, reference: np.ndarray) -> float:
    """The largest of the samples' rms distances to the reference, in data units."""
    gap = np.asarray(x1, np.float64) - reference
    return float(np.sqrt(np.mean(gap**2, axis=(1, 2, 3))).max())


class TorchSolve:
    """torchdiffeq's dopri5 on the PyTorch network, counting its evaluations."""

    def __init__(self, net: TorchDiT, x0: np.ndarray, labels: np.ndarray):
        self.net, self.x0 = net, torch.from_numpy(x0.copy())
        self.labels, self.calls = torch.from_numpy(labels.copy()).long(), 0

    def field(self, t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The velocity of all samples at one time."""
        self.calls += 1
        return self.net(t.expand(len(x)), x, self.labels)

    def __call__(self, tolerance: float) -> np.ndarray:
        """Solve, and give the end."""
        self.calls = 0
        ends = torch.tensor([0.0, 1.0])
        with torch.inference_mode():
            path = torchdiffeq.odeint(
                self.field, self.x0, ends, rtol=tolerance, atol=tolerance, method="dopri5"
            )
        return path[-1].numpy()

    def loosest(self, reference: np.ndarray, error: float) -> tuple[float, float, int]:
        """The largest tolerance at least as exact as `error`: it, its error, its evaluations."""

        def attempt(exponent: float) -> tuple[bool, float]:
            found = worst_error(self(10.0**exponent), reference)
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
        return 10.0**good, found, self.calls


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
        tolerance, peer_error, peer_nfe = peer.loosest(reference, error)
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
    config = DiTConfig(patch_size=2, width=96, num_layers=4, num_heads=4, unroll_layers=True)
    params = train(config, args.train_steps)
    event_shape = (8, 8, 1)
    net = make_dit(config, event_shape, NUM_CLASSES)
    peer_net = TorchDiT(config, event_shape, NUM_CLASSES)
    copy_weights(params, peer_net)
    x0 = jax.random.normal(jax.random.key(1), (args.batch_size, *event_shape))
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
