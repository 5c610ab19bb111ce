from functools import partial
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.paths import Cosine, uniform_grid
from fmjax.solvers import (
    RK4,
    AdamsBashforth2,
    AdaptiveSteps,
    Adjoint,
    ErrorControl,
    FixedSteps,
    classifier_free,
    sample,
)
from tests.oracles import Gaussian
from tests.solvers.table import GAUSSIAN, noise

REVERSE = (Adjoint.RECURSIVE_CHECKPOINT, Adjoint.BACKSOLVE)
TIGHT = AdaptiveSteps(1e-6, 1e-6)
EACH = AdaptiveSteps(1e-6, 1e-6, ErrorControl.PER_SAMPLE)
FIXED = FixedSteps(uniform_grid(64))
CASES = {
    "adaptive": (diffrax.Tsit5(), TIGHT),
    "per_sample": (diffrax.Tsit5(), EACH),
    "slots": (diffrax.Tsit5(), AdaptiveSteps(1e-6, 1e-6, ErrorControl.PER_SAMPLE, slots=2)),
    "steps": (diffrax.Dopri5(), FIXED),
    "rk4": (RK4(), FIXED),
}


@pytest.mark.slow
@pytest.mark.parametrize("adjoint", REVERSE)
@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_the_flow_map(case, adjoint):
    if case in ("per_sample", "slots") and adjoint is Adjoint.RECURSIVE_CHECKPOINT:
        pytest.skip("JAX differentiates it forwards only, as is said")
    solver, steps = CASES[case]
    x0, shift, weight = noise(6, 3), jnp.arange(6.0), noise(6, 3, seed=1)

    def total(x0, mean, shift):
        # Closes over a mean, and is told of another.
        oracle = Gaussian(Cosine(), mean=mean, std=0.5)

        def velocity(t, x, cond):
            # The rate of alpha(t) shift: in the middle of the moving frame the field is the same.
            alpha, rate = jax.jvp(Cosine().alpha, (t,), (jnp.ones_like(t),))
            moved = x - (alpha * cond)[:, None]
            return oracle.velocity(t, moved) + (rate * cond)[:, None]

        x1 = sample(velocity, x0, shift, solver=solver, steps=steps, adjoint=adjoint).x1
        return jnp.sum(weight * x1)

    # x1 = mean + shift + std x0.
    for_x0, for_mean, for_shift = jax.jit(jax.grad(total, (0, 1, 2)))(x0, 1.0, shift)
    np.testing.assert_allclose(for_x0, 0.5 * weight, rtol=0, atol=2e-5)
    np.testing.assert_allclose(for_shift, weight.sum(axis=1), rtol=0, atol=1e-4)
    np.testing.assert_allclose(for_mean, weight.sum(), rtol=0, atol=2e-4)


def test_forward_mode_follows_the_flow_map_too():
    x0, along = noise(6, 3), noise(6, 3, seed=1)
    for case in ("per_sample", "rk4"):
        solver, steps = CASES[case]
        fn = partial(sample, solver=solver, steps=steps, adjoint=Adjoint.FORWARD)
        solve = jax.jit(lambda x0, fn=fn: fn(GAUSSIAN.velocity, x0).x1)
        _, tangent = jax.jvp(solve, (x0,), (along,))
        np.testing.assert_allclose(tangent, 0.5 * along, rtol=0, atol=2e-5)


def total(x0, a, scale=1.0, *, solver, steps, adjoint):
    """A weighted sum of end points along a field that a parameter bends."""

    def velocity(t, x, cond):
        return jnp.sin(a * x) + t[:, None]

    x1 = sample(velocity, x0, solver=solver, steps=steps, adjoint=adjoint).x1
    return jnp.sum(scale * noise(*x0.shape, seed=1).astype(x0.dtype) * x1)


def gradients(x0, a, scale=1.0, **how):
    """With respect to x0 and the parameter, in one row."""
    for_x0, for_a = jax.grad(partial(total, **how), (0, 1))(x0, a, scale)
    return jnp.append(for_x0, for_a)


@pytest.mark.parametrize(
    "solver",
    [RK4(), pytest.param(diffrax.Ralston(), marks=pytest.mark.slow)],
    ids=["own", "diffrax"],
)
def test_checkpointing_is_exact_for_the_steps_and_backsolving_up_to_their_error(solver):
    with jax.enable_x64(True):
        x0, h = noise(4, 2), 1e-5

        def how(num_steps, adjoint=Adjoint.RECURSIVE_CHECKPOINT):
            return {
                "solver": solver,
                "steps": FixedSteps(uniform_grid(num_steps)),
                "adjoint": adjoint,
            }

        value = jax.jit(partial(total, **how(8)))
        exact = jax.jit(partial(gradients, **how(8)))(x0, 1.0)
        assert exact.dtype == jnp.float64
        # Central differences err by h^2 and by the 16 digits of a sum over 2 h.
        for_a = (value(x0, 1.0 + h) - value(x0, 1.0 - h)) / (2 * h)
        for_x0 = (value(x0.at[0, 0].add(h), 1.0) - value(x0.at[0, 0].add(-h), 1.0)) / (2 * h)
        np.testing.assert_allclose(exact[-1], for_a, rtol=0, atol=1e-8)
        np.testing.assert_allclose(exact[0], for_x0, rtol=0, atol=1e-8)

        true = jax.jit(partial(gradients, **how(32)))(x0, 1.0)
        few, many = (
            float(
                jnp.max(
                    jnp.abs(jax.jit(partial(gradients, **how(num, REVERSE[1])))(x0, 1.0) - true)
                )
            )
            for num in (4, 16)
        )
        # Four times the steps: a sixteenth of the error at second order.
        assert many < few / 8 < 0.02


