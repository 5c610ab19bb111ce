"""A small training run for a separate process, slow enough to be interrupted."""

import sys
import time
from pathlib import Path

import jax

from fmjax.sharding import Interrupted, make_mesh
from fmjax.training import (
    Checkpoints,
    OptimizerConfig,
    RunLogger,
    fit,
    init_state,
    make_optimizer,
    make_train_step,
)
from tests.training.tiny import Points, make_net, make_objective

INTERRUPTED_EXIT_CODE = 7


def run(folder: Path, num_steps: int, *, pause: float = 0.0, **settings):
    """Train in `folder` or resume there; return the final state."""
    mesh, net = make_mesh(devices=jax.devices()[:1]), make_net()
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-2, warmup_steps=2), 1000)
    state, sharding = init_state(net, optimizer, jax.random.key(0), mesh)
    step = make_train_step(make_objective(net), optimizer, mesh=mesh, state_sharding=sharding)
    batches = settings.pop("batches", None)
    if batches is None:
        batches = Points(before_batch=lambda position: time.sleep(pause))
    with Checkpoints(folder / "checkpoints") as checkpoints, RunLogger(folder) as logger:
        return fit(
            state,
            step,
            batches,
            mesh=mesh,
            num_steps=num_steps,
            checkpoints=checkpoints,
            logger=logger,
            **{"log_every": 3, "checkpoint_every": 4, **settings},
        )


if __name__ == "__main__":
    try:
        run(Path(sys.argv[1]), int(sys.argv[2]), pause=float(sys.argv[3]))
    except Interrupted as interrupted:
        sys.stdout.write(str(interrupted))
        sys.exit(INTERRUPTED_EXIT_CODE)
