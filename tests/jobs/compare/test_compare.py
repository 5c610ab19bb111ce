"""Tests of solver comparisons on a Gaussian with a closed-form flow.

The cosine path goes from N(0, 1) to N(1.5, 0.25), so that x1 = 1.5 + x0 / 2.
"""

from contextlib import nullcontext

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.jobs.compare.compare import Metric, compare
from fmjax.jobs.compare.methods import Method, adaptive_settings, fixed_settings, ode_solve
from fmjax.jobs.compare.reference import lower_reference, rmse, solve_reference
from fmjax.report.comparison import read_json, write_json
from fmjax.solvers import RK4, Euler, Midpoint

MEAN, STD = 1.5, 0.5
NUM_STEPS = (1, 8, 16, 32)
TOLERANCES = (1e-2, 1e-4)
FIXED = (Euler(), Midpoint(), RK4())
ADAPTIVE = (diffrax.Bosh3(), diffrax.Tsit5())


def make_velocity_fn(params):
    def velocity_fn(t, x, cond=None):
        t = t[:, None]
        alpha, sigma = jnp.sin(0.5 * jnp.pi * t), jnp.cos(0.5 * jnp.pi * t)
        alpha_rate, sigma_rate = 0.5 * jnp.pi * sigma, -0.5 * jnp.pi * alpha
        variance = alpha**2 * STD**2 + sigma**2
        gain = (alpha * alpha_rate * STD**2 + sigma * sigma_rate) / variance
        return alpha_rate * params["mean"] + gain * (x - alpha * params["mean"])

    return velocity_fn


def ode_method(solver, family, settings):
    return Method(type(solver).__name__, family, ode_solve(make_velocity_fn, solver), settings)


def source_points(num=6):
    return jax.random.normal(jax.random.key(0), (num, 3))


@pytest.fixture(scope="module")
def progress():
    class RecordingProgress:
        lines = []

        def say(self, line):
            self.lines.append(line)

        def task(self, description, total):
            self.total = total
            return nullcontext(lambda n=1, note="": self.lines.append(note) if n else None)

        def part_done(self, name):
            raise AssertionError(name)

    return RecordingProgress()


@pytest.fixture(scope="module")
def comparison(progress):
    return compare(
        make_velocity_fn,
        {"mean": jnp.float32(MEAN)},
        source_points(),
        methods=[
            *(ode_method(solver, "fixed", fixed_settings(NUM_STEPS)) for solver in FIXED),
            *(ode_method(solver, "adaptive", adaptive_settings(TOLERANCES)) for solver in ADAPTIVE),
        ],
        metrics=(Metric("mean", lambda x: float(abs(x.mean() - MEAN)), floor=0.25),),
        repeats=2,
        progress=progress,
    )


def test_reference_matches_the_closed_form():
    program = lower_reference(make_velocity_fn, {"mean": jnp.float32(MEAN)}, source_points(), None)
    exact = solve_reference(program, program.lowered.compile())
    assert exact.info.precision == "float64"
    closed_form = MEAN + STD * np.asarray(source_points(), np.float64)
    # The error is at most 1e-7 (1 + |x|) in each of about ten steps.
    np.testing.assert_allclose(exact.x1, closed_form, atol=3e-6)
    assert 0 < rmse(exact.x1, closed_form).max() < exact.info.uncertainty


@pytest.mark.slow
def test_comparison_has_one_row_per_solver_and_setting(comparison):
    expected = [(name, n, None) for name in ("Euler", "Midpoint", "RK4") for n in NUM_STEPS]
    expected += [(name, None, tol) for name in ("Bosh3", "Tsit5") for tol in TOLERANCES]
    assert [(row.solver, row.steps, row.tolerance) for row in comparison.runs] == expected
    assert all(row.succeeded == 1.0 and row.seconds > 0 for row in comparison.runs)


@pytest.mark.parametrize(("solver", "order"), [("Euler", 1), ("Midpoint", 2), ("RK4", 4)])
def test_errors_decrease_at_the_order_of_the_solver(comparison, solver, order):
    errors = [row.rmse_worst for row in comparison.curves()[solver]]
    # The slope is from 8 to 16 steps: RK4 reaches float32 rounding at 32 steps.
    assert np.log2(errors[1] / errors[2]) == pytest.approx(order, abs=0.25)


