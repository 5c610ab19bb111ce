"""Training: sharded training step, training loop, optimizers, logs and checkpoints."""

from fmjax._progress import Lines as Lines, Progress as Progress, Silent as Silent
from fmjax.training.checkpoints.errors import CheckpointWriteError as CheckpointWriteError
from fmjax.training.checkpoints.manager import (
    Checkpoints as Checkpoints,
    Restored as Restored,
    newest_step as newest_step,
    restore_ema as restore_ema,
)
from fmjax.training.ema import ema_decay_at as ema_decay_at, update_ema as update_ema
from fmjax.training.feed import Batches as Batches
from fmjax.training.logs import (
    Logger as Logger,
    RunLogger as RunLogger,
    read_metrics as read_metrics,
)
from fmjax.training.loop import fit as fit
from fmjax.training.monitor import NonFiniteLoss as NonFiniteLoss
from fmjax.training.optimizer import (
    AnyOptimizer as AnyOptimizer,
    OptimizerConfig as OptimizerConfig,
    OptimizerFactory as OptimizerFactory,
    learning_rate_at as learning_rate_at,
    learning_rate_schedule as learning_rate_schedule,
    make_optimizer as make_optimizer,
)
from fmjax.training.state import StepMetrics as StepMetrics, TrainState as TrainState
from fmjax.training.step import (
    TrainStep as TrainStep,
    abstract_state as abstract_state,
    init_state as init_state,
    make_train_step as make_train_step,
    state_from as state_from,
)
