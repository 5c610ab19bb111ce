"""Residual MLP for samples of any shape, used for the 2-D toy distributions."""

import math
from dataclasses import dataclass

from flax import nnx
from jaxtyping import Array, Float

from fmjax._arrays import Cond, Points, Times
from fmjax._checks import require_at_least
from fmjax._specs import CondSpec, FlowMapConditions
from fmjax.networks.layers.computation import require_computable
from fmjax.networks.layers.conditions import (
    ConditionEmbedding,
    joined_conditions,
)
from fmjax.networks.layers.functional import functionalize, run_blocks, stack_blocks
from fmjax.networks.layers.linear import (
    INPUTS,
    OUTPUTS,
    Linear,
    at_least_float32,
    compute_dtype,
    layer_norm,
)
from fmjax.paths import VelocityNet


@dataclass(frozen=True)
class MLPConfig:
    """Sizes of the residual MLP.

    Attributes:
        width: Hidden units of each layer.
        num_layers: Number of residual blocks.
        dtype: Type of the computation, "float32" or "bfloat16"; parameters are float32.
        unroll_layers: Unroll the loop over layers instead of using a scan.
    """

    width: int = 256
    num_layers: int = 3
    dtype: str = "float32"
    unroll_layers: bool = False

    def __post_init__(self):
        require_at_least("width", self.width, 1)
        require_at_least("num_layers", self.num_layers, 1)
        require_computable(self)


class MLPBlock(nnx.Module):
    """Residual block `h + W2 silu((1 + Ws c) W1 norm(h) + Wc c)` with condition embedding c.

    The factor `1 + Ws c` lets the time change the slopes of the block, not only its offsets.
    """

    def __init__(self, width: int, dtype: str | None, *, rngs: nnx.Rngs):
        self.hidden = Linear(width, width, split=OUTPUTS, dtype=dtype, rngs=rngs)
        self.shift = Linear(width, width, split=OUTPUTS, use_bias=False, dtype=dtype, rngs=rngs)
        self.scale = Linear(width, width, split=OUTPUTS, dtype=dtype, rngs=rngs)
        self.out = Linear(width, width, split=INPUTS, dtype=dtype, rngs=rngs)

    def __call__(
        self, h: Float[Array, "batch width"], c: Float[Array, "batch width"]
    ) -> Float[Array, "batch width"]:
        """Return the hidden units after this block."""
        hidden = self.hidden(layer_norm(h)) * (1.0 + self.scale(c)) + self.shift(c)
        return h + self.out(nnx.silu(hidden))


class MLP(nnx.Module):
    """Residual MLP on the flattened event; each block is conditioned on time and condition."""

    def __init__(
        self,
        config: MLPConfig,
        event_shape: tuple[int, ...],
        conditions: CondSpec | FlowMapConditions | int,
        *,
        rngs: nnx.Rngs,
    ):
        size, width = math.prod(event_shape), config.width
        dtype = compute_dtype(config.dtype)
        self.config = config
        joined_conditions("an MLP", event_shape, conditions, num_axes=0)
        self.embed = ConditionEmbedding(width, conditions, rngs=rngs)
        self.inputs = Linear(size, width, dtype=dtype, rngs=rngs)
        self.blocks = stack_blocks(
            lambda rngs: MLPBlock(width, dtype, rngs=rngs), config.num_layers, rngs
        )
        zeros = nnx.initializers.zeros
        self.out = Linear(width, size, dtype=dtype, kernel_init=zeros, rngs=rngs)

    def __call__(self, t: Times, x: Points, cond: Cond) -> Points:
        """Return the prediction, float32, shaped like x."""
        c = nnx.silu(self.embed(t, cond))
        h = self.inputs(x.reshape(x.shape[0], -1))
        h = run_blocks(self.blocks, h, c, unroll=self.config.unroll_layers)
        return at_least_float32(self.out(layer_norm(h))).reshape(x.shape)


def make_mlp(
    config: MLPConfig,
    event_shape: tuple[int, ...],
    conditions: CondSpec | FlowMapConditions | int = None,
) -> VelocityNet:
    """Build an MLP as pure functions. Its output is zero at initialization.

    Args:
        config: Sizes of the MLP.
        event_shape: Shape of one sample, without the batch axis.
        conditions: Description of the condition: labels (or their number), vectors, sequences, or
            a dict of these; conditions of a flow map, or None.

    Raises:
        ValueError: If the network does not take one of the conditions. When called, if the
            condition is not as described.
    """

    def build(rngs: nnx.Rngs) -> MLP:
        return MLP(config, event_shape, conditions, rngs=rngs)

    return VelocityNet(*functionalize(build))
