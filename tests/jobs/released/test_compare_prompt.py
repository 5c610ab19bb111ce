"""Tests of comparing solvers on a prompt with a released model."""

import csv
import json

import numpy as np
import pytest

from fmjax.jobs.released import request
from fmjax.report.gallery import read_gallery
from tests.cli.test_cli import run
from tests.golden_models import GOLDEN, PIPELINES
from tests.released import on_one_device

pytestmark = pytest.mark.slow

OPTIONS = [
    "--picture.height",
    32,
    "--picture.width",
    32,
    "--steps",
    2,
    8,
    "--fixed-solvers",
    "euler",
    "--adaptive-solvers",
    "tsit5",
    "--tolerances",
    "1e-2",
]


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    output = tmp_path_factory.mktemp("compared") / "out"
    with pytest.MonkeyPatch.context() as patch:
        on_one_device(patch, request)
        code = run("compare", GOLDEN / PIPELINES[1], "a red fox", *OPTIONS, "--output", output)
    assert code in (0, None)
    return output


def test_comparison_has_errors_costs_and_pictures(output):
    with (output / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["solver"] for row in rows] == ["Euler, the model's steps"] * 2 + ["Tsit5"]
    errors = [float(row["rmse_worst"]) for row in rows]
    assert errors[0] > errors[1] > 0
    assert [float(row["nfe_mean"]) for row in rows[:2]] == [2, 8]
    reference = json.loads((output / "comparison.json").read_text())["reference"]
    assert reference["precision"] == "float64"
    entries = read_gallery(output / "gallery.npz")
    assert [entry.solver for entry in entries] == [row["solver"] for row in rows]
    difference = np.abs(entries[0].images - entries[1].images).mean()
    assert entries[0].images.shape[1:] == (32, 32, 3)
    assert difference > 0


def test_report_names_the_prompt_but_no_sampling_options(output):
    page = (output / "report.html").read_text()
    assert "a red fox" in page
    assert "--num-steps" not in page


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fixed-solvers", "--adaptive-solvers"], "comparison must have at least one solver"),
        (["--tolerances", "0"], "tolerances must be positive"),
    ],
)
def test_invalid_comparisons_are_refused(options, message, capsys):
    assert run("compare", GOLDEN / PIPELINES[1], "a cat", *options) == 2
    assert message in capsys.readouterr().err


def test_missing_prompt_is_refused(capsys):
    assert run("compare", GOLDEN / PIPELINES[1]) == 2
    assert "needs a prompt after the folder of a released model" in capsys.readouterr().err
