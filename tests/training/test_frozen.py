"""Steps beside frozen weights: what learns, what stays; layouts and stops change nothing."""

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
LORA = LoRAConfig(64, 64.0, (*LoRAConfig().layers, "proj_out"))  # Wide enough to be split.


def made(model, lora, layout, remat="full"):
    """A step of a golden model, its first state and what stays."""
    mesh = make_mesh(layout, jax.devices()[: layout.data * layout.fsdp * layout.tensor])
    tuning = tuned(model, lora)
    like = tuning.frozen(mesh)
    optimizer = optax.adamw(1e-3, eps=1e-3, weight_decay=0.1)
    state, sharding = init_state(tuning.net, optimizer, jax.random.key(0), mesh)
    if lora is None:
        places = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state.params
        )
        params = tuning.load(GOLDEN / model, places, dtype="float32")
        state = state_from(params, optimizer, jax.random.key(0), sharding)
    step = make_train_step(
        flow_matching_objective(tuning.net, AffinePath()),
        optimizer,
        mesh=mesh,
        state_sharding=sharding,
        frozen_sharding=jax.tree.map(lambda a: a.sharding, like),
    )
    return step, state, tuning.load(GOLDEN / model, like, dtype="float32"), mesh


def steps(step, state, frozen, mesh, first=0, last=NUM_STEPS):
    losses = []
    for n in range(first, last):
        state, metrics = step(state, put_batch(batch(seed=n), mesh), frozen)
        losses.append(float(metrics.loss))
    return state, losses


@pytest.mark.parametrize(("model", "lora"), [(FLUX, LORA), (SD35, LORA), (SD35, None)])
def test_what_learns_moves_and_what_stays_keeps_its_bits(model, lora):
    step, state, frozen, mesh = made(model, lora, MeshConfig(1, 1, 1))
    start, stays = jax.device_get((state.params, frozen))
    names = flatten_dict(start)
    wanted = {n for n in names if "lora" in n.split(".")} if lora else set(names) - {"positions"}
    assert set(names) == wanted
    state, _ = steps(step, state, frozen, mesh)
    jax.tree.map(np.testing.assert_array_equal, frozen, stays)
    for name, leaf in flatten_dict(jax.device_get(state.params)).items():
        if "blocks_1.text.to_heads.linear.lora.q" in name:
            continue  # Of the last block's text nothing comes, so nobody sees its queries.
        assert not np.array_equal(leaf, names[name]), name
    # Moments and average are of what learns alone.
    per_copy = sum(leaf.size for leaf in jax.tree.leaves(start))
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
def test_eight_devices_give_the_numbers_of_one(model, layout):
    one, losses = steps(*made(model, LORA, MeshConfig(1, 1, 1)))
    step, state, frozen, mesh = made(model, LORA, layout)
    split = [
        n for n, leaf in flatten_dict(state.params).items() if not leaf.sharding.is_fully_replicated
    ]
    assert split
    eight, found = steps(step, state, frozen, mesh)
    np.testing.assert_allclose(found, losses, rtol=1e-5)
    for a, b in zip(*map(jax.tree.leaves, (eight.params, one.params)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lora", [LORA, pytest.param(None, marks=pytest.mark.slow)])
def test_stopped_and_resumed_is_never_stopped(lora, tmp_path):
    step, state, frozen, mesh = made(SD35, lora, MeshConfig(1, 2, 1))
    whole, _ = steps(step, state, frozen, mesh)
    _, state, _, _ = made(SD35, lora, MeshConfig(1, 2, 1))
    half, _ = steps(step, state, frozen, mesh, last=2)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(half, {})
        checkpoints.wait()
        restored = checkpoints.restore(half).state
    resumed, _ = steps(step, restored, frozen, mesh, first=2)
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(jax.device_get(a), jax.device_get(b)),
        resumed._replace(key=0),
        whole._replace(key=0),
    )


def test_the_gradient_is_that_of_the_whole_network():
    """One step of descent against the gradient of all parameters, and its part of the adapters."""
    step, state, frozen, mesh = made(FLUX, LORA, MeshConfig(1, 1, 1))
    tuning = tuned(FLUX, LORA)
    objective, data = flow_matching_objective(tuning.net, AffinePath()), put_batch(batch(), mesh)
    examples = objective.make_examples(jax.random.fold_in(state.key, 0), data)
    whole = combine(state.params, frozen)
    grads = jax.jit(jax.grad(lambda p: objective.loss(p, examples).mean()))(whole)
    norm = optax.tree.norm(partition(grads, tuning.learns)[0])
    _, metrics = step(state, data, frozen)
    np.testing.assert_allclose(metrics.grad_norm, norm, rtol=1e-4)


def test_frozen_weights_have_no_gradient_to_count():
    tuning, plain = tuned(FLUX, dataclasses.replace(LORA, rank=1, alpha=1.0)), tuned(FLUX, None)
    params = jax.eval_shape(plain.init, jax.random.key(0))
    whole = flops_per_example(flow_matching_objective(plain.net, AffinePath()), params, batch())
    parts = partition(jax.eval_shape(tuning.init, jax.random.key(0)), tuning.learns)
    objective = flow_matching_objective(tuning.net, AffinePath())
    frozen_flops = flops_per_example(objective, parts[0], batch(), parts[1])
    assert 0.66 < frozen_flops / whole < 0.72
