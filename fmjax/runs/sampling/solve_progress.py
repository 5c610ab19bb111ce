"""Report the progress of a solve while it runs on the devices."""

from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType

import jax
import jax.numpy as jnp
import numpy as np

from fmjax._arrays import Cond, Params, Points
from fmjax._progress import COMPILING, Progress

_UNITS = 100  # Units of progress per solve.


class SolveProgress:
    """Report the progress of solves in percent, from the times at which the network is evaluated.

    Use it as a context manager. Times may arrive out of order; progress never decreases.

    Args:
        progress: Receives the reports.
        description: Name of the task.
        num_solves: Number of consecutive solves.
    """

    def __init__(self, progress: Progress, description: str, num_solves: int) -> None:
        self._progress, self._description = progress, description
        self._total, self._done, self._reported = num_solves * _UNITS, 0, 0
        self._stack = ExitStack()
        self._advance: Callable[..., None] = lambda n=1, note="": None

    def __enter__(self) -> "SolveProgress":
        task = self._progress.task(f"{self._description} (%)", self._total)
        self._advance = self._stack.enter_context(task)
        self._advance(0, COMPILING)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        jax.effects_barrier()
        self._stack.close()

    def over(self, apply: Callable[..., Points]) -> Callable[..., Points]:
        """Wrap `apply(params, t, x, cond)` so that each evaluation on a device reports its time."""

        def reporting_apply(params: Params, t: jax.Array, x: jax.Array, cond: Cond) -> Points:
            jax.debug.callback(self._on_time, jnp.max(t))
            return apply(params, t, x, cond)

        return reporting_apply

    def next(self) -> None:
        """Report the end of one solve."""
        jax.effects_barrier()
        self._done += _UNITS
        self._report(self._done)

    def _on_time(self, t: jax.Array | np.ndarray) -> None:
        # The last unit is reported by `next`.
        self._report(self._done + min(_UNITS - 1, int(_UNITS * float(t))))

    def _report(self, units: int) -> None:
        if units > self._reported:
            self._advance(units - self._reported)
            self._reported = units
