"""The training state and the metrics of a training step."""

from typing import NamedTuple

import jax
import optax

from fmjax._arrays import Params, PRNGKey


class TrainState(NamedTuple):
    """Complete state of a training run, from which it resumes bit for bit.

    `params` and `ema_params` share no buffers, because the training step donates the state.

    Attributes:
        step: Number of steps taken, an int32 scalar.
        params: Weights of the network, float32.
        ema_params: Moving average of the weights, float32, used for sampling.
        opt_state: State of the optimizer (moments and counters).
        key: Random key of the run; step n uses `fold_in(key, n)`.
    """

    step: jax.Array
    params: Params
    ema_params: Params
    opt_state: optax.OptState
    key: PRNGKey


class StepMetrics(NamedTuple):
    """Metrics of one training step, as arrays on the device.

    Attributes:
        loss: Mean loss over the global batch, float32.
        grad_norm: Global L2 norm of the gradient before clipping, float32.
        finite: Whether the loss, the gradient and the update are all finite.
    """

    loss: jax.Array
    grad_norm: jax.Array
    finite: jax.Array
