import math

import pytest

from fmjax.config import SOLVERS, solver_title
from fmjax.report.advice import advise, seconds_in_words, sentences
from tests.report.made_up import REFERENCE, comparison, run

EULER = run("Euler", 64, 64, 0.05, 0.2)
HEUN = run("Heun", 8, 16, 0.008, 0.5)
TSIT5 = run("Tsit5", 1e-4, 80, 0.0009, 1.5)


def test_the_cheapest_and_the_fastest_run_within_each_error_are_found():
    first, second, third, fourth = advise(comparison(EULER, HEUN, TSIT5), (1e-1, 1e-2, 1e-3, 1e-4))
    assert (first.cheapest, first.fastest) == (HEUN, EULER)
    assert (second.cheapest, second.fastest) == (HEUN, HEUN)
    assert (third.cheapest, third.fastest) == (TSIT5, TSIT5)
    assert (fourth.cheapest, fourth.fastest) == (None, None)


def test_the_advice_reads_as_english():
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
    ("found", "expected"),
    [
        (run("Adams-Bashforth 2", 8, 9, 0.1, 1.0), "adams_bashforth_2 --num-steps 8"),
        (run("Dopri8", 1e-3, 80, 0.1, 1.0), "dopri8 --rtol 1e-3 --atol 1e-3"),
        (run("Heun, edm grid", 8, 16, 0.1, 1.0), "heun --num-steps 8 --grid edm"),
    ],
)
def test_the_advice_can_be_typed(found, expected):
    assert f"--solver {expected}." in sentences(comparison(found), (0.1,))[-1]


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_has_its_name_on_the_command_line(name):
    words = sentences(comparison(run(solver_title(name), 8, 9, 0.1, 1.0)), (0.1,))[-1]
    assert words.split("--solver ")[1].split()[0] == name


def test_levels_with_one_answer_share_a_sentence():
    words = " ".join(sentences(comparison(TSIT5), (1e-1, 1e-2, 1e-3)))
    assert words.startswith("For a worst-sample error of at most 0.001, use Tsit5")
    assert words.count("For ") == 1


def test_one_evaluation_is_not_plural():
    words, _ = sentences(comparison(run("Euler", 1, 1, 0.01, 0.002)), (0.1,))
    assert ": 1 evaluation in 2 ms," in words


def test_a_run_that_left_a_sample_behind_is_never_taken():
    failed = run("Tsit5", 1e-6, 10, 1e-6, 0.1, succeeded=0.9)
    assert advise(comparison(failed), (0.1,))[0].cheapest is None
    (words,) = sentences(comparison(failed), (0.1,))
    assert words.endswith(": in every run, some samples failed.")


def test_a_run_with_an_infinite_error_is_never_taken():
    (words,) = sentences(comparison(run("Euler", 1, 1, math.inf, 0.1)), (0.1,))
    assert words == (
        "No run reaches a worst-sample error of 0.1: in every run, some samples failed."
    )


def test_errors_below_the_uncertainty_of_the_reference_are_not_advised_on():
    vague = comparison(TSIT5, reference=REFERENCE._replace(uncertainty=0.005))
    assert sentences(vague, (1e-2, 1e-3))[2:] == (
        "Errors below 0.005 cannot be distinguished from that of the reference.",
    )


def test_no_runs_are_said_to_be_none():
    assert sentences(comparison()) == ("No solver was run.",)


def test_durations_carry_their_unit():
    durations = (6.2e-5, 0.00423, 0.25, 0.9999, 1.254, 1254.0)
    words = ["62 µs", "4.23 ms", "250 ms", "1 s", "1.25 s", "1,254 s"]
    assert [seconds_in_words(s) for s in durations] == words


def test_a_row_solved_as_no_option_says_is_not_given_as_options():
    (words,) = sentences(comparison(run("Tsit5, bfloat16", 1e-3, 80, 0.1, 1.0)), (0.1,))
    assert "use Tsit5, bfloat16 at tolerance 1e-3" in words


def test_samplers_with_noise_are_not_in_the_advice_on_errors():
    noisy = run("Ancestral", 8, 8, math.nan, 0.1)._replace(family="stochastic")
    words = sentences(comparison(noisy, HEUN), (1e-2, 1e-3))
    assert "closest is Heun" in words[1]
    assert not any("Ancestral" in sentence for sentence in words)
    # A sampler without errors is not a failed run.
    assert not any("No run reaches" in line for line in sentences(comparison(noisy), (1e-2,)))


@pytest.mark.parametrize(("higher", "best"), [((), "good"), (("sliced Wasserstein",), "poor")])
def test_without_a_reference_the_first_metric_decides_within_each_budget(higher, best):
    rows = [
        run("Euler", 1, 1, 0.9, 0.1)._replace(model="good"),
        run("Euler", 8, 8, 0.1, 0.1)._replace(model="good"),
        run("Euler", 8, 8, 0.95, 0.1)._replace(model="poor"),
        run("Heun", 8, 16, 0.5, 0.1)._replace(model="good"),
    ]
    study = comparison(*rows, reference=None)._replace(higher_is_better=higher)
    first, second = sentences(study)
    assert first.startswith("With at most 1 evaluation, the best sliced Wasserstein is 0.95, from")
    assert second.startswith("With at most 16 evaluations, the best sliced Wasserstein is ")
    assert f"from {best} · Euler with 8 steps." in second
    assert sentences(study._replace(runs=(rows[0]._replace(metrics={}),))) == ()
