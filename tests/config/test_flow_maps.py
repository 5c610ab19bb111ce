"""Flow maps built from configs: jumps, velocities, guidance and invalid settings."""

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
    SamplingConfig,
    ShortcutConfig,
    build,
    from_json,
    guided,
    make_solve,
    to_json,
)
from fmjax.losses import BuiltInGuidance
from fmjax.networks import DiTConfig, MLPConfig
from fmjax.paths import AffinePath, MinibatchOT
from fmjax.runs.sampling.batches import make_sampler
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
JUMPS = SamplingConfig(solver="flow_map", num_steps=2)


def built(config, sampling=JUMPS):
    """Return an experiment, random params, samples, source points and labels."""
    experiment = build(config, (2,), 3)
    keys = jax.random.split(jax.random.key(0), 3)
    params = experiment.net.init(keys[0])
    leaves, tree = jax.tree.flatten(params)
    noises = jax.random.split(keys[1], len(leaves))
    leaves = [
        leaf + 0.3 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, noises, strict=True)
    ]
    x0, cond = jax.random.normal(keys[2], (5, 2)), jnp.arange(5) % 3
    params, solve = jax.tree.unflatten(tree, leaves), make_solve(experiment, sampling)
    return experiment, params, solve(params, x0, None, cond, sampling.make_steps()), x0, cond


