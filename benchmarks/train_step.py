"""Benchmark of the training step of a DiT: fmjax against PyTorch eager, on a CPU.

The DiT has width 192, 6 layers, 3 heads and patch size 2; the data are 28x28x1 images of 10
classes, batch size 128, float32. A step samples noise and times, computes the loss and its
gradient, and updates the weights by AdamW and their moving average. Run:

    python benchmarks/train_step.py --rounds 12

Both networks have the same weights, and their outputs are compared before the timing. The last line
is one JSON object; `throughput_ratio` is the images per second of fmjax divided by those of
PyTorch, measured in alternation. The benchmark takes two to three minutes on two cores.
"""

import argparse
import dataclasses
import os
import statistics
from collections.abc import Callable

# By default, PyTorch's threads wait in busy loops, which costs seconds per call if other processes
# use the cores. This must be set before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import jax
import jax.numpy as jnp
import numpy as np
import torch
from _measure import median_ratio, report, spread, take_turns
from _torch_dit import TorchDiT, copy_weights

from fmjax._arrays import Batch
from fmjax._memory import keep_freed_memory
from fmjax.losses import flow_matching_objective
from fmjax.networks import DiTConfig, make_dit
from fmjax.paths import AffinePath
from fmjax.sharding import make_mesh
from fmjax.training import OptimizerConfig, init_state, make_optimizer, make_train_step

EVENT_SHAPE, NUM_CLASSES = (28, 28, 1), 10
LEARNING_RATE, WEIGHT_DECAY, EMA_DECAY = 1e-4, 0.01, 0.999


def jax_step(config: DiTConfig, batch: Batch, accumulation_steps: int) -> Callable[[], None]:
    """Return a function that runs one training step of fmjax and waits for it."""
    net, mesh = make_dit(config, EVENT_SHAPE, NUM_CLASSES), make_mesh()
    optimizer = make_optimizer(
        OptimizerConfig(learning_rate=LEARNING_RATE, weight_decay=WEIGHT_DECAY, clip_norm=None), 1
    )
    state, sharding = init_state(net, optimizer, jax.random.key(0), mesh)
    step = make_train_step(
        flow_matching_objective(net, AffinePath()),
        optimizer,
        mesh=mesh,
        state_sharding=sharding,
        ema_decay=EMA_DECAY,
        accumulation_steps=accumulation_steps,
    )

    def step_once() -> None:
        nonlocal state
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))

    return step_once


def torch_step(config: DiTConfig, batch: Batch) -> Callable[[], None]:
    """Return a function that runs the same step in PyTorch, with its fused AdamW."""
    net = TorchDiT(config, EVENT_SHAPE, NUM_CLASSES)
    params = list(net.parameters())
    average = [p.detach().clone() for p in params]
    optimizer = torch.optim.AdamW(
        params, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, betas=(0.9, 0.999), fused=True
    )
    x1, labels = torch.from_numpy(np.array(batch.x1)), torch.from_numpy(np.array(batch.cond)).long()

    def step_once() -> None:
        x0, t = torch.randn_like(x1), torch.rand(len(x1))
        alpha = t[:, None, None, None]
        x_t = alpha * x1 + (1 - alpha) * x0
        loss = (net(t, x_t, labels) - (x1 - x0)).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, params, 1 - EMA_DECAY)

    return step_once


def largest_difference(config: DiTConfig, seed: int = 0) -> float:
    """Return the largest difference of the outputs with equal weights, over the largest output."""
    net = make_dit(config, EVENT_SHAPE, NUM_CLASSES)
    rng = np.random.default_rng(seed)
    # The output of a new network is zero, so perturb every weight.
    params = jax.tree.map(
        lambda p: np.asarray(p) + 0.05 * rng.standard_normal(p.shape, np.float32),
        net.init(jax.random.key(seed)),
    )
    t, labels = rng.uniform(size=4).astype(np.float32), rng.integers(0, NUM_CLASSES + 1, 4)
    x = rng.standard_normal((4, *EVENT_SHAPE), np.float32)
    output = np.asarray(jax.jit(net.apply)(params, t, x, labels))
    torch_net = TorchDiT(config, EVENT_SHAPE, NUM_CLASSES)
    copy_weights(params, torch_net)
    with torch.no_grad():
        torch_output = torch_net(*map(torch.from_numpy, (t, x, labels))).numpy()
    return float(np.abs(output - torch_output).max() / np.abs(torch_output).max())


def main() -> None:
    """Compare the networks, measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--accumulation-steps", type=int, default=4)
    args = parser.parse_args()
    kept = keep_freed_memory()  # This applies to the process, so to both candidates.
    config = DiTConfig(patch_size=2, width=192, num_layers=6, num_heads=3, unroll_layers=True)
    difference = largest_difference(dataclasses.replace(config, unroll_layers=False))
    if difference > 1e-3:
        raise SystemExit(f"the networks differ by {difference:.1e} of the largest output")
    print(f"networks agree: largest difference {difference:.1e} of the largest output")
    key = jax.random.key(1)
    batch = Batch(
        x1=jax.random.normal(key, (args.batch_size, *EVENT_SHAPE)),
        cond=jnp.arange(args.batch_size) % NUM_CLASSES,
    )
    seconds = take_turns(
        {
            "fmjax": jax_step(config, batch, args.accumulation_steps),
            "torch": torch_step(config, batch),
        },
        args.rounds,
    )
    ratios = [b / a for a, b in zip(seconds["fmjax"], seconds["torch"], strict=True)]
    report(
        {
            "benchmark": "train_step",
            "throughput_ratio": median_ratio(seconds["torch"], seconds["fmjax"]),
            "throughput_ratio_quartiles": spread(ratios),
            "fmjax_seconds": statistics.median(seconds["fmjax"]),
            "torch_seconds": statistics.median(seconds["torch"]),
            "batch_size": args.batch_size,
            "accumulation_steps": args.accumulation_steps,
            "rounds": args.rounds,
            "largest_difference": difference,
            "keeps_freed_memory": kept,
            "jax": jax.__version__,
            "torch": torch.__version__,
            "torch_threads": torch.get_num_threads(),
            "omp_wait_policy": os.environ["OMP_WAIT_POLICY"],
        }
    )


if __name__ == "__main__":
    main()
