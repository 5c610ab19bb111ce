"""Tests of runs with objects of a user's classes, through the command line."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from fmjax.config import serialize, user_classes
from fmjax.runs.folder import open_run
from fmjax.runs.load_config import load_config

ROOT = Path(__file__).parents[3]

OWN = """
import dataclasses
import pathlib

import jax.numpy as jnp
import numpy as np
from flax import nnx

from fmjax.config import *
from fmjax.data import Dataset

pathlib.Path("executed").touch()


@dataclasses.dataclass(frozen=True)
class Ring:
    radius: float = 1.0

    def shape(self):
        return (2,), 2

    def load(self, split, *, progress):
        angles = np.linspace(0, 2 * np.pi, 64, endpoint=False) + (split == "test")
        x = self.radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        return Dataset(x.astype(np.float32), np.arange(64) % 2, 2)


class Small(nnx.Module):
    def __init__(self, event_shape, conditions, *, width, rngs):
        self.embed = nnx.Embed(conditions.num_values + 1, width, rngs=rngs)
        self.first = nnx.Linear(event_shape[0] + 1, width, rngs=rngs)
        self.last = nnx.Linear(width, event_shape[0], rngs=rngs)

    def __call__(self, t, x, cond):
        hidden = self.first(jnp.concatenate([x, t[:, None]], axis=1)) + self.embed(cond)
        return self.last(nnx.silu(hidden))


def get_config():
    return Config(
        "own",
        data=Ring(2.0),
        network=from_nnx(Small, width=16),
        training=TrainingConfig(
            num_steps=6, batch_size=16, checkpoint_every=3, checkpoints_kept=9, log_every=3,
            preview_samples=False,
        ),
        optimizer=OptimizerConfig(warmup_steps=0, schedule="constant"),
        sampling=SamplingConfig(num_samples=8, solver="euler", num_steps=2),
        compare=CompareConfig(
            num_samples=8, fixed_solvers=("euler",), adaptive_solvers=(), num_steps=(1, 2)
        ),
        evaluation=EvaluationConfig(num_samples=16, num_trajectories=4, classifier=False),
    )
"""


def fmjax(folder, *words):
    """Run a command; return its exit code and the last line on standard error."""
    result = subprocess.run(
        [sys.executable, "-m", "fmjax.cli", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    return result.returncode, result.stderr.strip().rpartition("\n")[2]


@pytest.mark.slow
def test_a_run_with_user_classes_is_trained_resumed_and_sampled(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(OWN)
    assert fmjax(tmp_path, "train", "own.py")[0] == 0
    for num_steps in ("3", "6"):
        words = ("--run", "runs/resumed", "--training.num-steps", num_steps)
        assert fmjax(tmp_path, "train", "own.py", *words)[0] == 0
    (tmp_path / "executed").unlink()
    sample = ("sample", "runs/own", "--seed", "1", "--output", "one")
    code, error = fmjax(tmp_path, *sample)
    assert code == 2
    message = "runs/own/config.json must hold an object of a class of fmjax, or of a class in a "
    assert error.startswith(f"fmjax: error: {message}")
    assert "(--config FILE), at data, got 'Ring'" in error
    assert not (tmp_path / "executed").exists()
    assert fmjax(tmp_path, *sample, "--config", "own.py")[0] == 0
    with np.load(tmp_path / "one.npz") as samples:
        assert samples["x1"].shape == (8, 2)
        assert samples["succeeded"].all()

    monkeypatch.setattr(serialize, "_user_classes", {})
    with pytest.raises(ValueError, match="must hold an object of a class of fmjax"):
        open_run(tmp_path / "runs" / "own")
    with monkeypatch.context() as in_folder:
        in_folder.chdir(tmp_path)
        classes = list(user_classes(load_config(Path("own.py"))))
    monkeypatch.setattr(serialize, "_user_classes", {})
    unbroken = open_run(tmp_path / "runs" / "own", classes=classes)
    resumed = open_run(tmp_path / "runs" / "resumed")
    assert unbroken.step == resumed.step == 6
    jax.tree.map(np.testing.assert_array_equal, unbroken.params, resumed.params)
