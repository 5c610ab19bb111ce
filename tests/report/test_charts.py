"""Tests of chart data, legends and sample strips of the report."""

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
    runs = [
        run(solver, n, n, 0.5 / n, 0.1)._replace(model=f"m{i}", family=family)
        for i in range(num_models)
        for solver, family in (("Euler", "fixed"), ("Tsit5", "adaptive"), ("SEA", "stochastic"))
        for n in (1, 2)
    ]
    return comparison(*runs, reference=None)


def test_error_chart_contains_values_and_settings_of_runs():
    chart = comparison_charts(example())["error"]
    (euler,) = [series for series in chart["series"] if series["name"] == "Euler"]
    assert euler["points"] == [
        (1.0, 1.0, "1 step"),
        (2.0, 0.5, "2 steps"),
        (4.0, 0.25, "4 steps"),
        (8.0, 0.125, "8 steps"),
    ]
    assert chart["levels"][0]["y"] == 2e-8


def test_step_chart_contains_every_step_and_density():
    chart = step_charts(example())["steps-1"]
    loose, tight = chart["series"]
    assert [point[:2] for point in loose["points"]] == [(0.25, 4.0), (0.5, 4.0), (1.0, 2.0)]
    assert tight["points"][-1] == (1.0, 2.5, "step 4 of 4")
    (group,) = step_legend(example())
    names = [(entry["key"], entry["name"]) for entry in group["entries"]]
    assert names == [(*loose["keys"], "1e-2"), (*tight["keys"], "1e-4")]


def test_runs_without_error_appear_only_in_metric_charts():
    stochastic = run("SEA", 8, 8, math.nan, 0.1)._replace(family="stochastic", metrics={"d": 0.5})
    charts = comparison_charts(comparison(stochastic))
    assert charts["error"]["series"] == []
    assert charts["metric-1"]["series"][0]["points"] == [(8.0, 0.5, "8 steps")]


def test_study_has_only_metric_charts():
    assert list(comparison_charts(study())) == ["metric-1"]


def test_fraction_metric_has_linear_axis_with_zero():
    zero_recall = run("Euler", 1, 1, 0.1, 0.1)._replace(metrics={"Recall": 0.0})
    chart = comparison_charts(comparison(zero_recall)._replace(higher_is_better=("Recall",)))[
        "metric-1"
    ]
    assert chart["y"] == {"label": "Recall", "log": False, "range": [0, 1]}
    assert chart["series"][0]["points"] == [(1.0, 0.0, "1 step")]


def test_legend_contains_key_of_every_curve():
    for data in (example(), study()):
        legend_keys = {e["key"] for group in comparison_legend(data) for e in group["entries"]}
        charts = comparison_charts(data).values()
        curve_keys = [
            key for chart in charts for series in chart["series"] for key in series["keys"]
        ]
        assert set(curve_keys) == legend_keys


def test_hue_marker_and_line_encode_model_solver_and_family():
    styles = looks(study(), DARK)
    assert len({style.color for style in styles.values()}) == 3
    assert len({style.marker for style in styles.values()}) == 3
    tsit5 = [style for name, style in styles.items() if "Tsit5" in name]
    assert {(style.marker, style.family) for style in tsit5} == {(tsit5[0].marker, "adaptive")}
    assert [group.title for group in legend(study(), DARK)] == [
        "Models",
        "Fixed steps",
        "Adaptive steps",
        "Stochastic",
    ]


def test_fixed_and_adaptive_steps_have_separate_curves():
    both = comparison(run("Tsit5", 8, 48, 0.1, 0.1), run("Tsit5", 1e-2, 40, 0.1, 0.1))
    fixed, adaptive = comparison_charts(both)["error"]["series"]
    assert (fixed["name"], fixed["family"]) == ("Tsit5, fixed steps", "fixed")
    assert (adaptive["name"], adaptive["family"]) == ("Tsit5, adaptive steps", "adaptive")
    assert fixed["keys"] != adaptive["keys"]


def test_hues_repeat_for_many_models():
    assert len(looks(study(num_models=len(LIGHT.hues) + 1), LIGHT)) == 3 * (len(LIGHT.hues) + 1)


def test_loss_chart_omits_nonfinite_losses():
    chart = loss_chart((1, 2, 3), (3.0, math.inf, 1.0))
    assert chart["series"][0]["points"] == [(1.0, 3.0, ""), (3.0, 1.0, "")]
    assert json.loads(to_script(chart))["x"]["label"] == "step"


def test_comparison_without_runs_gives_empty_json():
    assert json.loads(to_script(comparison_charts(Comparison(())))) == {}


def entry(solver, nfe, model=""):
    return GalleryEntry(model, solver, f"{nfe} steps", "fixed", float(nfe), np.zeros((2, 4, 4, 1)))


def test_budget_shows_most_expensive_affordable_run():
    gallery = [entry("Euler", 8), entry("Euler", 1), entry("RK4", 4)]
    all_strips = strips(gallery)
    shown = {
        budget: [s.cost for s in all_strips if s.lowest <= budget < s.below]
        for budget in (*budgets(gallery), 1000)
    }
    assert shown == {
        1: ["1 steps, 1 evaluation"],
        2: ["1 steps, 1 evaluation"],
        4: ["1 steps, 1 evaluation", "4 steps, 4 evaluations"],
        8: ["8 steps, 8 evaluations", "4 steps, 4 evaluations"],
        1000: ["8 steps, 8 evaluations", "4 steps, 4 evaluations"],
    }


def test_strip_titles_include_model_if_several():
    assert [s.title for s in strips([entry("Euler", 1)])] == ["Euler"]
    result = strips([entry("Euler", 1, "a"), entry("Euler", 1, "b")])
    assert [s.title for s in result] == ["a · Euler", "b · Euler"]
    assert result[0].keys == ("model:a", "fixed:Euler")
    assert result[0].width == 2 * 4 + 1
    assert budgets([]) == []
