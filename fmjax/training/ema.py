"""Exponential moving average of the weights."""

import jax
import jax.numpy as jnp

from fmjax._arrays import Params


def ema_decay_at(step: jax.Array | int, decay: float) -> jax.Array:
    """Compute the decay of an update, `min(decay, (1 + step) / (10 + step))`.

    With this warm-up, the average forgets the random initial weights in tens of steps instead of
    the `1 / (1 - decay)` steps of a constant decay.

    Args:
        step: Index of the update, from 0.
        decay: Limit of the decay, in [0, 1).

    Reference: the `num_updates` rule of TensorFlow's `tf.train.ExponentialMovingAverage`.
    """
    step = jnp.asarray(step, jnp.float32)
    return jnp.minimum(jnp.float32(decay), (1 + step) / (10 + step))


def update_ema(ema_params: Params, params: Params, step: jax.Array | int, decay: float) -> Params:
    """Update the moving average of the weights, in float32.

    The result is `d * ema_params + (1 - d) * params` with `d = ema_decay_at(step, decay)`.

    Args:
        ema_params: Current average, float32. In bfloat16, a decay of 0.9999 would never change it.
        params: Weights after the optimizer's update.
        step: Number of previous updates.
        decay: Limit of the decay, in [0, 1).
    """
    rate = 1 - ema_decay_at(step, decay)
    # The difference form is exact where both are equal and rounds once less elsewhere.
    return jax.tree.map(
        lambda average, new: average + rate * (new.astype(jnp.float32) - average),
        ema_params,
        params,
    )
