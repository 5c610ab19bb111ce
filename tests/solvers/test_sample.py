"""What `sample` promises whatever the solver: truth, error control, layout, one trace."""

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
from tests.solvers.table import GAUSSIAN, ends, noise

SHARED, OWN, WHOLE = (
    ErrorControl.LARGEST_SAMPLE,
    ErrorControl.PER_SAMPLE,
    ErrorControl.WHOLE_BATCH_RMS,
)


@pytest.mark.parametrize("control", [SHARED, OWN])
def test_samples_are_the_flow_map_within_the_tolerance(control):
    x0 = noise(16, 2, 2)
    samples = sample(GAUSSIAN.velocity, x0, steps=AdaptiveSteps(1e-5, 1e-5, control))
    # Local errors below 1e-5 (1 + |x|) over some ten steps.
    np.testing.assert_allclose(samples.x1, ends(x0), atol=2e-4)
    assert samples.succeeded.all()


def stiff_field(t, x, cond=None):
    """Sample 0 follows cos(20 t) along a steep valley, the others stand almost still."""
    rate = jnp.where(jnp.arange(len(x)) == 0, 30.0, 0.1)[:, None]
    wave = jnp.where(jnp.arange(len(x)) == 0, 20.0, 0.0)[:, None]
    t = t[:, None]
    return -rate * (x - jnp.cos(wave * t)) - wave * jnp.sin(wave * t)


@pytest.mark.slow
def test_one_stiff_sample_is_drowned_by_the_batch_rms_only():
    # It sets out at 10 where the answer is cos(20) + 9 exp(-30). 64 samples at tolerance 1e-2:
    # the whole batch's rms lets it err sqrt(64) times as much.
    x0 = jnp.ones((64, 1)).at[0, 0].set(10.0)
    want = np.cos(20.0)

    def error(control):
        steps = AdaptiveSteps(1e-3, 1e-3, control)
        solve = jax.jit(lambda x: sample(stiff_field, x, solver=diffrax.Dopri5(), steps=steps))
        samples = solve(x0)
        assert samples.succeeded.all()
        return abs(float(samples.x1[0, 0]) - want), samples

    drowned, _ = error(WHOLE)
    kept, shared = error(SHARED)
    alone, own = error(OWN)
    assert kept < 5e-3
    assert alone < 5e-3
    assert drowned > 3 * kept
    # By itself, no other sample pays for the stiff one.
    assert own.nfe[0] == shared.nfe[0]
    assert int(own.nfe[1:].max()) < int(own.nfe[0]) / 3


@pytest.mark.slow
@pytest.mark.parametrize("control", list(ErrorControl))
def test_a_noise_that_is_not_finite_fails_alone(control):
    x0 = noise(6, 2)
    bad = x0.at[2, 0].set(jnp.nan).at[4, 1].set(jnp.inf)
    solve = jax.jit(lambda x: sample(GAUSSIAN.velocity, x, steps=AdaptiveSteps(control=control)))
    samples = solve(bad)
    assert samples.succeeded.tolist() == [True, True, False, True, False, True]
    kept = np.asarray(samples.succeeded)
    # Local errors below 1e-4 (1 + |x|) over some ten steps.
    np.testing.assert_allclose(samples.x1[kept], ends(x0)[kept], atol=2e-3)
    if control is not OWN:
        assert np.isnan(samples.x1[~kept]).all()


@pytest.mark.slow
@pytest.mark.parametrize("control", list(ErrorControl))
def test_a_sample_that_is_lost_on_the_way_fails_alone(control):
    def field(t, x, cond):
        lost = (cond[:, None] == 1) & (t[:, None] > 0.5)
        return jnp.where(lost | jnp.isnan(cond[:, None]), jnp.nan, GAUSSIAN.velocity(t, x))

    x0, cond = noise(6, 2), jnp.zeros(6).at[2].set(1).at[4].set(jnp.nan)
    solve = jax.jit(lambda x: sample(field, x, cond, steps=AdaptiveSteps(control=control)))
    samples = solve(x0)
    assert samples.succeeded.tolist() == [True, True, False, True, False, True]
    kept = np.asarray(samples.succeeded)
    np.testing.assert_allclose(samples.x1[kept], ends(x0)[kept], atol=2e-3)


WAYS = [{"control": control} for control in ErrorControl] + [{"control": OWN, "slots": 2}]


@pytest.mark.slow
@pytest.mark.parametrize("value", [np.inf, np.nan])
@pytest.mark.parametrize("way", WAYS, ids=["largest", "own", "whole batch", "streaming"])
def test_a_velocity_that_is_not_finite_at_the_end_ends_its_sample_soon(way, value):
    # To one sample in six t = 1 happens. Alone it would take 3 steps of 6 evaluations.
    def field(t, x, cond):
        wrong = (t[:, None] >= 1.0) & (cond[:, None] == 1)
        return jnp.where(wrong, value, -x)

    x0, cond = noise(6, 2), jnp.zeros(6).at[2].set(1)
    samples = jax.jit(lambda x: sample(field, x, cond, steps=AdaptiveSteps(**way)))(x0)
    assert samples.succeeded.tolist() == [True, True, False, True, True, True]
    assert int(samples.nfe.max()) <= 60
    kept = np.asarray(samples.succeeded)
    np.testing.assert_allclose(samples.x1[kept], np.exp(-1.0) * x0[kept], rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS, ids=["largest", "own", "whole batch", "streaming"])
