"""Tests of comparisons, and of reading and writing them as JSON and CSV."""

import csv
import json
import math
import subprocess
import sys

import pytest

from fmjax.report.comparison import power_of_ten, read_json, scientific, write_csv, write_json
from tests.report.made_up import comparison, example, run


def test_json_round_trip_preserves_comparison(tmp_path):
    write_json(example(), tmp_path / "comparison.json")
    assert read_json(tmp_path / "comparison.json") == example()


def test_infinite_errors_round_trip_in_standard_json(tmp_path):
    original = comparison(run("Euler", 1, 1, math.inf, 0.1, succeeded=0.5))
    write_json(original, tmp_path / "c.json")
    json.loads((tmp_path / "c.json").read_text(), parse_constant=pytest.fail)
    assert read_json(tmp_path / "c.json") == original


def test_csv_contains_all_numbers_exactly(tmp_path):
    write_csv(example(), tmp_path / "comparison.csv")
    with (tmp_path / "comparison.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row, expected in zip(rows, example().runs, strict=True):
        fields = expected._asdict()
        spread = {f"{name}, spread": value for name, value in fields.pop("spread").items()}
        numbers = fields.pop("metrics") | fields | spread
        assert row.keys() == numbers.keys()
        for name in ("solver", "family", "model"):
            assert row.pop(name) == numbers.pop(name)
        for name, text in row.items():
            assert (float(text) if text else None) == numbers[name], name


def test_csv_has_line_per_run_and_column_per_metric(tmp_path):
    write_csv(example(), tmp_path / "comparison.csv")
    lines = (tmp_path / "comparison.csv").read_text().splitlines()
    assert len(lines) == 1 + len(example().runs)
    assert lines[0].endswith("succeeded,family,model,sliced Wasserstein")


def test_old_file_without_families_is_read(tmp_path):
    write_json(example(), tmp_path / "c.json")
    document = json.loads((tmp_path / "c.json").read_text())
    for row in document["runs"]:
        del row["family"], row["model"]
    del document["higher_is_better"]
    (tmp_path / "c.json").write_text(json.dumps(document))
    families = {run.solver: run.family for run in read_json(tmp_path / "c.json").runs}
    assert set(families.values()) == {"fixed", "adaptive"}


@pytest.mark.parametrize("content", ["not json", "[]", "{}", '{"format": 1, "runs": [{"x": 1}]}'])
def test_invalid_json_file_is_refused(tmp_path, content):
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(ValueError, match=r"c\.json must (be JSON|hold|contain|have format 1)"):
        read_json(tmp_path / "c.json")


def test_unknown_format_is_refused(tmp_path):
    (tmp_path / "c.json").write_text('{"format": 99}')
    with pytest.raises(ValueError, match=r"c\.json must have format 1, got 99"):
        read_json(tmp_path / "c.json")


def test_curves_are_sorted_from_cheapest_to_most_expensive():
    shuffled = comparison(*reversed(example().runs))
    assert [r.steps for r in shuffled.curves()["Euler"]] == [1, 2, 4, 8]
    assert [r.tolerance for r in shuffled.curves()["Tsit5"]] == [1e-2, 1e-4]


def test_settings_are_formatted():
    assert run("Euler", 1, 1, 1.0, 1.0).setting == "1 step"
    assert run("Euler", 8, 8, 1.0, 1.0).setting == "8 steps"
    assert run("Tsit5", 1e-3, 8, 1.0, 1.0).setting == "tolerance 1e-3"


@pytest.mark.parametrize(
    ("value", "short", "long"),
    [(1e-3, "1e-3", "1.0e-3"), (0.25, "0.25", "2.5e-1"), (3.2e-5, "3.2e-5", "3.2e-5")],
)
def test_numbers_are_formatted_in_short_and_long_form(value, short, long):
    assert power_of_ten(value) == short
    assert scientific(value) == long


def test_reading_comparison_does_not_import_plotting_packages():
    code = (
        "import sys, fmjax.report.comparison, fmjax.report.advice;"
        "assert not {'matplotlib', 'jinja2', 'PIL'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
