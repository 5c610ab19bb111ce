"""Tests that wrong arrays, keys, functions and settings raise one-line errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fmjax
import fmjax.metrics
from fmjax import AdaptiveSteps, AffinePath, Batch, FixedSteps, MLPConfig, make_mesh
from fmjax.data import Dataset
from fmjax.sharding.mesh import put_batch
from fmjax.solvers import DDIM, SDE_SOLVERS, ErrorControl, Hutchinson

X = np.ones((4, 2), np.float32)
KEYS = jax.random.split(jax.random.key(1), 4)
LABELS = np.zeros(4, np.int32)
PATH, FIXED = AffinePath(), FixedSteps([0.0, 0.5, 1.0])
PER_SAMPLE = AdaptiveSteps(1e-2, 1e-2, ErrorControl.PER_SAMPLE)
STREAMING = AdaptiveSteps(1e-2, 1e-2, ErrorControl.PER_SAMPLE, slots=2)


def velocity(t, x, cond=None):
    return -x


def guided(v, x, cond=LABELS, interval=(0.0, 1.0)):
    return fmjax.sample(fmjax.classifier_free(v, 10, 2.0, interval), x, cond, steps=FIXED)


def flow_map(v, x, cond):
    fn = (lambda r, t, x, cond=None: v(t, x, cond)) if callable(v) else v
    return fmjax.sample_flow_map(fn, x, cond, steps=FIXED)


def loss(v, x, cond):
    return fmjax.flow_matching_loss(v, PATH, jnp.linspace(0.1, 0.9, 4), X, x, cond)


SHARK = SDE_SOLVERS["shark"]()
# Functions of a velocity field, points, keys and a condition.
FUNCTIONS = {
    "sample fixed": lambda v, x, k, c: fmjax.sample(v, x, c, steps=FIXED),
    "sample adaptive": lambda v, x, k, c: fmjax.sample(v, x, c),
    "sample per_sample": lambda v, x, k, c: fmjax.sample(v, x, c, steps=PER_SAMPLE),
    "sample streaming": lambda v, x, k, c: fmjax.sample(v, x, c, steps=STREAMING),
    "over_interval": lambda v, x, k, c: fmjax.sample(fmjax.paths.over_interval(v, 0.0, 0.5), x, c),
    "reversed_time": lambda v, x, k, c: fmjax.sample(
        fmjax.paths.reversed_time(v), x, c, steps=FIXED
    ),
    "classifier_free": lambda v, x, k, c: guided(v, x, LABELS if c is None else c),
    "guidance interval": lambda v, x, k, c: guided(v, x, LABELS if c is None else c, (0.2, 0.8)),
    "sample_sde": lambda v, x, k, c: fmjax.sample_sde(v, PATH, x, k, c, steps=FIXED),
    "sde per_sample": lambda v, x, k, c: fmjax.sample_sde(
        v, PATH, x, k, c, solver=SHARK, steps=PER_SAMPLE
    ),
    "sample_diffusion": lambda v, x, k, c: fmjax.sample_diffusion(
        v, PATH, x, k, c, steps=FIXED, sampler=DDIM(1.0)
    ),
    "sample_flow_map": lambda v, x, k, c: flow_map(v, x, c),
    "log_density": lambda v, x, k, c: fmjax.log_density(v, x, c, steps=FIXED),
    "hutchinson": lambda v, x, k, c: fmjax.log_density(
        v, x, c, divergence=Hutchinson(), keys=k, steps=FIXED
    ),
    "invert": lambda v, x, k, c: fmjax.invert(v, x, c, steps=FIXED),
    "edit": lambda v, x, k, c: fmjax.edit(v, PATH, x, k, 0.5, c, steps=FIXED),
    "calibrate": lambda v, x, k, c: fmjax.solvers.calibrate(v, x, c, num_pieces=2),
    "straightness": lambda v, x, k, c: fmjax.metrics.straightness(v, x, c, num_steps=2),
    "flow_matching_loss": lambda v, x, k, c: loss(v, x, c),
}
WITH_KEYS = ("sample_sde", "sde per_sample", "sample_diffusion", "hutchinson", "edit")
POINTS = {
    "a list": ([[1.0, 2.0]], "x[01] must be an array .*, got a list"),
    "a number": (1.0, "x[01] must be an array .*, got 1.0"),
    "a scalar": (np.float32(1.0), r"x[01] must .*, got .*\(\)"),
    "None": (None, "x[01] must be an array .*, got None"),
    "a string": ("abc", "x[01] must be an array .*, got 'abc'"),
    "empty": (X[:0], r"x[01] must hold at least one sample, got shape \(0, 2\)"),
    "complex": (X.astype(np.complex64), "x[01] must be .*, got complex64"),
    "strings": (np.array(["a"] * 4), "x[01] must be an array .*, got <U1 of shape"),
    "objects": (np.array([None] * 4), "x[01] must be an array .*, got object of shape"),
}
VELOCITIES = {
    "None": (lambda t, x, c=None: None, r"_fn must return an array of shape .*, got None"),
    "a list": (lambda t, x, c=None: [x, x], r"_fn must return an array of shape .*, got a list"),
    "a tuple": (lambda t, x, c=None: (x,), r"_fn must return an array of shape .*, got a tuple"),
    "a number": (lambda t, x, c=None: 0.0, r"_fn must return an array of shape .*, got 0.0"),
    "a string": (lambda t, x, c=None: "x", r"_fn must return an array of shape .*, got 'x'"),
    "another shape": (
        lambda t, x, c=None: x[:, :1],
        r"_fn must return shape \(\d, 2\), got \(\d, 1\)",
    ),
    "complex": (lambda t, x, c=None: x + 1j, "_fn must return floating point, got complex64"),
    "integers": (lambda t, x, c=None: x.astype(int), "_fn must return floating point, got int32"),
    "not a function": (3, "_fn must be a function, got 3"),
}
CONDITIONS = {
    "strings": (["a", "b", "c", "d"], "cond must hold arrays of numbers, got 'a'"),
    "an array of strings": (np.array(["a"] * 4), "cond must hold arrays of numbers, got <U1 of"),
    "objects": (np.array([None] * 4), "cond must hold arrays of numbers, got object of shape"),
}
WRONG_KEYS = {
    "too few": (KEYS[:2], r"got key<fry> of shape \(2,\)"),
    "one key": (jax.random.key(0), r"got key<fry> of shape \(\)"),
    "untyped keys": (jax.random.split(jax.random.PRNGKey(0), 4), r"got uint32 of shape \(4, 2\)"),
    "a seed": (0, "got 0"),
    "numbers": (np.zeros(4, np.float32), r"got float32 of shape \(4,\)"),
}


def assert_error(message, fn, *arguments, **settings):
    """Check that a call raises a one-line ValueError."""
    with pytest.raises(ValueError, match=message) as error:
        fn(*arguments, **settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_wrong_points_functions_conditions_and_keys_are_rejected(name, unchecked):
    fn = FUNCTIONS[name]
    for points, message in POINTS.values():
        assert_error(message, fn, velocity, points, KEYS, None)
    for field, message in VELOCITIES.values():
        assert_error(message, fn, field, X, KEYS, None)
    for cond, message in CONDITIONS.values():
        assert_error(message, fn, velocity, X, KEYS, cond)
    for keys, message in WRONG_KEYS.values() if name in WITH_KEYS else ():
        assert_error(
            rf"keys must be typed keys of shape \(4,\), one per sample, {message}",
            fn,
            velocity,
            X,
            keys,
            None,
        )


@pytest.mark.parametrize(
    "name", ["sample per_sample", "sample streaming", "classifier_free", "calibrate"]
)
def test_conditions_of_another_batch_size_are_rejected(name, unchecked):
    message = r"cond must hold arrays with a leading batch axis of 4, got int32 of shape \(3,\)"
    assert_error(message, FUNCTIONS[name], velocity, X, KEYS, LABELS[:3])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": None}, "steps must be FixedSteps or AdaptiveSteps, got None"),
        ({"steps": [0.0, 1.0]}, "steps must be FixedSteps or AdaptiveSteps, got a list"),
        ({"steps": FixedSteps(16)}, "times must be numbers, got 16"),
        ({"steps": AdaptiveSteps("a")}, "rtol must be a number, got 'a'"),
        ({"save_at": ["a"]}, "save_at must be numbers, got <U1 of shape"),
        ({"adjoint": "direct"}, "adjoint must be an Adjoint, got 'direct'"),
        ({"solver": "tsit5"}, "solver must be"),
    ],
)
def test_wrong_ode_settings_are_rejected(settings, message, unchecked):
    assert_error(message, fmjax.sample, velocity, X, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prediction": "epsilon"}, "prediction must be one of velocity, x1, x0, score, got 'eps"),
        ({"prediction": None}, "prediction must be one of velocity, x1, x0, score, got None"),
        ({"rate": 1.0}, "rate must be a function, got 1.0"),
        ({"last_step": None}, r"last_step must lie in \[0, 1\), got None"),
        ({"path": "linear"}, "path must be an AffinePath, got 'linear'"),
    ],
)
def test_wrong_sde_settings_are_rejected(settings, message, unchecked):
    arguments = {"path": PATH, "x0": X, "keys": KEYS, "steps": FIXED} | settings
    assert_error(message, fmjax.sample_sde, velocity, **arguments)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fmjax.solvers.interpolate([[1.0]], X, 3), "a must be an array .*, got a list"),
        (lambda: fmjax.solvers.interpolate(X, "x", 3), "b must be an array .*, got 'x'"),
        (lambda: fmjax.solvers.interpolate(X, X, "3"), "num must be at least 2, got 3"),
        (lambda: fmjax.solvers.dequantize(KEYS[:3], X, 0.1), "keys must be typed keys of shape"),
        (lambda: fmjax.solvers.dequantize(KEYS, X, None), "bin_width must be positive, got None"),
        (lambda: fmjax.bits_per_dim(1.0, None, 0.1), "num_dims must be at least 1, got None"),
        (lambda: fmjax.classifier_free(velocity, 1, "2"), "scale must be at least 0.0, got 2"),
        (lambda: fmjax.classifier_free(velocity, 1, 2.0, 0.5), "must be a pair of times, got 0.5"),
        (lambda: fmjax.edit(velocity, PATH, X, KEYS, "x"), "strength must be a number .*, got 'x'"),
        (lambda: fmjax.flow_matching_loss(velocity, PATH, jnp.ones(3), X, X), "t must have shape"),
        (
            lambda: fmjax.frechet_distance([["a", "b"]] * 3, X),
            r"features must be an array \[n, d\]",
        ),
        (lambda: fmjax.frechet_distance(X + 1j, X), "features must be an array .*, got complex"),
        (lambda: fmjax.frechet_distance([[1.0], [1.0, 2.0]], X), "features must be an array"),
        (lambda: fmjax.metrics.precision_recall(None, X), "samples must be an array .*, got None"),
        (
            lambda: fmjax.metrics.precision_recall(X, X[:, 0]),
            r"real must be \[n, d\], got shape \(4,\)",
        ),
        (
            lambda: fmjax.metrics.precision_recall(X, X * np.nan),
            "real must be finite, got inf or nan",
        ),
        (lambda: fmjax.metrics.sliced_wasserstein(0, X, X), "key must be one key .*, got 0"),
        (
            lambda: fmjax.metrics.sliced_wasserstein(KEYS[0], X, [1.0]),
            "y must be an array .*, got a list",
        ),
        (
            lambda: fmjax.metrics.high_frequency_share("x"),
            "images must be an array of numbers, got 'x'",
        ),
        (
            lambda: fmjax.metrics.radial_spectrum([[1.0]]),
            "images must be an array of numbers, got a list",
        ),
        (lambda: fmjax.batches(X, batch_size=2), "dataset must be a Dataset or Pairs, got float32"),
        (lambda: fmjax.batches(Dataset(X), batch_size="2"), "batch_size must be at least 1, got 2"),
        (lambda: Dataset([[1.0]]), "x must be an array, got a list"),
        (lambda: Dataset(X, ["cat"] * 4, 2), "labels must be an array, got a list"),
        (
            lambda: Dataset(X, np.array(["cat"] * 4), 2),
            "labels must be 4 integers, got <U3 of shape",
        ),
        (
            lambda: put_batch(Batch(X, np.array(["a"] * 4)), training()[2]),
            "batch must hold arrays of ",
        ),
    ],
)
def test_other_wrong_inputs_are_rejected(call, message, unchecked):
    assert_error(message, call)


@functools.cache
def training():
    net = fmjax.make_network(MLPConfig(width=4, num_layers=1), (2,), None)
    objective = fmjax.flow_matching_objective(net, PATH)
    mesh = make_mesh(devices=jax.devices()[:1])
    return net, objective, mesh


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (X, r"batch must be a Batch\(x1, cond, x0, weight, mask\), got float32 of shape \(4, 2\)"),
        (Batch([[1.0, 2.0]]), "batch.x1 must be an array of real numbers, got a list"),
        (Batch(X[:0]), "batch.x1 must hold at least one sample, got shape"),
        (Batch(X, np.array(["a"] * 4)), "cond must hold arrays of numbers, got <U1 of shape"),
        (Batch(X, LABELS[:3]), "cond must hold arrays with a leading batch axis of 4, got int32"),
        (
            Batch(X, weight=X[:3, 0]),
            r"batch.weight must be real numbers of shape \(4,\), one per example, got float32 of",
        ),
        (
            Batch(X, mask=np.ones((4, 2))),
            r"batch.mask must be bool of the first axes of \(4, 2\), each .*got float64 of shape",
        ),
        (Batch(X, mask=np.ones((4, 3), bool)), r"batch.mask must be bool of .*shape \(4, 3\)"),
        (Batch(X, mask=np.ones((2,), bool)), r"batch.mask must be bool of .*shape \(2,\)"),
        (Batch(X, None, X[:, :1]), r"batch.x0 must have the shape of x1, \(4, 2\), got \(4, 1\)"),
    ],
)
def test_wrong_training_batches_are_rejected(batch, message, unchecked):
    _, objective, _ = training()
    assert_error(message, objective.make_examples, jax.random.key(0), batch)


@pytest.mark.parametrize("key", [0, None, KEYS, np.zeros(4, np.float32)])
def test_init_state_rejects_wrong_keys(key, unchecked):
    net, _, mesh = training()
    assert_error("key must be one key", fmjax.init_state, net, optax.sgd(0.1), key, mesh)


def test_describe_names_the_type_or_shape():
    from fmjax._inputs import describe

    assert describe(np.zeros(3, np.int16)) == "int16 of shape (3,)"
    assert describe({}) == "a dict"
    assert describe(object()) == "an object"
    assert describe(None) == "None"
