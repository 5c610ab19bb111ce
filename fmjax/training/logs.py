"""Where a run's numbers go: `metrics.jsonl` for programs, TensorBoard events for eyes."""

import contextlib
import json
import socket
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypedDict, runtime_checkable

from fmjax._files import naming, write_atomically
from fmjax._json import AnyFloat, Count, check_json, parse_json

if TYPE_CHECKING:
    from tensorboardX.record_writer import RecordWriter

# Seconds after which TensorBoard sees a point at the latest.
_FLUSH_EVERY = 10.0


@runtime_checkable
class Logger(Protocol):
    """Hears the numbers of a run. Laws: steps come in rising order; `rewind` forgets later ones."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Keep `values` as those of `step`."""
        ...

    def rewind(self, step: int) -> None:
        """Forget whatever is later than `step`: the run goes on from there."""
        ...

    def close(self) -> None:
        """Have everything on the disk."""
        ...


class RunLogger:
    """Writes `FOLDER/metrics.jsonl`, one JSON object a line, and `FOLDER/events/` for TensorBoard.

    A context manager. Both are appended to when a run goes on, and no step stands twice.
    """

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        self.metrics = self.folder / "metrics.jsonl"
        self._events: RecordWriter | None = None
        self._first_step: int | None = None
        self._flush_at = 0.0

    def __enter__(self) -> "RunLogger":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # On a full disk the same error twice; the first one says more.
        with contextlib.suppress(*[] if kind is None else [OSError]):
            self.close()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line, and one point to each of TensorBoard's curves.

        Raises:
            OSError: If the disk does not take them; it names the file.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with naming(self.metrics), self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        # Written here and not by tensorboardX's thread: that dies of a full disk, and then the
        # training waits for it without end.
        from tensorboardX import summary  # Imports PyTorch where there is one.

        with naming(self._events_folder):
            if self._events is None:
                self._events = self._open_events()
            for name, value in values.items():
                curve = summary.scalar(name, value)
                self._events.write(_event(step=step, wall_time=time.time(), summary=curve))
            if time.monotonic() >= self._flush_at:
                self._events.flush()
                self._flush_at = time.monotonic() + _FLUSH_EVERY

    def rewind(self, step: int) -> None:
        """Drop the lines later than `step`, and a last line that was cut off."""
        self.close()
        self._first_step = step + 1
        if not self.metrics.exists():
            return
        kept = [line for line in read_metrics(self.metrics) if line["step"] <= step]
        with write_atomically(self.metrics) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), "utf-8")

    def close(self) -> None:
        """Flush TensorBoard's events; the lines are on the disk already."""
        events, self._events = self._events, None
        if events is not None:
            with naming(self._events_folder):
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
            # TensorBoard hides what an earlier process wrote from this step on.
            events.write(_event(step=self._first_step, session_log={"status": "START"}))
        return events


class _Line(TypedDict):
    """What every line of the log holds; its other keys are numbers."""

    step: Count


def _event(**fields: Any) -> bytes:
    from tensorboardX.proto import event_pb2

    # Its classes are made when it is imported.
    return event_pb2.Event(**fields).SerializeToString()  # pyright: ignore[reportAttributeAccessIssue]


def read_metrics(path: Path) -> list[dict[str, int | float]]:
    """The lines that `RunLogger` wrote, without the half line of a process that was killed.

    Warns once of lines that are damaged, which are left out: a log stops neither a training nor
    a report.
    """
    found, damaged, last = [], [], 0
    with path.open("rb") as file:
        for last, text in enumerate(file, start=1):
            try:
                line = parse_json(text, f"line {last}", nonfinite=True)
                check_json(line, dict[str, AnyFloat], f"line {last}")
                check_json(line, _Line, f"line {last}", extra=True)
            except ValueError as error:
                damaged.append((last, text, error))
            else:
                found.append(line)
    if damaged and damaged[-1][0] == last and not damaged[-1][1].endswith(b"\n"):
        damaged.pop()  # That half line.
    if damaged:
        warnings.warn(
            f"{path} has {len(damaged)} damaged lines, which are left out: {damaged[0][2]}",
            stacklevel=2,
        )
    return found
