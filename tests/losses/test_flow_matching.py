"""The flow-matching loss against closed forms, and what its objective draws."""

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

KINDS = list(itertools.product(Prediction, repeat=2))
GAUSSIAN = Mixture(np.array([1.0]), np.array([[1.0]]), np.array([0.5]))
MIXTURE = Mixture(np.array([0.3, 0.7]), np.array([[-1.5], [1.0]]), np.array([0.6, 0.4]))


@pytest.fixture
def x64():
    with jax.enable_x64():
        yield


def examples(num=16, event=(3,), seed=0):
    """(t, x0, x1), times inside the interval."""
    rng = np.random.default_rng(seed)
    t = rng.uniform(0.05, 0.95, size=num)
    return tuple(
        jnp.asarray(a) for a in (t, rng.normal(size=(num, *event)), rng.normal(size=(num, *event)))
    )


def nodes(target, num=64):
    """(weights, x0, x1) with `weights . f(x0, x1)` = E f, by Gauss-Hermite in x0 and each part."""
    z, w = np.polynomial.hermite_e.hermegauss(num)
    w = w / w.sum()
    part, i, j = (a.ravel() for a in np.mgrid[: len(target.weights), :num, :num])
    weights = target.weights[part] * w[i] * w[j]
    x1 = target.means[part, 0] + target.stds[part] * z[j]
    return weights, jnp.asarray(z[i][:, None]), jnp.asarray(x1[:, None])


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["linear", "variance preserving"])
@pytest.mark.parametrize("target", [GAUSSIAN, MIXTURE], ids=["gaussian", "mixture"])
def test_the_loss_of_the_true_conditional_mean_is_the_least_there_is(name, target):
    """Whatever it predicts, in space q it is E Var(q | x_t), with no sampling error at all."""
    schedule, formula = SCHEDULES[name]
    path, times = AffinePath(schedule), jnp.array([0.1, 0.5, 0.8])
    weights, x0, x1 = nodes(target)

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

        return [jnp.dot(weights, loss(*kinds)) for kinds in KINDS]

    for t in times:
        c = formula(t[None])
        # Var(x1 | x_t), averaged over x_t on a fine grid; at x_t all is linear in x1.
        x = jnp.linspace(-12.0, 12.0, 4001)[:, None]
        along = type(c)(*(jnp.broadcast_to(part, x.shape[:1]) for part in c))
        density = jnp.exp(target.log_density(along, x))
        spread = jnp.sum(density * target.variance_of_x1(along, x)) * (x[1, 0] - x[0, 0])
        a, s = c.alpha[0], c.sigma[0]
        least = {
            Prediction.X1: spread,
            Prediction.X0: spread * (a / s) ** 2,
            Prediction.SCORE: spread * (a / s**2) ** 2,
            Prediction.VELOCITY: spread * (c.alpha_rate[0] - c.sigma_rate[0] * a / s) ** 2,
        }
        if target is GAUSSIAN:
            closed = oracles.Gaussian(schedule, 1.0, 0.5).least_loss(t[None])[0]
            np.testing.assert_allclose(least[Prediction.VELOCITY], closed, rtol=1e-9)
        # 64 nodes integrate the Gaussian's quadratic exactly, the mixture's sigmoid to 1e-5; the
        # prediction is rounded to float32.
        for (_, space), loss in zip(KINDS, losses(t), strict=True):
            np.testing.assert_allclose(
                loss, least[space], rtol=1e-6 if target is GAUSSIAN else 1e-4
            )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_loss_in_any_space_is_that_of_the_converted_prediction(name):
    path = AffinePath(SCHEDULES[name][0])
    t, x0, x1 = examples(event=(2, 2, 1))
    value = 0.3 * x0 - x1**2  # Far from the truth.

    @jax.jit
    def both(t, x0, x1):
        x_t, u_t = path(t, x0, x1)
        truth = {
            kind: path.convert(t, x_t, x0, from_=Prediction.X0, to=kind) for kind in Prediction
        }
        pairs = []
        for prediction, space in KINDS:
            loss = flow_matching_loss(
                lambda t, x, cond: value, path, t, x0, x1, prediction=prediction, space=space
            )
            said = path.convert(t, x_t, value, from_=prediction, to=space)
            pairs.append((loss, jnp.mean((said - truth[space]) ** 2, axis=(1, 2, 3))))
        return pairs

    for loss, expected in both(t, x0, x1):
        assert loss.shape == t.shape
        np.testing.assert_allclose(loss, expected, rtol=1e-7)


