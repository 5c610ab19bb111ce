"""Logs of a training run: `metrics.jsonl` for programs and event files for TensorBoard."""

import contextlib
import json
import socket
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypedDict, runtime_checkable

from fmjax._files import name_in_error, write_atomically
from fmjax._json import AnyFloat, Count, check_json, parse_json

if TYPE_CHECKING:
    from tensorboardX.record_writer import RecordWriter

# Maximum time in seconds until TensorBoard sees a point.
_FLUSH_EVERY = 10.0


@runtime_checkable
class Logger(Protocol):
    """Protocol of a log of training metrics.

    `log` is called with increasing steps, except after `rewind`.
    """

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record the values of a step."""
        ...

    def rewind(self, step: int) -> None:
        """Discard the values of later steps, because the run resumes from `step`."""
        ...

    def close(self) -> None:
        """Write all pending values to disk."""
        ...


class RunLogger:
    """Writes `FOLDER/metrics.jsonl`, one JSON object per line, and TensorBoard's `FOLDER/events/`.

    A resumed run appends to both, without duplicate steps. Can be used as a context manager.
    """

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        self.metrics = self.folder / "metrics.jsonl"
        self._events: RecordWriter | None = None
        self._first_step: int | None = None
        self._flush_at = 0.0

    def __enter__(self) -> "RunLogger":
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        # On a full disk, closing raises the error again, with less information.
        with contextlib.suppress(*[] if error_type is None else [OSError]):
            self.close()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line to `metrics.jsonl` and one point to each TensorBoard curve.

        Raises:
            OSError: If a file cannot be written; the error names the file.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with name_in_error(self.metrics), self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        # Not written by tensorboardX's thread, which a full disk ends, so that training would wait
        # for it forever.
        from tensorboardX import summary  # Imports PyTorch if it is installed.

        with name_in_error(self._events_folder):
            if self._events is None:
                self._events = self._open_events()
            for name, value in values.items():
                curve = summary.scalar(name, value)
                self._events.write(_event(step=step, wall_time=time.time(), summary=curve))
            if time.monotonic() >= self._flush_at:
                self._events.flush()
                self._flush_at = time.monotonic() + _FLUSH_EVERY

    def rewind(self, step: int) -> None:
        """Remove the lines of later steps and an incomplete last line."""
        self.close()
        self._first_step = step + 1
        if not self.metrics.exists():
            return
        kept = [line for line in read_metrics(self.metrics) if line["step"] <= step]
        with write_atomically(self.metrics) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), "utf-8")

    def close(self) -> None:
        """Flush TensorBoard's events; the lines are already on disk."""
        events, self._events = self._events, None
        if events is not None:
            with name_in_error(self._events_folder):
                events.close()

    @property
    def _events_folder(self) -> Path:
        return self.folder / "events"

    def _open_events(self) -> "RecordWriter":
        from tensorboardX.record_writer import RecordWriter

        self._events_folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}"
        events = RecordWriter(str(self._events_folder / name))
        events.write(_event(wall_time=time.time(), file_version="brain.Event:2"))
        if self._first_step is not None:
            # Makes TensorBoard hide later points of earlier processes.
            events.write(_event(step=self._first_step, session_log={"status": "START"}))
        return events


class _Line(TypedDict):
    """Required keys of a line of the log; the values of all other keys are numbers."""

    step: Count


def _event(**fields: object) -> bytes:
    from tensorboardX.proto import event_pb2

    # The classes of this module are created at import, so pyright cannot see them.
    return event_pb2.Event(**fields).SerializeToString()  # pyright: ignore[reportAttributeAccessIssue]


def read_metrics(file: Path) -> list[dict[str, int | float]]:
    """Read the lines of `metrics.jsonl`, without an incomplete last line of a killed process.

    Damaged lines are skipped with one warning, so that they stop neither training nor a report.
    """
    lines, damaged, number = [], [], 0
    with file.open("rb") as stream:
        for number, text in enumerate(stream, start=1):
            try:
                line = parse_json(text, f"line {number}", nonfinite=True)
                check_json(line, dict[str, AnyFloat], f"line {number}")
                check_json(line, _Line, f"line {number}", extra=True)
            except ValueError as error:
                damaged.append((number, text, error))
            else:
                lines.append(line)
    if damaged and damaged[-1][0] == number and not damaged[-1][1].endswith(b"\n"):
        damaged.pop()  # The incomplete last line.
    if damaged:
        warnings.warn(
            f"{file} has {len(damaged)} damaged lines, which are skipped: {damaged[0][2]}",
            stacklevel=2,
        )
    return lines
