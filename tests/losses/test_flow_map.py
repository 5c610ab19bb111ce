"""Tests of flow maps against the closed-form map from N(0, I) to N(m, s^2 I)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fmjax._arrays import Batch
from fmjax.losses import (
    BuiltInGuidance,
    mean_flow_objective,
    mean_flow_target,
    shortcut_objective,
    shortcut_target,
)
from fmjax.losses.flow_map import adaptive_loss
from fmjax.networks import MLPConfig, make_flow_map, make_network
from fmjax.paths import (
    AffinePath,
    Cosine,
    FlowMapFn,
    FlowMapNet,
    Linear,
    Uniform,
    uniform_grid,
    velocity_of,
)
from fmjax.solvers import FixedSteps, sample, sample_flow_map
from fmjax.solvers.steppers.ode import RK4
from tests.oracles import Gaussian

SCHEDULES = [Linear(), Cosine()]


def sample_points(num=64, dim=2):
    keys = jax.random.split(jax.random.key(3), 3)
    first, second = jax.random.uniform(keys[0], (2, num), minval=0.02, maxval=0.98)
    x = 1.5 * jax.random.normal(keys[1], (num, dim))
    return jnp.maximum(first, second), jnp.minimum(first, second), x


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_exact_map_equals_its_training_targets(schedule):
    oracle, (r, t, x) = Gaussian(schedule), sample_points()
    velocity = oracle.velocity(t, x)
    u, target = mean_flow_target(oracle.mean_velocity, r, t, x, velocity, velocity)
    np.testing.assert_allclose(target, u, atol=2e-5)
    step = 0.5 * (r - t)
    two_steps = shortcut_target(oracle.mean_velocity, t, step, x)
    np.testing.assert_allclose(two_steps, oracle.mean_velocity(r, t, x), atol=2e-5)
    # Smallest steps use the velocity, which has the error of two Euler steps.
    euler_steps = shortcut_target(oracle.mean_velocity, t, step, x, min_step=1.0)
    assert 1e-3 < float(jnp.max(jnp.abs(euler_steps - two_steps))) < 3.0


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_target_derivative_matches_finite_differences(schedule):
    with jax.enable_x64(True):
        oracle = Gaussian(schedule)
        r, t, x = (jnp.asarray(a, jnp.float64) for a in sample_points())

        def wrong_map(r, t, x, cond=None):
            return jnp.sin(3.0 * x) * (1.0 + r)[:, None] + jnp.exp(t)[:, None] * x**2

        v, h = oracle.velocity(t, x), 1e-6
        _, target = mean_flow_target(wrong_map, r, t, x, v, v)
        forward, backward = (wrong_map(r, t + e, x + e * v) for e in (h, -h))
        derivative = (forward - backward) / (2 * h)
        np.testing.assert_allclose(target, v + (r - t)[:, None] * derivative, rtol=1e-7, atol=1e-7)


def exact_map_net(schedule):
    """Make a network that returns the exact map plus the parameter `offset`."""

    def apply(params, r, t, x, cond=None, guidance=None):
        return Gaussian(schedule).mean_velocity(r, t, x) + params["offset"]

    return FlowMapNet(lambda key: {"offset": jnp.zeros(())}, apply)


def objectives(net, path):
    return {
        "mean_flow": mean_flow_objective(
            net, path, power=0.0, density=Uniform(), ratio_r_neq_t=0.5
        ),
        "improved": mean_flow_objective(
            net, path, power=0.0, improved=True, density=Uniform(), ratio_r_neq_t=0.5
        ),
        "shortcut": shortcut_objective(net, path, num_steps=1024, bootstrap_ratio=0.5),
    }


@pytest.mark.parametrize("name", ["mean_flow", "improved", "shortcut"])
def test_expected_loss_is_stationary_at_the_exact_map(name):
    # The gradient of the expected loss is zero at its minimum: the mean over n examples is within
    # four standard errors of zero for the exact map, but not for a wrong map.
    net = exact_map_net(Cosine())
    objective = objectives(net, AffinePath(Cosine()))[name]
    oracle = Gaussian(Cosine())
    x1 = oracle.mean + oracle.std * jax.random.normal(jax.random.key(0), (20_000, 1))
    examples = objective.make_examples(jax.random.key(1), Batch(x1))

    def gradients(offset):
        grad_fn = jax.grad(lambda offset, example: objective.loss({"offset": offset}, example)[0])
        with_targets = objective.with_targets({"offset": offset}, examples)
        rows = jax.tree.map(lambda leaf: leaf[:, None], with_targets)
        return jax.jit(jax.vmap(grad_fn, in_axes=(None, 0)))(offset, rows)

    exact_gradients, offset_gradients = gradients(jnp.float32(0.0)), gradients(jnp.float32(0.2))
    standard_error = np.std(exact_gradients) / np.sqrt(len(exact_gradients))
    assert abs(np.mean(exact_gradients)) < 4 * standard_error
    assert abs(np.mean(offset_gradients)) > 10 * standard_error


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_jumps_and_ode_solves_of_exact_map_are_exact(schedule):
    oracle = Gaussian(schedule)
    assert isinstance(oracle.mean_velocity, FlowMapFn)
    x0 = jax.random.normal(jax.random.key(0), (32, 2))
    exact = oracle.flow_map(jnp.ones(32), x0)
    for num_steps in (1, 2, 5):
        steps = FixedSteps(uniform_grid(num_steps))
        samples = jax.jit(lambda x, s: sample_flow_map(oracle.mean_velocity, x, steps=s))(x0, steps)
        np.testing.assert_allclose(samples.x1, exact, atol=1e-5)
        np.testing.assert_array_equal(samples.nfe, num_steps)
        assert bool(samples.succeeded.all())
    by_ode = sample(
        velocity_of(oracle.mean_velocity), x0, solver=RK4(), steps=FixedSteps(uniform_grid(64))
    )
    np.testing.assert_allclose(by_ode.x1, exact, atol=1e-5)


@pytest.mark.slow
def test_initial_flow_map_equals_the_velocity_network():
    config, keys = MLPConfig(width=16, num_layers=2), jax.random.split(jax.random.key(0), 3)
    velocity, flow_map = make_network(config, (3,), 4), make_flow_map(config, (3,), 4, guided=True)
    params = flow_map.init(keys[0])
    # The output layer is initialized to zero.
    params["out"]["kernel"] = jax.random.normal(keys[1], params["out"]["kernel"].shape)
    velocity_params = {
        **params,
        "embed": {k: v for k, v in params["embed"].items() if k in velocity.init(keys[0])["embed"]},
    }
    assert jax.tree.structure(velocity_params) == jax.tree.structure(velocity.init(keys[0]))
    t, r, cond = jnp.full(5, 0.2), jnp.full(5, 0.7), jnp.arange(5) % 4
    x = jax.random.normal(keys[2], (5, 3))
    guidance = jnp.tile(jnp.array([3.0, 0.0, 1.0]), (5, 1))
    np.testing.assert_array_equal(
        flow_map.apply(params, r, t, x, cond, guidance), velocity.apply(velocity_params, t, x, cond)
    )
    params["embed"]["span"]["kernel"] = jnp.ones_like(params["embed"]["span"]["kernel"])
    changed = flow_map.apply(params, r, t, x, cond, guidance)
    assert not np.allclose(changed, velocity.apply(velocity_params, t, x, cond))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "improved",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("mean_flow", "shortcut")),
    ],
)
def test_training_converges_to_the_exact_map(name):
    # The RMS error is below 0.1 for all jump lengths; the longest jump has RMS length 1.04.
    path, oracle = AffinePath(), Gaussian(Linear(), std=0.7)
    net = make_flow_map(MLPConfig(width=64, num_layers=2, unroll_layers=True), (2,))
    objective = {
        "mean_flow": mean_flow_objective(
            net, path, density=Uniform(), ratio_r_neq_t=0.5, power=0.0
        ),
        "improved": mean_flow_objective(
            net, path, density=Uniform(), ratio_r_neq_t=0.5, power=0.0, improved=True
        ),
        "shortcut": shortcut_objective(
            net, path, num_steps=64, bootstrap_ratio=0.5, stratified=True
        ),
    }[name]
    optimizer = optax.adam(optax.warmup_cosine_decay_schedule(0.0, 4e-3, 200, 3000))

    @jax.jit
    def train(params):
        def step(carry, key):
            params, state, average = carry
            example_key, data_key = jax.random.split(key)
            x1 = oracle.mean + oracle.std * jax.random.normal(data_key, (128, 2))
            examples = objective.make_examples(example_key, Batch(x1))
            with_targets = objective.with_targets(average, examples)
            grads = jax.grad(lambda p: jnp.mean(objective.loss(p, with_targets)))(params)
            updates, state = optimizer.update(grads, state)
            params = optax.apply_updates(params, updates)
            return (params, state, optax.incremental_update(params, average, 0.01)), None

        keys = jax.random.split(jax.random.key(1), 3000)
        carry, _ = jax.lax.scan(step, (params, optimizer.init(params), params), keys)
        return carry[2]

    params = train(net.init(jax.random.key(0)))
    keys = jax.random.split(jax.random.key(2), 2)
    jumps = {1.0: 0.0, 0.5: 0.0, 0.75: 0.5, 1.0 - 1e-6: 0.5}  # End time to start time.
    for end, start in jumps.items():
        x0 = jax.random.normal(keys[0], (1000, 2))
        r, t = jnp.full(1000, end), jnp.full(1000, start)
        x_t = oracle.flow_map(t, x0)
        result = x_t + (r - t)[:, None] * net.apply(params, r, t, x_t)
        error = jnp.sqrt(jnp.mean(jnp.square(result - oracle.flow_map(r, x0))))
        assert float(error) < 0.1, (end, start)


def test_shortcut_examples_use_only_grid_steps():
    net = exact_map_net(Linear())
    objective = shortcut_objective(net, AffinePath(), num_steps=16, bootstrap_ratio=0.5)
    examples = objective.make_examples(jax.random.key(0), Batch(jnp.zeros((4096, 1))))
    step_sizes = np.asarray(examples.r - examples.t)
    assert set(step_sizes) == {0.0, 1 / 8, 1 / 4, 1 / 2, 1.0}
    positions = (np.asarray(examples.t) / np.where(step_sizes > 0, step_sizes, 1))[step_sizes > 0]
    np.testing.assert_array_equal(positions, np.round(positions))
    assert np.all(examples.r <= 1.0)
    assert abs(np.mean(step_sizes > 0) - 0.5) < 4 * 0.5 / 64  # Four standard errors.


@pytest.mark.slow
def test_shortcut_targets_use_average_weights_and_guide_smallest_steps():
    def apply(params, r, t, x, cond=None, guidance=None):
        return jnp.broadcast_to((params["v"][cond] + 10.0 * (r > t))[:, None], x.shape)

    net = FlowMapNet(lambda key: {"v": jnp.zeros(3)}, apply)
    objective = shortcut_objective(
        net,
        AffinePath(),
        num_steps=4,
        bootstrap_ratio=0.7,
        guidance=2.5,
        label_drop=0.4,
        null_cond=2,
    )
    labels = jnp.arange(512) % 2
    examples = objective.make_examples(jax.random.key(0), Batch(jnp.ones((512, 1)), labels))
    with_targets = objective.with_targets({"v": jnp.array([1.0, 2.0, 5.0])}, examples)
    step_sizes, dropped = np.asarray(examples.r - examples.t), np.asarray(examples.dropped)
    prediction = np.where(dropped, 5.0, 1.0 + np.asarray(labels))
    guided = np.where(dropped, 5.0, 5.0 + 2.5 * (prediction - 5.0))
    velocity = np.asarray(examples.u_t)[:, 0]
    target = np.select(
        [step_sizes == 1.0, step_sizes == 0.5], [prediction + 10.0, guided], velocity
    )
    assert len(set(zip(step_sizes, dropped, strict=True))) == 6
    np.testing.assert_allclose(with_targets.target[:, 0], target, rtol=1e-6)
    loss = objective.loss({"v": jnp.zeros(3)}, with_targets)
    np.testing.assert_allclose(loss, (target - 10.0 * (step_sizes > 0)) ** 2, rtol=1e-5)


@pytest.mark.parametrize(("power", "weights"), [(0.0, [1, 1]), (1.0, [1 / 25.1, 1 / 0.35])])
def test_adaptive_loss_is_squared_error_with_weighted_gradient(power, weights):
    error = jnp.array([[3.0, 4.0], [0.3, 0.4]])
    np.testing.assert_allclose(adaptive_loss(error, power, 0.1), [25.0, 0.25], rtol=1e-6)
    grads = jax.grad(lambda e: jnp.sum(adaptive_loss(e, power, 0.1)))(error)
    np.testing.assert_allclose(grads, 2 * error * np.array(weights)[:, None], rtol=1e-6)


@pytest.mark.parametrize("mix", [None, 0.0, 0.6])
def test_guided_velocity_is_fixed_point_of_built_in_guidance(mix):
    scale, t = 2.5, jnp.array([0.1, 0.5, 0.9, 0.5])
    built_in = BuiltInGuidance(scale, mix=mix, first=0.3, last=0.95)
    v_cond, v_null = jax.random.normal(jax.random.key(0), (2, 4, 3))
    guided = v_null + scale * (v_cond - v_null)
    dropped = jnp.array([False, False, False, True])
    guidance_inputs = built_in.sample(jax.random.key(1), 4)
    # The target is linear in the sampled velocity, so its mean v_cond gives the mean target.
    target = built_in.target(t, v_cond, guided, v_null, guidance_inputs, dropped)
    np.testing.assert_allclose(target[1:3], guided[1:3], rtol=2e-6, atol=2e-6)
    np.testing.assert_array_equal(target[0], v_cond[0])  # The time is before the interval.
    np.testing.assert_array_equal(target[3], v_cond[3])  # The condition is dropped.


def test_sampled_guidance_scales_have_the_configured_density():
    u = (np.arange(1, 10)) / 10
    for power, quantile in ((1.0, 8.0**u), (0.0, 1 + 7 * u), (2.0, 1 / (1 - u * (1 - 1 / 8)))):
        built_in = BuiltInGuidance(max_scale=8.0, power=power, first=0.5, last=0.6)
        scale, first, last = np.asarray(built_in.sample(jax.random.key(0), 40_000)).T
        fractions = [np.mean(scale <= q) for q in quantile]
        np.testing.assert_allclose(fractions, u, atol=4 * 0.5 / 200)  # Four standard errors.
        assert 0.0 <= first.min() < 0.01
        assert 0.49 < first.max() <= 0.5
        assert 0.6 <= last.min() < 0.61
        assert 0.99 < last.max() <= 1.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda net: shortcut_objective(net, AffinePath(), num_steps=12), "be a power of two"),
        (
            lambda net: shortcut_objective(net, AffinePath(), guidance=1.5),
            "guidance must be 1 if label_drop is 0",
        ),
        (
            lambda net: mean_flow_objective(net, AffinePath(), ratio_r_neq_t=2.0),
            "ratio_r_neq_t must",
        ),
        (
            lambda net: mean_flow_objective(net, AffinePath(), guidance=BuiltInGuidance(2.0)),
            "be 1 for a network without classes",
        ),
        (
            lambda net: mean_flow_objective(
                net, AffinePath(), guidance=BuiltInGuidance(max_scale=4.0)
            ),
            "net.guided must be True if guidance.max_scale is given",
        ),
        (lambda net: BuiltInGuidance(0.0), "guidance.scale must be positive"),
        (lambda net: BuiltInGuidance(2.0, max_scale=4.0), "be 1 if guidance.max_scale is given"),
        (lambda net: BuiltInGuidance(mix=1.0), r"guidance.mix must lie in \[0, 1\)"),
        (lambda net: BuiltInGuidance(first=0.5, last=0.4), "be at most guidance.last = 0.4"),
        (lambda net: BuiltInGuidance(max_scale=0.5), "guidance.max_scale must"),
    ],
)
def test_invalid_objective_settings_are_rejected(make, message):
    with pytest.raises(ValueError, match=message):
        make(exact_map_net(Linear()))


def test_map_with_wrong_shape_is_rejected():
    r, t, x = sample_points(4)

    def flat(r, t, x, cond=None):
        return x[:, :1]

    with pytest.raises(ValueError, match=r"map_fn must return shape \(4, 2\), got \(4, 1\)"):
        mean_flow_target(flat, r, t, x, x, x)
    with pytest.raises(ValueError, match=r"velocity_fn must return shape \(4, 2\)"):
        sample_flow_map(flat, x, steps=FixedSteps([0.0, 1.0]))
