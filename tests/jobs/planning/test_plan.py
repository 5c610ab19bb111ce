"""Plans against what running takes on fake devices, and the search for one that fits."""

import dataclasses
import importlib.util
import json

import jax
import numpy as np
import pytest

from fmjax._arrays import Batch, TextShape
from fmjax.config import Config, PlanConfig, SamplingConfig, TrainingConfig, build, to_json
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
ASKED = PlanConfig("cpu:8", price=2.0)


@pytest.fixture(scope="module")
def found():
    (only,) = plan(CONFIG, ASKED)
    return only


@pytest.mark.slow
def test_a_plan_counts_the_bytes_that_a_device_really_holds(found):
    mesh = make_mesh(CONFIG.mesh)
    experiment = build(CONFIG, (8, 8, 1), 10)
    state, _ = init_state(experiment.net, experiment.optimizer, jax.random.key(0), mesh)
    batch = put_batch(Batch(np.zeros((64, 8, 8, 1), np.float32), np.zeros(64, np.int32)), mesh)
    held = np.zeros(8)
    for leaf in jax.tree.leaves((state._replace(key=jax.random.key_data(state.key)), batch)):
        for shard in leaf.addressable_shards:
            held[shard.device.id] += shard.data.nbytes
    assert np.all(held == held[0])
    assert found.arguments == held[0]
    assert found.fits
    assert found.num_parameters == sum(leaf.size for leaf in jax.tree.leaves(state.params))


@pytest.mark.slow
def test_the_peak_holds_arguments_and_temporaries_at_once(found):
    assert found.temporaries > 0
    # The state's outputs take the place of its arguments; the batch and metrics are small.
    assert found.peak == pytest.approx(found.arguments + found.temporaries, rel=0.02)


def test_operations_and_collectives_are_those_of_the_program(found):
    # A step: three times the forward pass.
    net = build(CONFIG, (8, 8, 1), 10).net
    params = jax.eval_shape(net.init, jax.random.key(0))
    t, x = np.zeros(1, np.float32), np.zeros((1, 8, 8, 1), np.float32)
    forward = count_flops(net.apply, params, t, x, np.zeros(1, np.int32))
    assert found.flops * 8 / 64 == pytest.approx(3 * forward)
    gathers = found.traffic["all-gather"]
    weights = 4 * found.num_parameters
    # Each weight is gathered forwards and again backwards, but for those too small to split.
    assert 1.5 < gathers.bytes / weights < 2.5


SAMPLING = SamplingConfig(num_samples=100, solver="heun", num_steps=3, batch_size=30, guidance=2.0)


@pytest.mark.slow
def test_a_plan_of_sampling_counts_every_evaluation_and_holds_weights_and_numbers_only():
    config = dataclasses.replace(CONFIG, sampling=SAMPLING)
    (found,) = plan(config, dataclasses.replace(ASKED, work="sampling"))
    assert found.batch_size == 32  # A multiple of the devices.
    assert found.repeats == 4
    net = build(config, (8, 8, 1), 10).net
    params = jax.eval_shape(net.init, jax.random.key(0))
    t, x = np.zeros(4, np.float32), np.zeros((4, 8, 8, 1), np.float32)
    labels = np.zeros(4, np.int32)
    # Heun asks twice a step, and guidance doubles it.
    evaluation = count_flops(net.apply, params, t, x, labels) / 4
    assert found.flops == pytest.approx(32 / 8 * 2 * 3 * 2 * evaluation)
    sizes = [leaf.size for leaf in jax.tree.leaves(params)]
    whole = sum(size for size in sizes if size < 2**12)
    numbers = 2 * 32 // 8  # Of the samples, and their labels.
    assert found.arguments == 4 * (whole + (sum(sizes) - whole) / 4 + numbers)
    text = plan_text(found)
    assert "32 samples" in text
    assert "TFLOP per batch and device" in text


def sampling_with(**settings):
    config = dataclasses.replace(CONFIG, sampling=SamplingConfig(batch_size=8, **settings))
    return sampling_batch(config, make_mesh(CONFIG.mesh), event_shape=(8, 8, 1), conditions=10)


def test_of_adaptive_steps_a_plan_counts_one():
    counted = sampling_with(solver="tsit5").count()
    assert (counted.unit, counted.repeats) == ("solver step", None)
    assert counted.flops > 0
    with pytest.raises(ValueError, match="grid must not be calibrated without a trained run"):
        sampling_with(solver="heun", num_steps=4, grid="calibrated")


