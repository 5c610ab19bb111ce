"""Kill a training run at random moments, again and again, and see that nothing is lost.

A small model is trained in the plane, with a checkpoint every few steps, so that many moments are
in the middle of a save. A trial starts the run (or goes on with it), and kills it by SIGKILL after
a random time. Every start must go on from the newest checkpoint that was whole; and once a run
comes to its end, its last checkpoint and the lines of its log must be those of a run that nothing
disturbed, bit for bit. Run:

    python benchmarks/crash.py

It takes about 25 minutes for the 50 trials, and prints one JSON line.
"""

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from _measure import report

TIMES = ("examples_per_second", "teraflops_per_device", "share_of_peak")


def train(folder: Path) -> None:
    """The child: one whole run, or the rest of one."""
    from fmjax._progress import Silent
    from fmjax.config import CompareConfig, Config, LossConfig, TrainingConfig
    from fmjax.data import ToyData
    from fmjax.jobs.train.train import train_folder
    from fmjax.networks import MLPConfig

    class Loud(Silent):
        """Says what happens; no bars."""

        def say(self, line: str) -> None:
            print(line, flush=True)

        def task(self, description: str, total: int | None) -> Any:
            print(f"begins {description}", flush=True)
            return super().task(description, total)

    config = Config(
        name="crash",
        data=ToyData("eight_gaussians"),
        network=MLPConfig(width=512, num_layers=3),
        loss=LossConfig(label_drop=0.0),
        training=TrainingConfig(
            num_steps=300, batch_size=256, checkpoint_every=5, log_every=10, draw_samples=False
        ),
        compare=CompareConfig(num_samples=8),
    )
    train_folder(config, folder, progress=Loud())


def start(folder: Path) -> subprocess.Popen:
    """A child at work on the run in `folder`."""
    command = [sys.executable, __file__, "--child", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def newest(folder: Path) -> int | None:
    """The newest checkpoint that has its name, which it gets when it is whole."""
    checkpoints = folder / "checkpoints"
    steps = [int(path.name) for path in checkpoints.glob("*") if path.name.isdigit()]
    return max(steps, default=None)


def resumed(said: str) -> int | None:
    """The step that a child went on from."""
    found = re.search(r"resumed from step (\d+)", said)
    return int(found[1]) if found else None


def final(folder: Path) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    """The bits of the last checkpoint, and the lines of the log without their times."""
    import orbax.checkpoint as ocp

    last = folder / "checkpoints" / str(newest(folder))
    arrays = {}
    for part in ("ema_params", "state"):
        for name, array in ocp.PyTreeCheckpointer().restore(last / part).items():
            arrays[f"{part}.{name}"] = np.asarray(array).tobytes()
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return arrays, [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def main() -> None:
    """Kill, restart, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", type=Path)
    args = parser.parse_args()
    if args.child is not None:
        train(args.child)
        return
    rng, started = random.Random(args.seed), time.monotonic()
    kills, in_training, in_a_save, ended = 0, 0, 0, 0
    with tempfile.TemporaryDirectory() as scratch:
        calm = Path(scratch) / "calm"
        began = time.monotonic()
        said, _ = start(calm).communicate()
        length = time.monotonic() - began
        expected = final(calm)
        while kills < args.trials:
            folder, over = Path(scratch) / f"run{ended}", False
            while not over:
                before = newest(folder)
                child = start(folder)
                patience = None if kills >= args.trials else rng.uniform(0.3, 1.0) * length
                try:
                    said, _ = child.communicate(timeout=patience)
                    over = True
                except subprocess.TimeoutExpired:
                    child.kill()
                    said, _ = child.communicate()
                    kills += 1
                    in_training += "begins training" in said
                    checkpoints = (folder / "checkpoints").glob("*")
                    in_a_save += any(not path.name.isdigit() for path in checkpoints)
                if child.returncode not in (0, -9):
                    raise SystemExit(f"a run that was killed does not go on:\n{said}")
                if "begins training" in said and resumed(said) != before:
                    raise SystemExit(f"checkpoint {before} was whole, resumed {resumed(said)}")
            got, ended = final(folder), ended + 1
            if got != expected:
                raise SystemExit(f"run {ended} ended differently after {kills} kills")
            print(f"{kills} kills, {ended} runs ended alike", file=sys.stderr, flush=True)
    report(
        {
            "benchmark": "crash",
            "kills": kills,
            "during_training": in_training,
            "during_a_save": in_a_save,
            "runs_ended_bit_equal": ended,
            "seconds": time.monotonic() - started,
        }
    )


if __name__ == "__main__":
    main()
