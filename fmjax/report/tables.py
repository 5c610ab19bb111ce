"""Tables of a page: cells that are read one way and sorted another."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from fmjax.report.advice import seconds_in_words
from fmjax.report.comparison import Comparison, SolverRun, scientific
from fmjax.report.series import FAMILIES, keys_of

DASH = "–"


class Cell(NamedTuple):
    """One cell.

    Attributes:
        text: As it is read.
        value: What it is sorted by; None sorts by the text.
        kind: "bad" for what went wrong, or a family of solvers.
    """

    text: str
    value: float | None = None
    kind: str = ""


class Table(NamedTuple):
    """A table under its title.

    Attributes:
        title: Of its section; "" within another.
        columns: Their names.
        rows: Texts, numbers (shown to three digits) or cells, one for each column.
        note: What the figures are of.
        keys: Of each row, the legend's names that it goes by; none if it always shows.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | float | Cell]]
    note: str = ""
    keys: Sequence[Sequence[str]] = ()

    @property
    def cells(self) -> list[list[Cell]]:
        """The rows as cells."""
        return [[_cell(value) for value in row] for row in self.rows]


def number(value: float, text: str | None = None) -> Cell:
    """A number's cell; a dash for NaN."""
    if math.isnan(value):
        return Cell(DASH, value)
    return Cell(f"{value:.3g}" if text is None else text, value)


def comparison_table(comparison: Comparison) -> Table:
    """Every run of a comparison, in the order of its curves."""
    errors = comparison.reference is not None
    columns = [
        *(["model"] if len(comparison.models) > 1 else []),
        *("solver", "setting", "evaluations"),
        *(["RMSE, mean", "RMSE, worst"] if errors else []),
        *comparison.metric_names,
        *("wall time", "succeeded"),
    ]
    runs = [run for curve in comparison.curves().values() for run in curve]
    rows = [_row(comparison, run, errors) for run in runs]
    return Table("", columns, rows, keys=[keys_of(comparison, run) for run in runs])


def _row(comparison: Comparison, run: SolverRun, errors: bool) -> list[Cell]:
    evaluations = f"{run.nfe_mean:,.0f}"
    if run.nfe_max > run.nfe_mean:
        evaluations += f" (max {run.nfe_max:,})"
    # From coarse to fine, whether steps or tolerance.
    fineness = run.steps if run.tolerance is None else 1 / run.tolerance
    rmse = (run.rmse_mean, run.rmse_worst) if errors else ()
    return [
        *([Cell(run.model)] if len(comparison.models) > 1 else []),
        Cell(run.solver, kind=run.family if run.family in FAMILIES else ""),
        Cell(run.setting, fineness),
        Cell(evaluations, run.nfe_mean),
        *(number(value, scientific(value)) for value in rmse),
        *(_metric(run, name) for name in comparison.metric_names),
        number(run.seconds, seconds_in_words(run.seconds)),
        Cell(f"{100 * run.succeeded:.0f} %", run.succeeded, "bad" if run.succeeded < 1 else ""),
    ]


def _metric(run: SolverRun, name: str) -> Cell:
    mean, spread = run.metrics.get(name, math.nan), run.spread.get(name)
    return number(mean, None if spread is None else f"{mean:.3g} ± {spread:.2g}")


def _cell(value: str | float | Cell) -> Cell:
    if isinstance(value, Cell):
        return value
    return Cell(value) if isinstance(value, str) else number(float(value))
