"""`Samples.nfe` equals a counter inside the field, for every solver and every kind of steps."""

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
from tests.solvers.table import EXPLICIT, GAUSSIAN, IMEX, IMPLICIT, PLAIN, CountedField, name, noise

# At this tolerance every solver rejects some steps, most of them before the first is accepted.
TIGHT = {"rtol": 1e-3, "atol": 1e-3}


@pytest.mark.slow
@pytest.mark.parametrize("solver", PLAIN + EXPLICIT + IMEX[:1], ids=name)
def test_fixed_steps_cost_what_the_field_counts(solver):
    field = CountedField(GAUSSIAN.velocity)
    steps = FixedSteps(jnp.asarray([0.0, 0.3, 0.5, 1.0]))
    samples, calls = field.counted(
        jax.jit(lambda x: sample(field, x, solver=solver, steps=steps)), noise()
    )
    assert samples.nfe.tolist() == [calls] * 6
    assert samples.num_accepted.tolist() == [3] * 6
    assert samples.times.tolist() == pytest.approx([0.3, 0.5, 1.0])


@pytest.mark.slow
@pytest.mark.parametrize(
    "solver",
    [
        # Of the three two-stage methods, alike but for their numbers, the fast suite takes Heun.
        pytest.param(s, marks=[pytest.mark.slow] if s in EXPLICIT[2:4] else [])
        for s in EXPLICIT + IMEX[-1:]
        if has_error_estimate(s)
    ],
    ids=name,
)
def test_adaptive_steps_cost_what_the_field_counts(solver):
    field = CountedField(GAUSSIAN.velocity)
    samples, calls = field.counted(
        jax.jit(lambda x: sample(field, x, solver=solver, steps=AdaptiveSteps(**TIGHT))), noise()
    )
    assert samples.nfe.tolist() == [calls] * 6
    ends = np.asarray(samples.times)
    taken = int(samples.num_accepted[0])
    assert np.all(np.diff(ends[:taken]) > 0)
    assert ends[taken - 1] == 1.0
    assert np.all(ends[taken:] == np.inf)


@pytest.mark.slow
@pytest.mark.parametrize("solver", [IMPLICIT[0], IMPLICIT[1]], ids=name)
def test_implicit_solvers_pay_for_iterations_and_jacobians(solver):
    # The counter sees the calls and the base of each Jacobian; each Jacobian has further one
    # column per dimension and one for the meter. ImplicitEuler takes one a step, Kvaerno two.
    field = CountedField(GAUSSIAN.velocity)
    x0 = noise(1, 3)
    samples, calls = field.counted(
        jax.jit(lambda x: sample(field, x, solver=solver, steps=AdaptiveSteps(**TIGHT))), x0
    )
    num_steps = int(samples.num_accepted[0] + samples.num_rejected[0])
    jacobians = num_steps * (1 if isinstance(solver, diffrax.ImplicitEuler) else 2)
    assert int(samples.nfe[0]) == calls + jacobians * 4


@pytest.mark.slow
def test_a_step_per_sample_costs_each_what_its_own_solve_costs():
    # Far out the field is as simple as anywhere, but errors are larger: the samples differ.
    x0 = noise() * jnp.asarray([0.1, 0.5, 1.0, 2.0, 8.0, 20.0])[:, None]
    steps = AdaptiveSteps(1e-4, 1e-4, ErrorControl.PER_SAMPLE)
    field = CountedField(GAUSSIAN.velocity)
    solve = jax.jit(lambda x: sample(field, x, solver=diffrax.Bosh3(), steps=steps))
    together = solve(x0)
    alone = [field.counted(solve, x0[i : i + 1]) for i in range(6)]
    assert together.nfe.tolist() == [calls for _, calls in alone]
    assert len(set(together.nfe.tolist())) > 1
    np.testing.assert_array_equal(together.num_rejected, [int(s.num_rejected[0]) for s, _ in alone])
    np.testing.assert_allclose(together.x1, jnp.concatenate([s.x1 for s, _ in alone]), rtol=1e-6)
    assert together.times.shape == (6, 1024)


def guided_field():
    def network(t, x, cond):
        return GAUSSIAN.velocity(t, x) + 0.01 * cond[:, None].astype(x.dtype)

    return classifier_free(network, 3, 2.0, (0.25, 0.75))


def test_guidance_costs_two_evaluations_inside_its_interval():
    labels = jnp.arange(6) % 3
    # Stages of the four steps at 0, 1/8, 1/4 | 1/4, 3/8, 1/2 | 1/2, 5/8, 3/4 | 3/4, 7/8, 1, the
    # middle ones twice: 1 + 1 + 1 + 2, then all eight inside, then 2 + 1 + 1 + 1.
    for solver in (RK4(),):
        samples = sample(
            guided_field(), noise(), labels, solver=solver, steps=FixedSteps(uniform_grid(4))
        )
        assert samples.nfe.tolist() == [5 + 16 + 5] * 6
    # Heun by Diffrax: both ends of each step.
    samples = sample(
        guided_field(), noise(), labels, solver=diffrax.Heun(), steps=FixedSteps(uniform_grid(4))
    )
    assert samples.nfe.tolist() == [(1 + 2) + 4 + 4 + (2 + 1)] * 6


@pytest.mark.slow
def test_guidance_costs_the_same_by_shared_and_by_own_steps():
    labels, x0 = jnp.zeros(1, jnp.int32), noise(1)
    shared, own = (
        sample(
            guided_field(),
            x0,
            labels,
            solver=diffrax.Bosh3(),
            steps=AdaptiveSteps(1e-3, 1e-3, control),
        )
        for control in (ErrorControl.LARGEST_SAMPLE, ErrorControl.PER_SAMPLE)
    )
    assert shared.nfe.tolist() == own.nfe.tolist()
    num_steps = int(shared.num_accepted[0] + shared.num_rejected[0])
    assert int(shared.nfe[0]) > 3 * num_steps + 2  # what it would cost unguided


def test_adams_bashforth_costs_one_evaluation_a_step_and_one_to_start():
    samples = sample(
        GAUSSIAN.velocity, noise(), solver=PLAIN[-1], steps=FixedSteps(uniform_grid(7))
    )
    assert samples.nfe.tolist() == [8] * 6
