"""Training: sharded training step, training loop, optimizers, logs and checkpoints."""

from fmjax.training.checkpoints.errors import (
    CheckpointWriteError,
)
from fmjax.training.checkpoints.manager import (
    Checkpoints,
    Restored,
    restore_ema,
)
from fmjax.training.ema import (
    ema_decay_at,
    update_ema,
)
from fmjax.training.logs import (
    Logger,
    RunLogger,
    read_metrics,
)
from fmjax.training.loop import (
    Batches,
    fit,
)
from fmjax.training.monitor import (
    NonFiniteLoss,
)
from fmjax.training.optimizer import (
    OptimizerConfig,
    learning_rate_at,
    make_optimizer,
)
from fmjax.training.state import (
    StepMetrics,
    TrainState,
)
from fmjax.training.step import (
    TrainStep,
    abstract_state,
    init_state,
    make_train_step,
    state_from,
)

__all__ = [
    "Batches",
    "Checkpoints",
    "Logger",
    "NonFiniteLoss",
    "OptimizerConfig",
    "Restored",
    "RunLogger",
    "StepMetrics",
    "TrainState",
    "TrainStep",
    "CheckpointWriteError",
    "abstract_state",
    "ema_decay_at",
    "fit",
    "init_state",
    "learning_rate_at",
    "make_optimizer",
    "make_train_step",
    "read_metrics",
    "restore_ema",
    "state_from",
    "update_ema",
]
