"""Weights of examples, masks of elements, and random keys of examples."""

from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Key

from fmjax._arrays import Batch, PerExample, Points, PRNGKey, event_axes, expand_like
from fmjax.paths import FlowMapNet, VelocityNet

Mask: TypeAlias = Bool[Array, " batch ..."]

# Number of the stream of the networks' keys; the objectives split fewer keys from that of a step.
_NETWORK_STREAM = 100


def weight_and_mask(batch: Batch) -> tuple[PerExample | None, Mask | None]:
    """Return the relative weights and the mask of a global batch, None where it has none."""
    weight = None if batch.weight is None else relative_weight(batch.weight)
    return weight, None if batch.mask is None else jnp.asarray(batch.mask)


def relative_weight(weight: ArrayLike) -> PerExample:
    """Scale the weights of a global batch to mean 1, float32; they stay 0 if all are 0.

    With these weights w, the mean of `w * loss` over the batch is
    `sum(weight * loss) / sum(weight)`. The mean over any microbatches of equal size, of their
    means, is the same number.
    """
    weight = jnp.asarray(weight, jnp.float32)
    mean = jnp.mean(weight)
    return jnp.where(mean > 0, weight / jnp.where(mean > 0, mean, 1.0), 0.0)


def weighted(loss: PerExample, weight: PerExample | None) -> PerExample:
    """Multiply the loss of each example by its weight, if there are weights."""
    return loss if weight is None else weight * loss


def masked(error: Points, mask: Mask | None) -> Points:
    """Set the elements of an error to 0, with gradient 0, where the mask is False.

    Args:
        error: Errors, `[batch, *event]`.
        mask: True for the elements that count, as `Batch.mask`; None keeps all.
    """
    return error if mask is None else jnp.where(_expand_mask(mask, error), error, 0.0)


def mean_square(error: Points, mask: Mask | None = None) -> PerExample:
    """Compute the mean of squares over the unmasked elements of each example, 0 without any.

    Args:
        error: Errors, `[batch, *event]`.
        mask: True for the elements that count, as `Batch.mask`; None counts all.
    """
    if mask is None:
        return jnp.mean(jnp.square(error), axis=event_axes(error))
    squares = jnp.sum(jnp.square(masked(error, mask)), axis=event_axes(error))
    num = jnp.sum(_expand_mask(mask, error), axis=event_axes(error), dtype=jnp.float32)
    return squares / jnp.maximum(num, 1.0)


def _expand_mask(mask: jax.Array, x: jax.Array) -> jax.Array:
    """Broadcast a mask to the shape of `x`; a mask with fewer axes gets axes at the end."""
    return jnp.broadcast_to(expand_like(mask, x), x.shape)


def example_keys(
    net: VelocityNet | FlowMapNet, key: PRNGKey, num: int
) -> Key[Array, " batch"] | None:
    """Make one random key per example for a network that takes keys in training, else None.

    Args:
        net: The network.
        key: Key of the training step.
        num: Number of examples in the global batch.
    """
    if not net.takes_keys:
        return None
    return jax.random.split(jax.random.fold_in(key, _NETWORK_STREAM), num)


def network_keys(keys: Key[Array, " batch"] | None) -> dict[str, jax.Array]:
    """Return the keyword arguments of `net.apply` in training: `keys`, if there are any."""
    return {} if keys is None else {"keys": keys}