def test_a_velocity_that_grows_without_bound_towards_the_end_ends_early(way):
    # x_t = (1 - t) x0, but at t = 1 the field is 0 / 0 or -x / 0.
    def field(t, x, cond=None):
        return -x / (1.0 - t)[:, None]

    samples = jax.jit(lambda x: sample(field, x, steps=AdaptiveSteps(**way)))(noise(6, 2))
    assert not samples.succeeded.any()
    # Steps shrink with the time that is left, down to where it is 1.5e-5.
    assert int((samples.num_accepted + samples.num_rejected).max()) <= 80


@pytest.mark.slow
def test_a_mixture_is_carried_to_its_components():
    mixture = GaussianMixture(Cosine())
    x0 = noise(64, 2)
    steps = AdaptiveSteps(1e-4, 1e-4)
    x1 = sample(mixture.velocity, x0, solver=diffrax.Dopri5(), steps=steps).x1
    gaps = jnp.linalg.norm(x1[:, None] - jnp.asarray(mixture.means)[None], axis=-1).min(axis=1)
    # A sample of a component of std 0.3 in the plane is further than 4 std away with
    # probability exp(-8): one in 3,000.
    assert float(gaps.max()) < 1.2


@pytest.mark.slow
@pytest.mark.parametrize("schedule", [Linear(), Cosine()])
def test_every_point_goes_where_the_flow_map_of_a_mixture_takes_it(schedule):
    mixture = GaussianMixture(schedule, means=((-1.5,), (0.2,), (1.8,)))
    x0, times = np.linspace(-2.5, 2.5, 41), [0.25, 0.5, 0.75, 1.0]
    with jax.enable_x64(True):
        steps = AdaptiveSteps(1e-9, 1e-9)
        points = jnp.asarray(x0)[:, None]
        found = sample(
            mixture.velocity, points, solver=diffrax.Dopri8(), steps=steps, save_at=times
        )
        trajectory = np.asarray(found.trajectory)[..., 0]
        want = np.stack([mixture.flow_map(t, x0) for t in times])
    # Between two components neighbours are torn apart, and errors with them: at most
    # p_0(x0) / p_1(x1), 500 here, times some 1e-9 a step.
    np.testing.assert_allclose(trajectory, want, atol=2e-6)


@pytest.mark.slow
def test_proportional_control_takes_other_steps_to_the_same_end():
    x0 = noise(8)
    plain, steadier = (
        sample(GAUSSIAN.velocity, x0, steps=AdaptiveSteps(1e-5, 1e-5, pcoeff=p, icoeff=i))
        for p, i in ((0.0, 1.0), (0.4, 0.3))
    )
    num = min(int(plain.num_accepted[0]), int(steadier.num_accepted[0]))
    assert not np.array_equal(plain.times[:num], steadier.times[:num])
    np.testing.assert_allclose(steadier.x1, ends(x0), atol=2e-4)


def breaking_field(t, x, cond=None):
    return jnp.where(x > 50.0, jnp.nan, GAUSSIAN.velocity(t, x))


@pytest.mark.slow
def test_a_failing_sample_spoils_no_neighbour_under_its_own_steps():
    x0 = noise(4).at[2].set(100.0)
    steps = AdaptiveSteps(1e-4, 1e-4, OWN)
    samples = sample(breaking_field, x0, solver=diffrax.Bosh3(), steps=steps)
    assert samples.succeeded.tolist() == [True, True, False, True]
    good = np.asarray([0, 1, 3])
    np.testing.assert_allclose(samples.x1[good], ends(x0)[good], atol=1e-3)
    # It gives up as soon as its steps lead nowhere, not at max_steps.
    assert int(samples.num_rejected[2]) < 20


@pytest.mark.slow
def test_a_failing_sample_is_named_under_fixed_steps():
    x0 = noise(4).at[2].set(100.0)
    for solver in (Heun(), diffrax.Heun()):
        samples = sample(breaking_field, x0, solver=solver, steps=FixedSteps(uniform_grid(3)))
        assert samples.succeeded.tolist() == [True, True, False, True]


