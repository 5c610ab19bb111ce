"""Tests of gradients through solves: adjoint methods against closed forms."""

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
PER_SAMPLE = AdaptiveSteps(1e-6, 1e-6, ErrorControl.PER_SAMPLE)
FIXED = FixedSteps(uniform_grid(64))
CASES = {
    "adaptive": (diffrax.Tsit5(), TIGHT),
    "per_sample": (diffrax.Tsit5(), PER_SAMPLE),
    "slots": (diffrax.Tsit5(), AdaptiveSteps(1e-6, 1e-6, ErrorControl.PER_SAMPLE, slots=2)),
    "steps": (diffrax.Dopri5(), FIXED),
    "rk4": (RK4(), FIXED),
}


@pytest.mark.slow
@pytest.mark.parametrize("adjoint", REVERSE)
@pytest.mark.parametrize("case", CASES)
def test_gradients_match_the_flow_map(case, adjoint):
    if case in ("per_sample", "slots") and adjoint is Adjoint.RECURSIVE_CHECKPOINT:
        pytest.skip("per-sample steps support only forward-mode differentiation")
    solver, steps = CASES[case]
    x0, shift, weight = noise(6, 3), jnp.arange(6.0), noise(6, 3, seed=1)

    def total(x0, mean, shift):
        # The velocity closes over the traced `mean`.
        oracle = Gaussian(Cosine(), mean=mean, std=0.5)

        def velocity(t, x, cond):
            # The velocity in a frame that moves by alpha(t) * shift.
            alpha, rate = jax.jvp(Cosine().alpha, (t,), (jnp.ones_like(t),))
            shifted = x - (alpha * cond)[:, None]
            return oracle.velocity(t, shifted) + (rate * cond)[:, None]

        x1 = sample(velocity, x0, shift, solver=solver, steps=steps, adjoint=adjoint).x1
        return jnp.sum(weight * x1)

    # x1 = mean + shift + std x0.
    grad_x0, grad_mean, grad_shift = jax.jit(jax.grad(total, (0, 1, 2)))(x0, 1.0, shift)
    np.testing.assert_allclose(grad_x0, 0.5 * weight, rtol=0, atol=2e-5)
    np.testing.assert_allclose(grad_shift, weight.sum(axis=1), rtol=0, atol=1e-4)
    np.testing.assert_allclose(grad_mean, weight.sum(), rtol=0, atol=2e-4)


def test_forward_mode_matches_the_flow_map():
    x0, direction = noise(6, 3), noise(6, 3, seed=1)
    for case in ("per_sample", "rk4"):
        solver, steps = CASES[case]
        fn = partial(sample, solver=solver, steps=steps, adjoint=Adjoint.FORWARD)
        solve = jax.jit(lambda x0, fn=fn: fn(GAUSSIAN.velocity, x0).x1)
        _, tangent = jax.jvp(solve, (x0,), (direction,))
        np.testing.assert_allclose(tangent, 0.5 * direction, rtol=0, atol=2e-5)


def total(x0, a, scale=1.0, *, solver, steps, adjoint):
    """Weighted sum of end points of a field with parameter `a`."""

    def velocity(t, x, cond):
        return jnp.sin(a * x) + t[:, None]

    x1 = sample(velocity, x0, solver=solver, steps=steps, adjoint=adjoint).x1
    return jnp.sum(scale * noise(*x0.shape, seed=1).astype(x0.dtype) * x1)


def gradients(x0, a, scale=1.0, **settings):
    """Gradients with respect to x0 and `a`, concatenated."""
    grad_x0, grad_a = jax.grad(partial(total, **settings), (0, 1))(x0, a, scale)
    return jnp.append(grad_x0, grad_a)


@pytest.mark.parametrize(
    "solver",
    [RK4(), pytest.param(diffrax.Ralston(), marks=pytest.mark.slow)],
    ids=["fmjax", "diffrax"],
)
def test_checkpointing_is_exact_and_backsolve_converges(solver):
    with jax.enable_x64(True):
        x0, h = noise(4, 2), 1e-5

        def settings(num_steps, adjoint=Adjoint.RECURSIVE_CHECKPOINT):
            return {
                "solver": solver,
                "steps": FixedSteps(uniform_grid(num_steps)),
                "adjoint": adjoint,
            }

        value = jax.jit(partial(total, **settings(8)))
        actual = jax.jit(partial(gradients, **settings(8)))(x0, 1.0)
        assert actual.dtype == jnp.float64
        # Central differences have an error of h^2 plus float64 rounding divided by 2 h.
        difference_a = (value(x0, 1.0 + h) - value(x0, 1.0 - h)) / (2 * h)
        difference_x0 = (value(x0.at[0, 0].add(h), 1.0) - value(x0.at[0, 0].add(-h), 1.0)) / (2 * h)
        np.testing.assert_allclose(actual[-1], difference_a, rtol=0, atol=1e-8)
        np.testing.assert_allclose(actual[0], difference_x0, rtol=0, atol=1e-8)

        expected = jax.jit(partial(gradients, **settings(32)))(x0, 1.0)
        coarse_error, fine_error = (
            float(
                jnp.max(
                    jnp.abs(
                        jax.jit(partial(gradients, **settings(num, REVERSE[1])))(x0, 1.0) - expected
                    )
                )
            )
            for num in (4, 16)
        )
        # Four times the steps reduce a second-order error 16-fold.
        assert fine_error < coarse_error / 8 < 0.02


