"""Transformer on sequences `[length, channels]`, conditioned through adaptive layer norms.

Each step of the sequence is one token. The blocks are those of DiT, without a causal mask: every
step attends to all steps.

Reference: Peebles and Xie 2023, arXiv:2212.09748, section 3.2 (adaLN-zero blocks); Black et al.
2024, arXiv:2410.24164, section 4, for flow matching on chunks of robot actions.
"""

from dataclasses import dataclass

from flax import nnx

from fmjax._arrays import Cond, Points, Times
from fmjax._checks import require
from fmjax._specs import CondSpec, FlowMapConditions
from fmjax.networks.layers.computation import require_computable
from fmjax.networks.layers.conditions import join_conditions, joined_conditions
from fmjax.networks.layers.functional import functionalize
from fmjax.networks.transformers.dit import TokenTransformer, require_transformer
from fmjax.paths import VelocityNet


@dataclass(frozen=True)
class SequenceTransformerConfig:
    """Sizes and options of a transformer on sequences.

    Attributes:
        width: Channels of a token.
        num_layers: Number of transformer blocks.
        num_heads: Number of attention heads; must divide `width`.
        mlp_ratio: Hidden channels of the MLP of a block, divided by `width`.
        positions: Position embeddings: "sincos" (fixed) or "learned", added to the tokens, or
            "rotary", applied to queries and keys.
        qk_norm: Whether to apply RMS norm to the queries and keys of each head, which stabilizes
            the training of large or bfloat16 networks.
        dtype: Type of the computation, "float32" or "bfloat16"; parameters are float32.
        unroll_layers: Unroll the loop over layers instead of using a scan: faster on the CPU,
            slower to compile.
        remat: Part of each block that is recomputed in the backward pass: "none", "full",
            "save_matmuls" or "offload" (see `DiTConfig`).
        attention: Attention implementation, "auto", "xla", "splash" or "cudnn" (see `DiTConfig`).
    """

    width: int = 256
    num_layers: int = 6
    num_heads: int = 4
    mlp_ratio: float = 4.0
    positions: str = "sincos"
    qk_norm: bool = False
    dtype: str = "float32"
    unroll_layers: bool = False
    remat: str = "none"
    attention: str = "auto"

    def __post_init__(self):
        require_transformer(self, num_axes=1)
        require_computable(self)


class SequenceTransformer(TokenTransformer):
    """Transformer on sequences, whose tokens are linear embeddings of the steps."""

    def __init__(
        self,
        config: SequenceTransformerConfig,
        event_shape: tuple[int, ...],
        conditions: CondSpec | FlowMapConditions | int,
        *,
        rngs: nnx.Rngs,
    ):
        length, channels = event_shape
        name = "a transformer on sequences"
        joined, num_joined = joined_conditions(name, event_shape, conditions, num_axes=1)
        features = (channels + num_joined, channels)
        super().__init__(config, (length,), features, conditions, joined, rngs=rngs)

    def __call__(self, t: Times, x: Points, cond: Cond) -> Points:
        """Return the prediction, float32, shaped like x."""
        c = self.embed(t, cond)
        return self.transform(c, join_conditions(x, cond, self.joined))


def make_sequence_transformer(
    config: SequenceTransformerConfig,
    event_shape: tuple[int, ...],
    conditions: CondSpec | FlowMapConditions | int = None,
) -> VelocityNet:
    """Build a transformer on sequences as pure functions. Its output is zero at initialization.

    Args:
        config: Sizes and options of the transformer.
        event_shape: (length, channels) of a sequence.
        conditions: Description of the condition: labels (or their number), vectors, sequences, or
            a dict of these; conditions of a flow map, or None. Sequences of the same length are
            joined to the sample on the channels.

    Raises:
        ValueError: If `event_shape` is not a sequence, or the network does not take one of the
            conditions. When called, if the condition is not as described.
    """
    require(len(event_shape) == 2, "event_shape", "be (length, channels)", event_shape)

    def build(rngs: nnx.Rngs) -> SequenceTransformer:
        return SequenceTransformer(config, event_shape, conditions, rngs=rngs)

    return VelocityNet(*functionalize(build))
