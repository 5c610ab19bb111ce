"""Tests that `Samples.nfe` equals the number of calls of the velocity field."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.paths import uniform_grid
from fmjax.solvers import (
    RK4,
    AdaptiveSteps,
    ErrorControl,
    FixedSteps,
    classifier_free,
    has_error_estimate,
    sample,
)
from tests.solvers.table import (
    DIFFRAX_EXPLICIT,
    DIFFRAX_IMEX,
    DIFFRAX_IMPLICIT,
    FMJAX_SOLVERS,
    GAUSSIAN,
    CountedField,
    noise,
    solver_id,
)

# At this tolerance every solver rejects steps, mostly before its first accepted step.
TIGHT = {"rtol": 1e-3, "atol": 1e-3}


@pytest.mark.slow
@pytest.mark.parametrize(
    "solver", FMJAX_SOLVERS + DIFFRAX_EXPLICIT + DIFFRAX_IMEX[:1], ids=solver_id
)
def test_nfe_of_fixed_steps_equals_field_calls(solver):
    field = CountedField(GAUSSIAN.velocity)
    steps = FixedSteps(jnp.asarray([0.0, 0.3, 0.5, 1.0]))
    samples, calls = field.count_calls(
        jax.jit(lambda x: sample(field, x, solver=solver, steps=steps)), noise()
    )
    assert samples.nfe.tolist() == [calls] * 6
    assert samples.stats.num_accepted.tolist() == [3] * 6
    assert samples.stats.step_ends.tolist() == pytest.approx([0.3, 0.5, 1.0])


@pytest.mark.slow
@pytest.mark.parametrize(
    "solver",
    [
        # Midpoint and Ralston differ from Heun only in their coefficients.
        pytest.param(s, marks=[pytest.mark.slow] if s in DIFFRAX_EXPLICIT[2:4] else [])
        for s in DIFFRAX_EXPLICIT + DIFFRAX_IMEX[-1:]
        if has_error_estimate(s)
    ],
    ids=solver_id,
)
def test_nfe_of_adaptive_steps_equals_field_calls(solver):
    field = CountedField(GAUSSIAN.velocity)
    samples, calls = field.count_calls(
        jax.jit(lambda x: sample(field, x, solver=solver, steps=AdaptiveSteps(**TIGHT))), noise()
    )
    assert samples.nfe.tolist() == [calls] * 6
    times = np.asarray(samples.stats.step_ends)
    num_accepted = int(samples.stats.num_accepted[0])
    assert np.all(np.diff(times[:num_accepted]) > 0)
    assert times[num_accepted - 1] == 1.0
    assert np.all(times[num_accepted:] == np.inf)


@pytest.mark.slow
@pytest.mark.parametrize("solver", [DIFFRAX_IMPLICIT[0], DIFFRAX_IMPLICIT[1]], ids=solver_id)
def test_nfe_of_implicit_solvers_counts_iterations_and_jacobians(solver):
    # The field counts each Jacobian as one call. A Jacobian costs 4 more evaluations: one per
    # dimension and one for the NFE counter. ImplicitEuler uses one per step, Kvaerno3 two.
    field = CountedField(GAUSSIAN.velocity)
    x0 = noise(1, 3)
    samples, calls = field.count_calls(
        jax.jit(lambda x: sample(field, x, solver=solver, steps=AdaptiveSteps(**TIGHT))), x0
    )
    num_steps = int(samples.stats.num_accepted[0] + samples.stats.num_rejected[0])
    num_jacobians = num_steps * (1 if isinstance(solver, diffrax.ImplicitEuler) else 2)
    assert int(samples.nfe[0]) == calls + num_jacobians * 4


@pytest.mark.slow
def test_nfe_of_per_sample_steps_equals_separate_solves():
    # Errors grow with the distance from the mean, so the samples need different numbers of steps.
    x0 = noise() * jnp.asarray([0.1, 0.5, 1.0, 2.0, 8.0, 20.0])[:, None]
    steps = AdaptiveSteps(1e-4, 1e-4, ErrorControl.PER_SAMPLE)
    field = CountedField(GAUSSIAN.velocity)
    solve = jax.jit(lambda x: sample(field, x, solver=diffrax.Bosh3(), steps=steps))
    batched = solve(x0)
    separate = [field.count_calls(solve, x0[i : i + 1]) for i in range(6)]
    assert batched.nfe.tolist() == [calls for _, calls in separate]
    assert len(set(batched.nfe.tolist())) > 1
    np.testing.assert_array_equal(
        batched.stats.num_rejected, [int(s.stats.num_rejected[0]) for s, _ in separate]
    )
    np.testing.assert_allclose(batched.x1, jnp.concatenate([s.x1 for s, _ in separate]), rtol=1e-6)
    assert batched.stats.step_ends.shape == (6, 1024)


def guided_field():
    def network(t, x, cond):
        return GAUSSIAN.velocity(t, x) + 0.01 * cond[:, None].astype(x.dtype)

    return classifier_free(network, 3, 2.0, (0.25, 0.75))


def test_guidance_costs_two_evaluations_inside_its_interval():
    labels = jnp.arange(6) % 3
    # RK4 evaluates both ends of each step once and its middle twice. The ends at 1/4 and 3/4 are
    # inside: the first step costs 1 + 1 + 1 + 2, the middle steps 8 each, the last 2 + 1 + 1 + 1.
    for solver in (RK4(),):
        samples = sample(
            guided_field(), noise(), labels, solver=solver, steps=FixedSteps(uniform_grid(4))
        )
        assert samples.nfe.tolist() == [5 + 16 + 5] * 6
    # Heun of Diffrax evaluates both ends of each step.
    samples = sample(
        guided_field(), noise(), labels, solver=diffrax.Heun(), steps=FixedSteps(uniform_grid(4))
    )
    assert samples.nfe.tolist() == [(1 + 2) + 4 + 4 + (2 + 1)] * 6


@pytest.mark.slow
def test_guidance_costs_the_same_with_shared_and_per_sample_steps():
    labels, x0 = jnp.zeros(1, jnp.int32), noise(1)
    shared, per_sample = (
        sample(
            guided_field(),
            x0,
            labels,
            solver=diffrax.Bosh3(),
            steps=AdaptiveSteps(1e-3, 1e-3, control),
        )
        for control in (ErrorControl.LARGEST_SAMPLE, ErrorControl.PER_SAMPLE)
    )
    assert shared.nfe.tolist() == per_sample.nfe.tolist()
    num_steps = int(shared.stats.num_accepted[0] + shared.stats.num_rejected[0])
    assert int(shared.nfe[0]) > 3 * num_steps + 2  # Cost without guidance.


def test_adams_bashforth_costs_one_evaluation_per_step_and_one_to_start():
    samples = sample(
        GAUSSIAN.velocity, noise(), solver=FMJAX_SOLVERS[-1], steps=FixedSteps(uniform_grid(7))
    )
    assert samples.nfe.tolist() == [8] * 6
