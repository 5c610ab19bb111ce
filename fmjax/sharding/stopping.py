"""Leaving at the end of a step instead of in the middle of one."""

import atexit
import contextlib
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, runtime_checkable

import jax
from jax._src import distributed
from jax.experimental import multihost_utils

from fmjax import _stopping

_REQUEST, _POSITIONS, _DECISION = (f"fmjax/stop/{name}" for name in ("cause", "step", "decision"))
_BEFORE, _AFTER, _NOW = "before", "after", "now"
_LOOK_EVERY = 0.25
# Within so many seconds the others say where they are; who cannot is in code that holds Python.
_ANSWER_WITHIN = 1.5
# A process that is gone is found out by JAX after less.
_AGREE_WITHIN = 60.0
# Process 0 ends last: the others abort when they lose the coordinator, which it runs.
_OTHERS_END_WITHIN = 0.5


class Interrupted(Exception):
    """Training was told to stop, and left cleanly after the step it was in.

    Attributes:
        cause: Name of the signal, as "SIGTERM".
        step: Steps taken.
        saved: Whether a checkpoint of that step is on the disk.
    """

    def __init__(self, cause: str, step: int, saved: bool):
        self.cause, self.step, self.saved = cause, step, saved
        kept = (
            "its checkpoint is saved" if saved else "nothing is saved: the run has no checkpoints"
        )
        super().__init__(f"stopped by {cause} after step {step}; {kept}")


@runtime_checkable
class Store(Protocol):
    """The part of JAX's coordination client that is used: strings by name, common to all."""

    def key_value_set(self, key: str, value: str) -> None:
        """Set it once."""
        ...

    def key_value_try_get(self, key: str) -> str:
        """Give it; a `RuntimeError` if it is not there."""
        ...

    def blocking_key_value_get(self, key: str, timeout_in_ms: int) -> str:
        """Wait for it."""
        ...


class Agreement:
    """All processes of a run stop together, whichever of them gets the signal.

    A thread of each looks for a request. It then says how many steps its process has taken, and
    process 0 decides: all end now if none has anything to save, otherwise after the first step
    that none has passed. While they agree, no process goes on to a further step.
    """

    def __init__(self, store: Store, index: int, count: int) -> None:
        self._store, self._index, self._count = store, index, count
        self._lock = threading.Lock()
        self._position: str | int = _BEFORE
        self._cause: str | None = None
        self._decision: str | None = None
        self._local: str | None = None
        self._wake, self._closed = threading.Event(), False
        self._thread = threading.Thread(target=self._listen, name="stops", daemon=True)
        self._thread.start()

    def request(self, cause: str) -> None:
        """Have all processes stop, because this one got a signal."""
        self._local = cause
        self._wake.set()
        timer = threading.Timer(2 * _ANSWER_WITHIN / 3, self._end_alone, (cause,))
        timer.daemon = True
        timer.start()

    def passed(self, step: int) -> str | None:
        """This process has taken `step` steps; the signal, if it is to stop here."""
        with self._lock:
            self._position = step
            decided = self._decision is not None and self._decision.isdigit()
            return self._cause if decided and step >= int(self._decision or 0) else None

    def finished(self) -> str | None:
        """This process has saved its last step; the signal, if there was one."""
        with self._lock:
            self._position = _AFTER
        if self._decision == _AFTER:
            self._end()
        return self._cause

    def close(self) -> None:
        """Look no more: JAX is about to leave the run."""
        self._closed = True
        self._wake.set()
        self._thread.join(1.0)

    def _listen(self) -> None:
        while not self._closed:
            self._wake.wait(_LOOK_EVERY)
            if not self._closed and (cause := self._local or self._requested()):
                self._agree(cause)
                return

    def _requested(self) -> str | None:
        try:
            return self._store.key_value_try_get(_REQUEST)
        except RuntimeError:  # Nobody has asked, or the coordinator is gone.
            return None

    def _agree(self, cause: str) -> None:
        with self._lock:
            try:
                with contextlib.suppress(RuntimeError):  # Another process was first.
                    self._store.key_value_set(_REQUEST, cause)
                self._cause = self._wait_for(_REQUEST, _AGREE_WITHIN)
                self._store.key_value_set(f"{_POSITIONS}/{self._index}", str(self._position))
                if self._index == 0:
                    self._store.key_value_set(_DECISION, self._decide())
                self._decision = self._wait_for(_DECISION, _AGREE_WITHIN)
            except RuntimeError:  # Without the coordinator there is no run to go on with.
                self._cause, self._decision = cause, _NOW
            _stopping.note(self._cause)
            position = self._position
        if self._decision == _NOW or position == _AFTER:
            self._end()

    def _decide(self) -> str:
        """When all stop: now, after a step, or after the last one."""
        positions: list[str] = []
        for index in range(self._count):
            saving = any(position != _BEFORE for position in positions)
            try:
                seconds = _AGREE_WITHIN if saving else _ANSWER_WITHIN
                positions.append(self._wait_for(f"{_POSITIONS}/{index}", seconds))
            except RuntimeError:
                positions.append(_BEFORE)
        return decide(positions)

    def _wait_for(self, key: str, seconds: float) -> str:
        return self._store.blocking_key_value_get(key, int(1000 * seconds))

    def _end_alone(self, cause: str) -> None:
        """The coordinator does not answer, and there is nothing to save."""
        if self._decision is None and self._position == _BEFORE and not self._closed:
            _stopping.end(cause)

    def _end(self) -> None:
        if self._closed:
            return
        _stopping.end(str(self._cause), delay=_OTHERS_END_WITHIN if self._index == 0 else 0.0)


