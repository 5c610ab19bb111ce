"""The data of the page's charts, and the style of curves."""

import json
import math

import numpy as np

from fmjax.report.charts import (
    comparison_charts,
    comparison_legend,
    loss_chart,
    step_charts,
    step_legend,
    to_script,
)
from fmjax.report.comparison import Comparison
from fmjax.report.curve_styles import legend, looks
from fmjax.report.gallery import GalleryEntry
from fmjax.report.strips import budgets, strips
from fmjax.report.style import DARK, LIGHT
from tests.report.made_up import comparison, example, run


def study(num_models=3):
    rows = [
        run(solver, n, n, 0.5 / n, 0.1)._replace(model=f"m{i}", family=family)
        for i in range(num_models)
        for solver, family in (("Euler", "fixed"), ("Tsit5", "adaptive"), ("SEA", "stochastic"))
        for n in (1, 2)
    ]
    return comparison(*rows, reference=None)


def test_the_error_chart_holds_the_rows_numbers_and_settings():
    chart = comparison_charts(example())["error"]
    (euler,) = [series for series in chart["series"] if series["name"] == "Euler"]
    assert euler["points"] == [
        (1.0, 1.0, "1 step"),
        (2.0, 0.5, "2 steps"),
        (4.0, 0.25, "4 steps"),
        (8.0, 0.125, "8 steps"),
    ]
    assert chart["levels"][0]["y"] == 2e-8


def test_the_step_chart_holds_every_step_and_its_density():
    chart = step_charts(example())["steps-1"]
    loose, tight = chart["series"]
    assert [point[:2] for point in loose["points"]] == [(0.25, 4.0), (0.5, 4.0), (1.0, 2.0)]
    assert tight["points"][-1] == (1.0, 2.5, "step 4 of 4")
    (group,) = step_legend(example())
    names = [(entry["key"], entry["name"]) for entry in group["entries"]]
    assert names == [(*loose["keys"], "1e-2"), (*tight["keys"], "1e-4")]


def test_rows_without_an_error_are_in_the_metric_charts_alone():
    noisy = run("SEA", 8, 8, math.nan, 0.1)._replace(family="stochastic", metrics={"d": 0.5})
    charts = comparison_charts(comparison(noisy))
    assert charts["error"]["series"] == []
    assert charts["metric-1"]["series"][0]["points"] == [(8.0, 0.5, "8 steps")]


def test_a_study_has_metric_charts_alone():
    assert list(comparison_charts(study())) == ["metric-1"]


def test_a_share_stands_on_a_linear_axis_and_may_be_zero():
    none = run("Euler", 1, 1, 0.1, 0.1)._replace(metrics={"Recall": 0.0})
    chart = comparison_charts(comparison(none)._replace(higher_is_better=("Recall",)))["metric-1"]
    assert chart["y"] == {"label": "Recall", "log": False, "range": [0, 1]}
    assert chart["series"][0]["points"] == [(1.0, 0.0, "1 step")]


def test_every_curve_can_be_switched_by_names_of_the_legend():
    for rows in (example(), study()):
        keys = {e["key"] for group in comparison_legend(rows) for e in group["entries"]}
        charts = comparison_charts(rows).values()
        used = [key for chart in charts for series in chart["series"] for key in series["keys"]]
        assert set(used) == keys


def test_models_differ_in_hue_solvers_in_marker_and_families_in_line():
    found = looks(study(), DARK)
    assert len({look.color for look in found.values()}) == 3
    assert len({look.marker for look in found.values()}) == 3
    same = [look for name, look in found.items() if "Tsit5" in name]
    assert {(look.marker, look.family) for look in same} == {(same[0].marker, "adaptive")}
    assert [group.title for group in legend(study(), DARK)] == [
        "Models",
        "Fixed steps",
        "Adaptive steps",
        "Stochastic",
    ]


def test_a_solver_with_fixed_and_with_adaptive_steps_has_a_curve_for_each():
    both = comparison(run("Tsit5", 8, 48, 0.1, 0.1), run("Tsit5", 1e-2, 40, 0.1, 0.1))
    fixed, adaptive = comparison_charts(both)["error"]["series"]
    assert (fixed["name"], fixed["family"]) == ("Tsit5, fixed steps", "fixed")
    assert (adaptive["name"], adaptive["family"]) == ("Tsit5, adaptive steps", "adaptive")
    assert fixed["keys"] != adaptive["keys"]


def test_more_models_than_hues_begin_the_hues_again():
    assert len(looks(study(num_models=len(LIGHT.hues) + 1), LIGHT)) == 3 * (len(LIGHT.hues) + 1)


def test_the_loss_chart_is_as_logged_without_what_is_not_finite():
    chart = loss_chart((1, 2, 3), (3.0, math.inf, 1.0))
    assert chart["series"][0]["points"] == [(1.0, 3.0, ""), (3.0, 1.0, "")]
    assert json.loads(to_script(chart))["x"]["label"] == "step"


def test_the_data_of_no_runs_are_json():
    assert json.loads(to_script(comparison_charts(Comparison(())))) == {}


def entry(solver, nfe, model=""):
    return GalleryEntry(model, solver, f"{nfe} steps", "fixed", float(nfe), np.zeros((2, 4, 4, 1)))


def test_a_budget_shows_of_each_solver_its_dearest_row_within_it():
    gallery = [entry("Euler", 8), entry("Euler", 1), entry("RK4", 4)]
    found = strips(gallery)
    shown = {
        b: [s.cost for s in found if s.lowest <= b < s.below] for b in (*budgets(gallery), 1000)
    }
    assert shown == {
        1: ["1 steps, 1 evaluation"],
        2: ["1 steps, 1 evaluation"],
        4: ["1 steps, 1 evaluation", "4 steps, 4 evaluations"],
        8: ["8 steps, 8 evaluations", "4 steps, 4 evaluations"],
        1000: ["8 steps, 8 evaluations", "4 steps, 4 evaluations"],
    }


def test_strips_are_named_by_model_where_there_are_several():
    assert [s.title for s in strips([entry("Euler", 1)])] == ["Euler"]
    found = strips([entry("Euler", 1, "a"), entry("Euler", 1, "b")])
    assert [s.title for s in found] == ["a · Euler", "b · Euler"]
    assert found[0].keys == ("model:a", "fixed:Euler")
    assert found[0].width == 2 * 4 + 1
    assert budgets([]) == []
