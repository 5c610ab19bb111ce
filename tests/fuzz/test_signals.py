"""Tests of SIGTERM and SIGINT at random times of every command.

`python -m tests.fuzz.test_signals FOLDER NUM_TRIALS SEED [COMMAND ...]` prints each trial.
"""

import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from tests.golden_models import GOLDEN
from tests.tiny_run import environment, write_config

PIPELINE = GOLDEN / "sd3-pipeline-tiny"
DIGITS = """
from fmjax.config import *
from fmjax.data import DigitsData
from fmjax.networks import DiTConfig

def get_config():
    return Config(
        name="digits", data=DigitsData(), network=DiTConfig(width=16, num_layers=1, num_heads=2,
        patch_size=4), training=TrainingConfig(num_steps=2, batch_size=16, log_every=1),
        sampling=Sampling.of(num_samples=16, solver="euler", num_steps=2),
        compare=CompareConfig(num_samples=8, num_steps=(2,), tolerances=(1e-1,),
                              fixed_solvers=("euler",), adaptive_solvers=("tsit5",)),
        evaluation=EvaluationConfig(num_samples=64),
    )
"""
STUDY = """
import sys
sys.path.insert(0, {folder!r})
from fmjax.config import *
import tiny

def get_study():
    import dataclasses
    base = dataclasses.replace(tiny.get_config(), training=TrainingConfig(
        batch_size=64, num_steps=100, log_every=10, checkpoint_every=20))
    return StudyConfig(name="study", runs=(base, dataclasses.replace(base, name="other")),
                       samplings=(Sampling.of(solver="euler", num_steps=2, num_samples=64),),
                       num_samples=64, num_trajectories=8)
"""
# Maximum seconds between the signal and the exit; longer than a training step and its checkpoint.
EXIT_TIMEOUT = 2.0


class Trial(NamedTuple):
    """Result of a command that received a signal.

    Attributes:
        command: Name of the command.
        signal_number: The signal.
        delay: Seconds from the start of the command to the signal.
        code: Exit code.
        seconds: Seconds from the signal to the exit.
        stderr: Text on standard error.
        leftovers: Temporary files and folders that remain.
    """

    command: str
    signal_number: int
    delay: float
    code: int
    seconds: float
    stderr: str
    leftovers: list[str]

    def problem(self, timeout: float = EXIT_TIMEOUT) -> str:
        """Describe the first problem; empty if there is none."""
        number = self.signal_number
        finished = self.code in (0, 1) and not self.stderr
        # The signal arrived while Python was starting, before it imported fmjax.
        not_started = self.code in (-number, 1) and "fmjax" not in self.stderr
        line = re.compile(r"fmjax: stopped by SIG(TERM|INT).*; run the same command again to .*\n")
        if not finished and not not_started and self.code != 128 + number:
            return f"exit code {self.code}"
        if self.code == 128 + number and not line.fullmatch(self.stderr):
            return f"standard error {self.stderr!r}"
        if self.seconds > timeout:
            return f"{self.seconds:.1f} s until the exit"
        return f"temporary files {self.leftovers}" if self.leftovers else ""


