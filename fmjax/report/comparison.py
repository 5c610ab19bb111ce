"""The results of a solver comparison as plain data, and their CSV and JSON files.

A `Comparison` contains no arrays or functions, equals the one read back from its JSON file, and is
the only input of the figures, tables and sentences of a report.
"""

import csv
import json
import math
from collections.abc import Mapping
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
    read_json as read_json_as,
)

FORMAT = 1
Family = Annotated[str, one_of("fixed", "adaptive", "stochastic")]

AS_REAL = "High frequencies"  # The metric that is best when closest to that of real data.


class SolverRun(NamedTuple):
    """Results of one solver with one setting on the shared source points.

    Attributes:
        solver: Name of the solver, such as "RK4" or "Tsit5".
        steps: Number of fixed steps; None for adaptive steps.
        tolerance: Relative and absolute tolerance of adaptive steps; None for fixed steps.
        nfe_mean: Network evaluations per sample, mean over samples, including rejected steps.
        nfe_max: Network evaluations per sample, maximum over samples.
        rmse_mean: Mean over samples of the root mean square difference, over event axes, between
            the end point and that of the reference, in data units; NaN without a reference.
        rmse_worst: Maximum over samples of this difference; infinite if a sample is not finite,
            NaN without a reference.
        seconds: Wall time for the batch without compilation, median over repeats.
        succeeded: Fraction of samples that reached t = 1 within the solver's step limit.
        metrics: Sample metrics by name.
        family: "fixed" or "adaptive" for ODE solvers by their steps, or "stochastic" for samplers
            that add noise, for which errors are NaN.
        model: Name of the model; "" if there is only one.
        spread: Sample standard deviation of each metric over seeds, if there are several. The
            other values are then means over seeds.
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
        """Whether the solver used adaptive steps."""
        return self.tolerance is not None

    @property
    def setting(self) -> str:
        """The setting in words: "8 steps" or "tolerance 1e-3"."""
        if self.tolerance is not None:
            return f"tolerance {power_of_ten(self.tolerance)}"
        return "1 step" if self.steps == 1 else f"{self.steps} steps"


class StepEnds(NamedTuple):
    """The accepted steps of an adaptive solve.

    Attributes:
        solver: Name of the solver.
        tolerance: Relative and absolute tolerance.
        times: End times of the accepted steps, increasing to 1.
    """

    solver: str
    tolerance: Positive
    times: tuple[Share, ...]


class Reference(NamedTuple):
    """The accurate solve against which errors are measured.

    Attributes:
        solver: Name of the solver.
        tolerance: Relative and absolute tolerance.
        precision: Floating point type of the solve, "float64" or "float32".
        nfe: Network evaluations per sample, maximum over samples.
        uncertainty: Upper estimate of the reference's error, as the RMSE of the worst sample.
            Errors below it are not meaningful.
        note: Note for the reader, such as why the solve is not in float64.
        metrics: Sample metrics of the end points of the reference.
    """

    solver: str
    tolerance: Positive
    precision: str
    nfe: Count
    uncertainty: AnyFloat
    note: str = ""
    metrics: Mapping[str, AnyFloat] = {}


class Comparison(NamedTuple):
    """The results of a solver comparison.

    Attributes:
        runs: One row for each solver and setting.
        reference: Solve against which errors are measured, or None.
        step_ends: Step end times of the adaptive solves.
        num_samples: Number of shared source points.
        device: Description of the device.
        floors: Value of each metric between two sets of real data, by name.
        step: Training step of the weights; None for a velocity field that was not trained.
        guidance: Scale of classifier-free guidance; 1 for none.
        higher_is_better: Names of the metrics that are better when higher.
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
        """Names of the models, in the order of their first appearance."""
        return tuple(dict.fromkeys(run.model for run in self.runs))

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names of the sample metrics, in the order of their first appearance."""
        return tuple(dict.fromkeys(name for run in self.runs for name in run.metrics))

    @property
    def spread_names(self) -> tuple[str, ...]:
        """Names of the metrics with a spread over seeds."""
        return tuple(dict.fromkeys(name for run in self.runs for name in run.spread))

    def curves(self) -> dict[str, tuple[SolverRun, ...]]:
        """Group the runs by model and solver, each sorted by the number of evaluations."""
        curves: dict[str, list[SolverRun]] = {}
        for run in sorted(self.runs, key=lambda run: run.nfe_mean):
            curves.setdefault(self.title_of(run), []).append(run)
        names = dict.fromkeys(self.title_of(run) for run in self.runs)
        return {name: tuple(curves[name]) for name in names}

    def title_of(self, run: SolverRun) -> str:
        """Return the name of the run's curve.

        It is the name of the run, with the kind of steps if the solver has runs of both kinds.
        """
        step_kinds = {other.adaptive for other in self.runs if other.solver == run.solver}
        steps = "adaptive" if run.adaptive else "fixed"
        name = self.name_of(run)
        return name if len(step_kinds) == 1 else f"{name}, {steps} steps"

    def name_of(self, run: SolverRun) -> str:
        """Return the solver of a run, preceded by its model if there are several models."""
        return run.solver if len(self.models) == 1 else f"{run.model} · {run.solver}"


def power_of_ten(value: float) -> str:
    """Format a number to two digits, such as "1e-3", "0.25" or "3.2e-5"."""
    text = f"{value:.2g}"
    if "e" not in text and value != 0 and abs(value) < 0.1:
        text = f"{value:.1e}"
    if "e" not in text:
        return text
    mantissa, exponent = text.split("e")
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    return f"{mantissa}e{int(exponent)}"


def scientific(value: float) -> str:
    """Format a number to two digits, always with a power of ten: "4.9e-1", "inf"."""
    if not math.isfinite(value):
        return f"{value}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def write_json(comparison: Comparison, file: Path) -> None:
    """Write a comparison to a JSON file; infinity becomes "inf"."""
    document = {
        "format": FORMAT,
        **comparison._asdict(),
        "runs": [run._asdict() for run in comparison.runs],
        "reference": None if comparison.reference is None else comparison.reference._asdict(),
        "step_ends": [ends._asdict() for ends in comparison.step_ends],
    }
    with write_atomically(file) as temporary:
        temporary.write_text(json.dumps(plain_json(document), indent=1, allow_nan=False) + "\n")


def read_json(file: Path) -> Comparison:
    """Read a comparison from a JSON file written by `write_json`.

    Raises:
        ValueError: If the file is not a comparison.
    """
    document = read_json_as(file, dict[str, Any])
    format_ = document.pop("format", None)
    require(format_ == FORMAT, f"{file}", f"have format {FORMAT}", format_)
    runs = document.get("runs")
    for run in runs if isinstance(runs, list) else ():
        _add_family(run)
    comparison = check_json(document, Comparison, str(file))
    require(bool(comparison.runs), str(file), "contain at least one row", "none")
    for i, run in enumerate(comparison.runs):
        _check_setting(run, f"{file}: runs[{i}]")
    return comparison


def write_csv(comparison: Comparison, file: Path) -> None:
    """Write a comparison to a CSV file, one line for each run and one column for each metric."""
    fields = [name for name in SolverRun._fields if name not in ("metrics", "spread")]
    metric_names, spread_names = comparison.metric_names, comparison.spread_names
    with write_atomically(file) as temporary, temporary.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([*fields, *metric_names, *(f"{name}, spread" for name in spread_names)])
        for run in comparison.runs:
            values = [getattr(run, name) for name in fields]
            metrics = [run.metrics.get(name, math.nan) for name in metric_names]
            spreads = [run.spread.get(name, math.nan) for name in spread_names]
            writer.writerow([*values, *metrics, *spreads])


def row_to_json(run: SolverRun) -> str:
    """Format one row as a line of JSON."""
    return json.dumps(plain_json(run._asdict()), allow_nan=False) + "\n"


def row_from_json(text: str) -> SolverRun:
    """Parse a row written by `row_to_json`.

    Raises:
        ValueError: If the text is not a row.
    """
    fields = parse_json(text, "row")
    _add_family(fields)
    run = check_json(fields, SolverRun, "row")
    _check_setting(run, "row")
    return run


def _add_family(fields: object) -> None:
    """Add the solver family to a comparison row that an older version wrote without it."""
    if isinstance(fields, dict):
        fields.setdefault("family", "adaptive" if fields.get("steps") is None else "fixed")


def _check_setting(run: SolverRun, name: str) -> None:
    is_valid = (run.steps is None) != (run.tolerance is None)
    got = f"steps {run.steps} and tolerance {run.tolerance}"
    require(is_valid, name, "have either steps or a tolerance", got)
