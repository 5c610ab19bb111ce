"""Tests of report tables: displayed text and sort values."""

import math

from fmjax.report.tables import DASH, Cell, Table, comparison_table
from tests.report.made_up import comparison, example, run


def rows_by_column(table):
    return [dict(zip(table.columns, row, strict=True)) for row in table.cells]


def test_every_run_has_a_row():
    table = comparison_table(example())
    first = rows_by_column(table)[0]
    assert len(table.cells) == len(example().runs)
    assert first["solver"] == Cell("Euler", None, "fixed")
    assert first["evaluations"] == Cell("1", 1.0)
    assert first["RMSE, worst"] == Cell("1.0e0", 1.0)
    assert table.keys[0] == ("fixed:Euler",)


def test_stochastic_sampler_has_dashes_for_errors():
    stochastic = run("Ancestral", 8, 8, math.nan, 0.1)._replace(family="stochastic")
    (row,) = rows_by_column(comparison_table(comparison(stochastic)))
    assert row["RMSE, worst"].text == row["RMSE, mean"].text == DASH
    assert row["solver"].kind == "stochastic"


def test_study_table_has_models_and_no_errors():
    runs = [run("Euler", 1, 1, 0.5, 0.1)._replace(model=model) for model in ("linear", "OT")]
    table = comparison_table(comparison(*runs, reference=None))
    assert table.columns[:2] == ["model", "solver"]
    assert not [name for name in table.columns if "RMSE" in name]
    assert table.keys == [("model:linear", "fixed:Euler"), ("model:OT", "fixed:Euler")]


def test_settings_sort_from_coarse_to_fine():
    runs = (run("Tsit5", 1e-2, 9, 0.1, 1.0), run("Tsit5", 1e-4, 99, 0.1, 1.0))
    coarse, fine = rows_by_column(comparison_table(comparison(*runs)))
    assert coarse["setting"].value < fine["setting"].value


def test_plain_values_become_cells():
    table = Table("x", ("a", "b", "c"), [("text", 0.12345, math.nan)])
    text, number, missing = table.cells[0]
    assert (text, number) == (Cell("text"), Cell("0.123", 0.12345))
    assert missing.text == DASH
