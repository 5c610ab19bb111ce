"""What the training step asks of a loss."""

from collections.abc import Callable
from typing import Any, NamedTuple

from fmjax._trees import joined


class Objective(NamedTuple):
    """A loss in two pure functions, so that chance is drawn once for the global batch.

    The step draws, then takes the loss of the examples in as many parts as it likes:
    accumulated, sharded and plain steps see the same numbers.

    Where targets come from averaged weights, `teach` puts them into the examples first.

    Attributes:
        draw: `draw(key, batch) -> examples`: noise, times, pairs, dropped labels; a pytree
            whose leaves all have the batch as leading axis.
        loss: `loss(params, examples) -> float32 [batch]`, each example's own, of examples as
            `taught` gives them.
        teach: `teach(average, examples) -> examples`, the average that of `params`; or None.
    """

    draw: Callable[..., Any]
    loss: Callable[..., Any]
    teach: Callable[..., Any] | None = None

    def taught(self, average: Any, examples: Any) -> Any:
        """The examples that `loss` takes."""
        return examples if self.teach is None else self.teach(average, examples)

    def beside(self, frozen: Any) -> "Objective":
        """The same of parameters without some that are `frozen`, nested dicts; None for none."""
        if frozen is None:
            return self

        def whole(fn: Callable[..., Any]) -> Callable[..., Any]:
            return lambda params, examples: fn(joined(params, frozen), examples)

        teach = None if self.teach is None else whole(self.teach)
        return Objective(self.draw, whole(self.loss), teach)
