"""Tests of the train step: layouts, accumulation, the update and donation."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fmjax._arrays import Batch
from fmjax.losses import flow_matching_objective
from fmjax.losses.objective import Objective
from fmjax.networks import DiTConfig, make_network
from fmjax.paths import AffinePath
from fmjax.sharding.mesh import MeshConfig, make_mesh, put_batch
from fmjax.training.optimizer import OptimizerConfig, make_optimizer
from fmjax.training.step import init_state, make_train_step, state_from
from tests.training.tiny import DIM, Points, make_net, make_objective

NUM_STEPS = 5
LAYOUTS = {"one": (1, 1), "data 8": (8, 1), "fsdp 8": (1, 8), "mixed": (4, 2)}


def train(layout, accumulation_steps=1, num_steps=NUM_STEPS):
    """Run `num_steps` of AdamW; return the final state and the metrics of each step."""
    data, fsdp = layout
    mesh = make_mesh(MeshConfig(data, fsdp), jax.devices()[: data * fsdp])
    net = make_net()
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-2, warmup_steps=2), NUM_STEPS)
    state, sharding = init_state(net, optimizer, jax.random.key(0), mesh)
    step = make_train_step(
        make_objective(net),
        optimizer,
        mesh=mesh,
        state_sharding=sharding,
        accumulation_steps=accumulation_steps,
    )
    batches, metrics = Points(), []
    for _ in range(num_steps):
        state, step_metrics = step(state, put_batch(next(batches), mesh))
        metrics.append(jax.device_get(step_metrics))
    return state, metrics


@pytest.fixture(scope="module")
def reference():
    return train(LAYOUTS["one"])


def assert_same_run(run, reference):
    for actual, expected in zip(run[1], reference[1], strict=True):
        np.testing.assert_allclose(actual.loss, expected.loss, rtol=2e-6)
        np.testing.assert_allclose(actual.grad_norm, expected.grad_norm, rtol=2e-6)
    for name in ("params", "ema_params"):
        jax.tree.map(
            # The first steps of AdamW divide by the root of a tiny second moment, which magnifies
            # rounding errors of gradients near zero.
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=2e-6),
            jax.device_get(getattr(run[0], name)),
            jax.device_get(getattr(reference[0], name)),
        )


@pytest.mark.parametrize("layout", ["data 8", "fsdp 8", "mixed"])
def test_eight_devices_match_one_device(layout, reference):
    assert_same_run(train(LAYOUTS[layout]), reference)


@pytest.mark.slow
@pytest.mark.parametrize("unroll", [False, True])
def test_fsdp_gathers_weights_and_never_moves_activations(unroll):
    """Check the compiled program of a DiT with 16 tokens per image and 64 images."""
    net = make_network(DiTConfig(2, 64, 2, 2, unroll_layers=unroll), (8, 8, 1), 10)
    mesh = make_mesh(MeshConfig(1, 8))
    optimizer = make_optimizer(OptimizerConfig(), NUM_STEPS)
    state, sharding = init_state(net, optimizer, jax.random.key(0), mesh)
    objective = flow_matching_objective(net, AffinePath(), null_cond=10)
    step = make_train_step(objective, optimizer, mesh=mesh, state_sharding=sharding)
    batch = put_batch(Batch(np.zeros((64, 8, 8, 1), np.float32), np.zeros(64, np.int32)), mesh)
    program = step.lower(state, batch).compile().as_text()
    assert "collective-permute" not in program
    gathered = re.findall(r"f32\[([\d,]*)\]\S* all-gather(?:-start)?\(", program)
    assert "1,64,256" in gathered or "1,256,64" in gathered, (
        "the weights of an MLP must be gathered"
    )
    sizes = [np.prod([int(n) for n in shape.split(",")]) for shape in gathered]
    largest_weight, activations = 64 * 6 * 64, 64 * 16 * 64
    assert max(sizes) <= largest_weight < activations


@pytest.mark.parametrize("layout", ["one", "mixed"])
def test_accumulation_matches_the_full_batch(layout, reference):
    assert_same_run(train(LAYOUTS[layout], accumulation_steps=2), reference)


def test_first_update_is_adamw_of_the_mean_gradient(reference):
    """Compare the step with its definition: sample, mean loss, clip, AdamW, average."""
    net, mesh = make_net(), make_mesh(devices=jax.devices()[:1])
    init_key, step_key = jax.random.split(jax.random.key(0))
    params, objective = net.init(init_key), make_objective(make_net())
    batch = put_batch(next(Points()), mesh)
    examples = objective.make_examples(jax.random.fold_in(step_key, 0), batch)
    loss, grads = jax.value_and_grad(lambda p: jnp.mean(objective.loss(p, examples)))(params)
    norm = np.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(grads)))
    metrics = reference[1][0]
    np.testing.assert_allclose(metrics.loss, loss, rtol=1e-6)
    np.testing.assert_allclose(metrics.grad_norm, norm, rtol=1e-6)
    state, _ = train(LAYOUTS["one"], num_steps=1)
    for new, average, old, grad in zip(
        *map(jax.tree.leaves, (state.params, state.ema_params, params, grads)), strict=True
    ):
        grad = grad * min(1.0, 1.0 / norm)
        # In the first AdamW step both bias-corrected moments are those of the gradient. The
        # learning rate is halved because the warm-up has two steps.
        expected = old - 0.5e-2 * grad / (jnp.abs(grad) + 1e-8)
        np.testing.assert_allclose(new, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(average, 0.1 * old + 0.9 * expected, rtol=1e-5, atol=1e-6)
    assert state.step == 1


@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_targets_are_made_with_the_averaged_params(accumulation_steps):
    """Compare two gradient steps on `(w - average - x)^2`, for constant average, with formulas."""
    objective = Objective(
        make_examples=lambda key, batch: {"x": batch.x1[:, 0]},
        loss=lambda params, examples: (params["w"] - examples["target"]) ** 2,
        make_targets=lambda average, examples: examples | {"target": average["w"] + examples["x"]},
    )
    net = make_net()._replace(init=lambda key: {"w": jnp.ones((1,))})
    mesh, optimizer = make_mesh(devices=jax.devices()[:2]), optax.sgd(0.1)
    state, sharding = init_state(net, optimizer, jax.random.key(0), mesh)
    step = make_train_step(
        objective,
        optimizer,
        mesh=mesh,
        state_sharding=sharding,
        ema_decay=0.5,
        accumulation_steps=accumulation_steps,
    )
    w = average = 1.0
    for n, batch in zip(range(2), Points(), strict=False):
        state, metrics = step(state, put_batch(batch, mesh))
        error = w - average - batch.x1[:, 0]
        np.testing.assert_allclose(metrics.loss, np.mean(error**2), rtol=1e-5)
        w -= 0.1 * 2 * np.mean(error)
        average += (1 - (1 + n) / (10 + n)) * (w - average)
        np.testing.assert_allclose(state.params["w"], w, rtol=1e-5)


def test_state_from_initial_params_equals_init_state():
    mesh, net = make_mesh(), make_net()
    optimizer = make_optimizer(OptimizerConfig(), NUM_STEPS)
    key = jax.random.key(0)
    expected_state, sharding = init_state(net, optimizer, key, mesh)
    params = jax.tree.map(lambda leaf: leaf + 0, expected_state.params)
    state = state_from(params, optimizer, key, sharding)
    for actual, expected in zip(*map(jax.tree.leaves, (state, expected_state)), strict=True):
        assert actual.sharding == expected.sharding
        if jax.dtypes.issubdtype(actual.dtype, jax.dtypes.prng_key):
            actual, expected = jax.random.key_data(actual), jax.random.key_data(expected)
        np.testing.assert_array_equal(actual, expected)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(params)), "params must be donated"


def test_train_step_is_traced_once():
    net, mesh, traces = make_net(), make_mesh(), []
    objective = make_objective(net)

    def counting_loss(params, examples):
        traces.append(None)
        return objective.loss(params, examples)

    optimizer = optax.sgd(1e-3)
    state, sharding = init_state(net, optimizer, jax.random.key(0), mesh)
    counting_objective = objective._replace(loss=counting_loss)
    step = make_train_step(counting_objective, optimizer, mesh=mesh, state_sharding=sharding)
    batches = Points()
    for _ in range(4):
        state, _ = step(state, put_batch(next(batches), mesh))
    assert len(traces) == 1


def test_params_and_average_share_no_buffers_and_are_donated():
    net, mesh, optimizer = make_net(), make_mesh(), optax.sgd(1e-3)
    state, sharding = init_state(net, optimizer, jax.random.key(0), mesh)
    leaves = jax.tree.leaves((state.params, state.ema_params))
    pointers = [s.data.unsafe_buffer_pointer() for leaf in leaves for s in leaf.addressable_shards]
    assert len(set(pointers)) == len(pointers)
    jax.tree.map(np.testing.assert_array_equal, state.params, state.ema_params)
    step = make_train_step(make_objective(net), optimizer, mesh=mesh, state_sharding=sharding)
    step(state, put_batch(next(Points()), mesh))
    assert all(leaf.is_deleted() for leaf in leaves)


def test_non_finite_loss_is_reported_in_the_metrics():
    net, mesh, optimizer = make_net(), make_mesh(), optax.sgd(1e-3)
    state, sharding = init_state(net, optimizer, jax.random.key(0), mesh)
    step = make_train_step(make_objective(net), optimizer, mesh=mesh, state_sharding=sharding)
    rows = np.zeros((16, DIM), np.float32)
    state, metrics = step(state, put_batch(Batch(rows), mesh))
    assert metrics.finite
    rows[3, 0] = np.nan
    _, metrics = step(state, put_batch(Batch(rows), mesh))
    assert not metrics.finite
    assert np.isnan(metrics.loss)


def make_step_and_state(mesh, **settings):
    net, optimizer = make_net(), optax.sgd(1e-3)
    objective = settings.pop("objective", make_objective(net))
    state, sharding = init_state(net, optimizer, jax.random.key(0), mesh)
    step = make_train_step(objective, optimizer, mesh=mesh, state_sharding=sharding, **settings)
    return step, state


def test_indivisible_batch_size_is_rejected():
    mesh = make_mesh()
    message = "batch_size must be divisible by 8, the number of devices along data and fsdp"
    with pytest.raises(ValueError, match=f"{message}, got 12"):
        put_batch(next(Points(batch_size=12)), mesh)
    step, state = make_step_and_state(mesh, accumulation_steps=3)
    with pytest.raises(ValueError, match=f"{message}, times 3 accumulation steps, got 16"):
        step(state, put_batch(next(Points()), mesh))


def test_loss_without_one_value_per_example_is_rejected():
    mesh = make_mesh()
    objective = make_objective(make_net())
    scalar_objective = Objective(
        objective.make_examples, lambda p, e: jnp.mean(objective.loss(p, e))
    )
    step, state = make_step_and_state(mesh, objective=scalar_objective)
    with pytest.raises(ValueError, match="one value per example, shape \\(16,\\), got \\(\\)"):
        step(state, put_batch(next(Points()), mesh))


def test_out_of_range_settings_are_rejected():
    mesh = make_mesh()
    with pytest.raises(ValueError, match="ema_decay must lie in \\[0, 1\\), got 1.0"):
        make_step_and_state(mesh, ema_decay=1.0)
    with pytest.raises(ValueError, match="accumulation_steps must be at least 1, got 0"):
        make_step_and_state(mesh, accumulation_steps=0)


def decay(path, leaf):
    return "decay" if path[-1].key == "kernel" else "keep"


OPTIMIZERS = {
    "adafactor": optax.adafactor(1e-2, min_dim_size_to_factor=4),
    "schedule_free": optax.contrib.schedule_free_adamw(1e-2),
    "noise": optax.chain(optax.add_noise(1e-3, 0.5, jax.random.key(3)), optax.sgd(1e-2)),
    "polyak": optax.polyak_sgd(0.1),  # Uses the loss.
    "multi_steps": optax.MultiSteps(optax.adam(1e-2), 2).gradient_transformation(),
    "partition": optax.partition(
        {"decay": optax.adamw(1e-2), "keep": optax.sgd(1e-2)},
        lambda params: jax.tree_util.tree_map_with_path(decay, params),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optax_optimizer_gives_the_parameters_of_a_plain_loop(name):
    """The devices of the mesh split the gradient's sum, so only rounding differs."""
    net, optimizer = make_net(), OPTIMIZERS[name]
    objective, batches, losses = make_objective(net), Points(), []
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    state, sharding = init_state(net, optimizer, jax.random.key(0), mesh)
    params, opt_state = jax.device_get(state.params), None
    opt_state = optimizer.init(params)
    step = make_train_step(objective, optimizer, mesh=mesh, state_sharding=sharding)
    for n in range(4):
        batch = next(batches)
        examples = objective.make_examples(jax.random.fold_in(state.key, n), batch)

        def loss_fn(params, examples=examples):
            return jnp.mean(objective.loss(params, examples))

        loss, grads = jax.value_and_grad(loss_fn)(params)
        update = optax.with_extra_args_support(optimizer).update
        updates, opt_state = update(grads, opt_state, params, value=loss)
        params = optax.apply_updates(params, updates)
        state, metrics = step(state, put_batch(batch, mesh))
        losses.append((float(metrics.loss), float(loss)))
    np.testing.assert_allclose(*zip(*losses, strict=True), rtol=1e-5)
    jax.tree.map(
        lambda got, expected: np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-5),
        state.params,
        params,
    )
