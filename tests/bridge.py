"""A config file with a process of the user's own: a stochastic bridge from a shifted Gaussian."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from fmjax.config import (
    CompareConfig,
    Config,
    EvaluationConfig,
    LossConfig,
    MLPConfig,
    OptimizerConfig,
    PathSample,
    Sampling,
    TrainingConfig,
)
from fmjax.data import Dataset


@dataclasses.dataclass(frozen=True)
class Bridge:
    """Path `x_t = (1 - t) x0 + t x1 + noise sin(pi t) z` from N(mean, std^2 I), z ~ N(0, I).

    Reference: Albergo et al. 2023, arXiv:2303.08797, section 2.
    """

    mean: float = 1.0
    std: float = 0.5
    noise: float = 0.3

    def sample_source(self, keys, spec):
        normal = jax.vmap(lambda key: jax.random.normal(key, spec.shape))(keys)
        return self.mean + self.std * normal

    def interpolate(self, key, t, x0, x1):
        z = self.noise * jax.random.normal(key, x1.shape)
        t = t.reshape(-1, *[1] * (x1.ndim - 1))
        return PathSample(
            x_t=(1 - t) * x0 + t * x1 + jnp.sin(jnp.pi * t) * z,
            target=x1 - x0 + jnp.pi * jnp.cos(jnp.pi * t) * z,
        )

    def velocity_fn(self, predict_fn, prediction):
        return predict_fn

    def source_log_density(self, x0):
        log_densities = jax.scipy.stats.norm.logpdf(x0, self.mean, self.std)
        return log_densities.reshape(len(x0), -1).sum(axis=1)


@dataclasses.dataclass(frozen=True)
class Normal:
    """Points from a normal distribution with independent components."""

    mean: tuple[float, ...] = (-1.0, 2.0)
    std: tuple[float, ...] = (1.5, 0.2)
    num: int = 4096

    def shape(self):
        return (len(self.mean),), None

    def load(self, split, *, progress=None):
        generator = np.random.default_rng(["train", "test"].index(split))
        normal = generator.standard_normal((self.num, len(self.mean)))
        return Dataset((np.array(self.mean) + np.array(self.std) * normal).astype(np.float32))


def exact_velocity(process, data):
    """Return the velocity of the flow between the normal distributions of a bridge and its data.

    `x_t` is normal with mean m(t) and variance v(t) per component, so that
    `E[dx_t/dt | x_t] = m' + v' / (2 v) (x_t - m)`.
    """
    data_mean, data_std = jnp.array([data.mean]), jnp.array([data.std])

    def velocity(t, x, cond=None):
        t = t[:, None]
        mean = (1 - t) * process.mean + t * data_mean
        bridge = process.noise**2 * jnp.sin(math.pi * t) ** 2
        variance = ((1 - t) * process.std) ** 2 + (t * data_std) ** 2 + bridge
        bridge_rate = process.noise**2 * math.pi * jnp.sin(2 * math.pi * t)
        half_rate = t * data_std**2 - (1 - t) * process.std**2 + bridge_rate / 2
        return data_mean - process.mean + half_rate / variance * (x - mean)

    return velocity


def get_config():
    return Config(
        "bridge",
        data=Normal(),
        network=MLPConfig(width=16, num_layers=1),
        path=Bridge(),
        loss=LossConfig(label_drop=0.0),
        training=TrainingConfig(
            num_steps=4, batch_size=32, log_every=2, checkpoint_every=4, preview_samples=False
        ),
        optimizer=OptimizerConfig(warmup_steps=0, schedule="constant"),
        sampling=Sampling.of(num_samples=16, solver="heun", num_steps=4),
        compare=CompareConfig(
            num_samples=8, fixed_solvers=("euler",), adaptive_solvers=(), num_steps=(1, 2)
        ),
        evaluation=EvaluationConfig(num_samples=16, num_trajectories=4, classifier=False),
    )
