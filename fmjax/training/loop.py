"""The training loop: batches, training steps, logs, checkpoints, and stopping on signals."""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypedDict

import jax
from jax.sharding import Mesh
from jaxtyping import PyTree

from fmjax._arrays import noun
from fmjax._checks import require_at_least
from fmjax._json import AnyFloat, check_json
from fmjax._progress import COMPILING, Progress, Silent
from fmjax.planning import CHIPS
from fmjax.sharding.processes import all_or_none, is_main
from fmjax.sharding.stopping import Interrupted, StopSignals
from fmjax.training.checkpoints.manager import Checkpoints
from fmjax.training.feed import Batches, Feed
from fmjax.training.logs import Logger
from fmjax.training.monitor import Monitor
from fmjax.training.state import TrainState
from fmjax.training.step import TrainStep

_LOG = logging.getLogger("fmjax")
_NO_POSITION = (
    "batches has no get_state and set_state, so checkpoints do not contain the position in the "
    "data: a run that is stopped and resumed takes the first batch that its iterator yields"
)


def fit(
    state: TrainState,
    step_fn: TrainStep,
    batches: Batches | Iterable[PyTree],
    *,
    mesh: Mesh,
    num_steps: int,
    checkpoints: Checkpoints | None = None,
    logger: Logger | None = None,
    learning_rate: Callable[[int], jax.Array | float] | None = None,
    flops_per_example: float | None = None,
    log_every: int = 50,
    checkpoint_every: int = 1000,
    on_checkpoint: Callable[[TrainState], None] | None = None,
    progress: Progress = Silent(),
) -> TrainState:
    """Train for `num_steps` steps, resuming from the newest checkpoint if there is one.

    A run that was stopped and resumed ends with the same bits as an uninterrupted run. On SIGTERM
    or Ctrl-C, the current step is finished and saved before training stops; a second Ctrl-C stops
    at once. On the command line, a signal before the end of the first step ends the process, since
    there is nothing to save.

    Args:
        state: State from `init_state`; it is donated. If there is a checkpoint, only its shapes and
            shardings are used.
        step_fn: Training step from `make_train_step`.
        batches: Iterator or iterable with a batch for each step, such as `fmjax.batches`, a
            generator, a data loader or a list. It yields the rows of this process as a pytree of
            NumPy or JAX arrays, a `Batch` for the objectives of fmjax. If it has `get_state` and
            `set_state`, as grain's iterators, its position is saved in checkpoints; otherwise a
            warning is logged once, and a resumed run takes the first batch that it yields.
        mesh: Mesh of the state.
        num_steps: Total number of steps of the run, including those before resuming.
        checkpoints: Checkpoints to resume from and to save to; None disables saving.
        logger: Receives loss and grad_norm (means since the previous line), learning_rate and
            speed, after the first step, every `log_every` steps and after the last step.
        learning_rate: Function from the index of a step, from 0, to its learning rate; used only
            for the log.
        flops_per_example: Operations per example and step, forward and backward, to log the speed.
        log_every: Number of steps between log lines.
        checkpoint_every: Number of steps between checkpoints. The last step is always saved.
        on_checkpoint: Called in all processes with the state every `checkpoint_every` steps, but
            not after the last step. It must not keep arrays of the state, whose buffers the next
            step reuses. A run that resumes from such a step calls it again, since the earlier
            process may have stopped before or during the call.
        progress: Receives progress reports.

    Returns:
        The final state; its checkpoint is completely written.

    Raises:
        Interrupted: If a signal stopped training.
        NonFiniteLoss: If the loss, gradient or update of a step is not finite. The state of that
            step is not saved.
        CheckpointWriteError: If a checkpoint or a line of the log cannot be written.
        ValueError: If all checkpoints are damaged, the newest belongs to another model, the batch
            size is not divisible by the number of devices, the batches end too early, or a batch
            differs from the first in structure, shape or dtype.
    """
    require_at_least("num_steps", num_steps, 1)
    require_at_least("log_every", log_every, 1)
    require_at_least("checkpoint_every", checkpoint_every, 1)
    if not is_main():
        logger = None
    feed = Feed(batches, mesh, num_steps)
    state, monitor = _resume(state, feed, checkpoints, logger, progress)
    first_step = int(state.step)
    if first_step >= num_steps:
        return state
    if checkpoints is not None and not feed.can_resume and is_main():
        _LOG.warning(_NO_POSITION)
    last_good_step = (lambda: None) if checkpoints is None else checkpoints.latest_step
    report = _Report(monitor, logger, learning_rate, last_good_step, flops_per_example, mesh)
    with (
        StopSignals() as signals,
        _finish_writes(checkpoints),
        progress.task("training", total=num_steps) as advance,
    ):
        advance(first_step, COMPILING)
        if on_checkpoint is not None and first_step > 0 and first_step % checkpoint_every == 0:
            _call_untimed(on_checkpoint, state, monitor, progress, part="first step")
        feed.fetch(first_step + 1)
        for step in range(first_step + 1, num_steps + 1):
            batch = feed.take()
            state, metrics = step_fn(state, batch)
            monitor.add(step, metrics)
            if step == first_step + 1:
                jax.block_until_ready(metrics)
                signals.begin(first_step)
                progress.part_done("first step")
            if step < num_steps:
                # Transfer the next batch while the device computes this step.
                feed.fetch(step + 1)
            is_last = step == num_steps
            if step == 1 or step % log_every == 0 or is_last:
                with all_or_none("writing the log"):
                    report(step, jax.tree.leaves(batch)[0].shape)
            cause = signals.cause(step)
            is_checkpoint = step % checkpoint_every == 0
            if checkpoints is not None and (cause or is_checkpoint or is_last):
                monitor.read(last_good_step)
                checkpoints.save(state, {"batches": feed.state, "window": monitor.window})
            if cause:
                raise Interrupted(cause, step, saved=checkpoints is not None)
            if is_checkpoint and not is_last and on_checkpoint is not None:
                _call_untimed(on_checkpoint, state, monitor, progress)
            advance(1, report.note)
    progress.part_done("training")
    # Checked after the signal handlers are removed, so that no signal is lost. One may have arrived
    # while the last checkpoint was written.
    if cause := signals.last_cause(num_steps):
        raise Interrupted(cause, num_steps, saved=checkpoints is not None)
    return state