@pytest.mark.slow
def test_backsolve_gradient_is_linear_in_the_loss_scale():
    def scaled_gradients(tolerance):
        steps = AdaptiveSteps(tolerance, tolerance)
        settings = {"solver": diffrax.Tsit5(), "steps": steps, "adjoint": Adjoint.BACKSOLVE}
        return partial(jax.jit(partial(gradients, **settings)), noise(4, 2), 1.0)

    loose = scaled_gradients(1e-4)
    unscaled = loose(1.0)
    for scale in (2.0**-30, 2.0**30):
        np.testing.assert_allclose(loose(scale) / scale, unscaled, rtol=1e-5)
    np.testing.assert_array_equal(loose(0.0), 0.0)
    np.testing.assert_allclose(unscaled, scaled_gradients(1e-6)(1.0), rtol=0, atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("solver", [AdamsBashforth2(), diffrax.Ralston()], ids=["fmjax", "diffrax"])
def test_traced_padded_grid_has_the_same_gradient(solver):
    def gradient(times):
        settings = {"solver": solver, "steps": FixedSteps(times), "adjoint": Adjoint.BACKSOLVE}
        return gradients(noise(4, 2), 1.0, **settings)

    grid = jnp.array([0.0, 0.1, 0.5, 1.0])
    actual = jax.jit(gradient)(jnp.append(grid, jnp.ones(3)))
    np.testing.assert_allclose(actual, jax.jit(lambda: gradient(grid))(), rtol=1e-5)


@pytest.mark.slow
def test_backsolve_memory_does_not_grow_with_the_steps():
    def num_states(solver, adjoint, num_steps):
        steps = FixedSteps(uniform_grid(num_steps))
        gradient = partial(gradients, solver=solver, steps=steps, adjoint=adjoint)
        memory: Any = jax.jit(gradient).lower(jnp.zeros((64, 64)), 1.0).compile().memory_analysis()
        return memory.temp_size_in_bytes / (64 * 64 * 4)  # Unit: one state.

    for solver in (diffrax.Ralston(), RK4()):
        coarse, fine = (num_states(solver, Adjoint.BACKSOLVE, num) for num in (8, 128))
        assert fine < coarse + 2
    # Diffrax stores sqrt(2 n) states: 4 times as many for 16 times the steps.
    coarse, fine = (num_states(diffrax.Ralston(), REVERSE[0], num) for num in (8, 128))
    assert 1.5 * coarse < fine < 6 * coarse
    # fmjax solvers store exactly one state per step.
    coarse, fine = (num_states(RK4(), REVERSE[0], num) for num in (8, 128))
    assert 119 < fine - coarse < 135


@pytest.mark.slow
def test_backsolve_supports_labels_and_guidance():
    labels, x0 = jnp.arange(4) % 3, noise(4, 2)

    def gradient(adjoint):
        def total(table, x0):
            def velocity(t, x, cond=None):
                assert cond is not None
                return table[cond] * x

            guided = classifier_free(velocity, 3, 2.0, (0.2, 0.7))
            samples = sample(guided, x0, labels, solver=RK4(), steps=FIXED, adjoint=adjoint)
            return jnp.sum(jnp.square(samples.x1)), samples.nfe

        table = jnp.arange(8.0).reshape(4, 2) / 8
        return jax.jit(jax.grad(total, (0, 1), has_aux=True))(table, x0)

    (exact, nfe), (backsolve, backsolve_nfe) = (gradient(adjoint) for adjoint in REVERSE)
    np.testing.assert_array_equal(nfe, backsolve_nfe)
    assert nfe[0] > 4 * 64
    for expected, actual in zip(exact, backsolve, strict=True):
        # The interval ends inside steps, which makes both directions first order there.
        np.testing.assert_allclose(actual, expected, rtol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [PER_SAMPLE, FIXED], ids=["per_sample", "fixed"])
def test_failed_sample_has_zero_gradient_without_affecting_others(steps):
    x0 = noise(6, 3).at[2].set(jnp.nan)

    def total(x0):
        samples = sample(GAUSSIAN.velocity, x0, steps=steps, adjoint=Adjoint.BACKSOLVE)
        return jnp.sum(jnp.where(samples.succeeded[:, None], samples.x1, 0.0))

    expected = np.where(np.arange(6)[:, None] == 2, 0.0, np.full((6, 3), 0.5))
    np.testing.assert_allclose(jax.jit(jax.grad(total))(x0), expected, rtol=0, atol=2e-5)


@pytest.mark.slow
def test_failed_backsolve_gives_nan_gradient():
    steps = AdaptiveSteps(1e-6, 1e-6, max_steps=12)

    def total(a, x0):
        # The points are stationary, but their gradient changes fast.
        def velocity(t, x, cond):
            return jnp.sin(a * x)

        return jnp.sum(sample(velocity, x0, steps=steps, adjoint=Adjoint.BACKSOLVE).x1)

    value, gradient = jax.jit(jax.value_and_grad(total))(100.0, jnp.zeros((1, 2)))
    assert value == 0.0
    assert jnp.isnan(gradient)


def test_unsupported_backsolve_settings_are_refused():
    backsolve = partial(sample, GAUSSIAN.velocity, noise(), adjoint=Adjoint.BACKSOLVE)
    for solver in (diffrax.Kvaerno3(), diffrax.KenCarp3()):
        with pytest.raises(ValueError, match="solver must be explicit for Adjoint.BACKSOLVE, got"):
            backsolve(solver=solver)
    with pytest.raises(ValueError, match="save_at must be None for Adjoint.BACKSOLVE, got"):
        backsolve(save_at=[0.5])
