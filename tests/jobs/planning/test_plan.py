"""Tests of memory and cost plans against real arrays and programs on fake devices."""

import dataclasses
import importlib.util
import json

import jax
import numpy as np
import pytest

from fmjax._arrays import Batch, TextShape
from fmjax._specs import class_spec
from fmjax.config import Config, PlanConfig, Sampling, TrainingConfig, build, to_json
from fmjax.data import ArrayData, DigitsData
from fmjax.jobs.planning import plan as module
from fmjax.jobs.planning.plan import layouts, plan
from fmjax.jobs.planning.workloads import sampling_batch, training_step
from fmjax.networks import DiTConfig, FluxConfig, UNetConfig
from fmjax.planning import Chip, count_flops
from fmjax.planning.collectives import Traffic
from fmjax.planning.compile import Compiled
from fmjax.report.plan import plan_text, plans_json, plot_memory
from fmjax.sharding import MeshConfig, bytes_held, make_mesh, put_batch
from fmjax.training import init_state

CONFIG = Config(
    name="planned",
    data=DigitsData(),
    network=DiTConfig(2, 64, 4, 2),
    training=TrainingConfig(num_steps=100, batch_size=64),
    mesh=MeshConfig(data=2, fsdp=4),
)
PLAN = PlanConfig("cpu:8", price=2.0)


@pytest.fixture(scope="module")
def result():
    (result,) = plan(CONFIG, PLAN)
    return result


@pytest.mark.slow
def test_planned_argument_bytes_match_the_device_arrays(result):
    mesh = make_mesh(CONFIG.mesh)
    experiment = build(CONFIG, (8, 8, 1), 10)
    state, _ = init_state(experiment.model.net, experiment.optimizer, jax.random.key(0), mesh)
    batch = put_batch(Batch(np.zeros((64, 8, 8, 1), np.float32), np.zeros(64, np.int32)), mesh)
    device_bytes = np.zeros(8)
    for leaf in jax.tree.leaves((state._replace(key=jax.random.key_data(state.key)), batch)):
        for shard in leaf.addressable_shards:
            device_bytes[shard.device.id] += shard.data.nbytes
    assert np.all(device_bytes == device_bytes[0])
    assert result.arguments == device_bytes[0]
    assert result.fits
    assert result.num_parameters == sum(leaf.size for leaf in jax.tree.leaves(state.params))


@pytest.mark.slow
def test_peak_memory_is_arguments_plus_temporaries(result):
    assert result.temporaries > 0
    # The output state reuses the buffers of the input state; the batch and metrics are small.
    assert result.peak == pytest.approx(result.arguments + result.temporaries, rel=0.02)


def test_plan_counts_flops_and_gathered_bytes(result):
    # A training step costs three forward passes.
    net = build(CONFIG, (8, 8, 1), 10).model.net
    params = jax.eval_shape(net.init, jax.random.key(0))
    t, x = np.zeros(1, np.float32), np.zeros((1, 8, 8, 1), np.float32)
    forward = count_flops(net.apply, params, t, x, np.zeros(1, np.int32))
    assert result.flops * 8 / 64 == pytest.approx(3 * forward)
    gathers = result.traffic["all-gather"]
    weights = 4 * result.num_parameters
    # Each sharded weight is gathered in the forward and in the backward pass.
    assert 1.5 < gathers.bytes / weights < 2.5


SAMPLING = Sampling.of(num_samples=100, solver="heun", num_steps=3, batch_size=30, guidance=2.0)


@pytest.mark.slow
def test_sampling_plan_counts_evaluations_and_argument_bytes():
    config = dataclasses.replace(CONFIG, sampling=SAMPLING)
    (result,) = plan(config, dataclasses.replace(PLAN, work="sampling"))
    assert result.batch_size == 32  # The next multiple of 8 devices.
    assert result.repeats == 4
    net = build(config, (8, 8, 1), 10).model.net
    params = jax.eval_shape(net.init, jax.random.key(0))
    t, x = np.zeros(4, np.float32), np.zeros((4, 8, 8, 1), np.float32)
    labels = np.zeros(4, np.int32)
    # Heun evaluates the network twice per step, and guidance doubles it.
    evaluation = count_flops(net.apply, params, t, x, labels) / 4
    assert result.flops == pytest.approx(32 / 8 * 2 * 3 * 2 * evaluation)
    sizes = [leaf.size for leaf in jax.tree.leaves(params)]
    num_replicated = sum(size for size in sizes if size < 2**12)
    num_inputs = 2 * 32 // 8  # Sample indices and labels.
    assert result.arguments == 4 * (num_replicated + (sum(sizes) - num_replicated) / 4 + num_inputs)
    text = plan_text(result)
    assert "32 samples" in text
    assert "TFLOP per batch and device" in text


def sampling_with(**settings):
    config = dataclasses.replace(CONFIG, sampling=Sampling.of(batch_size=8, **settings))
    return sampling_batch(
        config, make_mesh(CONFIG.mesh), event_shape=(8, 8, 1), conditions=class_spec(10)
    )


def test_adaptive_sampling_is_planned_for_one_step():
    workload = sampling_with(solver="tsit5").count()
    assert (workload.unit, workload.repeats) == ("solver step", None)
    assert workload.flops > 0
    with pytest.raises(ValueError, match="grid must not be calibrated without a trained run"):
        sampling_with(solver="heun", num_steps=4, grid="calibrated")