@pytest.mark.slow
def test_a_scale_that_grows_without_bound_is_that_of_a_thousandth_before_the_end():
    _, x0, x1 = examples(6)
    near = jnp.array([0.0, 1e-6, 1e-4, 1.0 - 1e-4, 1.0 - 1e-6, 1.0])
    t = near.astype(x0.dtype)

    def roots(schedule, prediction, space, offset):
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

    # The data as a velocity, 1 / (1 - t), and the noise as one, 1 / t: at their ends 1,000.
    np.testing.assert_allclose(
        roots(Linear(), Prediction.X1, Prediction.VELOCITY, 1.0),
        [1, 1, 1, 1e3, 1e3, 1e3],
        rtol=1e-3,
    )
    np.testing.assert_allclose(
        roots(Linear(), Prediction.X0, Prediction.VELOCITY, 1.0),
        [1e3, 1e3, 1e3, 1, 1, 1],
        rtol=1e-3,
    )
    # The noise as a score on the exploding path, 1 / sigma, is nowhere infinite, and exact.
    sigma = VarianceExploding().sigma(t)
    exact = roots(VarianceExploding(), Prediction.X0, Prediction.SCORE, 1.0)
    np.testing.assert_allclose(exact, 1.0 / sigma, rtol=1e-4)
    # A velocity where both rates vanish, as noise: t / 2, which has a limit.
    exact = roots(Polynomial(2.0), Prediction.VELOCITY, Prediction.X0, 1.0)
    np.testing.assert_allclose(exact, t / 2, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("prediction", Prediction)
def test_the_truth_has_no_loss_in_any_space_and_none_is_infinite_at_the_ends(prediction):
    _, x0, x1 = examples(4)
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


def test_x1_prediction_with_velocity_loss_is_jits():
    _, x0, x1 = examples(8)
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
    rest = jnp.maximum(1 - t, 0.05)[:, None]
    # As the paper writes it: both velocities over the clipped time that is left.
    error = (predict(t, x_t, None) - x_t) / rest - (x1 - x_t) / rest
    np.testing.assert_allclose(loss, jnp.mean(error**2, axis=1), rtol=1e-4)


def test_a_bfloat16_prediction_gives_a_float32_loss():
    t, x0, x1 = examples()
    loss = flow_matching_loss(
        lambda t, x, cond: (x1 - x0).astype(jnp.bfloat16), AffinePath(), t, x0, x1
    )
    assert loss.dtype == jnp.float32
    # Only the prediction was rounded, by up to 2^-8 of its size: a truth rounded too gives 0.
    size = jnp.mean((x1 - x0) ** 2, axis=1)
    assert ((loss > 0) & (loss <= 2.0**-16 * size)).all()


@pytest.mark.parametrize("shape", [(16, 1), (16,), (3, 16), (16, 3, 1)])
def test_a_prediction_of_another_shape_is_refused(shape):
    t, x0, x1 = examples()
    message = rf"predict_fn must return shape \(16, 3\), got \({shape[0]},"
    with pytest.raises(ValueError, match=message):
        flow_matching_loss(lambda t, x, cond: jnp.zeros(shape), AffinePath(), t, x0, x1)


def test_a_weight_of_time_multiplies_the_loss():
    t, x0, x1 = examples()

    def loss(weight_fn):
        return flow_matching_loss(
            lambda t, x, cond: 0 * x, AffinePath(), t, x0, x1, weight_fn=weight_fn
        )

    weight = TimeWeight(data_power=2.0, noise_power=0.5)
    np.testing.assert_allclose(loss(weight), t**2 * jnp.sqrt(1 - t) * loss(None), rtol=1e-5)
    ends = jnp.array([0.0, 1.0])
    np.testing.assert_array_equal(TimeWeight()(ends), [1.0, 1.0])
    np.testing.assert_array_equal(TimeWeight(1.0, 0.0)(ends), [0.0, 1.0])


def test_a_weight_that_grows_without_bound_is_refused():
    with pytest.raises(ValueError, match="data_power must be at least 0.0, got -1.0"):
        TimeWeight(-1.0)
    with pytest.raises(ValueError, match="noise_power must be at least 0.0, got -2.0"):
        TimeWeight(noise_power=-2.0)


def test_conditions_are_dropped_by_a_coin_for_each_example():
    num, rate = 10_000, 0.1
    cond = {"label": jnp.arange(num), "style": jnp.ones((num, 2, 3))}
    null = {"label": -1, "style": jnp.array([7.0, 8.0, 9.0])}
    dropped = drop_condition(jax.random.key(0), cond, null, rate)
    gone = dropped["label"] == -1
    np.testing.assert_array_equal(dropped["label"][~gone], cond["label"][~gone])
    # All of an example or nothing.
    np.testing.assert_array_equal(
        dropped["style"],
        np.where(gone[:, None, None], null["style"], cond["style"]),
    )
    # Binomial: standard deviation 30; 4 of them.
    assert abs(gone.sum() - 1000) < 120
    # Coins are independent: neighbours agree no more than they would by chance.
    assert abs(np.corrcoef(gone[1:], gone[:-1])[0, 1]) < 4 / np.sqrt(num)


def test_the_ends_of_the_drop_rate_drop_nothing_and_everything():
    labels = jnp.arange(8)
    assert drop_condition(jax.random.key(0), labels, None, 0.0) is labels
    np.testing.assert_array_equal(drop_condition(jax.random.key(0), labels, 9, 1.0), np.full(8, 9))


def test_a_drop_without_sense_is_refused():
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
def drawn():
    return jax.jit(objective().make_examples)(jax.random.key(1), BATCH)


def test_an_objective_draws_examples_whose_leaves_all_have_the_batch_first(drawn):
    assert isinstance(objective(), Objective)
    assert isinstance(drawn, FlowExamples)
    assert all(leaf.shape[0] == 32 for leaf in jax.tree.leaves(drawn))
    np.testing.assert_array_equal(drawn.x1, BATCH.x1)
    assert drawn.x0.shape == BATCH.x1.shape
    assert drawn.x0.dtype == drawn.t.dtype == jnp.float32
    assert ((drawn.cond == 3) | (drawn.cond == BATCH.cond)).all()
    assert 0 < (drawn.cond == 3).sum() < 32
    # One time in each of 32 strata of the density.
    shares = jax.scipy.stats.norm.cdf(jax.scipy.special.logit(drawn.t))
    np.testing.assert_array_equal(jnp.sort(jnp.floor(shares * 32)), jnp.arange(32))


def test_the_same_key_draws_the_same_and_another_key_draws_all_anew(drawn):
    make_examples = jax.jit(objective().make_examples)
    jax.tree.map(np.testing.assert_array_equal, make_examples(jax.random.key(1), BATCH), drawn)
    other = make_examples(jax.random.key(2), BATCH)
    for name in ("t", "x0", "cond"):
        assert (getattr(other, name) != getattr(drawn, name)).any()
    # Noise, times and coins come from keys of their own: 4 standard errors of a correlation.
    coins, noise = (drawn.cond == 3).astype(jnp.float32), drawn.x0.reshape(32, -1)
    for a, b in itertools.combinations((drawn.t, coins, noise[:, 0]), 2):
        assert abs(np.corrcoef(a, b)[0, 1]) < 4 / np.sqrt(32)


def test_noise_is_standard_normal():
    make_examples = objective(stratified=False).make_examples
    batch = Batch(x1=jnp.zeros((64, 8, 8, 1)), cond=jnp.zeros(64, jnp.int32))
    noise = np.asarray(make_examples(jax.random.key(3), batch).x0).ravel()
    # 4,096 draws: standard errors 1/64 of the mean and sqrt(2)/64 of the variance; 4 of them.
    assert abs(noise.mean()) < 4 / 64
    assert abs(noise.var() - 1) < 4 * np.sqrt(2) / 64


def test_the_coupling_pairs_what_is_drawn(drawn):
    paired = jax.jit(objective(coupling=MinibatchOT()).make_examples)(jax.random.key(1), BATCH)
    pairs = MinibatchOT()(drawn.x0, BATCH.x1, BATCH.cond)
    np.testing.assert_allclose(paired.x0, pairs, rtol=1e-6)  # Two programs round as they like.
    assert (paired.x0 != drawn.x0).any()
    # Labels are dropped after the pairs are made: the plan knows them all.
    np.testing.assert_array_equal(paired.cond, drawn.cond)


def test_draws_are_the_same_on_eight_devices(drawn):
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    whole = NamedSharding(mesh, PartitionSpec())
    with jax.set_mesh(mesh):
        make_examples = jax.jit(
            objective().make_examples, in_shardings=(whole, rows), out_shardings=rows
        )
        sharded = make_examples(jax.random.key(1), BATCH)
    # Bits are equal; what is computed of them may differ in the last place.
    np.testing.assert_array_equal(sharded.cond, drawn.cond)
    np.testing.assert_allclose(sharded.x0, drawn.x0, rtol=1e-6)
    np.testing.assert_allclose(sharded.t, drawn.t, rtol=1e-6)


def test_the_objectives_loss_is_the_flow_matching_loss_of_its_net(drawn):
    settings = {
        "prediction": Prediction.X1,
        "space": Prediction.X0,
        "weight_fn": TimeWeight(1.0, 2.0),
    }
    losses = objective(**settings).loss({"scale": jnp.array(0.5)}, drawn)
    expected = flow_matching_loss(
        lambda t, x, cond: 0.5 * x + expand(cond, x),
        AffinePath(),
        drawn.t,
        drawn.x0,
        drawn.x1,
        drawn.cond,
        **settings,
    )
    np.testing.assert_allclose(losses, expected, rtol=1e-6)


@pytest.mark.slow
def test_a_batch_without_conditions_needs_no_null():
    unconditional = objective(null_cond=None)
    examples = unconditional.make_examples(jax.random.key(0), Batch(x1=BATCH.x1))
    assert examples.cond is None
    losses = unconditional.loss({"scale": jnp.ones(())}, examples)
    assert losses.shape == (32,)


def test_each_encoders_part_of_a_text_is_dropped_by_a_coin_of_its_own():
    """Two encoders: tokens 0 and 1 with channels 0 to 2, and token 2 with channels 0 to 4."""
    parts = (TextPart((0, 2), (0, 3), (0, 2)), TextPart((2, 3), (0, 5), (2, 6)))
    num, key = 64, jax.random.key(0)
    text = Text(jnp.ones((num, 3, 5)), jnp.ones((num, 6)))
    dropped = drop_parts(key, text, parts, 0.5)
    coins = np.asarray(jax.random.bernoulli(key, 0.5, (2, num)))
    assert {tuple(pair) for pair in coins.T.tolist()} == set(
        itertools.product([False, True], [False, True])
    )
    tokens, pooled = np.ones((num, 3, 5), np.float32), np.ones((num, 6), np.float32)
    tokens[coins[0], :2, :3] = pooled[coins[0], :2] = 0.0
    tokens[coins[1], 2:] = pooled[coins[1], 2:] = 0.0
    np.testing.assert_array_equal(dropped.tokens, tokens)
    np.testing.assert_array_equal(dropped.pooled, pooled)
    assert drop_parts(key, text, parts, 0.0) is text
    with pytest.raises(
        ValueError, match="encoder_drop must be 0 for text without a known TextPart"
    ):
        drop_parts(key, text, (), 0.5)
