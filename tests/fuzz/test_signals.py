"""SIGTERM and Ctrl-C at random moments of every command."""

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
        sampling=SamplingConfig(num_samples=16, solver="euler", num_steps=2),
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
                       samplings=(SamplingConfig(solver="euler", num_steps=2, num_samples=64),),
                       num_samples=64, num_trajectories=8)
"""
# A step of the training, and its save, take less than this; ends elsewhere do too.
END_WITHIN = 2.0


class Trial(NamedTuple):
    """What came of one command that got a signal after some seconds."""

    command: str
    number: int
    after: float
    code: int
    seconds: float
    error: str
    left: list[str]

    def wrong(self, within: float = END_WITHIN) -> str:
        """What is wrong with it; empty if nothing is."""
        finished = self.code in (0, 1) and not self.error
        # Python is still starting and has not reached the first line of fmjax.
        unborn = self.code in (-self.number, 1) and "fmjax" not in self.error
        line = re.compile(r"fmjax: stopped by SIG(TERM|INT).*; run the same command again to .*\n")
        if not finished and not unborn and self.code != 128 + self.number:
            return f"exit code {self.code}"
        if self.code == 128 + self.number and not line.fullmatch(self.error):
            return f"standard error {self.error!r}"
        if self.seconds > within:
            return f"{self.seconds:.1f} s until the end"
        return f"left {self.left}" if self.left else ""


class Scene:
    """A folder with what the commands need, made once."""

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
        """Each command, on copies in `work` of the runs that it reads."""
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
            self.call(["train", config, "--run", self.folder / run])

    def call(self, words: list[object]) -> float:
        """Run a command to its end; seconds that it took."""
        began = time.monotonic()
        done = subprocess.run(command(words), env=environment(), capture_output=True, text=True)
        assert done.returncode in (0, 1), (words, done.stderr)
        return time.monotonic() - began

    def try_signal(self, name: str, number: int, after: float, work: Path, **more: str) -> Trial:
        """Send a signal to a command after some seconds."""
        for run in ("run", "digits"):
            if (self.folder / run).is_dir() and not (work / run).exists():
                shutil.copytree(self.folder / run, work / run)
        words = self.commands(work)[name]
        with subprocess.Popen(
            command(words),
            env=environment(**more),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=work,
        ) as child:
            try:
                time.sleep(after)
                began = time.monotonic()
                child.send_signal(number)
                _, error = child.communicate(timeout=60)
            finally:
                child.kill()
        seconds = time.monotonic() - began
        return Trial(name, number, after, child.returncode, seconds, error, leftovers(work))


def command(words: list[object]) -> list[str]:
    return [sys.executable, "-m", "fmjax.cli", *map(str, words)]


def leftovers(folder: Path) -> list[str]:
    """Temporary files and folders."""
    found = (path.relative_to(folder) for path in folder.rglob("*"))
    return [str(path) for path in found if path.name.startswith(".") or "tmp" in path.name]


def sweep(folder: Path, num: int, seed: int, names: list[str] | None = None) -> list[Trial]:
    """`num` trials at random moments of random commands; what they gave is printed."""
    scene, rng, trials = Scene(folder), random.Random(seed), []
    scene.prepare()
    names = sorted(names or scene.commands(folder))
    lasts: dict[str, float] = {}
    for index in range(num):
        name, work = names[index % len(names)], folder / f"trial{index}"
        if name not in lasts:
            whole = folder / f"whole_{name}"
            for run in ("run", "digits"):
                shutil.copytree(scene.folder / run, whole / run)
            lasts[name] = scene.call(scene.commands(whole)[name])
        work.mkdir()
        number = rng.choice((signal.SIGTERM, signal.SIGINT))
        # One in four compiles everything anew.
        more = {"JAX_ENABLE_COMPILATION_CACHE": "false"} if rng.random() < 0.25 else {}
        trial = scene.try_signal(name, number, rng.uniform(0.0, lasts[name]), work, **more)
        trials.append(trial)
        sys.stdout.write(json.dumps(trial._asdict() | {"wrong": trial.wrong()}) + "\n")
        sys.stdout.flush()
        shutil.rmtree(work)
    return trials


@pytest.mark.slow
def test_a_signal_at_any_moment_of_any_command_ends_it_in_time_with_one_line(tmp_path):
    wrong = [trial for trial in sweep(tmp_path, 66, seed=0) if trial.wrong()]
    assert not wrong


if __name__ == "__main__":
    tried = sweep(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
    ends = sorted(trial.seconds for trial in tried)
    sys.stdout.write(
        f"{len(tried)} trials, {sum(bool(t.wrong()) for t in tried)} wrong, "
        f"median {ends[len(ends) // 2]:.2f} s, longest {ends[-1]:.2f} s\n"
    )
