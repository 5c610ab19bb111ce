"""Benchmark of the training loop against the bare step, and of the time to the first step.

The config is configs/digits.py. Run:

    python benchmarks/loop.py --rounds 5

`loop_over_step` is the time of `fit` (data, transfer, logs, one checkpoint per `checkpoint_every`
steps) divided by that of the same jitted step, called repeatedly with one batch on the device.
`first_step_cold_s` and `first_step_warm_s` are the seconds from the start of
`fmjax train configs/digits.py` until the first step is written to metrics.jsonl, with an empty and
with a filled compilation cache; `first_step_resumed_s` is measured for a run that resumes from a
checkpoint. `save_blocks_share` is the share of the time of the loop that it waits for saves, which
are otherwise in the background. The last line is one JSON object. The benchmark takes about five
minutes on two idle cores.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
from _measure import median_ratio, report, spread, take_turns
from jaxtyping import PyTree

from fmjax._memory import keep_freed_memory
from fmjax.config import Config, build
from fmjax.data import Dataset, batches
from fmjax.runs.load_config import load_config
from fmjax.sharding import make_mesh, put_batch
from fmjax.training import (
    Checkpoints,
    RunLogger,
    TrainState,
    fit,
    init_state,
    learning_rate_at,
    make_train_step,
)
from fmjax.training.loop import Batches

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "digits.py"


class Loop:
    """Both candidates with one compiled step; each call trains a new state for `num_steps`."""

    def __init__(self, config: Config, dataset: Dataset, num_steps: int):
        self.config, self.dataset, self.num_steps = config, dataset, num_steps
        self.experiment = build(config, dataset.event_shape, dataset.num_classes)
        self.mesh = make_mesh()
        _, sharding = self.new_state()
        self.step = make_train_step(
            self.experiment.objective,
            self.experiment.optimizer,
            mesh=self.mesh,
            state_sharding=sharding,
            ema_decay=config.training.ema_decay,
        )
        self.batch = put_batch(next(self.batches()), self.mesh)
        self.states: list[TrainState] = []

    def prepare(self, count: int) -> None:
        """Create the states of `count` calls, which is not part of the measured time."""
        self.states = [self.new_state()[0] for _ in range(count)]

    def new_state(self) -> tuple[TrainState, PyTree]:
        """Return a new training state and its shardings."""
        key = jax.random.key(self.config.training.seed)
        return init_state(self.model.net, self.experiment.optimizer, key, self.mesh)

    def batches(self) -> Batches:
        """Iterate over the batches of the data from its start."""
        return batches(self.dataset, batch_size=self.config.training.batch_size)

    def bare(self) -> None:
        """Run the training steps only."""
        state, metrics = self.states.pop(), None
        for _ in range(self.num_steps):
            state, metrics = self.step(state, self.batch)
        jax.block_until_ready((state, metrics))

    def full(self) -> None:
        """Run the training steps in the loop of `fmjax train`."""
        training = self.config.training
        with (
            tempfile.TemporaryDirectory() as folder,
            TimedCheckpoints(Path(folder) / "checkpoints") as checkpoints,
            RunLogger(folder) as logger,
        ):
            fit(
                self.states.pop(),
                self.step,
                self.batches(),
                mesh=self.mesh,
                num_steps=self.num_steps,
                checkpoints=checkpoints,
                logger=logger,
                learning_rate=lambda n: learning_rate_at(
                    self.config.optimizer, training.num_steps, n
                ),
                log_every=training.log_every,
                checkpoint_every=training.checkpoint_every,
            )


def first_step_seconds(cache: str, run: Path) -> float:
    """Return the seconds from the start of `fmjax train` until it writes a line of metrics.

    The process is then stopped by a signal, so that the next call on the same run resumes it.

    Args:
        cache: Folder of the compilation cache.
        run: The run folder.
    """
    # Remove a cache folder that the shell may have set.
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    metrics = run / "metrics.jsonl"
    num_lines = metrics.read_text().count("\n") if metrics.exists() else 0
    start = time.perf_counter()
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "fmjax.cli",
            "train",
            str(CONFIG),
            "--run",
            str(run),
            "--training.log-every",
            "1",
        ],
        env=environment | {"FMJAX_CACHE": cache},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not (metrics.exists() and metrics.read_text().count("\n") > num_lines):
        if process.poll() is not None:
            raise SystemExit(f"fmjax train ended with {process.returncode}")
        time.sleep(0.01)
    seconds = time.perf_counter() - start
    process.terminate()
    process.wait()
    return seconds


def first_steps(rounds: int) -> dict[str, list[float]]:
    """Measure cold, warm and resumed starts, with a new cache in each round."""
    seconds: dict[str, list[float]] = {"cold": [], "warm": [], "resumed": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as cache, tempfile.TemporaryDirectory() as runs:
            for start, run in (("cold", "a"), ("warm", "b"), ("resumed", "b")):
                seconds[start].append(first_step_seconds(cache, Path(runs) / run))
    return seconds


class TimedCheckpoints(Checkpoints):
    """Checkpoints that record in `blocked` how many seconds each save blocks the loop."""

    blocked: ClassVar[list[float]] = []

    def save(self, state: TrainState, extra: Mapping[str, Any]) -> None:
        """Save like `Checkpoints.save`, and record the seconds."""
        start = time.perf_counter()
        super().save(state, extra)
        self.blocked.append(time.perf_counter() - start)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--start-rounds", type=int, default=3)
    args = parser.parse_args()
    keeps_memory = keep_freed_memory()  # This applies to the process, so to both candidates.
    starts = first_steps(args.start_rounds)
    config = load_config(CONFIG)
    num_steps = config.training.checkpoint_every
    loop = Loop(config, config.data.load("train"), num_steps)
    loop.prepare(2 * (args.rounds + 1))
    seconds = take_turns({"bare": loop.bare, "full": loop.full}, args.rounds, warmup=1)
    blocked_seconds = TimedCheckpoints.blocked[1:]  # Excludes the warm-up round.
    ratios = [a / b for a, b in zip(seconds["full"], seconds["bare"], strict=True)]
    report(
        {
            "benchmark": "loop",
            "loop_over_step": median_ratio(seconds["full"], seconds["bare"]),
            "loop_over_step_quartiles": spread(ratios),
            "step_seconds": statistics.median(seconds["bare"]) / num_steps,
            "steps_per_turn": num_steps,
            "save_blocks_s": statistics.median(blocked_seconds),
            "save_blocks_share": sum(blocked_seconds) / sum(seconds["full"]),
            "rounds": args.rounds,
            "first_step_cold_s": statistics.median(starts["cold"]),
            "first_step_warm_s": statistics.median(starts["warm"]),
            "first_step_resumed_s": statistics.median(starts["resumed"]),
            "start_rounds": args.start_rounds,
            "keeps_freed_memory": keeps_memory,
            "jax": jax.__version__,
        }
    )


if __name__ == "__main__":
    main()
