"""Tests of the error messages for invalid arguments of ODE solves."""

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


def test_split_solver_is_refused():
    with pytest.raises(
        ValueError, match="must take a single velocity field, got SemiImplicitEuler, "
    ):
        solve(diffrax.SemiImplicitEuler())


@pytest.mark.parametrize("solver", ["dopri5", diffrax.Dopri5, diffrax.SPaRK()])
def test_non_ode_solver_is_refused(solver, unchecked):
    with pytest.raises(ValueError, match="solver must be an ODE solver of Diffrax or of fmjax"):
        solve(solver)


def test_wrapped_solver_is_refused():
    with pytest.raises(ValueError, match="solver must not wrap another solver, got HalfSolver"):
        solve(diffrax.HalfSolver(diffrax.Euler()))


@pytest.mark.parametrize("solver", [Euler(), diffrax.Euler(), diffrax.LeapfrogMidpoint()])
def test_adaptive_steps_require_an_error_estimate(solver):
    name = type(solver).__name__
    with pytest.raises(ValueError, match=f"steps must be FixedSteps for {name}, which estimates"):
        solve(solver, AdaptiveSteps())


def test_unsupported_root_finder_is_refused():
    finder = optimistix.Newton(rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="root_finder must be VeryChord or Chord, got Newton"):
        solve(diffrax.Kvaerno3(root_finder=finder))


@pytest.mark.parametrize("name", ["rtol", "atol"])
@pytest.mark.parametrize("value", [0.0, -1e-3, float("nan")])
def test_nonpositive_tolerance_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be positive, got"):
        AdaptiveSteps(**{name: value})


def test_empty_steps_are_refused():
    with pytest.raises(ValueError, match="max_steps must be at least 1, got 0"):
        AdaptiveSteps(max_steps=0)
    with pytest.raises(ValueError, match=r"times must be a 1-D array of at least 2 .*shape \(1,\)"):
        FixedSteps(jnp.asarray([0.0]))
    with pytest.raises(ValueError, match="times must be a 1-D array of at least 2 times"):
        FixedSteps(jnp.zeros((2, 2)))


@pytest.mark.parametrize("times", [[0.1, 1.0], [0.0, 0.9], [1.0, 0.0]])
def test_grid_must_go_from_0_to_1(times):
    with pytest.raises(ValueError, match="times must go from 0 to 1, got"):
        FixedSteps(jnp.asarray(times))


@pytest.mark.parametrize("times", [[0, 0.5, 0.5, 1], [0, 0.6, 0.4, 1], [0, 1, 0.5, 1]])
def test_grid_must_increase_strictly(times):
    with pytest.raises(ValueError, match="times must increase strictly from 0 to 1, got"):
        FixedSteps(jnp.asarray(times))


@pytest.mark.parametrize("solver", [Euler(), diffrax.Heun()])
def test_velocity_of_wrong_shape_is_refused(solver):
    with pytest.raises(ValueError, match=r"velocity_fn must return shape \(6, 3\), got \(6, 1\)"):
        solve(solver, field=lambda t, x, cond: x[:, :1])


@pytest.mark.parametrize("save_at", [[], [0.5, 0.5], [0.5, 0.1], [-0.1, 0.5], [0.5, 1.1], 0.5])
def test_save_at_must_increase_strictly_within_0_and_1(save_at):
    with pytest.raises(ValueError, match=r"save_at must increase strictly within \[0, 1\], got"):
        solve(save_at=jnp.asarray(save_at))


def test_integer_points_are_refused():
    with pytest.raises(ValueError, match="x0 must be floating point, got int32"):
        sample.__wrapped__(
            GAUSSIAN.velocity, jnp.ones((2, 2), jnp.int32), solver=Euler(), steps=GRID
        )


@pytest.mark.slow
def test_traced_tolerance_is_accepted():
    nfe = jax.jit(lambda tol: solve(diffrax.Bosh3(), AdaptiveSteps(tol, tol)).nfe)(1e-2)
    assert int(nfe[0]) > 0
