"""Number of floating-point operations of a training step."""

import jax
from jaxtyping import PyTree

from fmjax._arrays import Batch, Params
from fmjax.losses.objective import Objective
from fmjax.planning.hardware import count_flops


def flops_per_example(
    objective: Objective, params: Params, batch: Batch, frozen: Params | None = None
) -> float:
    """Return the FLOPs of one example in a training step: the loss, plus twice that for gradients.

    Targets computed with averaged weights have no gradient and count once. Frozen weights have no
    weight gradient, only the gradient of their inputs, and count twice instead of three times.
    Recomputation by rematerialization is not counted.

    Args:
        objective: Objective of the training step.
        params: Trainable parameters, arrays or `jax.ShapeDtypeStruct`s.
        batch: Batch of any size, arrays or `jax.ShapeDtypeStruct`s.
        frozen: Parameters that are not trained, nested dicts, or None.
    """

    def loss(parts: PyTree, examples: PyTree) -> PyTree:
        return objective.with_frozen(parts[1]).loss(parts[0], examples)

    def with_targets(parts: PyTree, examples: PyTree) -> PyTree:
        return objective.with_frozen(parts[1]).with_targets(parts[0], examples)

    parts, num_examples = (params, frozen), jax.tree.leaves(batch)[0].shape[0]
    examples = jax.eval_shape(objective.make_examples, jax.random.key(0), batch)
    examples_with_targets = jax.eval_shape(with_targets, parts, examples)
    num_trained, num_frozen = (sum(leaf.size for leaf in jax.tree.leaves(part)) for part in parts)
    factor = 2.0 + num_trained / (num_trained + num_frozen)
    flops = factor * count_flops(loss, parts, examples_with_targets)
    return (flops + count_flops(with_targets, parts, examples)) / num_examples
