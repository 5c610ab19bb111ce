"""Tables of a page, whose cells have a displayed text and a value for sorting."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from fmjax.report.advice import seconds_in_words
from fmjax.report.comparison import Comparison, SolverRun, scientific
from fmjax.report.curve_styles import FAMILIES, keys_of

DASH = "–"


class Cell(NamedTuple):
    """A cell of a table.

    Attributes:
        text: Displayed text.
        value: Value for sorting; None sorts by `text`.
        kind: CSS class: "bad" for a failure, a family of solvers, or "".
    """

    text: str
    value: float | None = None
    kind: str = ""


class Table(NamedTuple):
    """A table with a title.

    Attributes:
        title: Title of its section; "" if it has no section.
        columns: Names of the columns.
        rows: Rows of texts, numbers (shown to three digits) or cells, one for each column.
        note: Note above the table.
        keys: Keys of the legend entries that show or hide each row; empty if all rows are always
            visible.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | float | Cell]]
    note: str = ""
    keys: Sequence[Sequence[str]] = ()

    @property
    def cells(self) -> list[list[Cell]]:
        """The rows, with all values converted to cells."""
        return [[_cell(value) for value in row] for row in self.rows]


def number(value: float, text: str | None = None) -> Cell:
    """Make the cell of a number; NaN is a dash."""
    if math.isnan(value):
        return Cell(DASH, value)
    return Cell(f"{value:.3g}" if text is None else text, value)


def comparison_table(comparison: Comparison) -> Table:
    """Make the table of all results of a comparison, grouped by solver."""
    has_errors = comparison.reference is not None
    columns = [
        *(["model"] if len(comparison.models) > 1 else []),
        *("solver", "setting", "evaluations"),
        *(["RMSE, mean", "RMSE, worst"] if has_errors else []),
        *comparison.metric_names,
        *("wall time", "succeeded"),
    ]
    runs = [run for curve in comparison.curves().values() for run in curve]
    rows = [_row(comparison, run, has_errors) for run in runs]
    return Table("", columns, rows, keys=[keys_of(comparison, run) for run in runs])


def _row(comparison: Comparison, run: SolverRun, has_errors: bool) -> list[Cell]:
    evaluations = f"{run.nfe_mean:,.0f}"
    if run.nfe_max > run.nfe_mean:
        evaluations += f" (max {run.nfe_max:,})"
    # Sorts from coarse to fine, for steps as well as for tolerances.
    fineness = run.steps if run.tolerance is None else 1 / run.tolerance
    rmse = (run.rmse_mean, run.rmse_worst) if has_errors else ()
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
