"""Tests of the flow-matching loss against closed forms, and of the examples it samples."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from fmjax._arrays import Batch, Text, TextPart
from fmjax.losses import (
    FlowExamples,
    Objective,
    TimeWeight,
    drop_condition,
    drop_parts,
    flow_matching_loss,
    flow_matching_objective,
)
from fmjax.paths import (
    AffinePath,
    Cosine,
    Linear,
    LogitNormal,
    MinibatchOT,
    Polynomial,
    Prediction,
    VarianceExploding,
    VelocityNet,
)
from tests import oracles
from tests.affine import SCHEDULES, Mixture

PREDICTIONS_AND_SPACES = list(itertools.product(Prediction, repeat=2))
GAUSSIAN = Mixture(np.array([1.0]), np.array([[1.0]]), np.array([0.5]))
MIXTURE = Mixture(np.array([0.3, 0.7]), np.array([[-1.5], [1.0]]), np.array([0.6, 0.4]))


@pytest.fixture
def x64():
    with jax.enable_x64():
        yield


def sample_inputs(num=16, event=(3,), seed=0):
    """Sample (t, x0, x1) with times inside the interval."""
    rng = np.random.default_rng(seed)
    t = rng.uniform(0.05, 0.95, size=num)
    return tuple(
        jnp.asarray(a) for a in (t, rng.normal(size=(num, *event)), rng.normal(size=(num, *event)))
    )


def quadrature_nodes(target, num=64):
    """Return (weights, x0, x1) with `weights . f(x0, x1)` = E f, by Gauss-Hermite quadrature."""
    z, w = np.polynomial.hermite_e.hermegauss(num)
    w = w / w.sum()
    component, i, j = (a.ravel() for a in np.mgrid[: len(target.weights), :num, :num])
    weights = target.weights[component] * w[i] * w[j]
    x1 = target.means[component, 0] + target.stds[component] * z[j]
    return weights, jnp.asarray(z[i][:, None]), jnp.asarray(x1[:, None])


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["linear", "variance preserving"])
@pytest.mark.parametrize("target", [GAUSSIAN, MIXTURE], ids=["gaussian", "mixture"])
def test_loss_of_conditional_mean_is_conditional_variance(name, target):
    """The loss in space q is E Var(q | x_t) for every prediction, without sampling error."""
    schedule, formula = SCHEDULES[name]
    path, times = AffinePath(schedule), jnp.array([0.1, 0.5, 0.8])
    weights, x0, x1 = quadrature_nodes(target)

    @jax.jit
    def losses(t):
        t = jnp.broadcast_to(t, x0.shape[:1])

        def loss(prediction, space):
            return flow_matching_loss(
                lambda t, x, cond: getattr(target.posterior(formula(t), x), prediction),
                path,
                t,
                x0,
                x1,
                prediction=prediction,
                space=space,
            )

        return [jnp.dot(weights, loss(*pair)) for pair in PREDICTIONS_AND_SPACES]

    for t in times:
        c = formula(t[None])
        # Average Var(x1 | x_t) over a fine grid of x_t. Given x_t, each space is linear in x1.
        x = jnp.linspace(-12.0, 12.0, 4001)[:, None]
        coefficients = type(c)(*(jnp.broadcast_to(value, x.shape[:1]) for value in c))
        density = jnp.exp(target.log_density(coefficients, x))
        variance = target.variance_of_x1(coefficients, x)
        mean_variance = jnp.sum(density * variance) * (x[1, 0] - x[0, 0])
        a, s = c.alpha[0], c.sigma[0]
        expected = {
            Prediction.X1: mean_variance,
            Prediction.X0: mean_variance * (a / s) ** 2,
            Prediction.SCORE: mean_variance * (a / s**2) ** 2,
            Prediction.VELOCITY: mean_variance * (c.alpha_rate[0] - c.sigma_rate[0] * a / s) ** 2,
        }
        if target is GAUSSIAN:
            closed_form = oracles.Gaussian(schedule, 1.0, 0.5).least_loss(t[None])[0]
            np.testing.assert_allclose(expected[Prediction.VELOCITY], closed_form, rtol=1e-9)
        # 64 nodes are exact for the Gaussian and accurate to 1e-5 for the mixture. The prediction
        # is rounded to float32.
        for (_, space), loss in zip(PREDICTIONS_AND_SPACES, losses(t), strict=True):
            np.testing.assert_allclose(
                loss, expected[space], rtol=1e-6 if target is GAUSSIAN else 1e-4
            )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", SCHEDULES)
def test_loss_in_each_space_uses_the_converted_prediction(name):
    path = AffinePath(SCHEDULES[name][0])
    t, x0, x1 = sample_inputs(event=(2, 2, 1))
    value = 0.3 * x0 - x1**2  # An arbitrary wrong prediction.

    @jax.jit
    def losses_and_expected(t, x0, x1):
        x_t, u_t = path(t, x0, x1)
        truth = {
            space: path.convert(t, x_t, x0, from_=Prediction.X0, to=space) for space in Prediction
        }
        pairs = []
        for prediction, space in PREDICTIONS_AND_SPACES:
            loss = flow_matching_loss(
                lambda t, x, cond: value, path, t, x0, x1, prediction=prediction, space=space
            )
            converted = path.convert(t, x_t, value, from_=prediction, to=space)
            pairs.append((loss, jnp.mean((converted - truth[space]) ** 2, axis=(1, 2, 3))))
        return pairs

    for loss, expected in losses_and_expected(t, x0, x1):
        assert loss.shape == t.shape
        np.testing.assert_allclose(loss, expected, rtol=1e-7)


@pytest.mark.slow
def test_unbounded_conversion_scales_are_limited_to_a_thousand():
    _, x0, x1 = sample_inputs(6)
    t = jnp.array([0.0, 1e-6, 1e-4, 1.0 - 1e-4, 1.0 - 1e-6, 1.0]).astype(x0.dtype)

    def root_losses(schedule, prediction, space, offset):
        path = AffinePath(schedule)
        truth = {"x1": x1, "x0": x0, "velocity": path(t, x0, x1)[1]}[prediction]
        loss = flow_matching_loss(
            lambda t, x, cond: truth + offset,
            path,
            t,
            x0,
            x1,
            prediction=prediction,
            space=space,
        )
        return np.sqrt(loss)

    # The scales from x1 and x0 to velocity are 1 / (1 - t) and 1 / t, limited to 1,000.
    np.testing.assert_allclose(
        root_losses(Linear(), Prediction.X1, Prediction.VELOCITY, 1.0),
        [1, 1, 1, 1e3, 1e3, 1e3],
        rtol=1e-3,
    )
    np.testing.assert_allclose(
        root_losses(Linear(), Prediction.X0, Prediction.VELOCITY, 1.0),
        [1e3, 1e3, 1e3, 1, 1, 1],
        rtol=1e-3,
    )
    # The scale from x0 to score on the exploding path is 1 / sigma, which is finite and exact.
    sigma = VarianceExploding().sigma(t)
    exact = root_losses(VarianceExploding(), Prediction.X0, Prediction.SCORE, 1.0)
    np.testing.assert_allclose(exact, 1.0 / sigma, rtol=1e-4)
    # The scale from velocity to x0 has the limit t / 2 where both rates vanish.
    exact = root_losses(Polynomial(2.0), Prediction.VELOCITY, Prediction.X0, 1.0)
    np.testing.assert_allclose(exact, t / 2, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("prediction", Prediction)
def test_exact_predictions_have_zero_loss_and_all_losses_are_finite(prediction):
    _, x0, x1 = sample_inputs(4)
    t, path = jnp.array([0.0, 0.3, 0.9, 1.0]), AffinePath(Cosine())
    x_t, u_t = path(t, x0, x1)
    truth = {"velocity": u_t, "x1": x1, "x0": x0}
    truth["score"] = path.convert(t, x_t, x0, from_=Prediction.X0, to=Prediction.SCORE)
    for space in Prediction:
        for offset in (0.0, 1.0):
            loss = flow_matching_loss(
                lambda t, x, cond, offset=offset: truth[prediction] + offset,
                path,
                t,
                x0,
                x1,
                prediction=prediction,
                space=space,
            )
            assert np.isfinite(loss).all()
            if offset == 0.0:
                np.testing.assert_array_equal(loss, 0.0)
            else:
                assert (loss[1:3] > 0).all()


def test_x1_prediction_with_velocity_loss_matches_jit():
    _, x0, x1 = sample_inputs(8)
    t = jnp.array([0.0, 0.1, 0.5, 0.9, 0.949, 0.951, 0.99, 1.0])

    def predict(t, x, cond):
        return jnp.tanh(x) + t[:, None]

    loss = flow_matching_loss(
        predict,
        AffinePath(min_divisor=0.05),
        t,
        x0,
        x1,
        prediction=Prediction.X1,
        space=Prediction.VELOCITY,
    )
    x_t = t[:, None] * x1 + (1 - t[:, None]) * x0
    remaining_time = jnp.maximum(1 - t, 0.05)[:, None]
    # JiT divides both velocities by the clipped remaining time.
    error = (predict(t, x_t, None) - x_t) / remaining_time - (x1 - x_t) / remaining_time
    np.testing.assert_allclose(loss, jnp.mean(error**2, axis=1), rtol=1e-4)


def test_bfloat16_prediction_gives_float32_loss():
    t, x0, x1 = sample_inputs()
    loss = flow_matching_loss(
        lambda t, x, cond: (x1 - x0).astype(jnp.bfloat16), AffinePath(), t, x0, x1
    )
    assert loss.dtype == jnp.float32
    # Only the prediction is rounded, by up to 2^-8 of its size. A rounded target would give 0.
    size = jnp.mean((x1 - x0) ** 2, axis=1)
    assert ((loss > 0) & (loss <= 2.0**-16 * size)).all()


@pytest.mark.parametrize("shape", [(16, 1), (16,), (3, 16), (16, 3, 1)])
def test_prediction_with_wrong_shape_is_rejected(shape):
    t, x0, x1 = sample_inputs()
    message = rf"predict_fn must return shape \(16, 3\), got \({shape[0]},"
    with pytest.raises(ValueError, match=message):
        flow_matching_loss(lambda t, x, cond: jnp.zeros(shape), AffinePath(), t, x0, x1)


def test_time_weight_multiplies_the_loss():
    t, x0, x1 = sample_inputs()

    def loss(weight_fn):
        return flow_matching_loss(
            lambda t, x, cond: 0 * x, AffinePath(), t, x0, x1, weight_fn=weight_fn
        )

    weight = TimeWeight(data_power=2.0, noise_power=0.5)
    np.testing.assert_allclose(loss(weight), t**2 * jnp.sqrt(1 - t) * loss(None), rtol=1e-5)
    ends = jnp.array([0.0, 1.0])
    np.testing.assert_array_equal(TimeWeight()(ends), [1.0, 1.0])
    np.testing.assert_array_equal(TimeWeight(1.0, 0.0)(ends), [0.0, 1.0])


def test_negative_time_weight_powers_are_rejected():
    with pytest.raises(ValueError, match="data_power must be at least 0.0, got -1.0"):
        TimeWeight(-1.0)
    with pytest.raises(ValueError, match="noise_power must be at least 0.0, got -2.0"):
        TimeWeight(noise_power=-2.0)


def test_conditions_are_dropped_independently_per_example():
    num, rate = 10_000, 0.1
    cond = {"label": jnp.arange(num), "style": jnp.ones((num, 2, 3))}
    null = {"label": -1, "style": jnp.array([7.0, 8.0, 9.0])}
    result = drop_condition(jax.random.key(0), cond, null, rate)
    is_dropped = result["label"] == -1
    np.testing.assert_array_equal(result["label"][~is_dropped], cond["label"][~is_dropped])
    # Both conditions of an example are dropped together.
    np.testing.assert_array_equal(
        result["style"],
        np.where(is_dropped[:, None, None], null["style"], cond["style"]),
    )
    # The tolerance is four standard deviations of the binomial distribution.
    assert abs(is_dropped.sum() - 1000) < 120
    # Neighboring examples are uncorrelated.
    assert abs(np.corrcoef(is_dropped[1:], is_dropped[:-1])[0, 1]) < 4 / np.sqrt(num)


def test_drop_rates_of_zero_and_one_drop_nothing_and_everything():
    labels = jnp.arange(8)
    assert drop_condition(jax.random.key(0), labels, None, 0.0) is labels
    np.testing.assert_array_equal(drop_condition(jax.random.key(0), labels, 9, 1.0), np.full(8, 9))


def test_invalid_drop_settings_are_rejected():
    labels = jnp.arange(8)
    for rate in (-0.1, 1.5):
        with pytest.raises(ValueError, match=rf"rate must lie in \[0.0, 1.0\], got {rate}"):
            drop_condition(jax.random.key(0), labels, 9, rate)
    with pytest.raises(ValueError, match="null_cond must be given for rate 0.5, got None"):
        drop_condition(jax.random.key(0), labels, None, 0.5)


NET = VelocityNet(
    init=lambda key: {"scale": jnp.ones(())},
    apply=lambda params, t, x, cond: params["scale"] * x + expand(cond, x),
)
BATCH = Batch(x1=jax.random.normal(jax.random.key(7), (32, 2, 2, 1)) + 1.0, cond=jnp.arange(32) % 3)


def expand(cond, x):
    return 0.0 if cond is None else cond[:, None, None, None].astype(x.dtype)


def objective(**settings):
    defaults = {"density": LogitNormal(), "stratified": True, "label_drop": 0.3, "null_cond": 3}
    return flow_matching_objective(NET, AffinePath(Linear()), **{**defaults, **settings})


@pytest.fixture(scope="module")
def flow_examples():
    return jax.jit(objective().make_examples)(jax.random.key(1), BATCH)


def ends(examples):
    """Return the source points and data points of examples on the linear path."""
    t = examples.t.reshape(-1, *[1] * (examples.x_t.ndim - 1))
    return examples.x_t - t * examples.target, examples.x_t + (1.0 - t) * examples.target


def test_sampled_examples_have_the_batch_axis_first(flow_examples):
    assert isinstance(objective(), Objective)
    assert isinstance(flow_examples, FlowExamples)
    assert all(leaf.shape[0] == 32 for leaf in jax.tree.leaves(flow_examples))
    np.testing.assert_allclose(ends(flow_examples)[1], BATCH.x1, rtol=1e-5, atol=1e-6)
    assert flow_examples.x_t.shape == flow_examples.target.shape == BATCH.x1.shape
    assert flow_examples.x_t.dtype == flow_examples.t.dtype == jnp.float32
    assert ((flow_examples.cond == 3) | (flow_examples.cond == BATCH.cond)).all()
    assert 0 < (flow_examples.cond == 3).sum() < 32
    # Each of the 32 strata of the density contains one time.
    quantiles = jax.scipy.stats.norm.cdf(jax.scipy.special.logit(flow_examples.t))
    np.testing.assert_array_equal(jnp.sort(jnp.floor(quantiles * 32)), jnp.arange(32))


def test_examples_depend_only_on_the_key(flow_examples):
    make_examples = jax.jit(objective().make_examples)
    jax.tree.map(
        np.testing.assert_array_equal, make_examples(jax.random.key(1), BATCH), flow_examples
    )
    other = make_examples(jax.random.key(2), BATCH)
    for name in ("t", "x_t", "target", "cond"):
        assert (getattr(other, name) != getattr(flow_examples, name)).any()
    # Noise, times and dropped conditions are uncorrelated, to four standard errors.
    is_dropped = (flow_examples.cond == 3).astype(jnp.float32)
    noise = ends(flow_examples)[0].reshape(32, -1)
    for a, b in itertools.combinations((flow_examples.t, is_dropped, noise[:, 0]), 2):
        assert abs(np.corrcoef(a, b)[0, 1]) < 4 / np.sqrt(32)


def test_noise_is_standard_normal():
    make_examples = objective(stratified=False, prediction=Prediction.X0).make_examples
    batch = Batch(x1=jnp.zeros((64, 8, 8, 1)), cond=jnp.zeros(64, jnp.int32))
    noise = np.asarray(make_examples(jax.random.key(3), batch).target).ravel()
    # For 4,096 samples the standard errors are 1/64 for the mean and sqrt(2)/64 for the variance.
    assert abs(noise.mean()) < 4 / 64
    assert abs(noise.var() - 1) < 4 * np.sqrt(2) / 64


def test_coupling_pairs_the_sampled_noise(flow_examples):
    paired = jax.jit(objective(coupling=MinibatchOT()).make_examples)(jax.random.key(1), BATCH)
    x0, _ = ends(flow_examples)
    pairs = MinibatchOT()(x0, BATCH.x1, BATCH.cond)
    np.testing.assert_allclose(ends(paired)[0], pairs, rtol=1e-5, atol=1e-6)
    assert (jnp.abs(pairs - x0) > 0.1).any()
    # Labels are dropped after coupling, which uses all labels.
    np.testing.assert_array_equal(paired.cond, flow_examples.cond)


def test_examples_are_the_same_on_eight_devices(flow_examples):
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    replicated = NamedSharding(mesh, PartitionSpec())
    with jax.set_mesh(mesh):
        make_examples = jax.jit(
            objective().make_examples, in_shardings=(replicated, rows), out_shardings=rows
        )
        sharded = make_examples(jax.random.key(1), BATCH)
    # Random bits are equal, but values computed from them may differ by rounding.
    np.testing.assert_array_equal(sharded.cond, flow_examples.cond)
    for name in ("x_t", "target"):
        values = (getattr(examples, name) for examples in (sharded, flow_examples))
        np.testing.assert_allclose(*values, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(sharded.t, flow_examples.t, rtol=1e-6)


def test_objective_loss_is_the_flow_matching_loss(flow_examples):
    settings = {
        "prediction": Prediction.X1,
        "space": Prediction.X0,
        "weight_fn": TimeWeight(1.0, 2.0),
    }
    x0, x1 = ends(flow_examples)
    losses = objective(**settings).loss(
        {"scale": jnp.array(0.5)}, flow_examples._replace(target=x1)
    )
    expected = flow_matching_loss(
        lambda t, x, cond: 0.5 * x + expand(cond, x),
        AffinePath(),
        flow_examples.t,
        x0,
        x1,
        flow_examples.cond,
        **settings,
    )
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


@pytest.mark.slow
def test_batch_without_conditions_needs_no_null_condition():
    unconditional = objective(null_cond=None)
    examples = unconditional.make_examples(jax.random.key(0), Batch(x1=BATCH.x1))
    assert examples.cond is None
    losses = unconditional.loss({"scale": jnp.ones(())}, examples)
    assert losses.shape == (32,)


def test_text_parts_of_each_encoder_are_dropped_independently():
    """One encoder makes tokens 0 and 1 with 3 channels, the other token 2 with 5 channels."""
    parts = (TextPart((0, 2), (0, 3), (0, 2)), TextPart((2, 3), (0, 5), (2, 6)))
    num, key = 64, jax.random.key(0)
    text = Text(jnp.ones((num, 3, 5)), jnp.ones((num, 6)))
    dropped = drop_parts(key, text, parts, 0.5)
    is_dropped = np.asarray(jax.random.bernoulli(key, 0.5, (2, num)))
    assert {tuple(pair) for pair in is_dropped.T.tolist()} == set(
        itertools.product([False, True], [False, True])
    )
    tokens, pooled = np.ones((num, 3, 5), np.float32), np.ones((num, 6), np.float32)
    tokens[is_dropped[0], :2, :3] = pooled[is_dropped[0], :2] = 0.0
    tokens[is_dropped[1], 2:] = pooled[is_dropped[1], 2:] = 0.0
    np.testing.assert_array_equal(dropped.tokens, tokens)
    np.testing.assert_array_equal(dropped.pooled, pooled)
    assert drop_parts(key, text, parts, 0.0) is text
    with pytest.raises(
        ValueError, match="encoder_drop must be 0 for text without a known TextPart"
    ):
        drop_parts(key, text, (), 0.5)