@pytest.mark.parametrize("config", [SHORTCUT, MEAN, GUIDANCE_INPUT, BUILT_IN])
def test_sampling_applies_the_map_once_per_step(config):
    experiment, params, samples, x, cond = built(config)
    net = experiment.flow_map.net
    guidance = jnp.tile(jnp.array([1.0, 0.0, 1.0]), (5, 1)) if net.guided else None
    for t in (0.0, 0.5):
        r, t = jnp.full(5, t + 0.5), jnp.full(5, t)
        x = x + 0.5 * net.apply(params, r, t, x, cond, guidance)
    np.testing.assert_allclose(samples.x1, x, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(samples.nfe, 2)
    velocity = guided(experiment, params, 1.0)(t, x, cond)
    expected = net.apply(params, t, t, x, cond, guidance)
    np.testing.assert_allclose(velocity, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(experiment.net.apply(params, t, x, cond), velocity)


def test_the_finest_steps_of_a_shortcut_model_follow_the_velocity():
    eight = SamplingConfig(solver="flow_map", num_steps=8)
    _, _, jumped, *_ = built(SHORTCUT, eight)
    _, _, euler, *_ = built(SHORTCUT, SamplingConfig(solver="euler", num_steps=8))
    np.testing.assert_allclose(jumped.x1, euler.x1, rtol=1e-5, atol=1e-6)


def test_a_guidance_input_gets_scale_and_interval():
    sampling = dataclasses.replace(JUMPS, guidance=3.0, guidance_interval=(0.05, 0.9), num_steps=1)
    experiment, params, samples, x, cond = built(GUIDANCE_INPUT, sampling)
    guidance = jnp.tile(jnp.array([3.0, 0.05, 0.9]), (5, 1))
    u = experiment.flow_map.net.apply(params, jnp.ones(5), jnp.zeros(5), x, cond, guidance)
    np.testing.assert_allclose(samples.x1, x + u, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(samples.nfe, 1)


def test_other_maps_use_classifier_free_guidance_at_twice_the_cost():
    sampling = dataclasses.replace(JUMPS, guidance=3.0, num_steps=1)
    experiment, params, samples, x, cond = built(SHORTCUT, sampling)
    r, t = jnp.ones(5), jnp.zeros(5)
    with_, without = (
        experiment.flow_map.net.apply(params, r, t, x, c) for c in (cond, jnp.full(5, 3))
    )
    expected = x + without + 3.0 * (with_ - without)
    np.testing.assert_allclose(samples.x1, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(samples.nfe, 2)


@pytest.mark.slow
def test_the_velocity_of_a_shortcut_model_uses_classifier_free_guidance():
    with_targets = dataclasses.replace(SHORTCUT, loss=ShortcutConfig(num_steps=8, guidance=1.5))
    sampling = SamplingConfig(solver="euler", num_steps=1, guidance=3.0)
    experiment, params, samples, x, cond = built(with_targets, sampling)
    t = jnp.zeros(5)
    given, without = (
        experiment.flow_map.net.apply(params, t, t, x, c) for c in (cond, jnp.full(5, 3))
    )
    expected = x + without + 3.0 * (given - without)
    np.testing.assert_allclose(samples.x1, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(
        ValueError, match="guidance must be 1 for a network with a built-in guidance"
    ):
        built(with_targets, dataclasses.replace(JUMPS, guidance=3.0))


@pytest.mark.parametrize("config", [SHORTCUT, GUIDANCE_INPUT])
def test_jumps_on_eight_devices_equal_those_on_one(config):
    experiment, params, *_ = built(config)
    sampling = dataclasses.replace(JUMPS, num_samples=20, batch_size=16)
    solve, drawn = make_solve(experiment, sampling), []
    for devices in (jax.devices(), jax.devices()[:1]):
        mesh = make_mesh(devices=devices)
        drawn.append(
            make_sampler(AffinePath(), solve, sampling.make_steps(), (2,), sampling, mesh)(
                jax.device_put(params, replicated(mesh)), np.arange(20) % 3, Silent()
            )
        )
    assert drawn[0].x1.shape == (20, 2)
    np.testing.assert_allclose(drawn[0].x1, drawn[1].x1, atol=1e-5)


@pytest.mark.parametrize("config", [SHORTCUT, MEAN, GUIDANCE_INPUT, BUILT_IN])
def test_configs_of_flow_maps_are_read_back(config):
    assert from_json(to_json(config)) == config


def with_(config, **parts):
    return lambda: build(dataclasses.replace(config, **parts), (2,), 3)


PLAIN = dataclasses.replace(SHORTCUT, loss=LossConfig())
DIT = dataclasses.replace(MEAN, network=DiTConfig(width=16, num_layers=1, num_heads=2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (with_(PLAIN, sampling=JUMPS), "sampling.solver 'flow_map' needs a flow-map model"),
        (
            with_(PLAIN, compare=CompareConfig(fixed_solvers=("flow_map",))),
            "compare.solver 'flow_map' needs a flow-map model",
        ),
        (lambda: built(PLAIN), "solver 'flow_map' needs a flow-map model"),
        (
            lambda: built(SHORTCUT, dataclasses.replace(JUMPS, num_steps=16)),
            "num_steps must be a divisor of 8, the steps of the grid of the training, got 16",
        ),
        (
            lambda: built(SHORTCUT, dataclasses.replace(JUMPS, num_steps=3)),
            "num_steps must be a divisor of 8",
        ),
        (
            with_(SHORTCUT, sampling=dataclasses.replace(JUMPS, num_steps=32)),
            "sampling.num_steps must be a divisor of 8, the steps of the grid",
        ),
        (
            lambda: built(SHORTCUT, dataclasses.replace(JUMPS, grid="shifted")),
            "grid must be uniform for a shortcut model",
        ),
        (
            lambda: built(GUIDANCE_INPUT, dataclasses.replace(JUMPS, guidance=5.0)),
            r"guidance must lie in \[1, 4\], the scales of the training, got 5.0",
        ),
        (
            lambda: built(BUILT_IN, dataclasses.replace(JUMPS, guidance=1.5)),
            "guidance must be 1 for a network with a built-in guidance scale of 2, got 1.5",
        ),
        (
            lambda: built(
                dataclasses.replace(MEAN, loss=MeanFlowConfig(label_drop=0.0)),
                dataclasses.replace(JUMPS, guidance=1.5),
            ),
            "guidance must be 1 for a model without classes or with loss.label_drop = 0",
        ),
        (
            with_(BUILT_IN, loss=dataclasses.replace(BUILT_IN.loss, label_drop=0.0)),
            "loss.guidance.scale must be 1 for a network without classes or with loss.label_drop",
        ),
        (
            lambda: built(GUIDANCE_INPUT, dataclasses.replace(JUMPS, guidance_interval=(0.2, 0.9))),
            "guidance_interval must start at or before 0.1 and end at or after 0.8",
        ),
        (
            with_(GUIDANCE_INPUT, sampling=dataclasses.replace(JUMPS, guidance=9.0)),
            r"guidance must lie in \[1, 4\]",
        ),
        (
            with_(SHORTCUT, sampling=dataclasses.replace(JUMPS, grid="shifted")),
            "sampling.grid must be uniform for a shortcut model",
        ),
        (with_(MEAN, coupling=MinibatchOT()), "coupling must be Independent for a flow map"),
        (
            with_(DIT, network=dataclasses.replace(DIT.network, attention="splash")),
            "network.attention must be auto or xla for MeanFlow, which uses forward-mode",
        ),
        (
            with_(SHORTCUT, loss=ShortcutConfig(guidance=1.5, label_drop=0.0)),
            "loss.guidance must be 1 for a network without classes or with loss.label_drop = 0",
        ),
        (
            with_(
                SHORTCUT,
                loss=ShortcutConfig(guidance=1.5),
                sampling=dataclasses.replace(JUMPS, guidance=2.0),
            ),
            "guidance must be 1 for a network with a built-in guidance scale of 1.5",
        ),
        (lambda: ShortcutConfig(guidance=0.0), "loss.guidance must"),
        (lambda: ShortcutConfig(num_steps=12), "loss.num_steps must be a power of two, at least 2"),
        (lambda: MeanFlowConfig(ratio_r_neq_t=1.5), "loss.ratio_r_neq_t must lie in"),
        (lambda: MeanFlowConfig(floor=0.0), "loss.floor must be positive, got 0.0"),
    ],
)
def test_invalid_settings_of_flow_maps_are_rejected(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_mean_flow_uses_plain_attention():
    experiment = build(DIT, (8, 8, 1), 3)
    assert DIT.network.attention == "auto"
    params = jax.eval_shape(experiment.net.init, jax.random.key(0))
    one = jax.ShapeDtypeStruct((2,), jnp.float32)
    x = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32)
    labels = jax.ShapeDtypeStruct((2,), jnp.int32)

    def derivative(params, t, x, cond):
        net = experiment.net
        return jax.jvp(lambda x: net.apply(params, t, x, cond), (x,), (x,))[1]

    assert jax.eval_shape(derivative, params, one, x, labels).shape == (2, 8, 8, 1)


@pytest.mark.parametrize(
    ("loss", "old", "new"),
    [
        (MeanFlowConfig(ratio_r_neq_t=0.5), "share_apart", "ratio_r_neq_t"),
        (ShortcutConfig(bootstrap_ratio=0.5), "share_apart", "bootstrap_ratio"),
    ],
)
def test_a_run_folder_with_an_old_field_name_is_read_as_the_same_config(loss, old, new):
    config = dataclasses.replace(SHORTCUT, loss=loss)
    text = to_json(config)
    assert f'"{new}": 0.5' in text
    assert from_json(text.replace(new, old)) == config
