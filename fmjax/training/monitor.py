"""Reads the metrics of many steps at once, so that no step waits for the host."""

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax

from fmjax.training.state import StepMetrics

# Steps the host may be ahead of the device: enough to hide the host's work, and few enough that
# waiting batches fill no memory and a stop takes effect soon.
_MAX_AHEAD = 2


class NonFiniteLoss(ArithmeticError):
    """The loss, the gradient or the update of a step was not finite; training stopped there.

    Attributes:
        step: The step, counted from 1.
        last_good_step: Step of the newest checkpoint, from before; None if there is none.
    """

    def __init__(self, step: int, metrics: StepMetrics, last_good_step: int | None):
        self.step, self.last_good_step = step, last_good_step
        kept = (
            "there is no checkpoint"
            if last_good_step is None
            else f"the last good checkpoint is of step {last_good_step}"
        )
        loss, grad_norm = float(metrics.loss), float(metrics.grad_norm)
        update = ", and an update that is not" if math.isfinite(loss + grad_norm) else ""
        super().__init__(
            f"loss, gradient and update must be finite, got loss {loss} and "
            f"gradient norm {grad_norm}{update} in step {step}; {kept}"
        )


class Monitor:
    """Keeps what steps tell on the device until it is asked for.

    Args:
        window: Losses and gradient norms since the last line, as `window` of an earlier process
            gave them: with them a resumed run writes the lines of an unbroken one.
    """

    def __init__(self, window: list[list[float]] | None = None):
        self._unread: list[tuple[int, StepMetrics]] = []
        self.window: list[list[float]] = [list(pair) for pair in window or []]
        self._num_timed = 0
        self._started: float | None = None

    def add(self, step: int, metrics: StepMetrics) -> None:
        """Note a dispatched step; wait if the device is too far behind."""
        self._unread.append((step, metrics))
        if len(self._unread) > _MAX_AHEAD:
            jax.block_until_ready(self._unread[-1 - _MAX_AHEAD][1].loss)

    def read(self, last_good_step: Callable[[], int | None]) -> None:
        """Fetch everything noted so far.

        Raises:
            NonFiniteLoss: At the first step that was not finite.
        """
        for (step, _), metrics in zip(
            self._unread, jax.device_get([metrics for _, metrics in self._unread]), strict=True
        ):
            if not metrics.finite:
                raise NonFiniteLoss(step, metrics, last_good_step())
            self.window.append([float(metrics.loss), float(metrics.grad_norm)])
        self._num_timed += len(self._unread)
        self._unread.clear()

    def exclude(self, seconds: float) -> None:
        """Leave a time in which no step was taken out of the speed of the next summary."""
        if self._started is not None:
            self._started += seconds

    def summary(self, batch_size: int) -> dict[str, Any]:
        """Means since the last summary, and examples per second of wall time.

        The first summary of a process has no speed: its time went into compilation.
        """
        losses, grad_norms = zip(*self.window, strict=True)
        values = {"loss": statistics.fmean(losses), "grad_norm": statistics.fmean(grad_norms)}
        now = time.perf_counter()
        if self._started is not None:
            values["examples_per_second"] = batch_size * self._num_timed / (now - self._started)
        self._started, self._num_timed = now, 0
        self.window.clear()
        return values
