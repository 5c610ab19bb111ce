"""A complete `fmjax train` of a few seconds for tests of crashes, signals and full disks."""

import os
import sys
from pathlib import Path

from tests.quick import COMPILATION

ROOT = Path(__file__).parents[1]
CONFIG = """
from fmjax.config import *
from fmjax.data import ToyData
from fmjax.networks import MLPConfig

def get_config():
    return Config(
        name="tiny", data=ToyData("eight_gaussians"), network=MLPConfig(width=64, num_layers=2),
        loss=LossConfig(label_drop=0.0),
        training=TrainingConfig(batch_size=64, num_steps={num_steps}, log_every={log_every},
                                checkpoint_every={checkpoint_every}),
        sampling=Sampling.of(num_samples=64, solver="heun", num_steps=4),
        compare=CompareConfig(num_samples=8, num_steps=(2, 4), tolerances=(1e-2,),
                              fixed_solvers=("euler",), adaptive_solvers=("tsit5",)),
        evaluation=EvaluationConfig(num_samples=64),
    )
"""


def write_config(folder, num_steps=24, log_every=4, checkpoint_every=8):
    """Write the config file and return it."""
    file = folder / "tiny.py"
    file.write_text(
        CONFIG.format(num_steps=num_steps, log_every=log_every, checkpoint_every=checkpoint_every)
    )
    return file


def command(config, run, *options):
    """Return the command that trains the config."""
    return [sys.executable, "-m", "fmjax.cli", "train", str(config), "--run", str(run), *options]


def environment(**variables):
    """Return the environment of a subprocess that uses the devices JAX finds."""
    return os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": COMPILATION, **variables}
