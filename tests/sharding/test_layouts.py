"""Tests that networks and losses give the same results on eight devices and on one device."""

from typing import NamedTuple

import jax
import numpy as np
import optax
import pytest

from fmjax._arrays import Batch, Text, TextShape
from fmjax._specs import Spec, class_spec, null_cond, token_spec
from fmjax.losses import (
    BuiltInGuidance,
    flow_matching_objective,
    mean_flow_objective,
    shortcut_objective,
)
from fmjax.networks import (
    DiTConfig,
    FluxConfig,
    MLPConfig,
    MMDiTConfig,
    SequenceTransformerConfig,
    TextEncoderConfig,
    UNetConfig,
    make_flow_map,
    make_network,
)
from fmjax.paths import AffinePath
from fmjax.sharding.mesh import MeshConfig, make_mesh, put_batch
from fmjax.training.state import TrainState
from fmjax.training.step import abstract_state, init_state, make_train_step

NUM_STEPS, BATCH, NUM_CLASSES = 5, 16, 3
# With two heads, a tensor axis of size 8 splits queries instead of heads.
NETWORKS = {
    "dit": (DiTConfig(2, 64, 2, 2, qk_norm=True), (8, 8, 1)),
    "unet": (UNetConfig(32, (1, 2), 1, attention_resolutions=(4,), head_width=32), (8, 8, 1)),
    "mlp": (MLPConfig(64, 2), (4,)),
    "sequence": (SequenceTransformerConfig(64, 2, 2, qk_norm=True), (16, 7)),
    "flux": (FluxConfig(2, 2, 32, 1, 2, (8, 12, 12)), (8, 8, 4)),
    "captions": (MMDiTConfig(2, 2, 32, 2, qk_norm=True), (8, 8, 4)),
}
# Flow-map losses nest forward-mode in reverse-mode derivatives and use the network for targets.
GUIDANCE = BuiltInGuidance(max_scale=4.0, first=0.2, last=0.8)
FLOW_MAPS = {"improved": "dit", "improved_unet": "unet", "shortcut": "dit"}
NETWORKS |= {name: NETWORKS[network] for name, network in FLOW_MAPS.items()}
TEXT = TextShape(4, 64, 64)
TOKENS = token_spec(4, 64)
MIXED = {"plan": Spec((16, 2)), "state": Spec((8,)), "task": class_spec(NUM_CLASSES)}
CONDITIONS = dict.fromkeys(NETWORKS, NUM_CLASSES) | {
    "flux": TEXT,
    "captions": TOKENS,
    "sequence": MIXED,
}
ENCODER = TextEncoderConfig(64, 2, 2)
ONE_DEVICE = MeshConfig(1, 1, 1)
LAYOUTS = [
    ("dit", MeshConfig(2, 2, 2)),
    *(
        pytest.param((name, MeshConfig(*sizes)), marks=pytest.mark.slow)
        for name, *sizes in (
            ("dit", 8, 1, 1),
            ("dit", 1, 8, 1),
            ("dit", 1, 1, 8),
            ("unet", 2, 2, 2),
            ("flux", 2, 2, 2),
            ("captions", 2, 2, 2),
            ("improved", 2, 2, 2),
            ("improved", 1, 8, 1),
            ("improved_unet", 2, 2, 2),
            ("shortcut", 1, 4, 2),
            ("flux", 1, 8, 1),
            ("mlp", 1, 4, 2),
            ("sequence", 2, 2, 2),
        )
    ),
]


class TrainingResult(NamedTuple):
    initial_params: dict
    losses: list[float]
    state: TrainState


def make_objective(name):
    """Return the network and its objective."""
    conditions, path = CONDITIONS[name], AffinePath()
    dropped = dict(label_drop=0.1, null_cond=null_cond(conditions))
    if name not in FLOW_MAPS:
        net = make_network(*NETWORKS[name], conditions, text_encoder=ENCODER)
        return net, flow_matching_objective(net, path, **dropped)
    guided = name.startswith("improved")
    net = make_flow_map(*NETWORKS[name], conditions, guided=guided)
    if guided:  # Power 1 would magnify rounding errors of small losses.
        return net, mean_flow_objective(
            net, path, improved=True, ratio_r_neq_t=0.5, power=0.0, guidance=GUIDANCE, **dropped
        )
    return net, shortcut_objective(net, path, bootstrap_ratio=0.5, guidance=1.5, **dropped)


