"""Reading of step metrics from the device in groups, so that no step waits for the host."""

import math
import statistics
import time
from collections.abc import Callable

import jax

from fmjax.training.state import StepMetrics

# Number of steps by which the host may be ahead of the device: enough to hide the host's work, and
# few enough that queued batches need little memory and a stop takes effect soon.
_MAX_AHEAD = 2


class NonFiniteLoss(ArithmeticError):
    """Raised when the loss, the gradient or the update of a training step is not finite.

    Attributes:
        step: Number of the step, from 1.
        last_good_step: Step of the newest checkpoint before that step; None if there is none.
    """

    def __init__(self, step: int, metrics: StepMetrics, last_good_step: int | None):
        self.step, self.last_good_step = step, last_good_step
        checkpoint = (
            "there is no checkpoint"
            if last_good_step is None
            else f"the last good checkpoint is that of step {last_good_step}"
        )
        loss, grad_norm = float(metrics.loss), float(metrics.grad_norm)
        update = " with a non-finite update" if math.isfinite(loss + grad_norm) else ""
        super().__init__(
            f"loss, gradient and update must be finite, got loss {loss} and "
            f"gradient norm {grad_norm}{update} in step {step}; {checkpoint}"
        )


class Monitor:
    """Collects the metrics of steps and averages them over the steps between two log lines.

    Args:
        window: Losses and gradient norms since the last log line, from the attribute `window` of
            an earlier process. With it, a resumed run logs the same values as an uninterrupted
            one.
    """

    def __init__(self, window: list[list[float]] | None = None):
        self._unread: list[tuple[int, StepMetrics]] = []
        self.window: list[list[float]] = [list(pair) for pair in window or []]
        self._num_timed = 0
        self._started: float | None = None

    def add(self, step: int, metrics: StepMetrics) -> None:
        """Add the metrics of a dispatched step; wait if the device is too far behind."""
        self._unread.append((step, metrics))
        if len(self._unread) > _MAX_AHEAD:
            jax.block_until_ready(self._unread[-1 - _MAX_AHEAD][1].loss)

    def read(self, last_good_step: Callable[[], int | None]) -> None:
        """Copy all metrics added so far from the device.

        Args:
            last_good_step: Returns the step of the newest checkpoint, for the error.

        Raises:
            NonFiniteLoss: If the metrics of a step are not finite.
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
        """Exclude a time without training steps from the speed in the next summary."""
        if self._started is not None:
            self._started += seconds

    def summary(self, batch_size: int) -> dict[str, float]:
        """Return the mean loss and gradient norm, and the speed, since the last summary.

        The first summary of a process has no `examples_per_second`, because its time includes
        compilation.
        """
        losses, grad_norms = zip(*self.window, strict=True)
        values = {"loss": statistics.fmean(losses), "grad_norm": statistics.fmean(grad_norms)}
        now = time.perf_counter()
        if self._started is not None:
            values["examples_per_second"] = batch_size * self._num_timed / (now - self._started)
        self._started, self._num_timed = now, 0
        self.window.clear()
        return values
