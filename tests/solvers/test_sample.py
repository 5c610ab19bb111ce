"""Tests of ODE solves: accuracy, error control, failures, sharding and compilation."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from fmjax.paths import Cosine, Linear, uniform_grid
from fmjax.solvers import (
    RK4,
    AdamsBashforth2,
    AdaptiveSteps,
    ErrorControl,
    Euler,
    FixedSteps,
    Heun,
    sample,
)
from tests.oracles import GaussianMixture
from tests.solvers.table import GAUSSIAN, exact_x1, noise

LARGEST, PER_SAMPLE, BATCH_RMS = (
    ErrorControl.LARGEST_SAMPLE,
    ErrorControl.PER_SAMPLE,
    ErrorControl.WHOLE_BATCH_RMS,
)


@pytest.mark.parametrize("control", [LARGEST, PER_SAMPLE])
def test_samples_match_the_flow_map_within_tolerance(control):
    x0 = noise(16, 2, 2)
    samples = sample(GAUSSIAN.velocity, x0, steps=AdaptiveSteps(1e-5, 1e-5, control))
    # Local errors are below 1e-5 (1 + |x|) over about ten steps.
    np.testing.assert_allclose(samples.x1, exact_x1(x0), atol=2e-4)
    assert samples.succeeded.all()


def stiff_field(t, x, cond=None):
    """Stiff field in which sample 0 follows cos(20 t) and the others hardly move."""
    rate = jnp.where(jnp.arange(len(x)) == 0, 30.0, 0.1)[:, None]
    wave = jnp.where(jnp.arange(len(x)) == 0, 20.0, 0.0)[:, None]
    t = t[:, None]
    return -rate * (x - jnp.cos(wave * t)) - wave * jnp.sin(wave * t)


@pytest.mark.slow
def test_only_batch_rms_hides_the_error_of_a_stiff_sample():
    # Sample 0 starts at 10 and ends at cos(20) + 9 exp(-30). The RMS over 64 samples allows an
    # error sqrt(64) times as large.
    x0 = jnp.ones((64, 1)).at[0, 0].set(10.0)
    expected = np.cos(20.0)

    def error(control):
        steps = AdaptiveSteps(1e-3, 1e-3, control)
        solve = jax.jit(lambda x: sample(stiff_field, x, solver=diffrax.Dopri5(), steps=steps))
        samples = solve(x0)
        assert samples.succeeded.all()
        return abs(float(samples.x1[0, 0]) - expected), samples

    batch_rms_error, _ = error(BATCH_RMS)
    largest_error, largest = error(LARGEST)
    per_sample_error, per_sample = error(PER_SAMPLE)
    assert largest_error < 5e-3
    assert per_sample_error < 5e-3
    assert batch_rms_error > 3 * largest_error
    # With separate steps the other samples do not pay for the stiff one.
    assert per_sample.nfe[0] == largest.nfe[0]
    assert int(per_sample.nfe[1:].max()) < int(per_sample.nfe[0]) / 3


@pytest.mark.slow
@pytest.mark.parametrize("control", list(ErrorControl))
def test_nonfinite_source_points_fail_without_affecting_others(control):
    x0 = noise(6, 2)
    x0_with_nonfinite = x0.at[2, 0].set(jnp.nan).at[4, 1].set(jnp.inf)
    solve = jax.jit(lambda x: sample(GAUSSIAN.velocity, x, steps=AdaptiveSteps(control=control)))
    samples = solve(x0_with_nonfinite)
    assert samples.succeeded.tolist() == [True, True, False, True, False, True]
    succeeded = np.asarray(samples.succeeded)
    # Local errors are below 1e-4 (1 + |x|) over about ten steps.
    np.testing.assert_allclose(samples.x1[succeeded], exact_x1(x0)[succeeded], atol=2e-3)
    if control is not PER_SAMPLE:
        assert np.isnan(samples.x1[~succeeded]).all()


@pytest.mark.slow
@pytest.mark.parametrize("control", list(ErrorControl))
def test_samples_with_nan_velocity_fail_without_affecting_others(control):
    def field(t, x, cond):
        is_nan = (cond[:, None] == 1) & (t[:, None] > 0.5)
        return jnp.where(is_nan | jnp.isnan(cond[:, None]), jnp.nan, GAUSSIAN.velocity(t, x))

    x0, cond = noise(6, 2), jnp.zeros(6).at[2].set(1).at[4].set(jnp.nan)
    solve = jax.jit(lambda x: sample(field, x, cond, steps=AdaptiveSteps(control=control)))
    samples = solve(x0)
    assert samples.succeeded.tolist() == [True, True, False, True, False, True]
    succeeded = np.asarray(samples.succeeded)
    np.testing.assert_allclose(samples.x1[succeeded], exact_x1(x0)[succeeded], atol=2e-3)


STEP_SETTINGS = [{"control": control} for control in ErrorControl] + [
    {"control": PER_SAMPLE, "slots": 2}
]


@pytest.mark.slow
@pytest.mark.parametrize("value", [np.inf, np.nan])
@pytest.mark.parametrize(
    "settings", STEP_SETTINGS, ids=["largest_sample", "per_sample", "batch_rms", "streaming"]
)
def test_nonfinite_velocity_at_the_end_fails_after_few_steps(settings, value):
    # One of six samples has a nonfinite velocity at t = 1. A finite one takes 3 steps of 6 calls.
    def field(t, x, cond):
        is_nonfinite = (t[:, None] >= 1.0) & (cond[:, None] == 1)
        return jnp.where(is_nonfinite, value, -x)

    x0, cond = noise(6, 2), jnp.zeros(6).at[2].set(1)
    samples = jax.jit(lambda x: sample(field, x, cond, steps=AdaptiveSteps(**settings)))(x0)
    assert samples.succeeded.tolist() == [True, True, False, True, True, True]
    assert int(samples.nfe.max()) <= 60
    succeeded = np.asarray(samples.succeeded)
    np.testing.assert_allclose(samples.x1[succeeded], np.exp(-1.0) * x0[succeeded], rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", STEP_SETTINGS, ids=["largest_sample", "per_sample", "batch_rms", "streaming"]
)
def test_unbounded_velocity_at_the_end_fails_after_few_steps(settings):
    # The solution is x_t = (1 - t) x0, but at t = 1 the field is 0 / 0 or -x / 0.
    def field(t, x, cond=None):
        return -x / (1.0 - t)[:, None]

    samples = jax.jit(lambda x: sample(field, x, steps=AdaptiveSteps(**settings)))(noise(6, 2))
    assert not samples.succeeded.any()
    # Steps shrink with the remaining time, until it is 1.5e-5.
    assert int((samples.stats.num_accepted + samples.stats.num_rejected).max()) <= 80


@pytest.mark.slow
def test_mixture_samples_end_near_a_component():
    mixture = GaussianMixture(Cosine())
    x0 = noise(64, 2)
    steps = AdaptiveSteps(1e-4, 1e-4)
    x1 = sample(mixture.velocity, x0, solver=diffrax.Dopri5(), steps=steps).x1
    distances = jnp.linalg.norm(x1[:, None] - jnp.asarray(mixture.means)[None], axis=-1).min(axis=1)
    # A sample of a 2-D component with std 0.3 is more than 4 std away with probability
    # exp(-8): 1 in 3,000.
    assert float(distances.max()) < 1.2


@pytest.mark.slow
@pytest.mark.parametrize("schedule", [Linear(), Cosine()])
def test_trajectories_match_the_mixture_flow_map(schedule):
    mixture = GaussianMixture(schedule, means=((-1.5,), (0.2,), (1.8,)))
    x0, times = np.linspace(-2.5, 2.5, 41), [0.25, 0.5, 0.75, 1.0]
    with jax.enable_x64(True):
        steps = AdaptiveSteps(1e-9, 1e-9)
        points = jnp.asarray(x0)[:, None]
        samples = sample(
            mixture.velocity, points, solver=diffrax.Dopri8(), steps=steps, save_at=times
        )
        trajectory = np.asarray(samples.stats.trajectory)[..., 0]
        expected = np.stack([mixture.flow_map(t, x0) for t in times])
    # Trajectories diverge between two components, which amplifies the local errors of about 1e-9
    # by at most p_0(x0) / p_1(x1), here 500.
    np.testing.assert_allclose(trajectory, expected, atol=2e-6)


@pytest.mark.slow
def test_proportional_control_changes_steps_but_not_samples():
    x0 = noise(8)
    integral, proportional = (
        sample(GAUSSIAN.velocity, x0, steps=AdaptiveSteps(1e-5, 1e-5, pcoeff=p, icoeff=i))
        for p, i in ((0.0, 1.0), (0.4, 0.3))
    )
    num = min(int(integral.stats.num_accepted[0]), int(proportional.stats.num_accepted[0]))
    assert not np.array_equal(integral.stats.step_ends[:num], proportional.stats.step_ends[:num])
    np.testing.assert_allclose(proportional.x1, exact_x1(x0), atol=2e-4)


def field_with_nan(t, x, cond=None):
    return jnp.where(x > 50.0, jnp.nan, GAUSSIAN.velocity(t, x))


@pytest.mark.slow
def test_failed_sample_with_separate_steps_does_not_affect_others():
    x0 = noise(4).at[2].set(100.0)
    steps = AdaptiveSteps(1e-4, 1e-4, PER_SAMPLE)
    samples = sample(field_with_nan, x0, solver=diffrax.Bosh3(), steps=steps)
    assert samples.succeeded.tolist() == [True, True, False, True]
    others = np.asarray([0, 1, 3])
    np.testing.assert_allclose(samples.x1[others], exact_x1(x0)[others], atol=1e-3)
    # The sample fails long before `max_steps`.
    assert int(samples.stats.num_rejected[2]) < 20


@pytest.mark.slow
def test_failed_sample_is_flagged_with_fixed_steps():
    x0 = noise(4).at[2].set(100.0)
    for solver in (Heun(), diffrax.Heun()):
        samples = sample(field_with_nan, x0, solver=solver, steps=FixedSteps(uniform_grid(3)))
        assert samples.succeeded.tolist() == [True, True, False, True]


@pytest.mark.slow
def test_exceeding_max_steps_is_flagged_without_an_error():
    steps = AdaptiveSteps(1e-6, 1e-6, max_steps=3)
    samples = sample(GAUSSIAN.velocity, noise(), solver=diffrax.Bosh3(), steps=steps, save_at=[1.0])
    assert not samples.succeeded.any()
    assert samples.stats.step_ends.shape == (3,)
    assert samples.stats.trajectory is not None
    assert jnp.isinf(samples.stats.trajectory).all()
    assert jnp.isfinite(samples.x1).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("solver", "steps", "error"),
    [
        (RK4(), FixedSteps(uniform_grid(32)), 1e-4),
        (Heun(), FixedSteps(uniform_grid(64)), 1e-3),
        (AdamsBashforth2(), FixedSteps(uniform_grid(64)), 2e-3),
        (Euler(), FixedSteps(uniform_grid(256)), 1e-2),
        (diffrax.Dopri5(), AdaptiveSteps(1e-6, 1e-6), 1e-4),
        (diffrax.Tsit5(), AdaptiveSteps(1e-6, 1e-6, PER_SAMPLE), 1e-4),
    ],
)
def test_saved_trajectory_matches_the_flow_map(solver, steps, error):
    x0, save_at = noise(), [0.0, 0.137, 0.5, 0.81, 1.0]
    samples = sample(GAUSSIAN.velocity, x0, solver=solver, steps=steps, save_at=save_at)
    assert samples.stats.trajectory is not None
    assert samples.stats.trajectory.shape == (5, 6, 3)
    for t, points in zip(save_at, samples.stats.trajectory, strict=True):
        np.testing.assert_allclose(points, GAUSSIAN.flow_map(jnp.full(6, t), x0), atol=error)
    np.testing.assert_array_equal(samples.stats.trajectory[0], x0)
    np.testing.assert_allclose(samples.stats.trajectory[-1], samples.x1, atol=1e-5)


@pytest.mark.parametrize(
    ("solver", "steps"),
    [
        (Heun(), FixedSteps(uniform_grid(4))),
        (diffrax.Bosh3(), AdaptiveSteps(1e-3, 1e-3)),
        (diffrax.Bosh3(), AdaptiveSteps(1e-3, 1e-3, PER_SAMPLE)),
    ],
)
def test_sharded_solve_equals_the_solve_on_one_device(solver, steps):
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    batch_sharding = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    x0, labels = noise(16, 2, 2), jnp.arange(16) % 4

    def field(t, x, cond):
        return GAUSSIAN.velocity(t, x) + cond[:, None, None].astype(x.dtype)

    solve = jax.jit(lambda x, c: sample(field, x, c, solver=solver, steps=steps, save_at=[0.5]))
    expected = solve(x0, labels)
    sharded = solve(jax.device_put(x0, batch_sharding), jax.device_put(labels, batch_sharding))
    assert sharded.x1.sharding.is_equivalent_to(batch_sharding, 3)
    np.testing.assert_allclose(sharded.x1, expected.x1, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(sharded.nfe, expected.nfe)


class TracedField:
    """A velocity field that counts its traces."""

    def __init__(self):
        self.traces = 0

    def __call__(self, t, x, cond=None):
        self.traces += 1
        return GAUSSIAN.velocity(t, x)


@pytest.mark.slow
def test_all_tolerances_share_one_program():
    field, x0 = TracedField(), noise()
    solve = jax.jit(lambda x, steps: sample(field, x, solver=diffrax.Bosh3(), steps=steps))
    nfe = [int(solve(x0, AdaptiveSteps(1e-2, 1e-2)).nfe[0])]
    num_traces = field.traces
    nfe += [int(solve(x0, AdaptiveSteps(tol, tol)).nfe[0]) for tol in (1e-3, 1e-4)]
    assert nfe == sorted(set(nfe))
    assert field.traces == num_traces


@pytest.mark.slow
@pytest.mark.parametrize("solver", [Heun(), diffrax.Heun()])
def test_padded_grids_of_all_lengths_share_one_program(solver):
    field, x0 = TracedField(), noise()
    solve = jax.jit(lambda x, steps: sample(field, x, solver=solver, steps=steps))
    solve(x0, FixedSteps(uniform_grid(4)))
    num_traces = field.traces
    for num_steps in (1, 2, 4):
        grid = jnp.append(uniform_grid(num_steps), jnp.ones(4 - num_steps))
        samples = solve(x0, FixedSteps(grid))
        assert samples.nfe.tolist() == [2 * num_steps] * 6
        assert samples.stats.num_accepted.tolist() == [num_steps] * 6
        assert samples.succeeded.all()
        assert jnp.isfinite(samples.stats.step_ends).sum() == num_steps
    assert field.traces == num_traces
    expected = sample(GAUSSIAN.velocity, x0, solver=solver, steps=FixedSteps(uniform_grid(4)))
    np.testing.assert_allclose(samples.x1, expected.x1, rtol=1e-6)


@pytest.mark.slow
def test_bfloat16_points_are_solved_in_float32():
    x0 = noise().astype(jnp.bfloat16)
    for solver in (Heun(), diffrax.Heun()):
        x1 = sample(GAUSSIAN.velocity, x0, solver=solver, steps=FixedSteps(uniform_grid(2))).x1
        assert x1.dtype == jnp.float32


@pytest.mark.slow
def test_gradient_of_a_solve_matches_the_flow_map():
    # The flow has d x1 / d x0 = 0.5 everywhere.
    for solver, steps in (
        (RK4(), FixedSteps(uniform_grid(16))),
        (diffrax.Bosh3(), AdaptiveSteps(1e-4, 1e-4)),
    ):
        gradient = jax.grad(
            lambda x, solver=solver, steps=steps: jnp.sum(
                sample(GAUSSIAN.velocity, x, solver=solver, steps=steps).x1
            )
        )(noise())
        np.testing.assert_allclose(gradient, 0.5, atol=1e-3)
