"""Training: a sharded step, the loop around it, and checkpoints to go on from."""

from fmjax.training.checkpoint import Checkpoints, Restored, restore_ema
from fmjax.training.ema import ema_decay_at, update_ema
from fmjax.training.flops import flops_per_example
from fmjax.training.logs import Logger, RunLogger, read_metrics
from fmjax.training.loop import Batches, fit
from fmjax.training.monitor import NonFiniteLoss
from fmjax.training.optimizer import OptimizerConfig, learning_rate_at, make_optimizer
from fmjax.training.processes import Processes, another_is_gone, is_main, join, together
from fmjax.training.saving import Unwritten
from fmjax.training.sharding import (
    MeshConfig,
    abstract_batch,
    batch_sharding,
    bytes_held,
    laid_out,
    make_mesh,
    num_shares,
    put_batch,
    replicated,
    require_batch_fits,
    require_rows_by_process,
    state_sharding,
)
from fmjax.training.signals import Interrupted, stop_together
from fmjax.training.state import StepMetrics, TrainState
from fmjax.training.step import (
    TrainStep,
    abstract_state,
    init_state,
    make_train_step,
    state_from,
)
from fmjax.training.topology import devices_of

__all__ = [
    "Batches",
    "Checkpoints",
    "Interrupted",
    "Logger",
    "MeshConfig",
    "NonFiniteLoss",
    "OptimizerConfig",
    "Processes",
    "Restored",
    "RunLogger",
    "StepMetrics",
    "TrainState",
    "TrainStep",
    "Unwritten",
    "abstract_batch",
    "abstract_state",
    "another_is_gone",
    "batch_sharding",
    "bytes_held",
    "devices_of",
    "ema_decay_at",
    "fit",
    "flops_per_example",
    "init_state",
    "is_main",
    "join",
    "laid_out",
    "learning_rate_at",
    "make_mesh",
    "num_shares",
    "make_optimizer",
    "make_train_step",
    "put_batch",
    "read_metrics",
    "replicated",
    "require_batch_fits",
    "require_rows_by_process",
    "restore_ema",
    "state_from",
    "state_sharding",
    "stop_together",
    "together",
    "update_ema",
]
