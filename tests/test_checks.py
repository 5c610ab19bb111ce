"""Tests of argument checks and their error messages."""

import math

import pytest

from fmjax._checks import (
    require,
    require_at_least,
    require_between,
    require_count,
    require_one_of,
    require_positive,
)
from fmjax.paths import CosineBetas, UniformSteps
from fmjax.solvers import AdaptiveSteps, Hutchinson, UniPC


def test_valid_values_pass_all_checks():
    require(True, "x", "be anything", 1)
    require_positive("x", 1e-30)
    require_at_least("x", 2, 2)
    require_between("x", 0.0, 0.0, 1.0)
    require_between("x", 1.0, 0.0, 1.0)
    require_count("x", 2, 2)
    require_count("x", 1e3, 1)
    require_one_of("x", "a", ["a", "b"])


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda: require(False, "x", "be even", 3), "x must be even, got 3"),
        (lambda: require_positive("x", 0), "x must be positive, got 0"),
        (lambda: require_positive("x", -1.5), "x must be positive, got -1.5"),
        (lambda: require_positive("x", math.nan), "x must be positive, got nan"),
        (lambda: require_at_least("x", 1, 2), "x must be at least 2, got 1"),
        (lambda: require_at_least("x", math.nan, 2), "x must be at least 2, got nan"),
        (lambda: require_count("x", 2.5, 1), "x must be an integer, got 2.5"),
        (lambda: require_count("x", True, 1), "x must be an integer, got True"),
        (lambda: require_count("x", math.inf, 1), "x must be an integer, got inf"),
        (lambda: require_count("x", "2", 1), "x must be at least 1, got 2"),
        (lambda: require_count("x", 0, 1), "x must be at least 1, got 0"),
        (lambda: UniformSteps(2.5), "num_steps must be an integer, got 2.5"),
        (lambda: CosineBetas(10.5), "num_steps must be an integer, got 10.5"),
        (lambda: UniPC(2.5), "order must be an integer, got 2.5"),
        (lambda: AdaptiveSteps(max_steps=9.5), "max_steps must be an integer, got 9.5"),
        (lambda: Hutchinson(1.5), "num_probes must be an integer, got 1.5"),
        (lambda: require_between("x", 1.1, 0, 1), r"x must lie in \[0, 1\], got 1.1"),
        (lambda: require_between("x", math.nan, 0, 1), r"x must lie in \[0, 1\], got nan"),
        (lambda: require_one_of("x", "c", ("a", "b")), "x must be one of a, b, got 'c'$"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_errors_state_name_rule_and_value(check, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        check()


def test_errors_suggest_a_similar_choice():
    with pytest.raises(ValueError, match=r"got 'tist5' \(did you mean 'tsit5'\?\)"):
        require_one_of("solver", "tist5", iter(["euler", "tsit5"]))
