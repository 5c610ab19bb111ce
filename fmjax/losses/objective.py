"""What the training step asks of a loss."""

from collections.abc import Callable
from typing import Any, NamedTuple

from fmjax._trees import combine


class Objective(NamedTuple):
    """A loss in two pure functions, so that chance is drawn once for the global batch.

    The step draws, then takes the loss of the examples in as many parts as it likes:
    accumulated, sharded and plain steps see the same numbers.

    Where targets come from averaged weights, `make_targets` puts them into the examples first.

    Attributes:
        draw: `draw(key, batch) -> examples`: noise, times, pairs, dropped labels; a pytree
            whose leaves all have the batch as leading axis.
        loss: `loss(params, examples) -> float32 [batch]`, each example's own, of examples as
            `with_targets` gives them.
        teach: `make_targets(average, examples) -> examples`, the average that of `params`; or None.
    """

    draw: Callable[..., Any]
    loss: Callable[..., Any]
    make_targets: Callable[..., Any] | None = None

    def with_targets(self, average: Any, examples: Any) -> Any:
        """The examples that `loss` takes."""
        return examples if self.make_targets is None else self.make_targets(average, examples)

    def with_frozen(self, frozen: Any) -> "Objective":
        """The same of parameters without some that are `frozen`, nested dicts; None for none."""
        if frozen is None:
            return self

        def whole(fn: Callable[..., Any]) -> Callable[..., Any]:
            return lambda params, examples: fn(combine(params, frozen), examples)

        make_targets = None if self.make_targets is None else whole(self.make_targets)
        return Objective(self.draw, whole(self.loss), make_targets)
