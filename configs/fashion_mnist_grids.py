"""Study of time grids on Fashion-MNIST: uniform, EDM and calibrated.

fmjax study configs/fashion_mnist_grids.py

The linear model of `configs/fashion_mnist_study.py` is sampled by the Euler and Heun methods with
4, 8 and 16 steps on each grid.
"""

from pathlib import Path

from fmjax.config import Sampling, StudyConfig
from fmjax.runs.load_config import load_study


def get_study() -> StudyConfig:
    """Return the study, with 1,000 samples per row of the table."""
    study = load_study(Path(__file__).with_name("fashion_mnist_study.py"))
    return StudyConfig(
        name="fashion_mnist_grids",
        runs=study.runs[:1],
        samplings=tuple(
            Sampling.of(solver=solver, num_steps=num_steps, grid=grid)
            for solver in ("euler", "heun")
            for grid in ("uniform", "edm", "calibrated")
            for num_steps in (4, 8, 16)
        ),
        num_samples=1_000,
    )