@pytest.mark.slow
def test_running_out_of_steps_is_a_failure_and_no_error():
    steps = AdaptiveSteps(1e-6, 1e-6, max_steps=3)
    samples = sample(GAUSSIAN.velocity, noise(), solver=diffrax.Bosh3(), steps=steps, save_at=[1.0])
    assert not samples.succeeded.any()
    assert samples.times.shape == (3,)
    assert samples.trajectory is not None
    assert jnp.isinf(samples.trajectory).all()
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
        (diffrax.Tsit5(), AdaptiveSteps(1e-6, 1e-6, OWN), 1e-4),
    ],
)
def test_trajectories_pass_through_the_flow_at_the_times_asked_for(solver, steps, error):
    x0, save_at = noise(), [0.0, 0.137, 0.5, 0.81, 1.0]
    samples = sample(GAUSSIAN.velocity, x0, solver=solver, steps=steps, save_at=save_at)
    assert samples.trajectory is not None
    assert samples.trajectory.shape == (5, 6, 3)
    for t, points in zip(save_at, samples.trajectory, strict=True):
        np.testing.assert_allclose(points, GAUSSIAN.flow_map(jnp.full(6, t), x0), atol=error)
    np.testing.assert_array_equal(samples.trajectory[0], x0)
    np.testing.assert_allclose(samples.trajectory[-1], samples.x1, atol=1e-5)


@pytest.mark.parametrize(
    ("solver", "steps"),
    [
        (Heun(), FixedSteps(uniform_grid(4))),
        (diffrax.Bosh3(), AdaptiveSteps(1e-3, 1e-3)),
        (diffrax.Bosh3(), AdaptiveSteps(1e-3, 1e-3, OWN)),
    ],
)
def test_sharded_points_stay_sharded_and_equal_those_of_one_device(solver, steps):
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    x0, labels = noise(16, 2, 2), jnp.arange(16) % 4

    def field(t, x, cond):
        return GAUSSIAN.velocity(t, x) + cond[:, None, None].astype(x.dtype)

    solve = jax.jit(lambda x, c: sample(field, x, c, solver=solver, steps=steps, save_at=[0.5]))
    alone = solve(x0, labels)
    spread = solve(jax.device_put(x0, rows), jax.device_put(labels, rows))
    assert spread.x1.sharding.is_equivalent_to(rows, 3)
    np.testing.assert_allclose(spread.x1, alone.x1, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(spread.nfe, alone.nfe)


class Traced:
    """A field that counts how often it is traced."""

    def __init__(self):
        self.traces = 0

    def __call__(self, t, x, cond=None):
        self.traces += 1
        return GAUSSIAN.velocity(t, x)


@pytest.mark.slow
def test_one_program_serves_all_tolerances():
    field, x0 = Traced(), noise()
    solve = jax.jit(lambda x, steps: sample(field, x, solver=diffrax.Bosh3(), steps=steps))
    nfe = [int(solve(x0, AdaptiveSteps(1e-2, 1e-2)).nfe[0])]
    once = field.traces
    nfe += [int(solve(x0, AdaptiveSteps(tol, tol)).nfe[0]) for tol in (1e-3, 1e-4)]
    assert nfe == sorted(set(nfe))
    assert field.traces == once


@pytest.mark.slow
@pytest.mark.parametrize("solver", [Heun(), diffrax.Heun()])
def test_one_program_serves_grids_of_all_lengths_padded_with_ones(solver):
    field, x0 = Traced(), noise()
    solve = jax.jit(lambda x, steps: sample(field, x, solver=solver, steps=steps))
    solve(x0, FixedSteps(uniform_grid(4)))
    once = field.traces
    for num_steps in (1, 2, 4):
        grid = jnp.append(uniform_grid(num_steps), jnp.ones(4 - num_steps))
        samples = solve(x0, FixedSteps(grid))
        assert samples.nfe.tolist() == [2 * num_steps] * 6
        assert samples.num_accepted.tolist() == [num_steps] * 6
        assert samples.succeeded.all()
        assert jnp.isfinite(samples.times).sum() == num_steps
    assert field.traces == once
    exact = sample(GAUSSIAN.velocity, x0, solver=solver, steps=FixedSteps(uniform_grid(4)))
    np.testing.assert_allclose(samples.x1, exact.x1, rtol=1e-6)


@pytest.mark.slow
def test_a_bfloat16_start_is_solved_in_float32():
    x0 = noise().astype(jnp.bfloat16)
    for solver in (Heun(), diffrax.Heun()):
        x1 = sample(GAUSSIAN.velocity, x0, solver=solver, steps=FixedSteps(uniform_grid(2))).x1
        assert x1.dtype == jnp.float32


@pytest.mark.slow
def test_the_gradient_flows_through_a_solve():
    # d x1 / d x0 of the flow is 0.5 everywhere.
    for solver, steps in (
        (RK4(), FixedSteps(uniform_grid(16))),
        (diffrax.Bosh3(), AdaptiveSteps(1e-4, 1e-4)),
    ):
        slope = jax.grad(
            lambda x, solver=solver, steps=steps: jnp.sum(
                sample(GAUSSIAN.velocity, x, solver=solver, steps=steps).x1
            )
        )(noise())
        np.testing.assert_allclose(slope, 0.5, atol=1e-3)