def test_text_conditions_are_planned_from_their_shapes():
    text = TextShape(8, 16, 12)
    network = FluxConfig(2, 2, 16, 1, 2, (4, 6, 6), remat="full")
    config = dataclasses.replace(CONFIG, network=network)
    mesh = make_mesh(CONFIG.mesh)
    state, batch = training_step(config, mesh, event_shape=(8, 8, 4), conditions=text).args
    assert bytes_held(batch) == 64 / 8 * 4 * (8 * 16 + 12 + 8 * 8 * 4)
    assert bytes_held(state) > 0
    assert ArrayData("nowhere", event_shape=(8, 8, 4), text=text).shape() == ((8, 8, 4), text)


def chip_with_memory(memory):
    return {jax.devices()[0].device_kind: Chip(1e12, memory, 1e11, 1e10, 1e9)}


@pytest.mark.slow
def test_search_ends_with_a_fitting_layout(result, monkeypatch, tmp_path):
    # With replicated weights the state alone exceeds the memory of this chip.
    memory = 1.2 * result.peak
    monkeypatch.setattr(module, "CHIPS", chip_with_memory(memory))
    replicated = dataclasses.replace(CONFIG, mesh=MeshConfig(data=8))
    plans = plan(replicated, PLAN)
    assert len(plans) > 1
    assert not plans[0].fits
    assert plans[-1].fits
    assert plans[-1].peak <= 1.2 * result.peak < plans[0].peak
    assert plans[-1].mesh["fsdp"] > 1
    assert plans[-1].batch_size == 64
    text = plan_text(plans[0])
    assert "DOES NOT FIT" in text
    assert "dollars for 100 steps" in text
    documents = json.loads(plans_json(plans))["plans"]
    assert [document["fits"] for document in documents] == [False] * (len(plans) - 1) + [True]
    last = plans[-1]
    assert last.step_seconds == max(last.roofline.values())
    assert last.dollars == pytest.approx(2.0 * 8 * 100 * last.step_seconds / 3600)
    assert len(plot_memory(plans).axes[0].patches) == 2 * len(plans)
    (without_search,) = plan(replicated, dataclasses.replace(PLAN, search=False))
    assert not without_search.fits


@pytest.mark.slow
def test_search_tries_distinct_configs_down_to_the_smallest_batch(result, monkeypatch):
    tried = []
    monkeypatch.setattr(module, "CHIPS", chip_with_memory(1.0))
    monkeypatch.setattr(
        module, "_plan_one", lambda config, *_: tried.append(config) or result._replace(fits=False)
    )
    for network in (
        DiTConfig(2, 16, 1, 2, remat="full"),
        UNetConfig(8, (1,), 1, attention_resolutions=()),
    ):
        config = dataclasses.replace(CONFIG, network=network, mesh=MeshConfig(1, 8))
        tried.clear()
        plan(config, PLAN)
        assert len({to_json(config) for config in tried}) == len(tried) > 3
        assert tried[-1].training.batch_size == 8
        assert tried[-1].training.accumulation_steps == 1


def test_roofline_counts_remat_recomputation():
    chip = Chip(1e12, 1e9, 1e11, 1e10, 1e9)
    traffic = {"all-gather": Traffic(1, 5e9, 4e9, 1e9)}
    program = Compiled(1e9, 2e9, 3e9, 6e9, traffic, 0.0)
    assert module._roofline(chip, "full", 3e12, program) == {
        "compute": pytest.approx(4.0),
        "memory": pytest.approx(0.09),
        "links": pytest.approx(0.3),
        "network": pytest.approx(1.0),
    }
    assert module._roofline(chip, "none", 3e12, program)["compute"] == pytest.approx(3.0)


def test_layouts_are_ordered_by_distance_from_the_config():
    result = layouts(8, (8, 1, 1))
    assert result[:4] == [
        MeshConfig(8, 1, 1),
        MeshConfig(4, 2, 1),
        MeshConfig(2, 4, 1),
        MeshConfig(1, 8, 1),
    ]
    assert layouts(8, (2, 2, 2)) == [MeshConfig(2, 2, 2), MeshConfig(1, 4, 2), MeshConfig(1, 2, 4)]


def test_shape_of_missing_data_comes_from_the_config():
    latents = ArrayData("nowhere", num_classes=1000, event_shape=(8, 8, 4))
    assert latents.shape() == ((8, 8, 4), class_spec(1000))
    with pytest.raises(ValueError, match="data.folder must hold train.npz"):
        ArrayData("nowhere").shape()


@pytest.mark.parametrize(
    ("topology", "message"),
    [
        ("v5f:4x4", "topology must be one of .*did you mean 'v5p'|'v5e'"),
        ("v5e", "topology must be like v5e:16x16, v5p:4x4x4, h100:8 or cpu:8, got v5e"),
        ("h100:8x8", "topology must be like"),
        ("cpu:3", "topology must have the 8 devices that JAX was started with, got cpu:3"),
    ],
)
def test_invalid_topologies_are_refused(topology, message):
    with pytest.raises(ValueError, match=message):
        plan(CONFIG, PlanConfig(topology))


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_missing_compiler_error_names_the_package_to_install():
    message = r"topology v5e:4x4 must have its compiler installed: pip install 'fmjax\[tpu\]'"
    with pytest.raises(ValueError, match=message):
        plan(CONFIG, PlanConfig("v5e:4x4"))
