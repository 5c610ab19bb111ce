"""The training step: one jitted function on a mesh, which donates the training state.

All random numbers of a step are sampled for the global batch before it is split into microbatches.
So the numbers of devices and of accumulation steps change the results only by the order of sums.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from fmjax._arrays import Params, PRNGKey
from fmjax._checks import require, require_at_least
from fmjax._inputs import require_key
from fmjax.losses.objective import Objective
from fmjax.paths import FlowMapNet, VelocityNet
from fmjax.sharding import BATCH_AXES, on_mesh
from fmjax.sharding.mesh import batch_sharding, replicated, require_batch_fits, with_shardings
from fmjax.training.ema import update_ema
from fmjax.training.state import StepMetrics, TrainState

TrainStep = Callable[..., tuple[TrainState, StepMetrics]]
"""A training step `step(state, batch)` or `step(state, batch, frozen)`."""


def init_state(
    net: VelocityNet | FlowMapNet, optimizer: optax.GradientTransformation, key: PRNGKey, mesh: Mesh
) -> tuple[TrainState, TrainState]:
    """Initialize a training state on a mesh.

    The initialization is jitted with sharded outputs, so a model that does not fit on one device
    is never gathered on one.

    Args:
        net: Network whose `init` makes the weights.
        optimizer: Optimizer from `make_optimizer`, or any other of optax.
        key: Random key of the run. It is split into a key for the weights and one for the steps.
        mesh: Device mesh from `make_mesh`.

    Returns:
        The state and its sharding, a `TrainState` of `NamedSharding`s.
    """
    require_key(key)
    like = abstract_state(net, optimizer, mesh)
    sharding = jax.tree.map(lambda leaf: leaf.sharding, like)
    return jax.jit(partial(_init, net, optimizer), out_shardings=sharding)(key), sharding


def abstract_state(
    net: VelocityNet | FlowMapNet, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """Return the state of `init_state` as `jax.ShapeDtypeStruct`s with shardings."""
    like = jax.eval_shape(partial(_init, net, optimizer), jax.random.key(0))
    return with_shardings(like, mesh, net.tensor_axes)


def _init(
    net: VelocityNet | FlowMapNet, optimizer: optax.GradientTransformation, key: PRNGKey
) -> TrainState:
    init_key, step_key = jax.random.split(key)
    return _make_state(optimizer, net.init(init_key), step_key)


def state_from(
    params: Params, optimizer: optax.GradientTransformation, key: PRNGKey, sharding: TrainState
) -> TrainState:
    """Make the initial training state for given weights.

    Args:
        params: Initial weights; they are donated.
        optimizer: Optimizer from `make_optimizer`, or any other of optax.
        key: Random key of the run, used as in `init_state`.
        sharding: Sharding of the state, a `TrainState` of `NamedSharding`s.
    """

    def initial_state(params: Params, key: PRNGKey) -> TrainState:
        return _make_state(optimizer, params, jax.random.split(key)[1])

    return jax.jit(initial_state, out_shardings=sharding, donate_argnums=0)(params, key)


def _make_state(
    optimizer: optax.GradientTransformation, params: Params, step_key: PRNGKey
) -> TrainState:
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        # Copy, because the step donates the state and no buffer may be donated twice.
        ema_params=jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32, copy=True), params),
        opt_state=optimizer.init(params),
        key=step_key,
    )


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    mesh: Mesh,
    state_sharding: TrainState,
    ema_decay: float = 0.9999,
    accumulation_steps: int = 1,
    frozen_sharding: PyTree = None,
) -> TrainStep:
    """Make the jitted training step `step(state, batch) -> (state, metrics)`.

    Args:
        objective: Samples the random inputs of a batch and computes the loss of each example.
        optimizer: Optimizer whose state is in the training state: any of optax that needs the
            gradient, the parameters and `value`, the loss, but no function of the parameters.
        mesh: Device mesh from `make_mesh`.
        state_sharding: Sharding of the state, the second result of `init_state`.
        ema_decay: Limit of the decay of the moving average, see `ema.update_ema`.
        accumulation_steps: Number of microbatches over which gradients are accumulated, for batches
            that do not fit in memory.
        frozen_sharding: Shardings of parameters that are not trained, a nested dict. The step then
            takes these parameters as a third argument, which it neither changes nor donates, and
            the state contains only the trained parameters. The objective receives both, merged by
            `combine`.

    Returns:
        The jitted step. It donates the state, which cannot be used again after the call.

    Raises:
        ValueError: If a setting is out of range. When first called, if the batch size is not
            divisible by the number of devices times `accumulation_steps`, or the objective does not
            return one loss per example.
    """
    require(0 <= ema_decay < 1, "ema_decay", "lie in [0, 1)", ema_decay)
    require_at_least("accumulation_steps", accumulation_steps, 1)

    def step(
        state: TrainState, batch: PyTree, frozen: PyTree = None
    ) -> tuple[TrainState, StepMetrics]:
        batch_size = jax.tree.leaves(batch)[0].shape[0]
        require_batch_fits(batch_size, mesh, accumulation_steps)
        examples = objective.make_examples(jax.random.fold_in(state.key, state.step), batch)
        loss, grads = _loss_and_grads(
            objective.with_frozen(frozen),
            state,
            _split_batch(examples, accumulation_steps, mesh),
        )
        # Sharding the gradients like the weights makes the sum over devices a reduce-scatter
        # instead of an all-reduce of entire arrays.
        grads = jax.lax.with_sharding_constraint(grads, state_sharding.params)
        return _apply_gradient(optimizer, state, loss, grads, ema_decay)

    frozen_shardings = () if frozen_sharding is None else (frozen_sharding,)
    return jax.jit(
        on_mesh(mesh, step),
        in_shardings=(state_sharding, batch_sharding(mesh), *frozen_shardings),
        out_shardings=(state_sharding, replicated(mesh)),
        donate_argnums=0,
    )


def _split_batch(examples: PyTree, num: int, mesh: Mesh) -> PyTree:
    """Split each leaf `[batch, ...]` into microbatches, `[num, batch / num, ...]`.

    Microbatch k consists of the rows k, k + num, k + 2 num and so on, so that no row moves between
    devices.
    """
    if num == 1:
        return jax.tree.map(lambda leaf: leaf[None], examples)
    sharding = NamedSharding(mesh, PartitionSpec(None, BATCH_AXES))

    def split(leaf: jax.Array) -> jax.Array:
        rows = leaf.reshape(leaf.shape[0] // num, num, *leaf.shape[1:])
        return jax.lax.with_sharding_constraint(jnp.moveaxis(rows, 1, 0), sharding)

    return jax.tree.map(split, examples)


def _loss_and_grads(
    objective: Objective, state: TrainState, microbatches: PyTree
) -> tuple[jax.Array, Params]:
    """Compute the mean loss over all microbatches and its gradient, in float32."""

    def mean_loss(params: Params, examples: PyTree) -> jax.Array:
        losses = objective.loss(params, examples)
        batch_size = jax.tree.leaves(examples)[0].shape[0]
        require(
            losses.shape == (batch_size,),
            "objective.loss",
            f"return one value per example, shape {(batch_size,)}",
            losses.shape,
        )
        return jnp.mean(losses.astype(jnp.float32))

    num = jax.tree.leaves(microbatches)[0].shape[0]

    def value_and_grad(examples: PyTree) -> tuple[jax.Array, Params]:
        with_targets = objective.with_targets(state.ema_params, examples)
        return jax.value_and_grad(mean_loss)(state.params, with_targets)

    if num == 1:
        return value_and_grad(jax.tree.map(lambda leaf: leaf[0], microbatches))

    def add(total, examples):
        return jax.tree.map(jnp.add, total, value_and_grad(examples)), None

    zeros = (jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, state.params))
    total, _ = jax.lax.scan(add, zeros, microbatches)
    return jax.tree.map(lambda leaf: leaf / num, total)


def _apply_gradient(
    optimizer: optax.GradientTransformation,
    state: TrainState,
    loss: jax.Array,
    grads: Params,
    ema_decay: float,
) -> tuple[TrainState, StepMetrics]:
    """Update the weights, their moving average and the optimizer's state."""
    grad_norm = optax.tree.norm(grads)
    # Some optimizers use the value of the loss, such as `optax.polyak_sgd`.
    update = optax.with_extra_args_support(optimizer).update
    updates, opt_state = update(grads, state.opt_state, state.params, value=loss)
    params = optax.apply_updates(state.params, updates)
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm) & jnp.isfinite(optax.tree.norm(updates))
    new_state = TrainState(
        step=state.step + 1,
        params=params,
        ema_params=update_ema(state.ema_params, params, state.step, ema_decay),
        opt_state=opt_state,
        key=state.key,
    )
    return new_state, StepMetrics(loss=loss, grad_norm=grad_norm, finite=finite)
