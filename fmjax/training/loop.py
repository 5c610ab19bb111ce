"""The training loop: data in, steps, checkpoints, numbers out, and a clean way to leave."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypedDict, runtime_checkable

import jax
from jax.sharding import Mesh

from fmjax._arrays import Batch, noun
from fmjax._checks import require_at_least
from fmjax._json import AnyFloat, check_json
from fmjax._progress import COMPILING, Progress, Silent
from fmjax.planning import CHIPS
from fmjax.sharding.mesh import put_batch
from fmjax.sharding.processes import all_or_none, is_main
from fmjax.sharding.stopping import Interrupted, StopSignals
from fmjax.training.checkpoints.manager import Checkpoints
from fmjax.training.logs import Logger
from fmjax.training.monitor import Monitor
from fmjax.training.state import TrainState
from fmjax.training.step import TrainStep


@runtime_checkable
class Batches(Protocol):
    """An iterator of batches that can say where it stands.

    Laws: after `set_state(s)` come the batches that came after `get_state()` gave `s`; a state is
    JSON.
    """

    def __next__(self) -> Batch:
        """The next batch: this process's rows, numpy arrays."""
        ...

    def get_state(self) -> dict[str, Any]:
        """Where the iterator stands."""
        ...

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        ...


def fit(
    state: TrainState,
    step_fn: TrainStep,
    batches: Batches,
    *,
    mesh: Mesh,
    num_steps: int,
    checkpoints: Checkpoints | None = None,
    logger: Logger | None = None,
    learning_rate: Callable[[int], Any] | None = None,
    flops_per_example: float | None = None,
    log_every: int = 50,
    checkpoint_every: int = 1000,
    on_checkpoint: Callable[[TrainState], None] | None = None,
    progress: Progress = Silent(),
) -> TrainState:
    """Train until `num_steps` steps are taken; go on from the newest checkpoint if there is one.

    A run that was stopped, however often, ends with the bits of one that never was. SIGTERM or
    Ctrl-C finish the step, save and leave; a second Ctrl-C leaves at once. On the command line a
    signal before the end of the first step ends the process: there is nothing to save.

    Args:
        state: From `init_state`; donated. With a checkpoint it only says what to restore, and
            where to.
        step_fn: From `make_train_step`.
        batches: Endless, or with at least `num_steps` batches.
        mesh: The one that the state lives on.
        num_steps: Of the whole run, those already taken included.
        checkpoints: Where to save and resume; None keeps nothing.
        logger: Gets loss, grad_norm (means since the line before), learning_rate and the speed
            after the first step, every `log_every` steps and at the end.
        learning_rate: `learning_rate(n)` of step n, from 0; logged only.
        flops_per_example: Operations of one example in a step, forwards and back, for the speed.
        log_every: Steps between two lines.
        checkpoint_every: Steps between two checkpoints; the last step is always saved.
        on_checkpoint: Called in all processes with the state after every `checkpoint_every` steps
            but not at the end; it must keep no array of the state, which the next step reuses.
            A run that goes on from such a step calls it again: it may have been stopped between.
        progress: Hears how far it is.

    Returns:
        The final state, with its checkpoint on the disk.

    Raises:
        Interrupted: After a signal.
        NonFiniteLoss: If a step was not finite. Its state is never saved.
        Unwritten: If the disk does not take a checkpoint or a line of the log.
        ValueError: If all checkpoints are damaged or the newest is of another model, the batch
            does not divide by the devices, or the batches end too early.
    """
    require_at_least("num_steps", num_steps, 1)
    require_at_least("log_every", log_every, 1)
    require_at_least("checkpoint_every", checkpoint_every, 1)
    if not is_main():
        logger = None
    state, monitor = _resumed(state, batches, checkpoints, logger, progress)
    first_step = int(state.step)
    if first_step >= num_steps:
        return state
    feed = _Feed(batches, mesh, num_steps)
    last_good_step = (lambda: None) if checkpoints is None else checkpoints.latest_step
    report = _Report(monitor, logger, learning_rate, last_good_step, flops_per_example, mesh)
    with (
        StopSignals() as signals,
        _settled(checkpoints),
        progress.task("training", total=num_steps) as advance,
    ):
        advance(first_step, COMPILING)
        if on_checkpoint is not None and first_step > 0 and first_step % checkpoint_every == 0:
            _call_apart(on_checkpoint, state, monitor, progress, after="first step")
        feed.fetch(first_step)
        for step in range(first_step + 1, num_steps + 1):
            batch = feed.take()
            state, metrics = step_fn(state, batch)
            monitor.add(step, metrics)
            if step == first_step + 1:
                jax.block_until_ready(metrics)  # In all processes.
                signals.begin(first_step)
                progress.part_done("first step")
            if step < num_steps:
                # While the device works on this step, the next batch travels to it.
                feed.fetch(step)
            ended = step == num_steps
            if step == 1 or step % log_every == 0 or ended:
                with all_or_none("writing the log"):
                    report(step, jax.tree.leaves(batch)[0].shape)
            cause = signals.cause(step)
            saves = step % checkpoint_every == 0
            if checkpoints is not None and (cause or saves or ended):
                monitor.read(last_good_step)
                checkpoints.save(state, {"batches": feed.state, "window": monitor.window})
            if cause:
                raise Interrupted(cause, step, saved=checkpoints is not None)
            if saves and not ended and on_checkpoint is not None:
                _call_apart(on_checkpoint, state, monitor, progress)
            advance(1, report.note)
    progress.part_done("training")
    # Only once the signals are let go: none is lost between the two.
    if cause := signals.last_cause(num_steps):  # While the last checkpoint was written.
        raise Interrupted(cause, num_steps, saved=checkpoints is not None)
    return state