def train(name, layout):
    """Run `NUM_STEPS` of AdamW on random images."""
    event_shape = NETWORKS[name][1]
    net, objective = make_objective(name)
    num_devices = layout.data * layout.fsdp * layout.tensor
    mesh = make_mesh(layout, jax.devices()[:num_devices])
    optimizer = optax.adamw(1e-3, eps=1e-3)  # A large eps limits the noise of tiny gradients.
    state, sharding = init_state(net, optimizer, jax.random.key(0), mesh)
    initial_params = jax.device_get(state.params)
    step = make_train_step(objective, optimizer, mesh=mesh, state_sharding=sharding)
    rng, losses = np.random.default_rng(0), []
    for _ in range(NUM_STEPS):
        x = rng.standard_normal((BATCH, *event_shape), np.float32)
        cond = rng.integers(0, NUM_CLASSES, BATCH).astype(np.int32)
        if name == "flux":
            shapes = (BATCH, TEXT.num_tokens, TEXT.width), (BATCH, TEXT.pooled_width)
            cond = Text(*(rng.standard_normal(shape, np.float32) for shape in shapes))
        if name == "captions":
            shape = (BATCH, *TOKENS.shape)
            cond = rng.integers(0, TOKENS.num_values, shape).astype(np.int32)
        if name == "sequence":
            cond = {
                "plan": rng.standard_normal((BATCH, 16, 2), np.float32),
                "state": rng.standard_normal((BATCH, 8), np.float32),
                "task": cond,
            }
        state, metrics = step(state, put_batch(Batch(x, cond), mesh))
        losses.append(float(metrics.loss))
    return TrainingResult(initial_params, losses, state)


@pytest.fixture(scope="module", params=LAYOUTS, ids=lambda case: f"{case[0]}-{case[1]}")
def case(request):
    name, layout = request.param
    return name, layout, train(name, layout)


@pytest.fixture(scope="module")
def one_device():
    results = {}

    def train_once(name):
        if name not in results:
            results[name] = train(name, ONE_DEVICE)
        return results[name]

    return train_once


def assert_close(actual, expected):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_initialization_and_five_steps_match_one_device(case, one_device):
    name, _, actual = case
    expected = one_device(name)
    assert_close(actual.initial_params, expected.initial_params)
    np.testing.assert_allclose(actual.losses, expected.losses, rtol=1e-5)
    assert_close(jax.device_get(actual.state.params), jax.device_get(expected.state.params))


def test_large_arrays_are_sharded_over_fsdp_and_tensor(case):
    name, layout, actual = case
    net, _ = make_objective(name)
    num_split = 0
    for key_path, leaf in jax.tree_util.tree_leaves_with_path(actual.state._replace(key=None)):
        leaf_name = jax.tree_util.keystr(key_path, simple=True, separator=".")
        over_tensor = any(leaf_name.endswith(f".{ending}") for ending in net.tensor_axes)
        num_shards = layout.fsdp * (layout.tensor if over_tensor else 1)
        if leaf.size >= 2**12:
            assert leaf.addressable_shards[0].data.size * num_shards == leaf.size, leaf_name
            num_split += num_shards > 1
    assert num_split > 0 or layout.data == 8


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.adafactor(1e-3),
        optax.contrib.muon(1e-3),
        optax.lion(1e-3),
        optax.contrib.schedule_free_adamw(1e-3),
    ],
    ids=["adafactor", "muon", "lion", "schedule_free"],
)
def test_moments_of_any_shape_are_stored_in_shards(optimizer):
    """Adafactor's moments of a matrix are vectors, which lack the axes that the layer names."""
    net = make_network(MLPConfig(4096, 1), (4,), NUM_CLASSES)
    state = abstract_state(net, optimizer, make_mesh(MeshConfig(1, 2, 4)))
    for leaf in jax.tree.leaves(state):
        shard = leaf.sharding.shard_shape(leaf.shape)
        if np.prod(leaf.shape) >= 2**12 and max(leaf.shape) % 2 == 0:
            assert np.prod(shard) < np.prod(leaf.shape)
