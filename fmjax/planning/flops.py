"""How much work a step of the training is."""

from typing import Any

import jax

from fmjax._arrays import Batch, Params
from fmjax.losses.objective import Objective
from fmjax.planning.hardware import count_flops


def flops_per_example(
    objective: Objective, params: Params, batch: Batch, frozen: Any = None
) -> float:
    """Operations of one example in a step: those of the loss, and twice as many for its gradient.

    Targets that averaged weights give have no gradient and count once. Of weights that are frozen
    none is computed, only that of what goes through them: they count twice, not three times.

    What rematerialisation does again is not counted: it is no progress.

    Args:
        objective: Of the step.
        params: Arrays or `jax.ShapeDtypeStruct`s.
        batch: The same, of any number of examples.
        frozen: As of `make_train_step`.
    """

    def loss(parts: Any, examples: Any) -> Any:
        return objective.with_frozen(parts[1]).loss(parts[0], examples)

    def with_targets(parts: Any, examples: Any) -> Any:
        return objective.with_frozen(parts[1]).with_targets(parts[0], examples)

    parts, num = (params, frozen), jax.tree.leaves(batch)[0].shape[0]
    examples = jax.eval_shape(objective.draw, jax.random.key(0), batch)
    learned = jax.eval_shape(with_targets, parts, examples)
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(part)) for part in parts]
    flops = (2.0 + sizes[0] / sum(sizes)) * count_flops(loss, parts, learned)
    return (flops + count_flops(with_targets, parts, examples)) / num