def _call_apart(
    function: Callable[[TrainState], None],
    state: TrainState,
    monitor: Monitor,
    progress: Progress,
    *,
    after: str = "training",
) -> None:
    """Call a function between two steps, out of the part `after` and out of the speed."""
    jax.block_until_ready(state)
    progress.part_done(after)
    start = time.perf_counter()
    function(state)
    monitor.exclude(time.perf_counter() - start)


def _resumed(
    state: TrainState,
    batches: Batches,
    checkpoints: Checkpoints | None,
    logger: Logger | None,
    progress: Progress,
) -> tuple[TrainState, Monitor]:
    """State, iterator and log as of the newest checkpoint, or as they are if there is none."""
    if checkpoints is None or checkpoints.latest_step() is None:
        if logger is not None:
            logger.rewind(int(state.step))
        return state, Monitor()
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )
    # Two states at once may not fit the devices.
    jax.tree.map(lambda leaf: leaf.delete(), state)
    state, extra, passed_over = checkpoints.restore(like)
    for line in passed_over:
        progress.say(line)
    try:
        saved = check_json(extra, _Extra, "it")
        batches.set_state(saved["batches"])
    except ValueError as error:
        raise ValueError(
            f"checkpoint of step {int(state.step)} must hold where the data and the "
            f"log stand, got one that does not: {error}"
        ) from error
    if logger is not None:
        logger.rewind(int(state.step))
    progress.say(f"resumed from step {int(state.step)}")
    return state, Monitor([list(pair) for pair in saved["window"]])


class _Extra(TypedDict):
    """What `fit` saves beside the state of a training."""

    batches: dict[str, Any]
    window: list[tuple[AnyFloat, AnyFloat]]


class _Feed:
    """One batch ahead of the step; `state` is that of the batches taken, not of those fetched."""

    def __init__(self, batches: Batches, mesh: Mesh, num_steps: int):
        self._batches, self._mesh, self._num_steps = batches, mesh, num_steps
        self._next: tuple[Batch, dict[str, Any]] | None = None
        self.state: dict[str, Any] = {}

    def fetch(self, steps_taken: int) -> None:
        """Read the batch of the next step and send it on its way."""
        try:
            batch = next(self._batches)
        except StopIteration:
            raise ValueError(
                f"batches must last for {self._num_steps} steps, got {steps_taken}"
            ) from None
        self._next = (put_batch(batch, self._mesh), self._batches.get_state())

    def take(self) -> Batch:
        """The batch fetched last."""
        assert self._next is not None, "take() without fetch()"
        batch, self.state = self._next
        self._next = None
        return batch


_SPEEDS = {
    "examples_per_second": "{:,.0f} {examples}/s",
    "teraflops_per_device": "{:.3g} TFLOP/s a device",
    "share_of_peak": "{:.0%} of its peak",
}


class _Report:
    """Turns what the monitor read into a log line and a note beside the progress bar."""

    def __init__(self, monitor, logger, learning_rate, last_good_step, flops_per_example, mesh):
        self._monitor, self._logger = monitor, logger
        self._learning_rate, self._last_good_step = learning_rate, last_good_step
        self._flops_per_example, self._mesh = flops_per_example, mesh
        self.note = ""

    def __call__(self, step: int, shape: tuple[int, ...]) -> None:
        self._monitor.read(self._last_good_step)
        values = self._monitor.summary(shape[0])
        values |= self._work(values.get("examples_per_second"))
        if self._learning_rate is not None:
            values["learning_rate"] = float(self._learning_rate(step - 1))
        if self._logger is not None:
            self._logger.log(step, values)
        self.note = f"loss {values['loss']:.4f}"
        for name, form in _SPEEDS.items():
            if name in values:
                self.note += ", " + form.format(values[name], examples=noun(shape[1:]))

    def _work(self, examples_per_second: float | None) -> dict[str, float]:
        """What that speed is in operations, and of the most that the device can do."""
        if examples_per_second is None or self._flops_per_example is None:
            return {}
        flops = examples_per_second * self._flops_per_example / self._mesh.size
        chip = CHIPS.get(self._mesh.devices.flat[0].device_kind)
        share = {} if chip is None else {"share_of_peak": flops / chip.peak_flops}
        return {"teraflops_per_device": flops / 1e12} | share


@contextmanager
def _settled(checkpoints: Checkpoints | None) -> Iterator[None]:
    """Leave only when all saves are whole, however it ends; but a second Ctrl-C means now.

    A disk that did not take a line of the log is told as one that did not take a checkpoint.
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
