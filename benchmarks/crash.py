"""Kill a training run at random times and check that it resumes without any loss.

A small model is trained on points in the plane with a checkpoint every few steps, so that many
kills hit a save. A trial starts or resumes the run and kills it with SIGKILL after a random time.
Every start must resume from the newest complete checkpoint. At the end of a run, its last
checkpoint and the lines of its log must equal those of an uninterrupted run bit for bit. Run:

    python benchmarks/crash.py

The 50 trials take about 25 minutes. The last line is one JSON object.
"""

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
from _measure import report

# Fields of the log that depend on the speed of the machine.
TIMES = ("examples_per_second", "teraflops_per_device", "share_of_peak")


def train(folder: Path) -> None:
    """Start or resume the run in `folder` and train it to the end, in the child process."""
    from fmjax._progress import Advance, Silent
    from fmjax.config import CompareConfig, Config, LossConfig, TrainingConfig
    from fmjax.data import ToyData
    from fmjax.jobs.train.train import train_folder
    from fmjax.networks import MLPConfig

    class PrintedProgress(Silent):
        """Prints messages and the start of each task."""

        def say(self, line: str) -> None:
            print(line, flush=True)

        def task(self, description: str, total: int | None) -> AbstractContextManager[Advance]:
            print(f"begins {description}", flush=True)
            return super().task(description, total)

    config = Config(
        name="crash",
        data=ToyData("eight_gaussians"),
        network=MLPConfig(width=512, num_layers=3),
        loss=LossConfig(label_drop=0.0),
        training=TrainingConfig(
            num_steps=300, batch_size=256, checkpoint_every=5, log_every=10, preview_samples=False
        ),
        compare=CompareConfig(num_samples=8),
    )
    train_folder(config, folder, progress=PrintedProgress())


def start_child(folder: Path) -> subprocess.Popen[str]:
    """Start a child process that trains the run in `folder`."""
    command = [sys.executable, __file__, "--child", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def newest_step(folder: Path) -> int | None:
    """Return the step of the newest complete checkpoint, or None."""
    # Incomplete checkpoints have names that are not numbers.
    checkpoints = folder / "checkpoints"
    names = [entry.name for entry in checkpoints.glob("*")]
    steps = [int(name) for name in names if name.isdigit()]
    return max(steps, default=None)


def resumed_step(output: str) -> int | None:
    """Return the step that a child resumed from, or None."""
    match = re.search(r"resumed from step (\d+)", output)
    return int(match[1]) if match else None


def final_state(folder: Path) -> tuple[dict[str, bytes], list[dict[str, object]]]:
    """Return the bytes of the last checkpoint, and the log without times."""
    import orbax.checkpoint as ocp

    checkpoint = folder / "checkpoints" / str(newest_step(folder))
    arrays = {}
    for part in ("ema_params", "state"):
        for name, array in ocp.PyTreeCheckpointer().restore(checkpoint / part).items():
            arrays[f"{part}.{name}"] = np.asarray(array).tobytes()
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return arrays, [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def main() -> None:
    """Kill and resume runs, and compare them with an uninterrupted one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", type=Path)
    args = parser.parse_args()
    if args.child is not None:
        train(args.child)
        return
    rng, started_at = random.Random(args.seed), time.monotonic()
    kills, during_training, during_save, num_runs = 0, 0, 0, 0
    with tempfile.TemporaryDirectory() as scratch:
        uninterrupted = Path(scratch) / "uninterrupted"
        run_started_at = time.monotonic()
        start_child(uninterrupted).communicate()
        run_seconds = time.monotonic() - run_started_at
        expected = final_state(uninterrupted)
        while kills < args.trials:
            folder, finished = Path(scratch) / f"run{num_runs}", False
            while not finished:
                checkpoint = newest_step(folder)
                process = start_child(folder)
                kill_after = None if kills >= args.trials else rng.uniform(0.3, 1.0) * run_seconds
                try:
                    output, _ = process.communicate(timeout=kill_after)
                    finished = True
                except subprocess.TimeoutExpired:
                    process.kill()
                    output, _ = process.communicate()
                    kills += 1
                    during_training += "begins training" in output
                    checkpoints = (folder / "checkpoints").glob("*")
                    during_save += any(not entry.name.isdigit() for entry in checkpoints)
                if process.returncode not in (0, -9):
                    raise SystemExit(f"a killed run does not resume:\n{output}")
                step = resumed_step(output)
                if "begins training" in output and step != checkpoint:
                    raise SystemExit(f"newest checkpoint is {checkpoint}, but step {step} resumed")
            result, num_runs = final_state(folder), num_runs + 1
            if result != expected:
                raise SystemExit(f"run {num_runs} has another result after {kills} kills")
            print(f"{kills} kills, {num_runs} equal runs", file=sys.stderr, flush=True)
    report(
        {
            "benchmark": "crash",
            "kills": kills,
            "during_training": during_training,
            "during_a_save": during_save,
            "runs_ended_bit_equal": num_runs,
            "seconds": time.monotonic() - started_at,
        }
    )


if __name__ == "__main__":
    main()
