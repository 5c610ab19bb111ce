"""Optimizers AdamW and Muon, with warm-up, learning rate decay and gradient clipping.

Muon orthogonalizes the momentum of matrices; all other parameters use AdamW. The shape alone does
not tell whether a parameter is a matrix, because layers may be stacked on a leading axis:
`[layers, width]` is a stack of biases. So matrices are identified by name, see `matrix_axes`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree
from optax.contrib import MuonDimensionNumbers

from fmjax._arrays import Params
from fmjax._checks import (
    require,
    require_at_least,
    require_between,
    require_numbers,
    require_one_of,
    require_positive,
)
from fmjax._inputs import describe

_MATRIX_NAMES = ("kernel", "weight", "w")


@dataclass(frozen=True)
class OptimizerConfig:
    """Config of the optimizer.

    Attributes:
        name: "adamw" or "muon".
        learning_rate: Peak learning rate, reached after the warm-up. Muon's updates are scaled to
            the size of AdamW's (root mean square 0.2), so both use the same learning rate.
        schedule: Learning rate after the warm-up: "constant", or "cosine" or "linear" decay to 0,
            which is reached one step after the last.
        warmup_steps: Number of steps of linear warm-up. The first step uses `1 / warmup_steps` of
            the peak.
        weight_decay: Decoupled weight decay of every parameter, multiplied by the learning rate.
        b1: Decay of AdamW's first moment.
        b2: Decay of AdamW's second moment.
        clip_norm: Maximum global norm of the gradient; None disables clipping.

    Reference: Loshchilov & Hutter 2019, arXiv:1711.05101 (AdamW); Liu et al. 2025,
    arXiv:2502.16982 (Muon with AdamW-sized updates).
    """

    name: str = "adamw"
    learning_rate: float = 1e-3
    schedule: str = "constant"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    clip_norm: float | None = 1.0

    def __post_init__(self):
        require_numbers(self, "optimizer.")
        require_one_of("optimizer.name", self.name, ("adamw", "muon"))
        require_one_of("optimizer.schedule", self.schedule, ("constant", "cosine", "linear"))
        require_positive("optimizer.learning_rate", self.learning_rate)
        require_at_least("optimizer.warmup_steps", self.warmup_steps, 0)
        require_at_least("optimizer.weight_decay", self.weight_decay, 0)
        for name in ("b1", "b2"):
            value = getattr(self, name)
            require(0 <= value < 1, f"optimizer.{name}", "lie in [0, 1)", value)
        if self.clip_norm is not None:
            require_positive("optimizer.clip_norm", self.clip_norm)


@runtime_checkable
class OptimizerFactory(Protocol):
    """Config of a user's optimizer: a frozen dataclass of JSON values with a method `make`.

    It may have a method `learning_rate_at(num_steps, step) -> float` as well, which returns the
    learning rate of step `step`, counted from 0. The rate is then logged.
    """

    def make(self, num_steps: int) -> optax.GradientTransformation:
        """Make the optimizer of a run of `num_steps` steps.

        A run that is continued with more steps calls it with the new number and keeps the state of
        the optimizer, so the structure and shapes of the state must not depend on `num_steps`.
        """
        ...


AnyOptimizer = OptimizerConfig | OptimizerFactory


def learning_rate_schedule(
    config: AnyOptimizer, num_steps: int
) -> Callable[[int], jax.Array | float] | None:
    """Return the learning rate of each step, counted from 0, in a run of `num_steps` steps.

    It is None for a user's optimizer without a method `learning_rate_at`.
    """
    if isinstance(config, OptimizerConfig):
        return lambda step: learning_rate_at(config, num_steps, step)
    rate = getattr(config, "learning_rate_at", None)
    return None if rate is None else lambda step: rate(num_steps, step)


def learning_rate_at(config: OptimizerConfig, num_steps: int, step: jax.Array | int) -> jax.Array:
    """Compute the learning rate of step `step` (from 0) in a run of `num_steps` steps."""
    step = jnp.asarray(step, jnp.float32)
    warmup = float(config.warmup_steps)
    warmup_factor = jnp.minimum(1.0, (step + 1) / warmup) if config.warmup_steps else 1.0
    progress = jnp.clip((step - warmup) / max(num_steps - warmup, 1.0), 0.0, 1.0)
    decay_factors = {
        "constant": 1.0,
        "cosine": 0.5 * (1 + jnp.cos(math.pi * progress)),
        "linear": 1 - progress,
    }
    decay_factor = decay_factors[config.schedule]
    return jnp.asarray(config.learning_rate * warmup_factor * decay_factor, jnp.float32)


def make_optimizer(config: AnyOptimizer, num_steps: int) -> optax.GradientTransformation:
    """Make the optax gradient transformation of a config, for a run of `num_steps` steps.

    Args:
        config: An `OptimizerConfig`, or a user's config with a method `make`.
        num_steps: Number of steps of the run.

    Raises:
        ValueError: If the warm-up is longer than the run, or a user's `make` does not return a
            gradient transformation of optax. At init, if Muon finds no matrix.
    """
    require_at_least("num_steps", num_steps, 1)
    if not isinstance(config, OptimizerConfig):
        optimizer = config.make(num_steps)
        is_optax = isinstance(optimizer, optax.GradientTransformation)
        name, rule = f"{type(config).__name__}.make", "return an optax.GradientTransformation"
        require(is_optax, name, rule, describe(optimizer))
        return optimizer
    require_between("optimizer.warmup_steps", config.warmup_steps, 0, num_steps)

    def schedule(step):
        return learning_rate_at(config, num_steps, step)

    if config.name == "muon":
        update = optax.contrib.muon(
            schedule,
            weight_decay=config.weight_decay,
            adam_b1=config.b1,
            adam_b2=config.b2,
            adam_weight_decay=config.weight_decay,
            muon_weight_dimension_numbers=matrix_axes,
            consistent_rms=0.2,
        )
    else:
        update = optax.adamw(schedule, b1=config.b1, b2=config.b2, weight_decay=config.weight_decay)
    if config.clip_norm is None:
        return update
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), update)


def matrix_axes(params: Params) -> PyTree:
    """Select the axes of each parameter that Muon treats as rows and columns of a matrix.

    Matrices are the parameters named `kernel`, `weight` or `w` with shape `[in, out]`,
    `[layers, in, out]` (one matrix per layer), or `[height, width, in, out]` (a convolution, whose
    window and input channels are the rows). All other parameters use AdamW. So do embeddings, whose
    rows are looked up and not multiplied.

    Returns:
        A pytree like `params` of `MuonDimensionNumbers`, or None for a parameter that uses AdamW.

    Raises:
        ValueError: If there is no matrix, since all parameters would use AdamW.

    Reference: Jordan 2024, "Muon: an optimizer for hidden layers in neural networks".
    """

    def axes(key_path, leaf):
        name = jax.tree_util.keystr(key_path[-1:], simple=True) if key_path else ""
        if name not in _MATRIX_NAMES:
            return None
        by_rank = {2: ((0,), (1,)), 3: ((1,), (2,)), 4: ((0, 1, 2), (3,))}
        return MuonDimensionNumbers(*by_rank[leaf.ndim]) if leaf.ndim in by_rank else None

    def is_spec(leaf: PyTree) -> bool:
        return isinstance(leaf, MuonDimensionNumbers)

    specs = jax.tree_util.tree_map_with_path(axes, params)
    names = [
        jax.tree_util.keystr(key_path)
        for key_path, _ in jax.tree_util.tree_leaves_with_path(params)
    ]
    has_matrix = any(map(is_spec, jax.tree.leaves(specs, is_leaf=is_spec)))
    rule = f"contain a matrix named {', '.join(_MATRIX_NAMES[:-1])} or {_MATRIX_NAMES[-1]} for muon"
    require(has_matrix, "params", rule, names)
    return specs
