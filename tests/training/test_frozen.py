"""Tests of training with frozen weights: updates, layouts and resumed runs."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from fmjax._trees import combine, flatten_dict, partition
from fmjax.losses import flow_matching_objective
from fmjax.networks import LoRAConfig
from fmjax.paths import AffinePath
from fmjax.planning import flops_per_example
from fmjax.sharding import MeshConfig, make_mesh, put_batch
from fmjax.training import Checkpoints, init_state, make_train_step, state_from
from tests.golden_models import GOLDEN
from tests.released import batch, tuned

pytestmark = pytest.mark.slow

FLUX, SD35 = "flux-dev-tiny", "sd35-medium-tiny"
NUM_STEPS = 4
LORA = LoRAConfig(64, 64.0, (*LoRAConfig().layers, "proj_out"))  # Large enough to be sharded.


def make_training(model, lora, layout, remat="full"):
    """Return a train step of a golden model, its initial state, frozen weights and mesh."""
    mesh = make_mesh(layout, jax.devices()[: layout.data * layout.fsdp * layout.tensor])
    tuning = tuned(model, lora)
    like = tuning.frozen(mesh)
    optimizer = optax.adamw(1e-3, eps=1e-3, weight_decay=0.1)
    state, sharding = init_state(tuning.net, optimizer, jax.random.key(0), mesh)
    if lora is None:
        params_like = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state.params
        )
        params = tuning.load(GOLDEN / model, params_like, dtype="float32")
        state = state_from(params, optimizer, jax.random.key(0), sharding)
    step = make_train_step(
        flow_matching_objective(tuning.net, AffinePath()),
        optimizer,
        mesh=mesh,
        state_sharding=sharding,
        frozen_sharding=jax.tree.map(lambda a: a.sharding, like),
    )
    return step, state, tuning.load(GOLDEN / model, like, dtype="float32"), mesh


def run_steps(step, state, frozen, mesh, first=0, last=NUM_STEPS):
    losses = []
    for n in range(first, last):
        state, metrics = step(state, put_batch(batch(seed=n), mesh), frozen)
        losses.append(float(metrics.loss))
    return state, losses


@pytest.mark.parametrize(("model", "lora"), [(FLUX, LORA), (SD35, LORA), (SD35, None)])
def test_trainable_weights_change_and_frozen_weights_do_not(model, lora):
    step, state, frozen, mesh = make_training(model, lora, MeshConfig(1, 1, 1))
    initial_params, initial_frozen = jax.device_get((state.params, frozen))
    initial_leaves = flatten_dict(initial_params)
    names = set(initial_leaves)
    expected = {n for n in names if "lora" in n.split(".")} if lora else names - {"positions"}
    assert names == expected
    state, _ = run_steps(step, state, frozen, mesh)
    jax.tree.map(np.testing.assert_array_equal, frozen, initial_frozen)
    for name, leaf in flatten_dict(jax.device_get(state.params)).items():
        if "blocks_1.text.to_heads.linear.lora.q" in name:
            continue  # These queries have no gradient: the last block has no text output.
        assert not np.array_equal(leaf, initial_leaves[name]), name
    # Only trainable weights have moments and an average.
    per_copy = sum(leaf.size for leaf in jax.tree.leaves(initial_params))
    arrays = [leaf for leaf in jax.tree.leaves(state) if leaf.dtype == np.float32]
    assert sum(leaf.size for leaf in arrays) == 4 * per_copy


@pytest.mark.parametrize(
    ("model", "layout"),
    [
        (FLUX, MeshConfig(2, 2, 2)),
        pytest.param(SD35, MeshConfig(2, 2, 2), marks=pytest.mark.slow),
        pytest.param(FLUX, MeshConfig(1, 8, 1), marks=pytest.mark.slow),
    ],
)
def test_eight_devices_match_one_device(model, layout):
    expected_state, expected_losses = run_steps(*make_training(model, LORA, MeshConfig(1, 1, 1)))
    step, state, frozen, mesh = make_training(model, LORA, layout)
    sharded = [
        n for n, leaf in flatten_dict(state.params).items() if not leaf.sharding.is_fully_replicated
    ]
    assert sharded
    actual_state, actual_losses = run_steps(step, state, frozen, mesh)
    np.testing.assert_allclose(actual_losses, expected_losses, rtol=1e-5)
    for a, b in zip(
        *map(jax.tree.leaves, (actual_state.params, expected_state.params)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lora", [LORA, pytest.param(None, marks=pytest.mark.slow)])
def test_resumed_run_matches_uninterrupted_run(lora, tmp_path):
    step, state, frozen, mesh = make_training(SD35, lora, MeshConfig(1, 2, 1))
    uninterrupted, _ = run_steps(step, state, frozen, mesh)
    _, state, _, _ = make_training(SD35, lora, MeshConfig(1, 2, 1))
    stopped, _ = run_steps(step, state, frozen, mesh, last=2)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(stopped, {})
        checkpoints.wait()
        restored = checkpoints.restore(stopped).state
    resumed, _ = run_steps(step, restored, frozen, mesh, first=2)
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(jax.device_get(a), jax.device_get(b)),
        resumed._replace(key=0),
        uninterrupted._replace(key=0),
    )


def test_gradient_matches_the_full_network():
    """Compare the gradient norm of a step with the adapters' part of the full gradient."""
    step, state, frozen, mesh = make_training(FLUX, LORA, MeshConfig(1, 1, 1))
    tuning = tuned(FLUX, LORA)
    objective, data = flow_matching_objective(tuning.net, AffinePath()), put_batch(batch(), mesh)
    examples = objective.make_examples(jax.random.fold_in(state.key, 0), data)
    params = combine(state.params, frozen)
    grads = jax.jit(jax.grad(lambda p: objective.loss(p, examples).mean()))(params)
    norm = optax.tree.norm(partition(grads, tuning.learns)[0])
    _, metrics = step(state, data, frozen)
    np.testing.assert_allclose(metrics.grad_norm, norm, rtol=1e-4)


def test_frozen_weights_add_no_gradient_flops():
    tuning, full_tuning = (
        tuned(FLUX, dataclasses.replace(LORA, rank=1, alpha=1.0)),
        tuned(FLUX, None),
    )
    params = jax.eval_shape(full_tuning.init, jax.random.key(0))
    full_flops = flops_per_example(
        flow_matching_objective(full_tuning.net, AffinePath()), params, batch()
    )
    trainable, frozen = partition(jax.eval_shape(tuning.init, jax.random.key(0)), tuning.learns)
    objective = flow_matching_objective(tuning.net, AffinePath())
    frozen_flops = flops_per_example(objective, trainable, batch(), frozen)
    assert 0.66 < frozen_flops / full_flops < 0.72
