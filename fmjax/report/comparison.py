"""What a comparison of solvers found, as rows of plain numbers, and its CSV and JSON files.

No arrays and no functions in here: a `Comparison` read back from its JSON equals the one
that was written, and every figure, table and sentence of the report is made from it alone.
"""

import csv
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from fmjax._checks import require
from fmjax._files import write_atomically
from fmjax._json import (
    AnyFloat,
    Count,
    NonNegative,
    Positive,
    Share,
    Size,
    check_json,
    one_of,
    parse_json,
    plain_json,
)
from fmjax._json import read_json as read_json_as

FORMAT = 1
Family = Annotated[str, one_of("fixed", "adaptive", "stochastic")]


AS_REAL = "High frequencies"  # Of samples neither more nor less is better than real data's.


class SolverRun(NamedTuple):
    """One solver at one setting on the shared starting points.

    Attributes:
        solver: The solver's name, as "RK4" or "Tsit5".
        steps: Steps of the fixed grid; None for an adaptive solve.
        tolerance: Both the relative and the absolute one; None for a fixed grid.
        nfe_mean: Network evaluations per sample, mean over samples. Rejected steps count.
        nfe_max: The same, largest over samples.
        rmse_mean: Distance of the end points to the reference, mean over samples of each
            sample's root mean square over its event axes, in data units.
        rmse_worst: The same, largest over samples. Infinite where a sample is not finite. Both
            are NaN where nothing was solved tightly to compare with.
        seconds: Wall time for the whole batch, compilation apart (median of the repeats).
        succeeded: Share of samples that reached t = 1 within the solver's step limit.
        metrics: Sample metrics by name.
        family: "fixed" or "adaptive" steps of an ODE, or "stochastic": with noise along the way,
            so that there is no end point to err from (NaN).
        model: Which trained model, where there are several.
        spread: Sample standard deviation of each metric over seeds, where there are several;
            the other figures are then their means.
    """

    solver: str
    steps: Size | None
    tolerance: Positive | None
    nfe_mean: NonNegative
    nfe_max: Count
    rmse_mean: AnyFloat
    rmse_worst: AnyFloat
    seconds: AnyFloat
    succeeded: Share = 1.0
    metrics: Mapping[str, AnyFloat] = {}
    family: Family = "fixed"
    model: str = ""
    spread: Mapping[str, AnyFloat] = {}

    @property
    def adaptive(self) -> bool:
        """Whether the solver chose its own steps."""
        return self.tolerance is not None

    @property
    def setting(self) -> str:
        """What was set, in words: "8 steps" or "tolerance 1e-3"."""
        if self.tolerance is not None:
            return f"tolerance {power_of_ten(self.tolerance)}"
        return "1 step" if self.steps == 1 else f"{self.steps} steps"


class StepEnds(NamedTuple):
    """Where in t an adaptive solve put its accepted steps, rising to 1."""

    solver: str
    tolerance: Positive
    times: tuple[Share, ...]


class Reference(NamedTuple):
    """The solve that the errors are measured against.

    Attributes:
        solver: Its name.
        tolerance: Relative and absolute.
        precision: The arithmetic of the solve: "float64" or "float32".
        nfe: Evaluations per sample, the most of any.
        uncertainty: Its own error, estimated from above, as a worst-sample RMSE: errors below
            this say little.
        note: What a reader must know, such as why it is not float64.
        metrics: Sample metrics of the reference's own end points.
    """

    solver: str
    tolerance: Positive
    precision: str
    nfe: Count
    uncertainty: AnyFloat
    note: str = ""
    metrics: Mapping[str, AnyFloat] = {}


