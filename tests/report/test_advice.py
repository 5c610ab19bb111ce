"""Tests of the solver advice of the report."""

import math

import pytest

from fmjax.config import SOLVERS, solver_title
from fmjax.report.advice import advise, seconds_in_words, sentences
from tests.report.made_up import REFERENCE, comparison, run

EULER = run("Euler", 64, 64, 0.05, 0.2)
HEUN = run("Heun", 8, 16, 0.008, 0.5)
TSIT5 = run("Tsit5", 1e-4, 80, 0.0009, 1.5)


def test_advise_finds_cheapest_and_fastest_run_per_error():
    first, second, third, fourth = advise(comparison(EULER, HEUN, TSIT5), (1e-1, 1e-2, 1e-3, 1e-4))
    assert (first.cheapest, first.fastest) == (HEUN, EULER)
    assert (second.cheapest, second.fastest) == (HEUN, HEUN)
    assert (third.cheapest, third.fastest) == (TSIT5, TSIT5)
    assert (fourth.cheapest, fourth.fastest) == (None, None)


def test_sentences_describe_advice():
    assert sentences(comparison(EULER, HEUN, TSIT5), (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)) == (
        "For a worst-sample error of at most 0.1, use Heun with 8 steps for the fewest "
        "evaluations (16 evaluations in 500 ms) or Euler with 64 steps for the least time "
        "(64 evaluations in 200 ms).",
        "For at most 0.01, use Heun with 8 steps: 16 evaluations in 500 ms, the fewest "
        "evaluations and the least time.",
        "For at most 0.001, use Tsit5 at tolerance 1e-4: 80 evaluations in 1.5 s, the fewest "
        "evaluations and the least time.",
        "No run reaches 1e-4; the closest is Tsit5 at tolerance 1e-4, with 9e-4.",
        "To sample with the first of these: --solver heun --num-steps 8.",
    )


@pytest.mark.parametrize(
    ("solver_run", "expected"),
    [
        (run("Adams-Bashforth 2", 8, 9, 0.1, 1.0), "adams_bashforth_2 --num-steps 8"),
        (run("Dopri8", 1e-3, 80, 0.1, 1.0), "dopri8 --rtol 1e-3 --atol 1e-3"),
        (run("Heun, edm grid", 8, 16, 0.1, 1.0), "heun --num-steps 8 --grid edm"),
    ],
)
def test_advice_gives_command_line_options(solver_run, expected):
    assert f"--solver {expected}." in sentences(comparison(solver_run), (0.1,))[-1]


@pytest.mark.parametrize("name", SOLVERS)
def test_advice_uses_command_line_name_of_each_solver(name):
    sentence = sentences(comparison(run(solver_title(name), 8, 9, 0.1, 1.0)), (0.1,))[-1]
    assert sentence.split("--solver ")[1].split()[0] == name


def test_levels_with_same_run_share_sentence():
    text = " ".join(sentences(comparison(TSIT5), (1e-1, 1e-2, 1e-3)))
    assert text.startswith("For a worst-sample error of at most 0.001, use Tsit5")
    assert text.count("For ") == 1


def test_single_evaluation_is_singular():
    sentence, _ = sentences(comparison(run("Euler", 1, 1, 0.01, 0.002)), (0.1,))
    assert ": 1 evaluation in 2 ms," in sentence


def test_run_with_failed_samples_is_never_advised():
    failed = run("Tsit5", 1e-6, 10, 1e-6, 0.1, succeeded=0.9)
    assert advise(comparison(failed), (0.1,))[0].cheapest is None
    (sentence,) = sentences(comparison(failed), (0.1,))
    assert sentence.endswith(": in every run, some samples failed.")


def test_run_with_infinite_error_is_never_advised():
    (sentence,) = sentences(comparison(run("Euler", 1, 1, math.inf, 0.1)), (0.1,))
    assert sentence == (
        "No run reaches a worst-sample error of 0.1: in every run, some samples failed."
    )


def test_no_advice_below_uncertainty_of_reference():
    uncertain = comparison(TSIT5, reference=REFERENCE._replace(uncertainty=0.005))
    assert sentences(uncertain, (1e-2, 1e-3))[2:] == (
        "Errors below 0.005 cannot be distinguished from that of the reference.",
    )


def test_comparison_without_runs_has_one_sentence():
    assert sentences(comparison()) == ("No solver was run.",)


def test_durations_have_units():
    durations = (6.2e-5, 0.00423, 0.25, 0.9999, 1.254, 1254.0)
    expected = ["62 µs", "4.23 ms", "250 ms", "1 s", "1.25 s", "1,254 s"]
    assert [seconds_in_words(s) for s in durations] == expected


def test_run_without_matching_options_gets_no_options():
    (sentence,) = sentences(comparison(run("Tsit5, bfloat16", 1e-3, 80, 0.1, 1.0)), (0.1,))
    assert "use Tsit5, bfloat16 at tolerance 1e-3" in sentence


def test_stochastic_samplers_are_excluded_from_error_advice():
    stochastic = run("Ancestral", 8, 8, math.nan, 0.1)._replace(family="stochastic")
    result = sentences(comparison(stochastic, HEUN), (1e-2, 1e-3))
    assert "closest is Heun" in result[1]
    assert not any("Ancestral" in sentence for sentence in result)
    # A sampler without errors is not a failed run.
    assert not any("No run reaches" in line for line in sentences(comparison(stochastic), (1e-2,)))


@pytest.mark.parametrize(("higher", "best"), [((), "good"), (("sliced Wasserstein",), "poor")])
def test_first_metric_ranks_runs_without_reference(higher, best):
    runs = [
        run("Euler", 1, 1, 0.9, 0.1)._replace(model="good"),
        run("Euler", 8, 8, 0.1, 0.1)._replace(model="good"),
        run("Euler", 8, 8, 0.95, 0.1)._replace(model="poor"),
        run("Heun", 8, 16, 0.5, 0.1)._replace(model="good"),
    ]
    study = comparison(*runs, reference=None)._replace(higher_is_better=higher)
    first, second = sentences(study)
    assert first.startswith("With at most 1 evaluation, the best sliced Wasserstein is 0.95, from")
    assert second.startswith("With at most 16 evaluations, the best sliced Wasserstein is ")
    assert f"from {best} · Euler with 8 steps." in second
    assert sentences(study._replace(runs=(runs[0]._replace(metrics={}),))) == ()
