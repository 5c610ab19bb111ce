"""How far a solve has come, told while it runs on the devices."""

from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp

from fmjax._progress import COMPILING, Progress

_WHOLE = 100  # Units of progress in one solve.


class SolveProgress:
    """Hears of the times at which a network is asked, and tells how far the solve is, in percent.

    Use it as a context manager. Times may come out of order: the latest counts.
    """

    def __init__(self, progress: Progress, description: str, num_solves: int) -> None:
        self._progress, self._description = progress, description
        self._total, self._done, self._told = num_solves * _WHOLE, 0, 0
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

    def over(self, apply: Callable[..., Any]) -> Callable[..., Any]:
        """`apply(params, t, x, cond)`, heard of each time the device computes it."""

        def heard(params: Any, t: jax.Array, x: jax.Array, cond: Any) -> Any:
            jax.debug.callback(self._at, jnp.max(t))
            return apply(params, t, x, cond)

        return heard

    def next(self) -> None:
        """One solve is over."""
        jax.effects_barrier()
        self._done += _WHOLE
        self._tell(self._done)

    def _at(self, t: Any) -> None:
        # Not the last one: that is for `next` to say.
        self._tell(self._done + min(_WHOLE - 1, int(_WHOLE * float(t))))

    def _tell(self, to: int) -> None:
        if to > self._told:
            self._advance(to - self._told)
            self._told = to
