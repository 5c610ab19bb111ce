"""Posterior of a simulator's parameters given an observation, learned from simulated pairs.

fmjax train configs/posterior.py
fmjax train configs/posterior.py --data.simulator linear_gaussian --run runs/linear_gaussian

The data are the parameters theta, the condition is the observation. For your own simulator, replace
the two functions `_two_moons` and `_linear_gaussian`, and the shapes in `SIMULATORS`. Afterwards:

    import fmjax
    posterior = fmjax.Posterior(fmjax.open_run("runs/posterior", classes=[Simulations]))
    theta = posterior.sample(10_000, observation)
    nats = posterior.log_prob(theta, observation)

docs/posterior.md describes the page and has measured figures.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from fmjax.config import (
    CompareConfig,
    Config,
    EvaluationConfig,
    LogitNormal,
    LossConfig,
    MLPConfig,
    OptimizerConfig,
    Sampling,
    Spec,
    TrainingConfig,
)
from fmjax.data import Dataset


class Simulator(NamedTuple):
    """A prior and a simulator.

    Attributes:
        num_parameters: Number of parameters.
        num_values: Number of values of an observation.
        simulate: `(generator, num) -> (theta [num, parameters], observations [num, values])`.
    """

    num_parameters: int
    num_values: int
    simulate: Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]


def _two_moons(generator: np.random.Generator, num: int) -> tuple[np.ndarray, np.ndarray]:
    """Simulate two moons: the posterior is two thin crescents.

    Reference: Greenberg et al. 2019, arXiv:1905.07488; Lueckmann et al. 2021, arXiv:2101.04653,
        task T.8.
    """
    theta = generator.uniform(-1.0, 1.0, (num, 2))
    angle = generator.uniform(-np.pi / 2, np.pi / 2, num)
    radius = generator.normal(0.1, 0.01, num)
    crescent = np.stack([radius * np.cos(angle) + 0.25, radius * np.sin(angle)], axis=1)
    total, difference = theta[:, 0] + theta[:, 1], theta[:, 1] - theta[:, 0]
    return theta, crescent + np.stack([-np.abs(total), difference], axis=1) / np.sqrt(2.0)


def _linear_gaussian(generator: np.random.Generator, num: int) -> tuple[np.ndarray, np.ndarray]:
    """Simulate x = A theta + b + noise, with theta ~ N(0, I): the posterior is a Gaussian."""
    matrix = np.random.default_rng(0).uniform(-1.0, 1.0, (8, 3))
    theta = generator.standard_normal((num, 3))
    noise = np.linspace(0.5, 1.0, 8) * generator.standard_normal((num, 8))
    return theta, theta @ matrix.T + np.linspace(-1.0, 2.0, 8) + noise


SIMULATORS = {
    "two_moons": Simulator(2, 2, _two_moons),
    "linear_gaussian": Simulator(3, 8, _linear_gaussian),
}


@dataclass(frozen=True)
class Simulations:
    """Simulated pairs of parameters and observations.

    Attributes:
        simulator: Name of the simulator.
        num_train: Number of pairs for training.
        num_test: Number of pairs for the checks of calibration.
        seed: Seed of the simulations; the train and test splits are independent.
    """

    simulator: Literal["two_moons", "linear_gaussian"] = "two_moons"
    num_train: int = 500_000
    num_test: int = 2_000
    seed: int = 0

    def shape(self) -> tuple[tuple[int, ...], Spec]:
        """Return the shape of the parameters and the description of an observation."""
        simulator = SIMULATORS[self.simulator]
        return (simulator.num_parameters,), Spec((simulator.num_values,))

    def load(self, split: str, *, progress: object = None) -> Dataset:
        """Simulate one split."""
        num = self.num_train if split == "train" else self.num_test
        generator = np.random.default_rng([self.seed, split == "test"])
        theta, observations = SIMULATORS[self.simulator].simulate(generator, num)
        return Dataset(theta.astype(np.float32), cond=observations.astype(np.float32))


def get_config() -> Config:
    """Return the posterior of two moons, learned by an MLP."""
    return Config(
        name="posterior",
        data=Simulations(),
        standardize=True,
        network=MLPConfig(width=64, num_layers=4, unroll_layers=True),
        loss=LossConfig(density=LogitNormal(0.5, 1.5), stratified=True, label_drop=0.0),
        optimizer=OptimizerConfig(learning_rate=2e-3, schedule="cosine", warmup_steps=100),
        training=TrainingConfig(
            num_steps=6_000,
            batch_size=1_024,
            ema_decay=0.999,
            log_every=100,
            checkpoint_every=1_000,
        ),
        sampling=Sampling.of(num_samples=2_000, batch_size=2_000, solver="tsit5"),
        compare=CompareConfig(num_samples=512),
        evaluation=EvaluationConfig(num_samples=10_000, classifier=False),
    )
