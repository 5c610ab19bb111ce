"""Couplings: pair each source point of a batch with a target point.

A coupling only permutes the source points, so that targets keep their conditions and both
marginal distributions are unchanged.
"""

import math
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from fmjax._arrays import Cond, Points
from fmjax._checks import require, require_at_least, require_numbers
from fmjax.sharding import batch_axes


@runtime_checkable
class Coupling(Protocol):
    """Function that permutes `x0` along the batch axis to pair it with `x1`.

    The result must be equal with and without jit, and on every mesh unless the coupling is
    configured to pair points within each shard.
    """

    def __call__(self, x0: Points, x1: Points, cond: Cond = None) -> Points:
        """Return `x0` reordered, so that its row i is paired with row i of `x1` and `cond`."""
        ...


@dataclass(frozen=True)
class Independent:
    """Independent coupling: source and target points stay in the sampled order."""

    def __call__(self, x0: Points, x1: Points, cond: Cond = None) -> Points:
        """Return `x0` unchanged."""
        return x0


@dataclass(frozen=True)
class MinibatchOT:
    """Exact minibatch optimal transport: minimizes the total `|x0 - x1|^2` of a batch on device.

    With a condition, plain minibatch transport makes the noise depend on the condition: source
    points near the images of class 3 would always be paired with class 3, whereas sampling uses
    independent noise. Therefore source point i is assigned the condition of row i, which is
    independent of it, and pairs with different conditions cost more.

    Cost: O(batch^3), about 4 ms for 128 and 25 ms for 256 pairs on one (busy) CPU core.

    Attributes:
        scope: Rows that are paired together if the batch is sharded over the mesh in context
            (`jax.set_mesh`): "global" gives the same plan as one device on every mesh; "shard"
            computes a separate plan for the rows of each device, without communication.
        condition_weight: Extra cost of pairs with different conditions. For class labels, a value
            of at least 1 excludes such pairs, so that labels and noise stay independent. For other
            conditions it multiplies their squared distance, which is added to that of the points.

    Reference: Tong et al. 2023, arXiv:2302.00482, algorithm 3; Cheng and Schwing 2025,
    arXiv:2503.10636 (conditions).
    """

    scope: Literal["global", "shard"] = "global"
    condition_weight: float = 1.0

    def __post_init__(self) -> None:
        require_numbers(self, "coupling.")
        require(self.scope in ("global", "shard"), "scope", "be global or shard", self.scope)
        require_at_least("condition_weight", self.condition_weight, 0.0)

    def __call__(self, x0: Points, x1: Points, cond: Cond = None) -> Points:
        """Return `x0` reordered by the transport plan."""
        axes = batch_axes() if self.scope == "shard" else ()
        if not axes:
            return self._couple(x0, x1, cond)
        num_shards = math.prod(jax.sharding.get_abstract_mesh().shape[name] for name in axes)
        divisible = x0.shape[0] % num_shards == 0
        rule = f"be divisible by {num_shards}, the number of shards"
        require(divisible, "batch size", rule, x0.shape[0])
        rows = PartitionSpec(axes)
        return jax.shard_map(
            self._couple, in_specs=(rows, rows, rows), out_specs=rows, check_vma=False
        )(x0, x1, cond)

    def _couple(self, x0: Points, x1: Points, cond: Cond) -> Points:
        # Centering changes the costs only by one term per row and one per column, so the plan is
        # the same, and it prevents rounding from hiding the differences between points.
        costs = squared_distances(_center(x0), _center(x1))
        if cond is not None:
            costs = _add_condition_costs(costs, cond, self.condition_weight)
        sources, targets = optax.assignment.hungarian_algorithm(costs)
        # The order of the returned pairs is unspecified: sort the sources by their targets.
        return x0[jnp.zeros_like(sources).at[targets].set(sources)]


def _center(x: Points) -> Points:
    """Subtract the batch mean, in at least float32."""
    x = x.astype(jnp.result_type(x.dtype, jnp.float32))
    return x - jnp.mean(x, axis=0, keepdims=True)


def squared_distances(x: Points, y: Points) -> Float[Array, "rows columns"]:
    """Compute `|x_i - y_j|^2` over all event axes for every pair, in at least float32.

    Differences are squared directly, because `|x|^2 + |y|^2 - 2 x . y` loses precision for points
    that are closer to each other than to the origin. XLA fuses the subtraction into the sum, so
    the differences are not stored.
    """
    dtype = jnp.result_type(x.dtype, y.dtype, jnp.float32)
    x, y = (points.reshape(points.shape[0], -1).astype(dtype) for points in (x, y))
    return jnp.sum(jnp.square(x[:, None] - y[None]), axis=-1)


def _add_condition_costs(costs: jax.Array, cond: Cond, weight: float) -> jax.Array:
    """Add the cost of pairs with different conditions to `costs`, `[rows, columns]`."""
    leaves = [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(cond)]
    for leaf in leaves:
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            costs = costs + weight * squared_distances(leaf, leaf)
    # Labels come last, because their penalty must outweigh all other costs. Replacing all pairs
    # with different labels changes the cost of each such row by at most the range of the costs,
    # so a penalty of twice the maximum excludes these pairs.
    penalty = 2.0 * weight * jnp.max(costs)
    for leaf in leaves:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            differ = jnp.any(leaf[:, None, :] != leaf[None, :, :], axis=-1)
            costs = costs + jnp.where(differ, penalty, 0.0)
    return costs
