"""The exponential moving average of the weights."""

import jax
import jax.numpy as jnp

from fmjax._arrays import Params


def ema_decay_at(step: jax.Array | int, decay: float) -> jax.Array:
    """Decay of update number `step` (from 0): `min(decay, (1 + step) / (10 + step))`.

    The warm-up lets the average forget the random initial weights in tens of steps
    instead of the `1 / (1 - decay)` steps that a constant decay needs.

    Source: the `num_updates` rule of TensorFlow's `tf.train.ExponentialMovingAverage`.
    """
    step = jnp.asarray(step, jnp.float32)
    return jnp.minimum(jnp.float32(decay), (1 + step) / (10 + step))


def update_ema(ema_params: Params, params: Params, step: jax.Array | int, decay: float) -> Params:
    """`d * ema_params + (1 - d) * params` with `d = ema_decay_at(step, decay)`, in float32.

    Args:
        ema_params: The average so far, float32: in bfloat16 a decay of 0.9999 never moves.
        params: The weights after the optimizer's step.
        step: Updates done before this one.
        decay: What the decay tends to, in [0, 1).
    """
    rate = 1 - ema_decay_at(step, decay)
    # The difference form: exact where both agree, and one rounding smaller elsewhere.
    return jax.tree.map(
        lambda average, new: average + rate * (new.astype(jnp.float32) - average),
        ema_params,
        params,
    )
