"""One of several processes of a run: `INDEX COUNT PORT FOLDER NUM_STEPS PAUSE`."""

import sys
import time
from pathlib import Path

import jax

jax.config.update("jax_num_cpu_devices", 2)
INDEX, COUNT = int(sys.argv[1]), int(sys.argv[2])
if COUNT > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{sys.argv[3]}", COUNT, INDEX)

from fmjax._arrays import Batch  # noqa: E402
from fmjax.training import (  # noqa: E402
    Checkpoints,
    Interrupted,
    MeshConfig,
    OptimizerConfig,
    RunLogger,
    fit,
    init_state,
    make_mesh,
    make_optimizer,
    make_train_step,
)
from tests.training.tiny import Points, make_net, make_objective  # noqa: E402


class Share(Points):
    """This process's rows of each batch."""

    def __next__(self) -> Batch:
        rows = self.batch_size // COUNT
        return Batch(super().__next__().x1[INDEX * rows : (INDEX + 1) * rows])


def main(folder: Path, num_steps: int, pause: float) -> None:
    mesh, net = make_mesh(MeshConfig(fsdp=2)), make_net()
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-2), 100)
    state, sharding = init_state(net, optimizer, jax.random.key(0), mesh)
    step = make_train_step(make_objective(net), optimizer, mesh=mesh, state_sharding=sharding)
    with Checkpoints(folder / "checkpoints") as checkpoints, RunLogger(folder) as logger:
        fit(
            state,
            step,
            Share(before_batch=lambda position: time.sleep(pause)),
            mesh=mesh,
            num_steps=num_steps,
            checkpoints=checkpoints,
            logger=logger,
            log_every=3,
            checkpoint_every=4,
        )


if __name__ == "__main__":
    try:
        main(Path(sys.argv[4]), int(sys.argv[5]), float(sys.argv[6]))
    except Interrupted as interrupted:
        sys.stdout.write(str(interrupted))
        sys.exit(7)