class Comparison(NamedTuple):
    """Every run, what it was measured against, and on what.

    Attributes:
        runs: One row for each solver and setting.
        reference: What errors are measured against, if they are.
        step_ends: Step positions of the adaptive solves.
        num_samples: Shared starting points.
        device: What it ran on, in words.
        floors: By metric name, what real data scores against real data.
        step: The training step of the weights; None for a field that was not trained.
        guidance: Classifier-free guidance scale of the field; 1 is none.
        higher_is_better: Names of the metrics of which that is so.
    """

    runs: tuple[SolverRun, ...]
    reference: Reference | None = None
    step_ends: tuple[StepEnds, ...] = ()
    num_samples: Count = 0
    device: str = ""
    floors: Mapping[str, AnyFloat] = {}
    step: Count | None = None
    guidance: NonNegative = 1.0
    higher_is_better: tuple[str, ...] = ()

    @property
    def models(self) -> tuple[str, ...]:
        """The models compared, in the order of their first appearance."""
        return tuple(dict.fromkeys(run.model for run in self.runs))

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names of the sample metrics, in the order of their first appearance."""
        return tuple(dict.fromkeys(name for run in self.runs for name in run.metrics))

    @property
    def spread_names(self) -> tuple[str, ...]:
        """Names of those whose spread over seeds is known."""
        return tuple(dict.fromkeys(name for run in self.runs for name in run.spread))

    def curves(self) -> dict[str, tuple[SolverRun, ...]]:
        """The runs by solver (and model), each from its cheapest to its dearest setting."""
        curves: dict[str, list[SolverRun]] = {}
        for run in sorted(self.runs, key=lambda run: run.nfe_mean):
            curves.setdefault(self.title_of(run), []).append(run)
        names = dict.fromkeys(self.title_of(run) for run in self.runs)
        return {name: tuple(curves[name]) for name in names}

    def title_of(self, run: SolverRun) -> str:
        """The name of the run's curve: its solver, after its model where there are several.

        A solver that is here with fixed and with adaptive steps has a curve for each.
        """
        kinds = {each.adaptive for each in self.runs if each.solver == run.solver}
        steps = "adaptive" if run.adaptive else "fixed"
        name = self.name_of(run)
        return name if len(kinds) == 1 else f"{name}, {steps} steps"

    def name_of(self, run: SolverRun) -> str:
        """The run's solver, after its model where there are several."""
        return run.solver if len(self.models) == 1 else f"{run.model} · {run.solver}"


def power_of_ten(value: float) -> str:
    """A short decimal such as "1e-3", "0.25" or "3.2e-5"."""
    text = f"{value:.2g}"
    if "e" not in text and value != 0 and abs(value) < 0.1:
        text = f"{value:.1e}"
    if "e" not in text:
        return text
    mantissa, exponent = text.split("e")
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    return f"{mantissa}e{int(exponent)}"


def scientific(value: float) -> str:
    """Two digits and the power of ten, always: "4.9e-1", "inf"."""
    if not math.isfinite(value):
        return f"{value}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def write_json(comparison: Comparison, path: Path) -> None:
    """Write all of it, so that `read_json` gives it back equal. Infinity becomes "inf"."""
    document = {
        "format": FORMAT,
        **comparison._asdict(),
        "runs": [run._asdict() for run in comparison.runs],
        "reference": None if comparison.reference is None else comparison.reference._asdict(),
        "step_ends": [ends._asdict() for ends in comparison.step_ends],
    }
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps(plain_json(document), indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Comparison:
    """Read what `write_json` wrote.

    Raises:
        ValueError: If the file is not such a document.
    """
    document = read_json_as(path, dict[str, Any])
    form = document.pop("format", None)
    require(form == FORMAT, f"{path}", f"have format {FORMAT}", form)
    runs = document.get("runs")
    for run in runs if isinstance(runs, list) else ():
        _add_family(run)
    found = check_json(document, Comparison, str(path))
    require(bool(found.runs), str(path), "hold at least one row", "none")
    for place, run in enumerate(found.runs):
        _check_setting(run, f"{path}: runs[{place}]")
    return found


def write_csv(comparison: Comparison, path: Path) -> None:
    """Write one line for each run; each metric is a column named after it."""
    fields = [name for name in SolverRun._fields if name not in ("metrics", "spread")]
    metrics, spread = comparison.metric_names, comparison.spread_names
    with write_atomically(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*fields, *metrics, *(f"{name}, spread" for name in spread)])
        for run in comparison.runs:
            values: Iterable[Any] = [getattr(run, name) for name in fields]
            figures = [run.metrics.get(name, math.nan) for name in metrics]
            spreads = [run.spread.get(name, math.nan) for name in spread]
            writer.writerow([*values, *figures, *spreads])


def row_to_json(run: SolverRun) -> str:
    """One row, as `row_from_json` reads it back equal."""
    return json.dumps(plain_json(run._asdict()), allow_nan=False) + "\n"


def row_from_json(text: str) -> SolverRun:
    """Read what `row_to_json` wrote.

    Raises:
        ValueError: If it is something else.
    """
    fields = parse_json(text, "row")
    _add_family(fields)
    run = check_json(fields, SolverRun, "row")
    _check_setting(run, "row")
    return run


def _add_family(fields: Any) -> None:
    """Give a row from before rows had families its own."""
    if isinstance(fields, dict):
        fields.setdefault("family", "adaptive" if fields.get("steps") is None else "fixed")


def _check_setting(run: SolverRun, name: str) -> None:
    one = (run.steps is None) != (run.tolerance is None)
    require(one, name, "have steps or a tolerance", f"{run.steps} and {run.tolerance}")
