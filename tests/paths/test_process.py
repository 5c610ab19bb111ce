"""Tests of the process protocols: `AffinePath` and processes of a user."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax import Batch, log_density
from fmjax._specs import Spec
from fmjax.config import Config, LossConfig, MeanFlowConfig, MLPConfig, Sampling, build
from fmjax.losses import flow_matching_objective, mean_flow_objective
from fmjax.paths import (
    AffinePath,
    FlowMapNet,
    PathSample,
    Prediction,
    Process,
    VarianceExploding,
    VelocityNet,
    VelocityProcess,
    interpolate,
    sample_source,
    source_keys,
)
from fmjax.runs.sampling.batches import make_batch_solver, seed_data
from fmjax.sharding import make_mesh
from fmjax.solvers import RK4, FixedSteps, Model, sample
from fmjax.training import init_state, make_optimizer, make_train_step
from tests.affine import SCHEDULES
from tests.bridge import Bridge, Normal, exact_velocity, get_config

SPEC = Spec((3,))
KEYS = source_keys(jax.random.key(5), jnp.arange(6))


@pytest.mark.parametrize("name", SCHEDULES)
def test_an_affine_path_is_a_velocity_process(name):
    path = AffinePath(SCHEDULES[name][0])
    assert isinstance(path, VelocityProcess)
    x0 = path.sample_source(KEYS, SPEC)
    # A sample depends on its key only, and is sigma(0) times standard normal noise.
    np.testing.assert_array_equal(x0[2:4], path.sample_source(KEYS[2:4], SPEC))
    noise = jnp.stack([jax.random.normal(key, (3,)) for key in KEYS])
    np.testing.assert_allclose(x0, path.start(noise), rtol=1e-6)
    t, x1 = jnp.linspace(0.0, 1.0, 6), jnp.arange(18.0).reshape(6, 3) / 9 - 1
    for got, expected in zip(
        path.interpolate(jax.random.key(0), t, x0, x1), path(t, noise, x1), strict=True
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    scale = path.schedule.sigma(jnp.zeros(()))
    expected = jax.scipy.stats.norm.logpdf(x0, scale=scale).sum(axis=1)
    np.testing.assert_allclose(path.source_log_density(x0), expected, rtol=1e-5)


def test_variance_exploding_training_starts_where_sampling_starts():
    """Both begin at sigma(0) times the noise, and the noise prediction is trained on unit noise."""
    net = VelocityNet(lambda key: {}, lambda params, t, x, cond=None: x)
    path = AffinePath(VarianceExploding(0.01, 20.0))
    batch, key = Batch(jnp.zeros((512, 2))), jax.random.key(0)
    noise = flow_matching_objective(net, path, prediction=Prediction.X0).make_examples(key, batch)
    scale = path.schedule.sigma(noise.t)[:, None]
    np.testing.assert_allclose(noise.x_t, scale * noise.target, rtol=1e-5)
    # 1,024 numbers: standard error sqrt(2 / 1024) of the variance.
    assert abs(float(jnp.var(noise.target)) - 1.0) < 4 * np.sqrt(2 / 1024)


@dataclasses.dataclass(frozen=True)
class At:
    """All training times are equal."""

    t: float

    def quantile(self, u):
        return jnp.full_like(u, self.t)


@pytest.mark.parametrize("t", [0.0, 0.3, 0.8, 1.0])
def test_examples_of_a_bridge_have_the_exact_marginal_velocity(t):
    process, data, num = Bridge(), Normal(num=1 << 15), 1 << 15
    net = VelocityNet(lambda key: {}, lambda params, t, x, cond=None: x)
    objective = flow_matching_objective(net, process, density=At(t))
    x1 = jnp.asarray(data.load("train").points())
    x_t, target = jax.jit(objective.make_examples)(jax.random.key(0), Batch(x1))[1:3]
    velocity = exact_velocity(process, data)(jnp.full(num, t), x_t)
    residual, x = np.asarray(target - velocity), np.asarray(x_t)
    # The best prediction leaves residuals with mean zero that are uncorrelated with x_t. Their
    # mean and correlation have the standard errors std / sqrt(n) and 1 / sqrt(n).
    for k in range(2):
        assert abs(residual[:, k].mean()) < 4 * residual[:, k].std() / np.sqrt(num) + 1e-6
        assert abs(np.corrcoef(residual[:, k], x[:, k])[0, 1]) < 4 / np.sqrt(num)


def test_samples_of_a_bridge_have_the_mean_and_covariance_of_the_data():
    process, data, num = Bridge(), Normal(), 1 << 14
    spec = Spec((2,))
    x0 = sample_source(process, source_keys(jax.random.key(1), jnp.arange(num)), spec)
    assert x0.shape == (num, 2)
    steps = FixedSteps(jnp.linspace(0.0, 1.0, 41))
    velocity = process.velocity_fn(exact_velocity(process, data), Prediction.VELOCITY)
    x1 = np.asarray(sample(velocity, x0, solver=RK4(), steps=steps).x1, np.float64)
    # The flow of normal distributions is affine: it maps mean + std z to mean + std z.
    z = (np.asarray(x0, np.float64) - process.mean) / process.std
    np.testing.assert_allclose(x1, np.array(data.mean) + np.array(data.std) * z, atol=1e-3)
    # Standard errors: std / sqrt(n) of the mean, and std_i std_j sqrt(1 + [i = j]) / sqrt(n).
    error = np.array(data.std) / np.sqrt(num)
    assert np.all(np.abs(x1.mean(axis=0) - data.mean) < 4 * error)
    products = np.outer(data.std, data.std)
    difference = np.cov(x1.T) - np.diag(np.square(data.std))
    assert np.all(np.abs(difference) < 4 * products * np.sqrt(2 / num))


@dataclasses.dataclass(frozen=True)
class StudentT(Bridge):
    """Straight path from independent Student-t numbers."""

    freedom: float = 3.0

    def sample_source(self, keys, spec):
        return jax.vmap(lambda key: jax.random.t(key, self.freedom, spec.shape))(keys)

    def source_log_density(self, x0):
        return jax.scipy.stats.t.logpdf(x0, self.freedom).sum(axis=1)


@pytest.mark.slow
def test_likelihood_uses_the_density_of_the_source():
    process, mean, std = StudentT(), 0.7, 1.8

    def velocity(t, x, cond=None):
        # The straight flow from x0 to mean + std x0.
        t = t[:, None]
        return mean + (std - 1) * (x - t * mean) / (1 - t + t * std)

    x0 = process.sample_source(KEYS, SPEC)
    x1 = mean + std * x0
    solved = log_density(velocity, x1, source_log_density=process.source_log_density)
    expected = jax.scipy.stats.t.logpdf(x1, process.freedom, mean, std).sum(axis=1)
    np.testing.assert_allclose(solved.log_density, expected, atol=1e-3)
    with pytest.raises(ValueError, match="source_scale must be 1 with source_log_density, got 2"):
        log_density(velocity, x1, source_scale=2.0, source_log_density=lambda x0: x0[:, 0])
    with pytest.raises(
        ValueError, match=r"source_log_density must return shape \(6,\), got \(6, 3"
    ):
        log_density(velocity, x1, source_log_density=lambda x0: x0)


def trained(num_devices, num_steps=3):
    """Train the bridge for a few steps on some devices, and sample from it."""
    config = get_config()
    experiment = build(config, (2,), None)
    mesh = make_mesh(devices=jax.devices()[:num_devices])
    optimizer = make_optimizer(config.optimizer, num_steps)
    state, sharding = init_state(experiment.model.net, optimizer, jax.random.key(0), mesh=mesh)
    step = make_train_step(experiment.objective, optimizer, mesh=mesh, state_sharding=sharding)
    x1 = jnp.asarray(config.data.load("train").points(np.arange(32)))
    for _ in range(num_steps):
        state, metrics = step(state, Batch(x1))
    steps = config.sampling.steps(experiment.model)

    def solve(params, x0, keys, cond, steps):
        return sample(experiment.model.velocity_fn(params), x0, solver=RK4(), steps=steps)

    solver = make_batch_solver(experiment.model.process, solve, steps, (2,), mesh)
    return metrics.loss, state.params, solver(state.params, seed_data(1), jnp.arange(16), None).x1


@pytest.mark.slow
def test_training_and_samples_of_a_bridge_are_equal_on_eight_devices_and_one():
    eight, one = trained(8), trained(1)
    # Sums over devices are rounded in another order; Adam's step has size 1e-3 at most.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), eight, one)


@dataclasses.dataclass(frozen=True)
class OnlyProcess:
    """A process without a velocity."""

    def sample_source(self, keys, spec):
        return jnp.zeros((len(keys), *spec.shape))

    def interpolate(self, key, t, x0, x1):
        return PathSample(x1, x1)


@dataclasses.dataclass(frozen=True)
class WrongSource(Bridge):
    def sample_source(self, keys, spec):
        return jnp.zeros(spec.shape)


@dataclasses.dataclass(frozen=True)
class WrongTarget(Bridge):
    def interpolate(self, key, t, x0, x1):
        return PathSample(x1, t)


@dataclasses.dataclass(frozen=True)
class NoPair(Bridge):
    def interpolate(self, key, t, x0, x1):
        return x1


def built(path, **settings):
    return build(Config("x", network=MLPConfig(8, 1), path=path, **settings), (2,), None)


def examples(path):
    objective = built(path, loss=LossConfig(label_drop=0.0)).objective
    return objective.make_examples(jax.random.key(0), Batch(jnp.zeros((4, 2))))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: built(OnlyProcess()),
            "path must have a method velocity_fn, like every VelocityProcess, got an OnlyProcess",
        ),
        (
            lambda: built(OnlyProcess(), loss=MeanFlowConfig()),
            "path must have a method velocity_fn, like every VelocityProcess, got an OnlyProcess",
        ),
        (
            lambda: Model(VelocityNet(dict, dict), OnlyProcess()).velocity_fn({}),
            "path must have a method velocity_fn, like every VelocityProcess, got an OnlyProcess",
        ),
        (
            lambda: mean_flow_objective(FlowMapNet(dict, dict), OnlyProcess()),
            "path must have a method velocity_fn",
        ),
        (
            lambda: built(Bridge(), loss=LossConfig(prediction=Prediction.X1)),
            "prediction must be velocity for a Bridge, which is not an AffinePath, got x1",
        ),
        (
            lambda: built(Bridge(), loss=LossConfig(space=Prediction.X1)),
            "space must be velocity for a Bridge, which is not an AffinePath, got x1",
        ),
        (
            lambda: built(Bridge(), sampling=Sampling.of(solver="ddim", num_steps=4)),
            "sampling.solver must be an ODE solver for a Bridge, which is not an AffinePath",
        ),
        (
            lambda: built(Bridge(), sampling=Sampling.of(solver="sea", num_steps=4)),
            "sampling.solver must be an ODE solver for a Bridge, which is not an AffinePath",
        ),
        (
            lambda: built(Bridge(), sampling=Sampling.of(num_steps=4, grid="edm")),
            "sampling.grid must not be edm without an AffinePath, got a Bridge",
        ),
        (
            lambda: Sampling.of(num_steps=4, grid="edm").steps(Model(None, Bridge())),
            "grid must not be edm without an AffinePath, got edm",
        ),
        (lambda: examples(WrongSource()), r"WrongSource.sample_source must return shape \(4, 2\)"),
        (lambda: examples(WrongTarget()), r"WrongTarget.interpolate must return shape \(4, 2\)"),
        (lambda: examples(NoPair()), r"NoPair.interpolate must return a PathSample\(x_t, target\)"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_unsuitable_processes_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_source_points_of_a_batch_take_precedence():
    net = VelocityNet(lambda key: {}, lambda params, t, x, cond=None: x)
    objective = flow_matching_objective(net, Bridge(noise=0.0), density=At(0.0))
    x0 = jnp.arange(8.0).reshape(4, 2)
    batch = Batch(jnp.zeros((4, 2)), x0=x0)
    np.testing.assert_allclose(objective.make_examples(jax.random.key(0), batch).x_t, x0)
    assert isinstance(OnlyProcess(), Process)
    assert not isinstance(OnlyProcess(), VelocityProcess)
    t, x1 = jnp.zeros(4), jnp.ones((4, 2))
    assert interpolate(OnlyProcess(), jax.random.key(0), t, x0, x1).target is x1