def test_text_is_planned_for_from_its_sizes():
    text = TextShape(8, 16, 12)
    network = FluxConfig(2, 2, 16, 1, 2, (4, 6, 6), remat="full")
    config = dataclasses.replace(CONFIG, network=network)
    mesh = make_mesh(CONFIG.mesh)
    state, batch = training_step(config, mesh, event_shape=(8, 8, 4), conditions=text).args
    assert bytes_held(batch) == 64 / 8 * 4 * (8 * 16 + 12 + 8 * 8 * 4)
    assert bytes_held(state) > 0
    assert ArrayData("nowhere", event_shape=(8, 8, 4), text=text).shape() == ((8, 8, 4), text)


def a_chip_of(memory):
    return {jax.devices()[0].device_kind: Chip(1e12, memory, 1e11, 1e10, 1e9)}


@pytest.mark.slow
def test_the_search_finds_what_fits_and_says_what_it_tried(found, monkeypatch, tmp_path):
    # With all of a weight's copies on each device the state alone is too much for this chip.
    memory = 1.2 * found.peak
    monkeypatch.setattr(module, "CHIPS", a_chip_of(memory))
    whole = dataclasses.replace(CONFIG, mesh=MeshConfig(data=8))
    tried = plan(whole, ASKED)
    assert len(tried) > 1
    assert not tried[0].fits
    assert tried[-1].fits
    assert tried[-1].peak <= 1.2 * found.peak < tried[0].peak
    assert tried[-1].mesh["fsdp"] > 1
    assert tried[-1].batch_size == 64
    text = plan_text(tried[0])
    assert "DOES NOT FIT" in text
    assert "dollars for 100 steps" in text
    read = json.loads(plans_json(tried))["plans"]
    assert [each["fits"] for each in read] == [False] * (len(tried) - 1) + [True]
    last = tried[-1]
    assert last.step_seconds == max(last.roofline.values())
    assert last.dollars == pytest.approx(2.0 * 8 * 100 * last.step_seconds / 3600)
    assert len(plot_memory(tried).axes[0].patches) == 2 * len(tried)
    (alone,) = plan(whole, dataclasses.replace(ASKED, search=False))
    assert not alone.fits


@pytest.mark.slow
def test_no_config_is_tried_twice_and_without_blocks_none_is_rematerialised(found, monkeypatch):
    tried = []
    monkeypatch.setattr(module, "CHIPS", a_chip_of(1.0))
    monkeypatch.setattr(
        module, "_plan_one", lambda config, *_: tried.append(config) or found._replace(fits=False)
    )
    for network in (
        DiTConfig(2, 16, 1, 2, remat="full"),
        UNetConfig(8, (1,), 1, attention_resolutions=()),
    ):
        config = dataclasses.replace(CONFIG, network=network, mesh=MeshConfig(1, 8))
        tried.clear()
        plan(config, ASKED)
        assert len({to_json(each) for each in tried}) == len(tried) > 3
        assert tried[-1].training.batch_size == 8
        assert tried[-1].training.accumulation_steps == 1


def test_a_roofline_pays_for_what_remat_does_again_in_training_only():
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


def test_layouts_come_from_the_nearest_to_the_farthest():
    found = layouts(8, (8, 1, 1))
    assert found[:4] == [
        MeshConfig(8, 1, 1),
        MeshConfig(4, 2, 1),
        MeshConfig(2, 4, 1),
        MeshConfig(1, 8, 1),
    ]
    assert layouts(8, (2, 2, 2)) == [MeshConfig(2, 2, 2), MeshConfig(1, 4, 2), MeshConfig(1, 2, 4)]


def test_data_need_not_be_there():
    latents = ArrayData("nowhere", num_classes=1000, event_shape=(8, 8, 4))
    assert latents.shape() == ((8, 8, 4), 1000)
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
def test_topologies_that_are_none_are_refused(topology, message):
    with pytest.raises(ValueError, match=message):
        plan(CONFIG, PlanConfig(topology))


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is here")
def test_a_missing_compiler_is_named_with_what_installs_it():
    message = r"topology v5e:4x4 must have its compiler installed: pip install 'fmjax\[tpu\]'"
    with pytest.raises(ValueError, match=message):
        plan(CONFIG, PlanConfig("v5e:4x4"))
