"""The interface between a loss and the training step."""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array, Float, PyTree

from fmjax._arrays import Batch, Params, PRNGKey
from fmjax._trees import combine


class Objective(NamedTuple):
    """A training loss, split into random sampling and a deterministic function of the parameters.

    The training step calls `make_examples` once for the global batch and then evaluates `loss` on
    any number of slices of the result. Gradient accumulation and sharding therefore do not change
    the random numbers.

    Attributes:
        make_examples: `make_examples(key, batch) -> examples`: samples noise, times, pairs, dropped
            conditions, and keys of networks with dropout.
            `examples` is a pytree in which the first axis of every leaf is the batch.
        loss: `loss(params, examples) -> float32 [batch]`: the loss of each example, including its
            weight. It takes the examples that `with_targets` returns. The training step minimizes
            the mean.
        make_targets: `make_targets(average, examples) -> examples`: adds the targets that are
            computed with the averaged parameters; None if the loss needs no such targets.
    """

    make_examples: Callable[[PRNGKey, Batch], PyTree]
    loss: Callable[[Params, PyTree], Float[Array, " batch"]]
    make_targets: Callable[[Params, PyTree], PyTree] | None = None

    def with_targets(self, average: Params, examples: PyTree) -> PyTree:
        """Add the targets from averaged parameters, if the loss uses any."""
        return examples if self.make_targets is None else self.make_targets(average, examples)

    def with_frozen(self, frozen: Params | None) -> "Objective":
        """Return an objective of the trainable parameters only, with `frozen` held constant.

        Args:
            frozen: Nested dicts of the parameters that are not trained, or None.
        """
        if frozen is None:
            return self

        def of_trainable(fn: Callable[[Params, PyTree], PyTree]) -> Callable[..., PyTree]:
            return lambda params, examples: fn(combine(params, frozen), examples)

        make_targets = None if self.make_targets is None else of_trainable(self.make_targets)
        return Objective(self.make_examples, of_trainable(self.loss), make_targets)
