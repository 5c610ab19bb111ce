"""Each refusal is one clear line."""

import diffrax
import jax
import jax.numpy as jnp
import optimistix
import pytest

from fmjax.paths import uniform_grid
from fmjax.solvers import AdaptiveSteps, Euler, FixedSteps, sample
from tests.solvers.table import GAUSSIAN, noise

GRID = FixedSteps(uniform_grid(2))


def solve(solver=None, steps=GRID, field=GAUSSIAN.velocity, x0=None, save_at=None):
    return sample(
        field,
        noise() if x0 is None else x0,
        solver=solver or diffrax.Heun(),
        steps=steps,
        save_at=save_at,
    )


def test_a_split_solver():
    with pytest.raises(
        ValueError, match="must take a single velocity field, got SemiImplicitEuler, "
    ):
        solve(diffrax.SemiImplicitEuler())


@pytest.mark.parametrize("solver", ["dopri5", diffrax.Dopri5, diffrax.SPaRK()])
def test_what_is_no_ode_solver(solver, unchecked):
    with pytest.raises(ValueError, match="solver must be an ODE solver of Diffrax or of fmjax"):
        solve(solver)


def test_a_wrapped_solver():
    with pytest.raises(ValueError, match="solver must not wrap another solver, got HalfSolver"):
        solve(diffrax.HalfSolver(diffrax.Euler()))


@pytest.mark.parametrize("solver", [Euler(), diffrax.Euler(), diffrax.LeapfrogMidpoint()])
def test_adaptive_steps_without_an_error_estimate(solver):
    named = type(solver).__name__
    with pytest.raises(ValueError, match=f"steps must be FixedSteps for {named}, which estimates"):
        solve(solver, AdaptiveSteps())


def test_a_root_finder_that_cannot_be_counted():
    finder = optimistix.Newton(rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="root_finder must be VeryChord or Chord, got Newton"):
        solve(diffrax.Kvaerno3(root_finder=finder))


@pytest.mark.parametrize("name", ["rtol", "atol"])
@pytest.mark.parametrize("value", [0.0, -1e-3, float("nan")])
def test_a_tolerance_that_is_not_positive(name, value):
    with pytest.raises(ValueError, match=f"{name} must be positive, got"):
        AdaptiveSteps(**{name: value})


def test_no_steps_at_all():
    with pytest.raises(ValueError, match="max_steps must be at least 1, got 0"):
        AdaptiveSteps(max_steps=0)
    with pytest.raises(ValueError, match=r"times must be a 1-D array of at least 2 .*shape \(1,\)"):
        FixedSteps(jnp.asarray([0.0]))
    with pytest.raises(ValueError, match="times must be a 1-D array of at least 2 times"):
        FixedSteps(jnp.zeros((2, 2)))


@pytest.mark.parametrize("times", [[0.1, 1.0], [0.0, 0.9], [1.0, 0.0]])
def test_a_grid_that_does_not_go_from_0_to_1(times):
    with pytest.raises(ValueError, match="times must go from 0 to 1, got"):
        FixedSteps(jnp.asarray(times))


@pytest.mark.parametrize("times", [[0, 0.5, 0.5, 1], [0, 0.6, 0.4, 1], [0, 1, 0.5, 1]])
def test_a_grid_that_does_not_rise(times):
    with pytest.raises(ValueError, match="times must increase strictly from 0 to 1, got"):
        FixedSteps(jnp.asarray(times))


@pytest.mark.parametrize("solver", [Euler(), diffrax.Heun()])
def test_a_velocity_of_another_shape(solver):
    with pytest.raises(ValueError, match=r"velocity_fn must return shape \(6, 3\), got \(6, 1\)"):
        solve(solver, field=lambda t, x, cond: x[:, :1])


@pytest.mark.parametrize("save_at", [[], [0.5, 0.5], [0.5, 0.1], [-0.1, 0.5], [0.5, 1.1], 0.5])
def test_times_to_save_at_that_do_not_rise_within_the_interval(save_at):
    with pytest.raises(ValueError, match=r"save_at must increase strictly within \[0, 1\], got"):
        solve(save_at=jnp.asarray(save_at))


def test_whole_numbers_as_a_start():
    with pytest.raises(ValueError, match="x0 must be floating point, got int32"):
        sample.__wrapped__(
            GAUSSIAN.velocity, jnp.ones((2, 2), jnp.int32), solver=Euler(), steps=GRID
        )


@pytest.mark.slow
def test_a_traced_tolerance_is_taken_as_it_is():
    nfe = jax.jit(lambda tol: solve(diffrax.Bosh3(), AdaptiveSteps(tol, tol)).nfe)(1e-2)
    assert int(nfe[0]) > 0