class Inputs:
    """A folder with the configs, images and runs that the commands read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tiny = write_config(folder, 400, 10, 100)
        self.digits, self.study = folder / "digits.py", folder / "study.py"
        self.digits.write_text(DIGITS)
        self.study.write_text(STUDY.format(folder=str(folder)))
        self.images = folder / "images"
        self.images.mkdir()
        rng = np.random.default_rng(0)
        for number in range(9):
            pixels = rng.integers(0, 256, (40, 36, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(self.images / f"{number}.png")
            (self.images / f"{number}.txt").write_text(f"a photo of the dog {number}")

    def commands(self, work: Path) -> dict[str, list[object]]:
        """Arguments of each command, for copies of the runs in the folder `work`."""
        run, digits = work / "run", work / "digits"
        return {
            "train": ["train", self.tiny, "--run", work / "new"],
            "sample": ["sample", run],
            "compare": ["compare", run],
            "evaluate": ["evaluate", run],
            "likelihood": ["likelihood", run, "--num-examples", 64],
            "invert": ["invert", digits],
            "reflow": ["reflow", run, "--run", work / "next", "--training.num-steps", 100],
            "study": ["study", self.study, "--output", work / "study"],
            "plan": ["plan", self.tiny, "--topology", "cpu:2", "--json", work / "plan.json"],
            "encode": [
                "encode",
                PIPELINE,
                self.images,
                "--size",
                32,
                "--examples-per-shard",
                4,
                "--output",
                work / "encoded",
            ],
            "generate": [
                "generate",
                PIPELINE,
                "a dog",
                "--height",
                32,
                "--width",
                32,
                "--num-steps",
                4,
                "--output",
                work / "dog.png",
            ],
        }

    def prepare(self) -> None:
        """Train the runs that the other commands read."""
        for config, run in ((self.tiny, "run"), (self.digits, "digits")):
            self.run(["train", config, "--run", self.folder / run])

    def run(self, arguments: list[object]) -> float:
        """Run a command until it exits; return its duration in seconds."""
        start = time.monotonic()
        command = fmjax_command(arguments)
        result = subprocess.run(command, env=environment(), capture_output=True, text=True)
        assert result.returncode in (0, 1), (arguments, result.stderr)
        return time.monotonic() - start

    def send_signal(
        self, name: str, number: int, delay: float, work: Path, **variables: str
    ) -> Trial:
        """Start a command and send it a signal after `delay` seconds."""
        for run in ("run", "digits"):
            if (self.folder / run).is_dir() and not (work / run).exists():
                shutil.copytree(self.folder / run, work / run)
        arguments = self.commands(work)[name]
        with subprocess.Popen(
            fmjax_command(arguments),
            env=environment(**variables),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=work,
        ) as child:
            try:
                time.sleep(delay)
                start = time.monotonic()
                child.send_signal(number)
                _, stderr = child.communicate(timeout=60)
            finally:
                child.kill()
        seconds = time.monotonic() - start
        remaining = temporary_files(work)
        return Trial(name, number, delay, child.returncode, seconds, stderr, remaining)


def fmjax_command(arguments: list[object]) -> list[str]:
    return [sys.executable, "-m", "fmjax.cli", *map(str, arguments)]


def temporary_files(folder: Path) -> list[str]:
    files = (file.relative_to(folder) for file in folder.rglob("*"))
    return [str(file) for file in files if file.name.startswith(".") or "tmp" in file.name]


def run_trials(
    folder: Path, num_trials: int, seed: int, names: list[str] | None = None
) -> list[Trial]:
    """Send signals at random times to the commands in turn, and print each trial."""
    inputs, rng, trials = Inputs(folder), random.Random(seed), []
    inputs.prepare()
    names = sorted(names or inputs.commands(folder))
    durations: dict[str, float] = {}
    for index in range(num_trials):
        name, work = names[index % len(names)], folder / f"trial{index}"
        if name not in durations:
            uninterrupted = folder / f"uninterrupted_{name}"
            for run in ("run", "digits"):
                shutil.copytree(inputs.folder / run, uninterrupted / run)
            durations[name] = inputs.run(inputs.commands(uninterrupted)[name])
        work.mkdir()
        number = rng.choice((signal.SIGTERM, signal.SIGINT))
        # A quarter of the trials compile everything.
        variables = {"JAX_ENABLE_COMPILATION_CACHE": "false"} if rng.random() < 0.25 else {}
        delay = rng.uniform(0.0, durations[name])
        trial = inputs.send_signal(name, number, delay, work, **variables)
        trials.append(trial)
        sys.stdout.write(json.dumps(trial._asdict() | {"problem": trial.problem()}) + "\n")
        sys.stdout.flush()
        shutil.rmtree(work)
    return trials


@pytest.mark.slow
def test_signals_at_random_times_end_every_command_with_one_line(tmp_path):
    failures = [trial for trial in run_trials(tmp_path, 66, seed=0) if trial.problem()]
    assert not failures


if __name__ == "__main__":
    all_trials = run_trials(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
    exit_times = sorted(trial.seconds for trial in all_trials)
    sys.stdout.write(
        f"{len(all_trials)} trials, {sum(bool(t.problem()) for t in all_trials)} failures, "
        f"median {exit_times[len(exit_times) // 2]:.2f} s, longest {exit_times[-1]:.2f} s\n"
    )
