"""Tests of example weights, element masks and keys of networks, in losses and training steps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from fmjax._arrays import Batch
from fmjax.config import from_nnx
from fmjax.losses import (
    flow_matching_loss,
    flow_matching_objective,
    mean_flow_objective,
    shortcut_objective,
)
from fmjax.losses.weights import relative_weight
from fmjax.networks import make_network
from fmjax.paths import AffinePath, FlowMapNet, Linear, VelocityNet
from fmjax.sharding import MeshConfig, make_mesh, put_batch
from fmjax.training import init_state, make_train_step

BATCH, TIME, CHANNELS = 16, 3, 2
RNG = np.random.default_rng(0)
X1 = jnp.asarray(RNG.normal(size=(BATCH, TIME, CHANNELS)), jnp.float32)
WEIGHT = RNG.uniform(0.0, 2.0, BATCH).astype(np.float32)
# Examples have 1 to 3 steps, one has none.
MASK = np.arange(TIME) < RNG.integers(1, TIME + 1, BATCH)[:, None]
MASK[5] = False
PATH = AffinePath(Linear())


@pytest.mark.parametrize("shape", [(BATCH, TIME), (BATCH, TIME, 1), (BATCH, TIME, CHANNELS)])
@pytest.mark.parametrize("huber", [None, 0.3])
def test_masked_loss_is_that_of_the_unmasked_elements(shape, huber):
    mask = np.broadcast_to(MASK.reshape(BATCH, TIME, *(1,) * (len(shape) - 2)), shape)
    x0 = jnp.asarray(RNG.normal(size=X1.shape), jnp.float32)
    t = jnp.linspace(0, 1, BATCH)
    loss = flow_matching_loss(
        lambda t, x, cond: jnp.sin(x), PATH, t, x0, X1, mask=jnp.asarray(mask), huber=huber
    )
    x_t = np.asarray(t[:, None, None] * X1 + (1 - t[:, None, None]) * x0)
    target = np.asarray(X1 - x0)
    for i in range(BATCH):
        error = (np.sin(x_t) - target)[i, MASK[i]]
        if not MASK[i].any():
            expected = 0.0
        elif huber is None:
            expected = np.mean(error**2)
        else:
            expected = np.sqrt(np.sum(error**2) + huber**2) - huber
        np.testing.assert_allclose(loss[i], expected, rtol=2e-5, atol=1e-7)


def test_relative_weights_have_mean_one():
    np.testing.assert_allclose(relative_weight(jnp.array([1, 3, 0])), [0.75, 2.25, 0.0])
    np.testing.assert_array_equal(relative_weight(jnp.zeros(3)), jnp.zeros(3))


def elementwise_net(cls):
    """A network that treats each element alone, so that masked elements cannot influence others."""

    def apply(params, *args):
        x = args[-1] if cls is VelocityNet else args[2]
        return jnp.tanh(params["a"] * x + params["b"])

    if cls is VelocityNet:
        return cls(lambda key: {}, lambda params, t, x, cond=None: apply(params, x))
    return cls(
        lambda key: {}, lambda params, r, t, x, cond=None, guidance=None: apply(params, r, t, x)
    )


OBJECTIVES = {
    "flow matching": lambda: flow_matching_objective(elementwise_net(VelocityNet), PATH),
    "pseudo-Huber": lambda: flow_matching_objective(elementwise_net(VelocityNet), PATH, huber=0.1),
    "MeanFlow": lambda: mean_flow_objective(elementwise_net(FlowMapNet), PATH),
    "shortcut": lambda: shortcut_objective(elementwise_net(FlowMapNet), PATH),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_masked_values_do_not_change_the_gradient_and_weights_average(name):
    objective, params = OBJECTIVES[name](), {"a": jnp.array(0.3), "b": jnp.array(0.2)}

    @jax.jit
    def losses_and_grad(x1, weight):
        batch = Batch(x1, weight=weight, mask=jnp.asarray(MASK))
        examples = objective.make_examples(jax.random.key(3), batch)
        examples = objective.with_targets(params, examples)
        losses = objective.loss(params, examples)
        return losses, jax.grad(lambda p: jnp.mean(objective.loss(p, examples)))(params)

    ones = jnp.ones(BATCH)
    losses, grads = losses_and_grad(X1, ones)
    padded = jnp.where(MASK[..., None], X1, 1e4)
    for actual, expected in zip(losses_and_grad(padded, ones), (losses, grads), strict=True):
        jax.tree.map(np.testing.assert_array_equal, actual, expected)
    assert losses[5] == 0
    assert abs(float(grads["a"])) > 1e-3
    weighted_losses, weighted_grads = losses_and_grad(X1, WEIGHT)
    expected = np.sum(WEIGHT * np.asarray(losses)) / np.sum(WEIGHT)
    np.testing.assert_allclose(jnp.mean(weighted_losses), expected, rtol=1e-5)
    assert abs(float(weighted_grads["a"] - grads["a"])) > 1e-4


class Small(nnx.Module):
    """An MLP with dropout, which sees all elements of an example."""

    def __init__(self, event_shape, conditions, *, rngs):
        size = event_shape[0] * event_shape[1]
        self.first = nnx.Linear(size + 1, 32, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(32, size, rngs=rngs)

    def __call__(self, t, x, cond):
        h = jnp.concatenate([x.reshape(len(x), -1), t[:, None]], axis=1)
        h = self.dropout(nnx.silu(self.first(h)))
        return self.last(h).reshape(x.shape)


NET = make_network(from_nnx(Small), (TIME, CHANNELS))


def train(layout, accumulation_steps):
    """Train three steps on weighted and masked examples with dropout; return losses and state."""
    mesh = make_mesh(layout, jax.devices()[: layout.data * layout.fsdp])
    objective, optimizer = flow_matching_objective(NET, PATH), optax.sgd(0.1)
    state, sharding = init_state(NET, optimizer, jax.random.key(0), mesh)
    step = make_train_step(
        objective,
        optimizer,
        mesh=mesh,
        state_sharding=sharding,
        accumulation_steps=accumulation_steps,
    )
    losses = []
    for _ in range(3):
        batch = put_batch(Batch(X1, weight=WEIGHT, mask=MASK), mesh)
        state, metrics = step(state, batch)
        losses.append(float(metrics.loss))
    return losses, jax.device_get(state.params)


@pytest.mark.slow
def test_devices_and_microbatches_keep_weights_masks_and_dropout():
    losses, params = train(MeshConfig(1, 1), 1)
    for layout, accumulation_steps in [(MeshConfig(2, 4), 2), (MeshConfig(1, 1), 4)]:
        other_losses, other_params = train(layout, accumulation_steps)
        np.testing.assert_allclose(other_losses, losses, rtol=1e-6)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
            other_params,
            params,
        )
    # The first loss is sum(w l) / sum(w) of losses that are computed from their definition.
    init_key, step_key = jax.random.split(jax.random.key(0))
    params = NET.init(init_key)
    objective = flow_matching_objective(NET, PATH)
    examples = objective.make_examples(jax.random.fold_in(step_key, 0), Batch(X1))
    predicted = NET.apply(params, examples.t, examples.x_t, keys=examples.keys)
    squares = np.asarray((predicted - examples.target) ** 2)
    expected = [squares[i, MASK[i]].mean() if MASK[i].any() else 0.0 for i in range(BATCH)]
    np.testing.assert_allclose(losses[0], np.sum(WEIGHT * expected) / WEIGHT.sum(), rtol=1e-5)


@pytest.mark.slow
def test_dropout_of_a_module_depends_on_the_key_of_the_example_only():
    params, t = NET.init(jax.random.key(0)), jnp.zeros(BATCH)
    assert set(params) == {"first", "last"}
    keys = jax.random.split(jax.random.key(1), BATCH)
    rows = slice(4, 8)
    trained = NET.apply(params, t, X1, keys=keys)
    np.testing.assert_allclose(
        NET.apply(params, t[rows], X1[rows], keys=keys[rows]), trained[rows], rtol=1e-5, atol=1e-6
    )
    sampled = NET.apply(params, t, X1)
    module = Small((TIME, CHANNELS), None, rngs=nnx.Rngs(jax.random.key(0)))
    module.eval()
    np.testing.assert_allclose(sampled, module(t, X1, None), rtol=1e-5, atol=1e-6)
    # Each of 32 hidden units is dropped with probability 1/2, so the results differ.
    assert np.abs(np.asarray(trained - sampled)).max() > 0.05
    same = NET.apply(params, t[:2], X1[:1].repeat(2, 0), keys=keys[:2])
    assert np.abs(np.asarray(same[0] - same[1])).max() > 0.05


class WithStatistics(Small):
    def __init__(self, event_shape, conditions, *, rngs):
        super().__init__(event_shape, conditions, rngs=rngs)
        self.norm = nnx.BatchNorm(32, rngs=rngs)


@dataclasses.dataclass(frozen=True)
class WithoutKeys:
    """A network that declares keys, which its result ignores, and has a wrong shape with them."""

    def make(self, event_shape, conditions):
        def apply(params, t, x, cond=None, keys=None):
            return x if keys is None else x[:, :1]

        return VelocityNet(lambda key: {}, apply, takes_keys=True)


def test_unsuitable_networks_are_refused():
    with pytest.raises(ValueError, match="network WithStatistics must have no running statistics"):
        make_network(from_nnx(WithStatistics), (TIME, CHANNELS))
    with pytest.raises(ValueError, match="network WithoutKeys must return float32 of shape"):
        make_network(WithoutKeys(), (TIME, CHANNELS))
