"""Stop training at the end of a step, in all processes of a run at the same step."""

import atexit
import contextlib
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, runtime_checkable

import jax
from jax._src import distributed
from jax.experimental import multihost_utils

from fmjax import _signals

_REQUEST, _POSITIONS, _DECISION = (f"fmjax/stop/{name}" for name in ("cause", "step", "decision"))
_BEFORE, _AFTER, _NOW = "before", "after", "now"
_POLL_INTERVAL = 0.25
# Seconds in which each process reports its position; a process that takes longer is in code that
# holds Python's interpreter lock.
_ANSWER_TIMEOUT = 1.5
# JAX detects a dead process in less time.
_AGREE_TIMEOUT = 60.0
# Seconds by which process 0 ends later: it runs the coordinator, without which the others abort.
_COORDINATOR_DELAY = 0.5


class Interrupted(Exception):
    """Raised when a signal stopped training cleanly at the end of a step.

    Attributes:
        cause: Name of the signal, such as "SIGTERM".
        step: Number of training steps completed.
        saved: Whether a checkpoint of that step is on disk.
    """

    def __init__(self, cause: str, step: int, saved: bool):
        self.cause, self.step, self.saved = cause, step, saved
        outcome = (
            "its checkpoint is saved" if saved else "nothing is saved: the run has no checkpoints"
        )
        super().__init__(f"stopped by {cause} after step {step}; {outcome}")


@runtime_checkable
class Store(Protocol):
    """Key-value store shared by all processes: the part of JAX's coordination client used here."""

    def key_value_set(self, key: str, value: str) -> None:
        """Set a key once; raise `RuntimeError` if it is already set."""
        ...

    def key_value_try_get(self, key: str) -> str:
        """Return the value of a key; raise `RuntimeError` if it is not set."""
        ...

    def blocking_key_value_get(self, key: str, timeout_in_ms: int) -> str:
        """Wait until a key is set and return its value; raise `RuntimeError` after the timeout."""
        ...


