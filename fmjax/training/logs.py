"""Where a run's numbers go: `metrics.jsonl` for programs, TensorBoard events for eyes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from fmjax._files import write_atomically

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter


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
        self._events: SummaryWriter | None = None
        self._first_step: int | None = None

    def __enter__(self) -> "RunLogger":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line, and one point to each of TensorBoard's curves."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        if self._events is None:
            from tensorboardX import SummaryWriter  # Imports PyTorch where there is one.

            # TensorBoard hides what an earlier process wrote from this step on.
            self._events = SummaryWriter(str(self.folder / "events"), purge_step=self._first_step)
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

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
        if self._events is not None:
            self._events.close()
            self._events = None


def read_metrics(path: Path) -> list[dict[str, int | float]]:
    """The lines that `RunLogger` wrote, without the half line of a process that was killed."""
    found = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and "step" in line:
            found.append(line)
    return found