@pytest.mark.slow
def test_the_gradient_does_not_depend_on_the_units_of_the_loss():
    def found(tolerance):
        steps = AdaptiveSteps(tolerance, tolerance)
        how = {"solver": diffrax.Tsit5(), "steps": steps, "adjoint": Adjoint.BACKSOLVE}
        return partial(jax.jit(partial(gradients, **how)), noise(4, 2), 1.0)

    loose = found(1e-4)
    one = loose(1.0)
    for scale in (2.0**-30, 2.0**30):
        np.testing.assert_allclose(loose(scale) / scale, one, rtol=1e-5)
    np.testing.assert_array_equal(loose(0.0), 0.0)
    np.testing.assert_allclose(one, found(1e-6)(1.0), rtol=0, atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("solver", [AdamsBashforth2(), diffrax.Ralston()], ids=["own", "diffrax"])
def test_a_padded_grid_that_is_traced_has_the_same_gradient(solver):
    def gradient(times):
        how = {"solver": solver, "steps": FixedSteps(times), "adjoint": Adjoint.BACKSOLVE}
        return gradients(noise(4, 2), 1.0, **how)

    grid = jnp.array([0.0, 0.1, 0.5, 1.0])
    padded = jax.jit(gradient)(jnp.append(grid, jnp.ones(3)))
    np.testing.assert_allclose(padded, jax.jit(lambda: gradient(grid))(), rtol=1e-5)


@pytest.mark.slow
def test_memory_of_backsolving_does_not_grow_with_the_steps():
    def needed(solver, adjoint, num_steps):
        steps = FixedSteps(uniform_grid(num_steps))
        gradient = partial(gradients, solver=solver, steps=steps, adjoint=adjoint)
        memory: Any = jax.jit(gradient).lower(jnp.zeros((64, 64)), 1.0).compile().memory_analysis()
        return memory.temp_size_in_bytes / (64 * 64 * 4)  # in states

    for solver in (diffrax.Ralston(), RK4()):
        few, many = (needed(solver, Adjoint.BACKSOLVE, num) for num in (8, 128))
        assert many < few + 2
    # Diffrax keeps sqrt(2 n) states: 4 times as many of 16 times the steps.
    few, many = (needed(diffrax.Ralston(), REVERSE[0], num) for num in (8, 128))
    assert 1.5 * few < many < 6 * few
    # Our own keep every step's points, and of a step no more than that.
    few, many = (needed(RK4(), REVERSE[0], num) for num in (8, 128))
    assert 119 < many - few < 135


@pytest.mark.slow
def test_labels_and_guidance_pass_through_a_backsolve():
    labels, x0 = jnp.arange(4) % 3, noise(4, 2)

    def found(adjoint):
        def total(table, x0):
            def velocity(t, x, cond=None):
                assert cond is not None
                return table[cond] * x

            guided = classifier_free(velocity, 3, 2.0, (0.2, 0.7))
            samples = sample(guided, x0, labels, solver=RK4(), steps=FIXED, adjoint=adjoint)
            return jnp.sum(jnp.square(samples.x1)), samples.nfe

        table = jnp.arange(8.0).reshape(4, 2) / 8
        return jax.jit(jax.grad(total, (0, 1), has_aux=True))(table, x0)

    (exact, nfe), (back, nfe_back) = (found(adjoint) for adjoint in REVERSE)
    np.testing.assert_array_equal(nfe, nfe_back)
    assert nfe[0] > 4 * 64
    for one, other in zip(exact, back, strict=True):
        # The edges of the interval fall within steps, there and back: first order there.
        np.testing.assert_allclose(other, one, rtol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [EACH, FIXED], ids=["per_sample", "fixed"])
def test_a_sample_that_fails_has_no_gradient_and_spoils_no_other(steps):
    x0 = noise(6, 3).at[2].set(jnp.nan)

    def total(x0):
        samples = sample(GAUSSIAN.velocity, x0, steps=steps, adjoint=Adjoint.BACKSOLVE)
        return jnp.sum(jnp.where(samples.succeeded[:, None], samples.x1, 0.0))

    wanted = np.where(np.arange(6)[:, None] == 2, 0.0, np.full((6, 3), 0.5))
    np.testing.assert_allclose(jax.jit(jax.grad(total))(x0), wanted, rtol=0, atol=2e-5)


@pytest.mark.slow
def test_a_solve_back_that_fails_gives_nan():
    steps = AdaptiveSteps(1e-6, 1e-6, max_steps=12)

    def total(a, x0):
        # The points stand still where their gradient turns fast.
        def velocity(t, x, cond):
            return jnp.sin(a * x)

        return jnp.sum(sample(velocity, x0, steps=steps, adjoint=Adjoint.BACKSOLVE).x1)

    value, gradient = jax.jit(jax.value_and_grad(total))(100.0, jnp.zeros((1, 2)))
    assert value == 0.0
    assert jnp.isnan(gradient)


def test_what_a_backsolve_cannot_undo_is_refused():
    back = partial(sample, GAUSSIAN.velocity, noise(), adjoint=Adjoint.BACKSOLVE)
    for solver in (diffrax.Kvaerno3(), diffrax.KenCarp3()):
        with pytest.raises(ValueError, match="solver must be explicit for Adjoint.BACKSOLVE, got"):
            back(solver=solver)
    with pytest.raises(ValueError, match="save_at must be None for Adjoint.BACKSOLVE, got"):
        back(save_at=[0.5])
