"""Tests of flow maps built from configs: jumps, velocities, guidance, invalid settings."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax._progress import Silent
from fmjax.config import (
    CompareConfig,
    Config,
    LossConfig,
    MeanFlowConfig,
    Sampling,
    ShortcutConfig,
    build,
    from_json,
    make_solve,
    to_json,
)
from fmjax.losses import BuiltInGuidance
from fmjax.networks import DiTConfig, MLPConfig
from fmjax.paths import AffinePath, MinibatchOT
from fmjax.runs.sampling.batches import make_batch_solver, make_sampler
from fmjax.sharding import make_mesh, replicated

SHORTCUT = Config(
    name="x", network=MLPConfig(width=16, num_layers=1), loss=ShortcutConfig(num_steps=8)
)
MEAN = dataclasses.replace(SHORTCUT, loss=MeanFlowConfig())
GUIDANCE_INPUT = dataclasses.replace(
    SHORTCUT,
    loss=MeanFlowConfig(
        improved=True, guidance=BuiltInGuidance(max_scale=4.0, first=0.1, last=0.8)
    ),
)
BUILT_IN = dataclasses.replace(SHORTCUT, loss=MeanFlowConfig(guidance=BuiltInGuidance(2.0)))
JUMPS = Sampling.of(solver="flow_map", num_steps=2)


def build_and_sample(config, sampling=JUMPS):
    """Return an experiment, random params, samples, source points and labels."""
    experiment = build(config, (2,), 3)
    keys = jax.random.split(jax.random.key(0), 3)
    params = experiment.model.net.init(keys[0])
    leaves, tree = jax.tree.flatten(params)
    noise_keys = jax.random.split(keys[1], len(leaves))
    leaves = [
        leaf + 0.3 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, noise_keys, strict=True)
    ]
    x0, cond = jax.random.normal(keys[2], (5, 2)), jnp.arange(5) % 3
    params, solve = jax.tree.unflatten(tree, leaves), make_solve(experiment.model, sampling)
    return (
        experiment,
        params,
        solve(params, x0, None, cond, sampling.steps(experiment.model)),
        x0,
        cond,
    )


@pytest.mark.parametrize("config", [SHORTCUT, MEAN, GUIDANCE_INPUT, BUILT_IN])
def test_sampling_applies_the_map_once_per_step(config):
    experiment, params, samples, x, cond = build_and_sample(config)
    net = experiment.model.flow_map.net
    guidance = jnp.tile(jnp.array([1.0, 0.0, 1.0]), (5, 1)) if net.guided else None
    for t in (0.0, 0.5):
        r, t = jnp.full(5, t + 0.5), jnp.full(5, t)
        x = x + 0.5 * net.apply(params, r, t, x, cond, guidance)
    np.testing.assert_allclose(samples.x1, x, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(samples.nfe, 2)
    velocity = experiment.model.velocity_fn(params)(t, x, cond)
    expected = net.apply(params, t, t, x, cond, guidance)
    np.testing.assert_allclose(velocity, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(experiment.model.net.apply(params, t, x, cond), velocity)


def test_the_finest_steps_of_a_shortcut_model_follow_the_velocity():
    sampling = Sampling.of(solver="flow_map", num_steps=8)
    _, _, jumped, *_ = build_and_sample(SHORTCUT, sampling)
    _, _, euler, *_ = build_and_sample(SHORTCUT, Sampling.of(solver="euler", num_steps=8))
    np.testing.assert_allclose(jumped.x1, euler.x1, rtol=1e-5, atol=1e-6)


def test_guidance_inputs_receive_scale_and_interval():
    sampling = JUMPS.with_names(guidance=3.0, guidance_interval=(0.05, 0.9), num_steps=1)
    experiment, params, samples, x, cond = build_and_sample(GUIDANCE_INPUT, sampling)
    guidance = jnp.tile(jnp.array([3.0, 0.05, 0.9]), (5, 1))
    u = experiment.model.flow_map.net.apply(params, jnp.ones(5), jnp.zeros(5), x, cond, guidance)
    np.testing.assert_allclose(samples.x1, x + u, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(samples.nfe, 1)


def test_other_maps_use_classifier_free_guidance_at_twice_the_cost():
    sampling = JUMPS.with_names(guidance=3.0, num_steps=1)
    experiment, params, samples, x, cond = build_and_sample(SHORTCUT, sampling)
    r, t = jnp.ones(5), jnp.zeros(5)
    conditional, unconditional = (
        experiment.model.flow_map.net.apply(params, r, t, x, c) for c in (cond, jnp.full(5, 3))
    )
    expected = x + unconditional + 3.0 * (conditional - unconditional)
    np.testing.assert_allclose(samples.x1, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(samples.nfe, 2)


@pytest.mark.slow
def test_the_velocity_of_a_shortcut_model_uses_classifier_free_guidance():
    with_targets = dataclasses.replace(SHORTCUT, loss=ShortcutConfig(num_steps=8, guidance=1.5))
    sampling = Sampling.of(solver="euler", num_steps=1, guidance=3.0)
    experiment, params, samples, x, cond = build_and_sample(with_targets, sampling)
    t = jnp.zeros(5)
    conditional, unconditional = (
        experiment.model.flow_map.net.apply(params, t, t, x, c) for c in (cond, jnp.full(5, 3))
    )
    expected = x + unconditional + 3.0 * (conditional - unconditional)
    np.testing.assert_allclose(samples.x1, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(
        ValueError, match="guidance must be 1 for a network with a built-in guidance"
    ):
        build_and_sample(with_targets, JUMPS.with_names(guidance=3.0))


@pytest.mark.parametrize("config", [SHORTCUT, GUIDANCE_INPUT])
def test_samples_on_eight_devices_equal_those_on_one(config):
    experiment, params, *_ = build_and_sample(config)
    sampling = JUMPS.with_names(num_samples=20, batch_size=16)
    solve, results = make_solve(experiment.model, sampling), []
    steps = sampling.steps(experiment.model)
    for devices in (jax.devices(), jax.devices()[:1]):
        mesh = make_mesh(devices=devices)
        results.append(
            make_sampler(make_batch_solver(AffinePath(), solve, steps, (2,), mesh), sampling, mesh)(
                jax.device_put(params, replicated(mesh)), np.arange(20) % 3, Silent()
            )
        )
    assert results[0].x1.shape == (20, 2)
    np.testing.assert_allclose(results[0].x1, results[1].x1, atol=1e-5)


@pytest.mark.parametrize("config", [SHORTCUT, MEAN, GUIDANCE_INPUT, BUILT_IN])
def test_flow_map_configs_read_back_from_json_are_equal(config):
    assert from_json(to_json(config)) == config


def build_with(config, **changes):
    """Return a function that builds the config with changed fields."""
    return lambda: build(dataclasses.replace(config, **changes), (2,), 3)


PLAIN = dataclasses.replace(SHORTCUT, loss=LossConfig())
DIT = dataclasses.replace(MEAN, network=DiTConfig(width=16, num_layers=1, num_heads=2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (build_with(PLAIN, sampling=JUMPS), "sampling.solver 'flow_map' needs a flow-map model"),
        (
            build_with(PLAIN, compare=CompareConfig(fixed_solvers=("flow_map",))),
            "compare.solver 'flow_map' needs a flow-map model",
        ),
        (lambda: build_and_sample(PLAIN), "solver 'flow_map' needs a flow-map model"),
        (
            lambda: build_and_sample(SHORTCUT, JUMPS.with_names(num_steps=16)),
            "num_steps must be a divisor of 8, the number of steps used in training, got 16",
        ),
        (
            lambda: build_and_sample(SHORTCUT, JUMPS.with_names(num_steps=3)),
            "num_steps must be a divisor of 8",
        ),
        (
            build_with(SHORTCUT, sampling=JUMPS.with_names(num_steps=32)),
            "sampling.num_steps must be a divisor of 8, the number of steps used in training",
        ),
        (
            lambda: build_and_sample(SHORTCUT, JUMPS.with_names(grid="shifted")),
            "grid must be uniform for a shortcut model",
        ),
        (
            lambda: build_and_sample(GUIDANCE_INPUT, JUMPS.with_names(guidance=5.0)),
            r"guidance must lie in \[1, 4\], the scales of the training, got 5.0",
        ),
        (
            lambda: build_and_sample(BUILT_IN, JUMPS.with_names(guidance=1.5)),
            "guidance must be 1 for a network with a built-in guidance scale of 2, got 1.5",
        ),
        (
            lambda: build_and_sample(
                dataclasses.replace(MEAN, loss=MeanFlowConfig(label_drop=0.0)),
                JUMPS.with_names(guidance=1.5),
            ),
            "guidance must be 1 for a model without classes or with loss.label_drop = 0",
        ),
        (
            build_with(BUILT_IN, loss=dataclasses.replace(BUILT_IN.loss, label_drop=0.0)),
            "loss.guidance.scale must be 1 for a network without classes or with loss.label_drop",
        ),
        (
            lambda: build_and_sample(
                GUIDANCE_INPUT, JUMPS.with_names(guidance_interval=(0.2, 0.9))
            ),
            "guidance_interval must start at or before 0.1 and end at or after 0.8",
        ),
        (
            build_with(GUIDANCE_INPUT, sampling=JUMPS.with_names(guidance=9.0)),
            r"guidance must lie in \[1, 4\]",
        ),
        (
            build_with(SHORTCUT, sampling=JUMPS.with_names(grid="shifted")),
            "sampling.grid must be uniform for a shortcut model",
        ),
        (build_with(MEAN, coupling=MinibatchOT()), "coupling must be Independent for a flow map"),
        (
            build_with(DIT, network=dataclasses.replace(DIT.network, attention="splash")),
            "network.attention must be auto or xla for MeanFlow, which uses forward-mode",
        ),
        (
            build_with(SHORTCUT, loss=ShortcutConfig(guidance=1.5, label_drop=0.0)),
            "loss.guidance must be 1 for a network without classes or with loss.label_drop = 0",
        ),
        (
            build_with(
                SHORTCUT,
                loss=ShortcutConfig(guidance=1.5),
                sampling=JUMPS.with_names(guidance=2.0),
            ),
            "guidance must be 1 for a network with a built-in guidance scale of 1.5",
        ),
        (lambda: ShortcutConfig(guidance=0.0), "loss.guidance must"),
        (lambda: ShortcutConfig(num_steps=12), "loss.num_steps must be a power of two, at least 2"),
        (lambda: MeanFlowConfig(ratio_r_neq_t=1.5), "loss.ratio_r_neq_t must lie in"),
        (lambda: MeanFlowConfig(floor=0.0), "loss.floor must be positive, got 0.0"),
    ],
)
def test_invalid_flow_map_settings_are_rejected(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_mean_flow_uses_plain_attention():
    experiment = build(DIT, (8, 8, 1), 3)
    assert DIT.network.attention == "auto"
    params = jax.eval_shape(experiment.model.net.init, jax.random.key(0))
    time = jax.ShapeDtypeStruct((2,), jnp.float32)
    x = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32)
    labels = jax.ShapeDtypeStruct((2,), jnp.int32)

    def derivative(params, t, x, cond):
        net = experiment.model.net
        return jax.jvp(lambda x: net.apply(params, t, x, cond), (x,), (x,))[1]

    assert jax.eval_shape(derivative, params, time, x, labels).shape == (2, 8, 8, 1)