def decide(positions: Sequence[str]) -> str:
    """What follows from where the processes are: "now", "after" the training, or after a step.

    Args:
        positions: Of each the steps it has taken, "before" its first or "after" its last save.
    """
    if _AFTER in positions:
        return _AFTER
    steps = [int(position) for position in positions if position != _BEFORE]
    return str(max(steps) + 1) if steps else _NOW


_agreement: Agreement | None = None


def forward_preemption() -> None:
    """From now on a signal to one process of the run stops all."""
    global _agreement
    run = distributed.global_state  # Not `jax.process_count`, which waits for the others' devices.
    if _agreement is None and run.client is not None and run.num_processes > 1:
        _agreement = Agreement(run.client, run.process_id, run.num_processes)
        _stopping.stop_all_by(_agreement.request)
        atexit.register(_agreement.close)  # Before JAX's own, which was registered sooner.


class StopSignals:
    """While entered, a training asks after each step whether a signal tells it to stop.

    On the command line signals end the process at once until `begin`: there is nothing to save.
    """

    def __init__(self) -> None:
        self._deferral, self._begun = _stopping.Deferral(), False

    def __enter__(self) -> "StopSignals":
        if not _stopping.is_installed():
            self._enter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._begun:
            self._deferral.leave()

    def begin(self, first_step: int) -> None:
        """A step after `first_step` is computed: from now on there is something to save."""
        if not self._begun:
            self._enter()
        if _agreement is not None:
            _agreement.passed(first_step)

    def cause(self, step: int) -> str | None:
        """The signal after which to stop now, None without one; the same in all processes."""
        if _agreement is not None:
            return _agreement.passed(step)
        if jax.process_count() > 1:  # Joined by another program, which left SIGTERM to JAX.
            return "SIGTERM" if multihost_utils.reached_preemption_sync_point(step) else None
        return self._deferral.look()

    def last_cause(self, num_steps: int) -> str | None:
        """`cause` once everything is saved, after the end of the block."""
        if _agreement is None:
            return self.cause(num_steps + 1)
        if self._begun:
            multihost_utils.sync_global_devices("the last checkpoint is saved")
        return _agreement.finished()

    def _enter(self) -> None:
        self._begun = True
        # With several processes signals are JAX's, or those of the command line.
        if _stopping.is_installed() or jax.process_count() == 1:
            self._deferral.enter()
