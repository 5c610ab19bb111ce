"""A step compiled by a plan, saved, and run by a training in another process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
CONFIG = """
from fmjax.config import *
from fmjax.data import DigitsData
from fmjax.networks import DiTConfig
from fmjax.training import MeshConfig

def get_config():
    return Config(
        name="kept", data=DigitsData(), network=DiTConfig(2, 32, 2, 2), mesh=MeshConfig(1, 2),
        training=TrainingConfig(num_steps=4, batch_size=16, log_every=1),
        sampling=SamplingConfig(num_samples=10, solver="euler", num_steps=2),
        compare=CompareConfig(num_samples=8, num_steps=(2,), tolerances=(1e-1,),
                              fixed_solvers=("euler",), adaptive_solvers=("tsit5",)),
        evaluation=EvaluationConfig(num_samples=20),
    )
"""
TRAIN = """
import sys
from pathlib import Path
from fmjax.studies.configs import load_config
from fmjax.studies.train import train_folder
executable = Path(sys.argv[2]) if len(sys.argv) > 2 else None
train_folder(load_config(Path("kept.py")), Path(sys.argv[1]), executable=executable)
"""


def python(folder, *arguments):
    environment = {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "2", "XLA_FLAGS": ""}
    # Each must compile for itself what it runs.
    environment |= {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=folder, env=os.environ | environment,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def losses(run):
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_training_runs_the_step_that_a_plan_saved_and_refuses_any_other(tmp_path):
    (tmp_path / "kept.py").write_text(CONFIG)
    command = ["-m", "fmjax.cli", "plan", "kept.py", "--topology", "cpu:2", "--executable", "step"]
    planned = python(tmp_path, *command)
    assert planned.returncode == 0, planned.stderr
    for arguments in (["plain"], ["loaded", "step"]):
        done = python(tmp_path, "-c", TRAIN, *arguments)
        assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(losses(tmp_path / "loaded"), losses(tmp_path / "plain"))

    train = ["-m", "fmjax.cli", "train", "kept.py", "--executable"]
    other = python(tmp_path, *train, "step", "--training.batch-size", "32", "--run", "other")
    assert other.returncode == 2
    assert "must be of this very step, got another training, batch" in other.stderr
    assert not (tmp_path / "other").exists()
    whole = (tmp_path / "step").read_bytes()
    (tmp_path / "step").write_bytes(whole[: len(whole) // 2])
    cut = python(tmp_path, *train, "step", "--run", "other")
    assert "executable step must be whole" in cut.stderr
    missing = python(tmp_path, *train, "nowhere", "--run", "other")
    assert "executable must be one that `fmjax plan` saved, got nowhere" in missing.stderr
