"""One training step: a single jitted function over a mesh, with the state donated.

The randomness of a step is drawn once, for the whole global batch, and only then is the batch cut
into microbatches. So neither the number of devices nor that of accumulation steps changes a
number beyond the order of a sum.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fmjax._arrays import Batch, Params, PRNGKey
from fmjax._checks import require, require_at_least
from fmjax._inputs import require_key
from fmjax.losses.objective import Objective
from fmjax.paths import FlowMapNet, VelocityNet
from fmjax.sharding import BATCH_AXES
from fmjax.sharding.mesh import batch_sharding, laid_out, replicated, require_batch_fits
from fmjax.training.ema import update_ema
from fmjax.training.state import StepMetrics, TrainState

TrainStep = Callable[..., tuple[TrainState, StepMetrics]]
"""`step(state, batch)`, or `step(state, batch, frozen)`."""


def init_state(
    net: VelocityNet | FlowMapNet, optimizer: optax.GradientTransformation, key: PRNGKey, mesh: Mesh
) -> tuple[TrainState, Any]:
    """A fresh state, made where it will live.

    The initialisation is jitted with its layout as output, so that a model that fits no single
    device is never whole on one.

    Args:
        net: Its `init` gives the weights.
        optimizer: From `make_optimizer`, or any of optax.
        key: Of the whole run: one half makes the weights, the other is kept for the steps.
        mesh: From `make_mesh`.

    Returns:
        The state, and its sharding (a `TrainState` of `NamedSharding`s).
    """
    require_key(key)
    like = abstract_state(net, optimizer, mesh)
    sharding = jax.tree.map(lambda leaf: leaf.sharding, like)
    return jax.jit(partial(_init, net, optimizer), out_shardings=sharding)(key), sharding


def abstract_state(
    net: VelocityNet | FlowMapNet, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """The state that `init_state` makes, as `jax.ShapeDtypeStruct`s with their shardings."""
    like = jax.eval_shape(partial(_init, net, optimizer), jax.random.key(0))
    return laid_out(like, mesh, net.tensor_axes)


def _init(
    net: VelocityNet | FlowMapNet, optimizer: optax.GradientTransformation, key: PRNGKey
) -> TrainState:
    init_key, step_key = jax.random.split(key)
    return _state_of(optimizer, net.init(init_key), step_key)


def state_from(
    params: Params, optimizer: optax.GradientTransformation, key: PRNGKey, sharding: Any
) -> TrainState:
    """The state of `init_state` with other weights.

    Args:
        params: They are donated.
        optimizer: As of `init_state`.
        key: As of `init_state`.
        sharding: Of the state.
    """

    def start(params: Params, key: PRNGKey) -> TrainState:
        return _state_of(optimizer, params, jax.random.split(key)[1])

    return jax.jit(start, out_shardings=sharding, donate_argnums=0)(params, key)


def _state_of(
    optimizer: optax.GradientTransformation, params: Params, step_key: PRNGKey
) -> TrainState:
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        # A copy: the step donates the state, and no buffer may be donated twice.
        ema_params=jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32, copy=True), params),
        opt_state=optimizer.init(params),
        key=step_key,
    )


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    mesh: Mesh,
    state_sharding: Any,
    ema_decay: float = 0.9999,
    accumulation_steps: int = 1,
    frozen_sharding: Any = None,
) -> TrainStep:
    """Bind what stays the same over a run into `step(state, batch) -> (state, metrics)`.

    Args:
        objective: What to draw for a batch, and the loss of each example.
        optimizer: The one whose state `state` holds.
        mesh: From `make_mesh`.
        state_sharding: Second result of `init_state`.
        ema_decay: What the decay of the moving average tends to, see `ema.update_ema`.
        accumulation_steps: Microbatches one after another, for batches too big for memory.
        frozen_sharding: Of parameters that are not trained, nested dicts: the step then takes
            them as a third argument, which it neither changes nor donates, and the state holds
            the others alone. The objective sees all of them, `combine`.

    Returns:
        The jitted step. It donates its state: the one passed in cannot be used again.

    Raises:
        ValueError: If a setting is out of range; when first called, if the batch does not
            divide by devices times accumulation steps, or a loss is not one per example.
    """
    require(0 <= ema_decay < 1, "ema_decay", "lie in [0, 1)", ema_decay)
    require_at_least("accumulation_steps", accumulation_steps, 1)

    def step(state: TrainState, batch: Batch, frozen: Any = None) -> tuple[TrainState, StepMetrics]:
        # Lets networks and couplings name the mesh axes without being handed the mesh.
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            batch_size = jax.tree.leaves(batch)[0].shape[0]
            require_batch_fits(batch_size, mesh, accumulation_steps)
            examples = objective.draw(jax.random.fold_in(state.key, state.step), batch)
            loss, grads = _loss_and_grads(
                objective.with_frozen(frozen),
                state,
                _microbatches(examples, accumulation_steps, mesh),
            )
            # Gradients laid out like the weights: the sum over devices then becomes a
            # reduce-scatter instead of an all-reduce of whole arrays.
            grads = jax.lax.with_sharding_constraint(grads, state_sharding.params)
            return _apply(optimizer, state, loss, grads, ema_decay)

    more = () if frozen_sharding is None else (frozen_sharding,)
    return jax.jit(
        step,
        in_shardings=(state_sharding, batch_sharding(mesh), *more),
        out_shardings=(state_sharding, replicated(mesh)),
        donate_argnums=0,
    )


def _microbatches(examples: Any, num: int, mesh: Mesh) -> Any:
    """Each leaf `[batch, ...]` as `[num, batch / num, ...]`, without moving a row between devices.

    Microbatch k takes the rows k, k + num, k + 2 num, ...: every device cuts its own rows.
    """
    if num == 1:
        return jax.tree.map(lambda leaf: leaf[None], examples)
    sharding = NamedSharding(mesh, PartitionSpec(None, BATCH_AXES))

    def cut(leaf):
        rows = leaf.reshape(leaf.shape[0] // num, num, *leaf.shape[1:])
        return jax.lax.with_sharding_constraint(jnp.moveaxis(rows, 1, 0), sharding)

    return jax.tree.map(cut, examples)


def _loss_and_grads(
    objective: Objective, state: TrainState, microbatches: Any
) -> tuple[jax.Array, Params]:
    """Mean loss over all microbatches and its gradient, float32."""

    def mean_loss(params, examples):
        losses = objective.loss(params, examples)
        batch_size = jax.tree.leaves(examples)[0].shape[0]
        require(
            losses.shape == (batch_size,),
            "objective.loss",
            f"give one value per example, shape {(batch_size,)}",
            losses.shape,
        )
        return jnp.mean(losses.astype(jnp.float32))

    num = jax.tree.leaves(microbatches)[0].shape[0]

    def value_and_grad(examples):
        with_targets = objective.with_targets(state.ema_params, examples)
        return jax.value_and_grad(mean_loss)(state.params, with_targets)

    if num == 1:
        return value_and_grad(jax.tree.map(lambda leaf: leaf[0], microbatches))

    def add(total, examples):
        return jax.tree.map(jnp.add, total, value_and_grad(examples)), None

    zeros = (jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, state.params))
    total, _ = jax.lax.scan(add, zeros, microbatches)
    return jax.tree.map(lambda leaf: leaf / num, total)


def _apply(optimizer, state, loss, grads, ema_decay):
    """Move the weights and their average; say how it went."""
    grad_norm = optax.tree.norm(grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
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
