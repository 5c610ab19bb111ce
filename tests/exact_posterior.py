"""A run whose posterior is exact: a network that computes the velocity of `LinearGaussian`."""

import json
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from fmjax._specs import Spec
from fmjax.config import Config, EvaluationConfig, Sampling, build
from fmjax.data import Dataset
from fmjax.paths import VelocityNet
from fmjax.runs.folder import Run, RunFolder
from fmjax.sharding import make_mesh
from tests.simulators import LinearGaussian

SIMULATOR = LinearGaussian()
EVENT, OBSERVATION = (3,), Spec((8,))
MOMENTS = {
    "x": {"mean": [0.3, -1.0, 2.0], "std": [2.0, 0.5, 1.25]},
    "cond": {"mean": np.linspace(-1, 1, 8).tolist(), "std": np.linspace(0.5, 2, 8).tolist()},
}


@dataclass(frozen=True)
class Simulations:
    """Pairs of parameters and observations of `LinearGaussian`."""

    num: int = 200

    def shape(self):
        return EVENT, OBSERVATION

    def load(self, split, *, progress):
        generator = np.random.default_rng([1, split == "test"])
        theta = SIMULATOR.sample_prior(generator, self.num)
        return Dataset(theta, cond=SIMULATOR.simulate(generator, theta))


@dataclass(frozen=True)
class ExactVelocity:
    """The velocity of the linear path to N(mean(x), C), for standardized theta and x.

    x_t is N(t m, V) with V = t^2 S + (1 - t)^2 I, and E[dx/dt | x_t] is
    m + (t S - (1 - t) I) V^-1 (x_t - t m).

    Attributes:
        standardized: Whether theta and x are standardized by `MOMENTS`.
        spread: Factor of the standard deviations of the posterior; 1 is exact.
    """

    standardized: bool = True
    spread: float = 1.0

    def make(self, event_shape, conditions):
        moments = MOMENTS if self.standardized else {}
        theta_mean, theta_std, x_mean, x_std = (
            np.full(size, moments[name][field] if moments else field == "std", np.float32)
            for name, size in (("x", 3), ("cond", 8))
            for field in ("mean", "std")
        )
        covariance = self.spread**2 * SIMULATOR.covariance() / np.outer(theta_std, theta_std)
        variances, axes = np.linalg.eigh(covariance)
        gain = SIMULATOR.covariance() @ (SIMULATOR.matrix / SIMULATOR.noise_std[:, None] ** 2).T

        def velocity(params, t, x, cond):
            t = t[:, None]
            centered = cond * x_std[None] + jnp.float32(x_mean - SIMULATOR.offset)[None]
            mean = (centered @ jnp.float32(gain.T) - theta_mean[None]) / theta_std[None]
            S = jnp.float32(variances)[None]
            rate = (t * S - (1 - t)) / (t**2 * S + (1 - t) ** 2)
            rotated = (x - t * mean) @ jnp.float32(axes)
            return mean + (rate * rotated) @ jnp.float32(axes.T) + 0.0 * params["w"]

        return VelocityNet(lambda key: {"w": jnp.zeros(())}, velocity)


def exact_run(root, *, standardized=True, spread=1.0, num_devices=8):
    """Return a run, without training, in a folder that has only its standardization."""
    config = Config(
        name="exact",
        data=Simulations(),
        network=ExactVelocity(standardized, spread),
        standardize=standardized,
        sampling=Sampling.of(num_samples=32, batch_size=32, solver="rk4", num_steps=8),
        evaluation=EvaluationConfig(
            num_samples=32, num_projections=4, num_trajectories=4, classifier=False
        ),
    )
    folder, mesh = RunFolder(root), make_mesh(devices=jax.devices()[:num_devices])
    root.mkdir(parents=True, exist_ok=True)
    folder.standardization.write_text(json.dumps(MOMENTS))
    params = {"w": jnp.zeros(())}
    experiment = build(config, EVENT, OBSERVATION)
    return Run(folder, config, experiment, EVENT, OBSERVATION, params, 7, mesh)
