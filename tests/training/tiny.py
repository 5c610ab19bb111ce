"""A small model that compiles quickly, and data for it."""

import jax
import jax.numpy as jnp
import numpy as np

from fmjax._arrays import Batch
from fmjax.losses.objective import Objective
from fmjax.paths import VelocityNet

DIM, WIDTH = 4, 64


def make_net() -> VelocityNet:
    """Make an MLP with kernels `[DIM + 1, WIDTH]`, `[1, WIDTH, WIDTH]` and `[WIDTH, DIM]`."""

    def init(key):
        first, hidden, last = jax.random.split(key, 3)
        return {
            "first": {
                "kernel": jax.random.normal(first, (DIM + 1, WIDTH)) / 2,
                "bias": jnp.zeros(WIDTH),
            },
            "hidden": {"kernel": jax.random.normal(hidden, (1, WIDTH, WIDTH)) / 8},
            "last": {"kernel": jax.random.normal(last, (WIDTH, DIM)) / 8},
        }

    def apply(params, t, x, cond=None):
        h = jnp.concatenate([x, t[:, None]], axis=1)
        h = jnp.tanh(h @ params["first"]["kernel"] + params["first"]["bias"][None])
        h = jnp.tanh(h @ params["hidden"]["kernel"][0])
        return h @ params["last"]["kernel"]

    return VelocityNet(init, apply)


def make_objective(net: VelocityNet) -> Objective:
    """Make a flow-matching objective on the linear path."""

    def make_examples(key, batch):
        noise_key, time_key = jax.random.split(key)
        x0 = jax.random.normal(noise_key, batch.x1.shape)
        return {"x0": x0, "x1": batch.x1, "t": jax.random.uniform(time_key, batch.x1.shape[:1])}

    def loss(params, examples):
        t, x0, x1 = examples["t"], examples["x0"], examples["x1"]
        x_t = t[:, None] * x1 + (1 - t[:, None]) * x0
        return jnp.mean((net.apply(params, t, x_t) - (x1 - x0)) ** 2, axis=1)

    return Objective(make_examples, loss)


class Points:
    """Endless iterator of batches with the position as its state."""

    def __init__(self, batch_size: int = 16, before_batch=lambda position: None):
        self.batch_size, self.before_batch, self.position = batch_size, before_batch, 0

    def __iter__(self):
        return self

    def __next__(self) -> Batch:
        self.before_batch(self.position)
        x1 = np.random.default_rng(self.position).normal(size=(self.batch_size, DIM))
        self.position += 1
        return Batch(x1=x1.astype(np.float32))

    def get_state(self) -> dict:
        return {"position": self.position}

    def set_state(self, state: dict) -> None:
        self.position = state["position"]
