"""Tests of configs with objects of a user's classes, and of `from_nnx`."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from fmjax import Batch
from fmjax._specs import class_spec
from fmjax.cli.parsing import parse
from fmjax.config import (
    AffinePath,
    Config,
    LossConfig,
    MeanFlowConfig,
    OptimizerConfig,
    TrainingConfig,
    build,
    from_json,
    from_nnx,
    register_classes,
    require_types,
    serialize,
    to_json,
    user_classes,
)
from fmjax.data import Dataset
from fmjax.networks import make_network
from fmjax.paths import VelocityNet
from fmjax.training import learning_rate_schedule, make_optimizer


@dataclasses.dataclass(frozen=True)
class Ring:
    """A circle with two classes of points."""

    radius: float = 1.0

    def shape(self):
        return (2,), 2

    def load(self, split, *, progress=None):
        angles = np.linspace(0, 2 * np.pi, 32, endpoint=False) + (split == "test")
        x = self.radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        return Dataset(x.astype(np.float32), np.arange(32) % 2, 2)


@dataclasses.dataclass(frozen=True)
class Affine:
    """A network that is affine in x and t."""

    scale: float = 0.1

    def make(self, event_shape, conditions):
        def init(key):
            return {"w": self.scale * jax.random.normal(key, (event_shape[0], event_shape[0]))}

        def apply(params, t, x, cond=None):
            return x @ params["w"] + t[:, None]

        return VelocityNet(init, apply)


@dataclasses.dataclass(frozen=True)
class Cubic:
    """Density with quantile function u^power."""

    power: float = 3.0

    def quantile(self, u):
        return u**self.power


@dataclasses.dataclass(frozen=True)
class Quadratic:
    """Schedule with alpha = t^2 and sigma = 1 - t^2."""

    def alpha(self, t):
        return t**2

    def sigma(self, t):
        return 1 - t**2


@dataclasses.dataclass(frozen=True)
class Reversed:
    """Coupling that pairs the points in reversed order."""

    def __call__(self, x0, x1, cond=None):
        return x0[::-1]


@dataclasses.dataclass(frozen=True)
class Lion:
    """Lion with a learning rate that decays to zero."""

    rate: float = 0.1

    def make(self, num_steps):
        return optax.lion(lambda step: self.learning_rate_at(num_steps, step))

    def learning_rate_at(self, num_steps, step):
        return self.rate * (1 - step / num_steps)


CONFIG = Config(
    "own",
    data=Ring(2.0),
    network=Affine(0.5),
    path=AffinePath(Quadratic()),
    coupling=Reversed(),
    loss=LossConfig(density=Cubic(2.0)),
    optimizer=Lion(0.2),
)
CLASSES = (Ring, Affine, Quadratic, Reversed, Cubic, Lion)


@pytest.fixture
def no_classes(monkeypatch):
    monkeypatch.setattr(serialize, "_user_classes", {})


@pytest.mark.usefixtures("no_classes")
def test_user_objects_are_written_with_class_and_fields_and_read_back():
    require_types(CONFIG)
    assert set(user_classes(CONFIG)) == set(CLASSES)
    document = json.loads(to_json(CONFIG))
    assert document["network"] == {"scale": 0.5, "type": "Affine"}
    register_classes(CLASSES)
    assert from_json(to_json(CONFIG)) == CONFIG


@pytest.mark.usefixtures("no_classes")
@pytest.mark.parametrize("missing", CLASSES)
def test_a_class_that_is_not_passed_is_refused(missing):
    register_classes(set(CLASSES) - {missing})
    message = f"config must hold an object of a class of fmjax, .* got '{missing.__name__}'"
    with pytest.raises(ValueError, match=message):
        from_json(to_json(CONFIG))


def test_objects_of_user_classes_are_used_by_the_objective():
    experiment = build(CONFIG, (2,), None)
    params = experiment.model.net.init(jax.random.key(0))
    batch_size = 4096
    x1 = jnp.asarray(np.resize(CONFIG.data.load("train").points(), (batch_size, 2)))
    examples = experiment.objective.make_examples(jax.random.key(1), Batch(x1))
    # Kolmogorov-Smirnov: with 4,096 samples the distance exceeds 1.95 / 64 with probability 1e-3.
    times = np.sort(np.asarray(examples.t, np.float64))
    assert np.abs(np.sqrt(times) - (np.arange(batch_size) + 0.5) / batch_size).max() < 1.95 / 64
    t = examples.t[:, None]
    # The target is 2 t (x1 - x0).
    np.testing.assert_allclose(examples.x_t, x1 - (1 - t**2) * examples.target / (2 * t), atol=1e-5)
    error = examples.x_t @ params["w"] + t - examples.target
    losses = experiment.objective.loss(params, examples)
    np.testing.assert_allclose(losses, jnp.mean(error**2, axis=1), rtol=2e-4, atol=1e-6)
    independent = build(dataclasses.replace(CONFIG, coupling=Config("x").coupling), (2,), None)
    unpaired = independent.objective.make_examples(jax.random.key(1), Batch(x1))
    x0, unpaired_x0 = (x1 - e.target / (2 * t) for e in (examples, unpaired))
    np.testing.assert_allclose(x0, unpaired_x0[::-1], atol=1e-5)


def test_a_users_optimizer_is_built_for_the_number_of_steps():
    config = dataclasses.replace(CONFIG, training=TrainingConfig(num_steps=4))
    optimizer, params = build(config, (2,), None).optimizer, {"w": jnp.ones((2, 2))}
    state = optimizer.init(params)
    for step in range(3):
        updates, state = optimizer.update(params, state, params)
        # Lion's update is the sign of the gradient times the rate, with its default weight decay.
        expected = -0.2 * (1 - step / 4) * (1 + 1e-3)
        np.testing.assert_allclose(updates["w"], expected, rtol=1e-6)
    schedule = learning_rate_schedule(config.optimizer, 4)
    assert [float(schedule(step)) for step in range(4)] == pytest.approx([0.2, 0.15, 0.1, 0.05])
    assert learning_rate_schedule(Affine(), 4) is None
    np.testing.assert_allclose(learning_rate_schedule(OptimizerConfig(), 4)(0), 1e-3)


def test_a_config_of_an_older_version_has_no_type_of_optimizer():
    config = Config("x", optimizer=OptimizerConfig("muon", 0.5))
    document = json.loads(to_json(config))
    del document["optimizer"]["type"]
    assert from_json(json.dumps(document)) == config


@pytest.mark.usefixtures("no_classes")
def test_fields_of_a_users_optimizer_are_options_of_the_command_line():
    register_classes(CLASSES)
    config = parse(Config, CONFIG, ["--optimizer.rate", "0.5"], "fmjax train")
    assert config.optimizer == Lion(0.5)
    default = parse(Config, Config("x"), ["--optimizer.learning-rate", "0.5"], "fmjax train")
    assert default.optimizer == OptimizerConfig(learning_rate=0.5)


@dataclasses.dataclass(frozen=True)
class NoOptimizer:
    def make(self, num_steps):
        return num_steps


@dataclasses.dataclass(frozen=True)
class WithoutLoad:
    def shape(self):
        return (2,), None


@dataclasses.dataclass(frozen=True)
class WithoutInterpolate:
    def sample_source(self, keys, spec):
        return jnp.zeros((len(keys), *spec.shape))


@dataclasses.dataclass
class NotFrozen:
    def quantile(self, u):
        return u


@dataclasses.dataclass(frozen=True)
class WrongShape:
    def make(self, event_shape, conditions):
        return VelocityNet(lambda key: {}, lambda params, t, x, cond=None: x[:, :1])


@dataclasses.dataclass(frozen=True)
class NoNetwork:
    def make(self, event_shape, conditions):
        return lambda t, x: x


def check(**fields):
    # Bypass the runtime type checker of the tests, which refuses other types first.
    config = Config("x")
    for name, value in fields.items():
        object.__setattr__(config, name, value)
    require_types(config)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: check(data=WithoutLoad()), "config.data must have a method load, like every Data"),
        (lambda: check(network=Cubic()), "config.network must have a method make, like every Netw"),
        (lambda: check(network=Affine), "config.network must be a MLPConfig or .* methods of"),
        (lambda: check(optimizer=Ring()), "config.optimizer must have a method make, like every O"),
        (
            lambda: make_optimizer(NoOptimizer(), 7),
            "NoOptimizer.make must return an optax.GradientTransformation, got 7",
        ),
        (
            lambda: check(path=WithoutInterpolate()),
            "config.path must have a method interpolate, like every Process, got class Without",
        ),
        (lambda: check(path=Quadratic), "config.path must be a AffinePath, or a frozen dataclass"),
        (lambda: check(coupling=3), "config.coupling must be a Independent or MinibatchOT, or a"),
        (lambda: register_classes([NotFrozen]), "class NotFrozen must be a frozen dataclass"),
        (
            lambda: register_classes([dataclasses.make_dataclass("DiTConfig", [], frozen=True)]),
            "class DiTConfig must have another name than fmjax's class",
        ),
        (
            lambda: make_network(WrongShape(), (2,)),
            r"network WrongShape must return float32 of shape \(2, 2\), like x, got float32 of",
        ),
        (lambda: make_network(NoNetwork(), (2,)), "NoNetwork.make must return a VelocityNet, got"),
        (
            lambda: build(Config("x", network=Affine(), loss=MeanFlowConfig()), (2,), None),
            "network must be an MLPConfig, UNetConfig, DiTConfig or SequenceTransformerConfig for "
            "a flow map, got Affine",
        ),
        (
            lambda: from_nnx(TinyLinear, depth=2),
            "field must be an argument of TinyLinear, got 'depth'",
        ),
    ],
)
def test_unsuitable_classes_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


class TinyLinear(nnx.Module):
    """A linear layer of the sample, the time and the class label."""

    def __init__(self, event_shape, conditions, *, features=3, rngs):
        self.embed = nnx.Embed(conditions.num_values + 1, features, rngs=rngs)
        self.linear = nnx.Linear(event_shape[0] + 1 + features, event_shape[0], rngs=rngs)

    def __call__(self, t, x, cond):
        return self.linear(jnp.concatenate([x, t[:, None], self.embed(cond)], axis=1))


def test_from_nnx_equals_the_module(no_classes):
    network = from_nnx(TinyLinear, features=5)
    assert network == from_nnx(TinyLinear, features=5)
    assert network != from_nnx(TinyLinear, features=4)
    config = Config("own", network=network)
    document = to_json(config)
    assert json.loads(document)["network"] == {"features": 5, "type": "TinyLinear"}
    register_classes(user_classes(config))
    assert from_json(document) == config
    net = make_network(network, (2,), 3)
    params = net.init(jax.random.key(0))
    t, x, cond = jnp.array([0.1, 0.7]), jnp.arange(4.0).reshape(2, 2), jnp.array([3, 1])
    module = TinyLinear((2,), class_spec(3), features=5, rngs=nnx.Rngs(jax.random.key(0)))
    np.testing.assert_allclose(net.apply(params, t, x, cond), module(t, x, cond), rtol=1e-6)
