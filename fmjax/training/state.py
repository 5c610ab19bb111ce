"""What training carries from one step to the next."""

from typing import Any, NamedTuple

import jax

from fmjax._arrays import Params, PRNGKey


class TrainState(NamedTuple):
    """Everything that a run needs to go on as if it had never stopped.

    `params` and `ema_params` share no buffers, because the step donates the state.

    Attributes:
        step: Steps taken so far, an int32 scalar.
        params: Weights of the network, float32.
        ema_params: Their moving average, float32, the weights to sample with.
        opt_state: The optimizer's state (moments and counters).
        key: The run's key; the randomness of step n is `fold_in(key, n)`.
    """

    step: jax.Array
    params: Params
    ema_params: Params
    opt_state: Any
    key: PRNGKey


class StepMetrics(NamedTuple):
    """What one step tells, left on the device until somebody reads it.

    Attributes:
        loss: Mean over the global batch, float32.
        grad_norm: Global L2 norm of the gradient before clipping, float32.
        finite: Whether the loss, the gradient and the update are all finite.
    """

    loss: jax.Array
    grad_norm: jax.Array
    finite: jax.Array
