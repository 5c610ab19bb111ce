"""Tests of runs with objects of a user's classes, through the command line."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from fmjax import cli
from fmjax.config import Config, MLPConfig, serialize, user_classes
from fmjax.jobs.train.train import train as train_in_python
from fmjax.runs.folder import open_run
from fmjax.runs.load_config import load_config
from fmjax.runs.sampling.source_points import run_source_points
from fmjax.training import read_metrics

ROOT = Path(__file__).parents[3]

OWN = """
import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
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
        weight, mask = np.linspace(0, 1, 64), np.arange(64)[:, None] % 5 > 0
        return Dataset(x.astype(np.float32), np.arange(64) % 2, 2, weight=weight, mask=mask)


@dataclasses.dataclass(frozen=True)
class FromUniform:
    # Straight path from the uniform distribution on a square around (10, 10).
    side: float = 2.0

    def sample_source(self, keys, spec):
        uniform = jax.vmap(lambda key: jax.random.uniform(key, spec.shape))(keys)
        return 10.0 + self.side * (uniform - 0.5)

    def interpolate(self, key, t, x0, x1):
        return PathSample(x0 + t[:, None] * (x1 - x0), x1 - x0)

    def velocity_fn(self, predict_fn, prediction):
        return predict_fn

    def source_log_density(self, x0):
        inside = jnp.all(jnp.abs(x0 - 10.0) <= self.side / 2, axis=1)
        return jnp.where(inside, -2.0 * jnp.log(self.side), -jnp.inf)


class Small(nnx.Module):
    def __init__(self, event_shape, conditions, *, width, rngs):
        self.embed = nnx.Embed(conditions.num_values + 1, width, rngs=rngs)
        self.first = nnx.Linear(event_shape[0] + 1, width, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.last = nnx.Linear(width, event_shape[0], rngs=rngs)

    def __call__(self, t, x, cond):
        hidden = self.first(jnp.concatenate([x, t[:, None]], axis=1)) + self.embed(cond)
        return self.last(self.dropout(nnx.silu(hidden)))


@dataclasses.dataclass(frozen=True)
class Lion:
    rate: float = 1.0

    def make(self, num_steps):
        return optax.lion(self.rate)

    def learning_rate_at(self, num_steps, step):
        return self.rate


def get_config():
    return Config(
        "own",
        data=Ring(2.0),
        network=from_nnx(Small, width=16),
        path=FromUniform(),
        training=TrainingConfig(
            num_steps=6, batch_size=16, checkpoint_every=3, checkpoints_kept=9, log_every=3,
            preview_samples=False,
        ),
        optimizer=Lion(),
        sampling=Sampling.of(num_samples=8, solver="euler", num_steps=2),
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


def train(*options):
    """Run `fmjax train own.py` in this process; it exits with 0."""
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["train", "own.py", *options])
    assert exit_info.value.code == 0


@pytest.mark.slow
def test_a_run_with_user_classes_is_trained_resumed_and_sampled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.setattr(serialize, "_user_classes", {})
    rate = ("--optimizer.rate", "1e-3")
    train(*rate)
    with monkeypatch.context() as without_results:
        without_results.setattr("fmjax.jobs.report.results.make_results", lambda run, progress: ())
        for num_steps in ("3", "6"):
            train(*rate, "--run", "runs/resumed", "--training.num-steps", num_steps)
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
    classes = list(user_classes(load_config(Path("own.py"))))
    monkeypatch.setattr(serialize, "_user_classes", {})
    logged = [line["learning_rate"] for line in read_metrics(tmp_path / "runs/own/metrics.jsonl")]
    assert logged == pytest.approx([1e-3] * 3)
    unbroken = open_run(tmp_path / "runs" / "own", classes=classes)
    resumed = open_run(tmp_path / "runs" / "resumed")
    assert unbroken.step == resumed.step == 6
    jax.tree.map(np.testing.assert_array_equal, unbroken.params, resumed.params)
    x0 = np.asarray(run_source_points(unbroken)(0, np.arange(64)))
    assert 0.9 < np.abs(x0 - 10.0).max() <= 1.0


def test_data_that_load_no_dataset_are_refused(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Plain:
        def shape(self):
            return (2,), None

        def load(self, split, *, progress):
            return np.zeros((8, 2))

    message = r"Plain.load must return a Dataset, got float64 of shape \(8, 2\)"
    with pytest.raises(ValueError, match=message):
        train_in_python(Config("own", data=Plain(), network=MLPConfig()), tmp_path / "run")
    assert not (tmp_path / "run").exists()
