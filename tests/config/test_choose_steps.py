"""Tests of the choice between fixed and adaptive steps from named settings."""

import pytest

from fmjax.config import Sampling

HEUN = Sampling.of(solver="heun", num_steps=16, grid="shifted")


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({}, ("heun", 16)),
        ({"seed": 3, "num_samples": None}, ("heun", 16)),
        ({"solver": "tsit5"}, ("tsit5", None)),
        ({"solver": "bosh3", "rtol": 1e-3}, ("bosh3", None)),
        ({"solver": "tsit5", "num_steps": 4}, ("tsit5", 4)),
        ({"solver": "euler"}, ("euler", 16)),
    ],
)
def test_a_named_solver_adapts_unless_its_steps_are_named(settings, steps):
    chosen = HEUN.with_names(**settings)
    assert (chosen.options.solver, chosen.options.num_steps) == steps
    assert (chosen.seed, chosen.num_samples) == (settings.get("seed", 0), 64)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rtol": 1e-3, "num_steps": 4}, "rtol must not be combined with num_steps, got 4 steps"),
        ({"rtol": 1e-3, "solver": "euler"}, "rtol must be used with a solver that estimates its"),
        ({"last_step": 0.1}, "last_step must be used with an SDE solver .*, got heun"),
    ],
)
def test_settings_without_effect_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        HEUN.with_names(**settings)