class Agreement:
    """Stop all processes of a run at the same step, whichever process receives the signal.

    A thread in each process polls for a stop request. It then publishes the number of steps that
    its process has taken, and process 0 decides: all end now if no process has anything to save,
    otherwise after the first step that no process has completed. During the agreement no process
    starts another step.

    Args:
        store: The key-value store shared by the processes.
        index: Index of this process.
        count: Number of processes.
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
        """Request that all processes stop because this process received a signal."""
        self._local = cause
        self._wake.set()
        timer = threading.Timer(2 * _ANSWER_TIMEOUT / 3, self._end_alone, (cause,))
        timer.daemon = True
        timer.start()

    def passed(self, step: int) -> str | None:
        """Record that this process completed `step`; return the signal if it must stop now."""
        with self._lock:
            self._position = step
            is_step = self._decision is not None and self._decision.isdigit()
            return self._cause if is_step and step >= int(self._decision or 0) else None

    def finished(self) -> str | None:
        """Record that this process saved its last step; return the signal if there was one."""
        with self._lock:
            self._position = _AFTER
        if self._decision == _AFTER:
            self._end()
        return self._cause

    def close(self) -> None:
        """Stop polling, before JAX disconnects from the run."""
        self._closed = True
        self._wake.set()
        self._thread.join(1.0)

    def _listen(self) -> None:
        while not self._closed:
            self._wake.wait(_POLL_INTERVAL)
            if not self._closed and (cause := self._local or self._requested()):
                self._agree(cause)
                return

    def _requested(self) -> str | None:
        try:
            return self._store.key_value_try_get(_REQUEST)
        except RuntimeError:  # No request yet, or the coordinator is gone.
            return None

    def _agree(self, cause: str) -> None:
        with self._lock:
            try:
                with contextlib.suppress(RuntimeError):  # Another process was first.
                    self._store.key_value_set(_REQUEST, cause)
                self._cause = self._wait_for(_REQUEST, _AGREE_TIMEOUT)
                self._store.key_value_set(f"{_POSITIONS}/{self._index}", str(self._position))
                if self._index == 0:
                    self._store.key_value_set(_DECISION, self._decide())
                self._decision = self._wait_for(_DECISION, _AGREE_TIMEOUT)
            except RuntimeError:  # The run cannot continue without the coordinator.
                self._cause, self._decision = cause, _NOW
            _signals.note(self._cause)
            position = self._position
        if self._decision == _NOW or position == _AFTER:
            self._end()

    def _decide(self) -> str:
        """Collect the positions of all processes and return when all stop."""
        positions: list[str] = []
        for index in range(self._count):
            must_save = any(position != _BEFORE for position in positions)
            try:
                seconds = _AGREE_TIMEOUT if must_save else _ANSWER_TIMEOUT
                positions.append(self._wait_for(f"{_POSITIONS}/{index}", seconds))
            except RuntimeError:
                positions.append(_BEFORE)
        return decide(positions)

    def _wait_for(self, key: str, seconds: float) -> str:
        return self._store.blocking_key_value_get(key, int(1000 * seconds))

    def _end_alone(self, cause: str) -> None:
        """End this process if the coordinator does not answer and there is nothing to save."""
        if self._decision is None and self._position == _BEFORE and not self._closed:
            _signals.end(cause)

    def _end(self) -> None:
        if self._closed:
            return
        _signals.end(str(self._cause), delay=_COORDINATOR_DELAY if self._index == 0 else 0.0)


def decide(positions: Sequence[str]) -> str:
    """Decide when all processes stop, given how far each has come.

    Args:
        positions: For each process the number of steps it has taken, "before" if it has not started
            the first, or "after" if it has saved the last.

    Returns:
        "now", "after" (the end of training), or the number of the step after which to stop.
    """
    if _AFTER in positions:
        return _AFTER
    steps = [int(position) for position in positions if position != _BEFORE]
    return str(max(steps) + 1) if steps else _NOW


_agreement: Agreement | None = None


def forward_preemption() -> None:
    """Make a signal to any process of the run stop all of its processes."""
    global _agreement
    run = distributed.global_state  # `jax.process_count` would wait for the others' devices.
    if _agreement is None and run.client is not None and run.num_processes > 1:
        _agreement = Agreement(run.client, run.process_id, run.num_processes)
        _signals.stop_all_by(_agreement.request)
        atexit.register(_agreement.close)  # Runs before JAX's earlier handler.


class StopSignals:
    """Context manager that defers signals, so that training can stop at the end of a step.

    On the command line, signals end the process immediately until `begin` is called, because before
    the first step there is nothing to save.
    """

    def __init__(self) -> None:
        self._deferral, self._begun = _signals.Deferral(), False

    def __enter__(self) -> "StopSignals":
        if not _signals.is_installed():
            self._enter()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._begun:
            self._deferral.leave()

    def begin(self, first_step: int) -> None:
        """Defer signals from now on, because the step after `first_step` has been computed."""
        if not self._begun:
            self._enter()
        if _agreement is not None:
            _agreement.passed(first_step)

    def cause(self, step: int) -> str | None:
        """Return the signal if training must stop after `step`, else None; equal in all processes.

        Args:
            step: Number of training steps completed.
        """
        if _agreement is not None:
            return _agreement.passed(step)
        if jax.process_count() > 1:  # The user's program joined the run; JAX handles SIGTERM.
            return "SIGTERM" if multihost_utils.reached_preemption_sync_point(step) else None
        return self._deferral.look()

    def last_cause(self, num_steps: int) -> str | None:
        """Return the signal that came during training, after the last checkpoint is saved."""
        if _agreement is None:
            return self.cause(num_steps + 1)
        if self._begun:
            multihost_utils.sync_global_devices("the last checkpoint is saved")
        return _agreement.finished()

    def _enter(self) -> None:
        self._begun = True
        # With several processes, signals are handled by JAX or by the command line.
        if _signals.is_installed() or jax.process_count() == 1:
            self._deferral.enter()
