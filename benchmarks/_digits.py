"""A small DiT trained on the digits, which the solver benchmarks sample."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

from fmjax._arrays import Batch, Params
from fmjax.data import DigitsData
from fmjax.losses import flow_matching_objective
from fmjax.networks import DiTConfig, make_dit
from fmjax.paths import AffinePath
from fmjax.sharding import make_mesh
from fmjax.training import OptimizerConfig, init_state, make_optimizer, make_train_step

NUM_CLASSES = 10
EVENT_SHAPE = (8, 8, 1)
CONFIG = DiTConfig(patch_size=2, width=96, num_layers=4, num_heads=4, unroll_layers=True)


def train(num_steps: int, batch_size: int = 128) -> Params:
    """Return the averaged weights after `num_steps` training steps."""
    data = DigitsData().load("train")
    x, labels = data.points(), np.asarray(data.labels)
    net, mesh = make_dit(CONFIG, EVENT_SHAPE, NUM_CLASSES), make_mesh()
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-3), num_steps)
    state, sharding = init_state(net, optimizer, jax.random.key(0), mesh)
    objective = flow_matching_objective(net, AffinePath())
    step = make_train_step(objective, optimizer, mesh=mesh, state_sharding=sharding, ema_decay=0.99)
    rng = np.random.default_rng(0)
    for _ in range(num_steps):
        rows = rng.integers(0, len(x), batch_size)
        state, _ = step(state, Batch(jnp.asarray(x[rows]), jnp.asarray(labels[rows], jnp.int32)))
    return jax.device_get(state.ema_params)


def worst_error(x1: ArrayLike, reference: np.ndarray) -> float:
    """Return the largest rms distance of a sample to its reference, in data units."""
    error = np.asarray(x1, np.float64) - reference
    return float(np.sqrt(np.mean(error**2, axis=(1, 2, 3))).max())