def test_rmse_mean_and_worst_match_the_closed_form(comparison):
    """One Euler step ends at x0 + v(0, x0) = x0 + pi/2 mean."""
    errors = np.asarray(source_points(), np.float64) * (1 - STD) + MEAN * (np.pi / 2 - 1)
    rmse_per_sample = np.sqrt(np.mean(errors**2, axis=1))
    row = comparison.runs[0]
    assert row.rmse_mean == pytest.approx(rmse_per_sample.mean(), rel=1e-5)
    assert row.rmse_worst == pytest.approx(rmse_per_sample.max(), rel=1e-5)


def test_padded_grids_cost_no_evaluations(comparison):
    counts = {name: [row.nfe_max for row in rows] for name, rows in comparison.curves().items()}
    assert counts["Euler"] == list(NUM_STEPS)
    assert counts["Midpoint"] == [2 * n for n in NUM_STEPS]
    assert counts["RK4"] == [4 * n for n in NUM_STEPS]


def test_tighter_tolerance_costs_more_and_reduces_the_error(comparison):
    for name in ("Bosh3", "Tsit5"):
        loose, tight = comparison.curves()[name]
        assert tight.nfe_mean > loose.nfe_mean
        assert tight.rmse_worst < loose.rmse_worst


def test_step_ends_increase_to_one(comparison):
    assert len(comparison.step_ends) == 4
    for ends in comparison.step_ends:
        assert np.all(np.diff((0.0, *ends.times)) > 0)
        assert ends.times[-1] == 1.0


def test_metrics_are_computed_for_rows_and_reference(comparison):
    exact = float(np.asarray(source_points()).mean() * STD)
    assert comparison.reference.metrics["mean"] == pytest.approx(abs(exact), abs=1e-6)
    assert comparison.runs[-1].metrics["mean"] == pytest.approx(abs(exact), abs=1e-3)
    assert comparison.floors == {"mean": 0.25}


def test_progress_reports_the_reference_and_every_row(comparison, progress):
    assert progress.total == len(comparison.runs) + 1 == len(progress.lines)
    assert progress.lines[0] == "reference"
    assert progress.lines[-1] == "Tsit5, tolerance 1e-4"


def test_comparison_json_round_trip_is_exact(comparison, tmp_path):
    write_json(comparison, tmp_path / "c.json")
    assert read_json(tmp_path / "c.json") == comparison


@pytest.mark.slow
def test_diverged_samples_have_infinite_error():
    def make(params):
        return lambda t, x, cond=None: jnp.where(x > 0, jnp.inf, -x)

    comparison = compare(
        make,
        {},
        jnp.array([[-1.0], [1.0]]),
        methods=[Method("Euler", "fixed", ode_solve(make, Euler()), fixed_settings((2,)))],
        metrics=(Metric("mean", lambda x: float(x.mean())),),
    )
    (row,) = comparison.runs
    assert row.rmse_worst == row.metrics["mean"] == np.inf
    assert row.succeeded == 0.5
    assert "did not reach t = 1" in comparison.reference.note


def test_float32_field_limits_the_reference_precision():
    def make(params):
        return lambda t, x, cond=None: -x.astype(jnp.float32).astype(x.dtype)

    program = lower_reference(make, {}, source_points(), None)
    assert program.precision == "float32"
    assert program.tolerance == 1e-6
    assert "less than float64" in program.note


def test_invalid_settings_are_refused():
    with pytest.raises(ValueError, match=r"num_steps must be positive, got \(0, 1\)"):
        fixed_settings((1, 0))
    with pytest.raises(ValueError, match=r"tolerances must be positive, got \(0\.0,\)"):
        adaptive_settings((0.0,))
    with pytest.raises(ValueError, match="comparison must have at least one solver with a setting"):
        compare(make_velocity_fn, {"mean": jnp.float32(MEAN)}, source_points(), methods=())


def test_stochastic_rows_have_metrics_but_no_rmse():
    def solve(params, x0, keys, cond, steps):
        return ode_solve(make_velocity_fn, Euler())(params, x0 + 1.0, keys, cond, steps)

    results = []
    comparison = compare(
        make_velocity_fn,
        {"mean": jnp.float32(MEAN)},
        source_points(),
        methods=[Method("Noisy", "stochastic", solve, fixed_settings((2,)))],
        metrics=(Metric("share", lambda x: 0.5, higher_is_better=True),),
        on_row=results.append,
    )
    (row,) = comparison.runs
    assert np.isnan(row.rmse_mean)
    assert np.isnan(row.rmse_worst)
    assert row.metrics == {"share": 0.5}
    assert comparison.higher_is_better == ("share",)
    assert [result.run for result in results] == [row]
    assert results[0].x1.shape == source_points().shape