def _call_untimed(
    function: Callable[[TrainState], None],
    state: TrainState,
    monitor: Monitor,
    progress: Progress,
    *,
    part: str = "training",
) -> None:
    """Call a function between two steps and exclude its time from `part` and from the speed."""
    jax.block_until_ready(state)
    progress.part_done(part)
    start = time.perf_counter()
    function(state)
    monitor.exclude(time.perf_counter() - start)


def _resume(
    state: TrainState,
    feed: Feed,
    checkpoints: Checkpoints | None,
    logger: Logger | None,
    progress: Progress,
) -> tuple[TrainState, Monitor]:
    """Restore state, iterator, log and metrics from the newest checkpoint, if there is one."""
    if checkpoints is None or checkpoints.latest_step() is None:
        if logger is not None:
            logger.rewind(int(state.step))
        return state, Monitor()
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )
    # Free the memory first: two states may not fit on the devices.
    jax.tree.map(lambda leaf: leaf.delete(), state)
    state, extra, passed_over = checkpoints.restore(like)
    for line in passed_over:
        progress.say(line)
    try:
        saved = check_json(extra, _Extra, "extra")
        feed.restore(saved["batches"])
    except ValueError as error:
        raise ValueError(
            f"checkpoint of step {int(state.step)} must contain the positions of the data and the "
            f"log, got one without them: {' '.join(str(error).split())}"
        ) from error
    if logger is not None:
        logger.rewind(int(state.step))
    progress.say(f"resumed from step {int(state.step)}")
    return state, Monitor([list(pair) for pair in saved["window"]])


class _Extra(TypedDict):
    """JSON data that `fit` saves with the training state.

    Attributes:
        batches: Position of the data iterator; None if it cannot be saved.
        window: Losses and gradient norms since the last log line.
    """

    batches: dict[str, Any] | None
    window: list[tuple[AnyFloat, AnyFloat]]


_SPEEDS = {
    "examples_per_second": "{:,.0f} {examples}/s",
    "teraflops_per_device": "{:.3g} TFLOP/s per device",
    "share_of_peak": "{:.0%} of peak",
}


class _Report:
    """Writes log lines, and makes the note of the progress bar.

    Attributes:
        note: Loss and speed of the last log line, in words.
    """

    def __init__(
        self,
        monitor: Monitor,
        logger: Logger | None,
        learning_rate: Callable[[int], jax.Array | float] | None,
        last_good_step: Callable[[], int | None],
        flops_per_example: float | None,
        mesh: Mesh,
    ):
        self._monitor, self._logger = monitor, logger
        self._learning_rate, self._last_good_step = learning_rate, last_good_step
        self._flops_per_example, self._mesh = flops_per_example, mesh
        self.note = ""

    def __call__(self, step: int, shape: tuple[int, ...]) -> None:
        self._monitor.read(self._last_good_step)
        values = self._monitor.summary(shape[0])
        values |= self._compute_rate(values.get("examples_per_second"))
        if self._learning_rate is not None:
            values["learning_rate"] = float(self._learning_rate(step - 1))
        if self._logger is not None:
            self._logger.log(step, values)
        self.note = f"loss {values['loss']:.4f}"
        for name, template in _SPEEDS.items():
            if name in values:
                self.note += ", " + template.format(values[name], examples=noun(shape[1:]))

    def _compute_rate(self, examples_per_second: float | None) -> dict[str, float]:
        """Convert the speed to operations per second and to a fraction of the device's peak."""
        if examples_per_second is None or self._flops_per_example is None:
            return {}
        flops = examples_per_second * self._flops_per_example / self._mesh.size
        chip = CHIPS.get(self._mesh.devices.flat[0].device_kind)
        share = {} if chip is None else {"share_of_peak": flops / chip.peak_flops}
        return {"teraflops_per_device": flops / 1e12} | share


@contextmanager
def _finish_writes(checkpoints: Checkpoints | None) -> Iterator[None]:
    """Wait for pending checkpoints on exit, except after a second Ctrl-C.

    A failed log write is reported like a failed checkpoint write.
    """
    try:
        yield
    except OSError as error:
        if checkpoints is None:
            raise
        checkpoints.wait()
        raise checkpoints.write_error(error) from error
    finally:
        if checkpoints is not None and not isinstance(sys.exception(), KeyboardInterrupt):
            checkpoints.wait()
