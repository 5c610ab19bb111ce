"""Against the closed form: the cosine path from N(0, 1) to N(1.5, 0.25): x1 = 1.5 + x0 / 2."""

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


def ode(solver, family, settings):
    return Method(type(solver).__name__, family, ode_solve(make_velocity_fn, solver), settings)


def starts(num=6):
    return jax.random.normal(jax.random.key(0), (num, 3))


@pytest.fixture(scope="module")
def heard():
    class Heard:
        lines = []

        def say(self, line):
            self.lines.append(line)

        def task(self, description, total):
            self.total = total
            return nullcontext(lambda n=1, note="": self.lines.append(note) if n else None)

        def part_done(self, name):
            raise AssertionError(name)

    return Heard()


@pytest.fixture(scope="module")
def comparison(heard):
    return compare(
        make_velocity_fn,
        {"mean": jnp.float32(MEAN)},
        starts(),
        methods=[
            *(ode(solver, "fixed", fixed_settings(NUM_STEPS)) for solver in FIXED),
            *(ode(solver, "adaptive", adaptive_settings(TOLERANCES)) for solver in ADAPTIVE),
        ],
        metrics=(Metric("mean", lambda x: float(abs(x.mean() - MEAN)), floor=0.25),),
        repeats=2,
        progress=heard,
    )


def test_the_reference_is_the_closed_form_to_its_tolerance():
    program = lower_reference(make_velocity_fn, {"mean": jnp.float32(MEAN)}, starts(), None)
    exact = solve_reference(program, program.lowered.compile())
    assert exact.info.precision == "float64"
    closed_form = MEAN + STD * np.asarray(starts(), np.float64)
    # At most 1e-7 (1 + |x|) in each of some ten steps.
    np.testing.assert_allclose(exact.x1, closed_form, atol=3e-6)
    assert 0 < rmse(exact.x1, closed_form).max() < exact.info.uncertainty


@pytest.mark.slow
def test_there_is_a_row_for_every_solver_and_setting(comparison):
    wanted = [(name, n, None) for name in ("Euler", "Midpoint", "RK4") for n in NUM_STEPS]
    wanted += [(name, None, tol) for name in ("Bosh3", "Tsit5") for tol in TOLERANCES]
    assert [(r.solver, r.steps, r.tolerance) for r in comparison.runs] == wanted
    assert all(r.succeeded == 1.0 and r.seconds > 0 for r in comparison.runs)


@pytest.mark.parametrize(("solver", "order"), [("Euler", 1), ("Midpoint", 2), ("RK4", 4)])
def test_errors_fall_with_the_steps_at_the_solvers_order(comparison, solver, order):
    errors = [r.rmse_worst for r in comparison.curves()[solver]]
    # RK4 meets float32 rounding at 32 steps, so the slope is that from 8 to 16.
    assert np.log2(errors[1] / errors[2]) == pytest.approx(order, abs=0.25)


def test_errors_are_those_of_the_end_points_mean_and_worst(comparison):
    """One Euler step goes to x0 + v(0, x0) = x0 + pi/2 mean."""
    off = np.asarray(starts(), np.float64) * (1 - STD) + MEAN * (np.pi / 2 - 1)
    each = np.sqrt(np.mean(off**2, axis=1))
    row = comparison.runs[0]
    assert row.rmse_mean == pytest.approx(each.mean(), rel=1e-5)
    assert row.rmse_worst == pytest.approx(each.max(), rel=1e-5)


def test_padding_grids_to_one_length_costs_no_evaluations(comparison):
    counts = {name: [r.nfe_max for r in rows] for name, rows in comparison.curves().items()}
    assert counts["Euler"] == list(NUM_STEPS)
    assert counts["Midpoint"] == [2 * n for n in NUM_STEPS]
    assert counts["RK4"] == [4 * n for n in NUM_STEPS]


def test_a_tighter_tolerance_costs_more_and_errs_less(comparison):
    for name in ("Bosh3", "Tsit5"):
        loose, tight = comparison.curves()[name]
        assert tight.nfe_mean > loose.nfe_mean
        assert tight.rmse_worst < loose.rmse_worst


def test_step_positions_rise_to_one(comparison):
    assert len(comparison.step_ends) == 4
    for ends in comparison.step_ends:
        assert np.all(np.diff((0.0, *ends.times)) > 0)
        assert ends.times[-1] == 1.0


def test_metrics_are_taken_of_every_row_and_of_the_reference(comparison):
    exact = float(np.asarray(starts()).mean() * STD)
    assert comparison.reference.metrics["mean"] == pytest.approx(abs(exact), abs=1e-6)
    assert comparison.runs[-1].metrics["mean"] == pytest.approx(abs(exact), abs=1e-3)
    assert comparison.floors == {"mean": 0.25}


def test_progress_hears_of_the_reference_and_of_every_row(comparison, heard):
    assert heard.total == len(comparison.runs) + 1 == len(heard.lines)
    assert heard.lines[0] == "reference"
    assert heard.lines[-1] == "Tsit5, tolerance 1e-4"


def test_a_comparison_of_real_solves_survives_its_json(comparison, tmp_path):
    write_json(comparison, tmp_path / "c.json")
    assert read_json(tmp_path / "c.json") == comparison


@pytest.mark.slow
def test_samples_that_run_away_are_infinitely_wrong_not_an_exception():
    def make(params):
        return lambda t, x, cond=None: jnp.where(x > 0, jnp.inf, -x)

    found = compare(
        make,
        {},
        jnp.array([[-1.0], [1.0]]),
        methods=[Method("Euler", "fixed", ode_solve(make, Euler()), fixed_settings((2,)))],
        metrics=(Metric("mean", lambda x: float(x.mean())),),
    )
    (row,) = found.runs
    assert row.rmse_worst == row.metrics["mean"] == np.inf
    assert row.succeeded == 0.5
    assert "did not reach t = 1" in found.reference.note


def test_a_field_of_float32_says_that_it_limits_the_reference():
    def make(params):
        return lambda t, x, cond=None: -x.astype(jnp.float32).astype(x.dtype)

    program = lower_reference(make, {}, starts(), None)
    assert program.precision == "float32"
    assert program.tolerance == 1e-6
    assert "less than float64" in program.note


def test_settings_out_of_range_are_refused_before_anything_is_compiled():
    with pytest.raises(ValueError, match=r"num_steps must be positive, got \(0, 1\)"):
        fixed_settings((1, 0))
    with pytest.raises(ValueError, match=r"tolerances must be positive, got \(0\.0,\)"):
        adaptive_settings((0.0,))
    with pytest.raises(ValueError, match="comparison must have at least one solver with a setting"):
        compare(make_velocity_fn, {"mean": jnp.float32(MEAN)}, starts(), methods=())


def test_stochastic_rows_are_measured_by_metrics_alone():
    def solve(params, x0, keys, cond, steps):
        return ode_solve(make_velocity_fn, Euler())(params, x0 + 1.0, keys, cond, steps)

    seen = []
    found = compare(
        make_velocity_fn,
        {"mean": jnp.float32(MEAN)},
        starts(),
        methods=[Method("Noisy", "stochastic", solve, fixed_settings((2,)))],
        metrics=(Metric("share", lambda x: 0.5, higher_is_better=True),),
        on_row=seen.append,
    )
    (row,) = found.runs
    assert np.isnan(row.rmse_mean)
    assert np.isnan(row.rmse_worst)
    assert row.metrics == {"share": 0.5}
    assert found.higher_is_better == ("share",)
    assert [one.run for one in seen] == [row]
    assert seen[0].x1.shape == starts().shape
