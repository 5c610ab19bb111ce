"""Tests that streaming gives the same samples as separate solves."""

import dataclasses
import math
from functools import partial

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from fmjax.paths import Cosine
from fmjax.solvers import AdaptiveSteps, ErrorControl, classifier_free, sample
from tests.oracles import Gaussian, GaussianMixture
from tests.solvers.table import noise

MIXTURE = GaussianMixture(Cosine())
NUM = 16
PER_SAMPLE = AdaptiveSteps(1e-4, 1e-4, ErrorControl.PER_SAMPLE)


def with_slots(slots, steps=PER_SAMPLE):
    return dataclasses.replace(steps, slots=slots)


def make_solver(steps, velocity_fn=MIXTURE.velocity, solver=None):
    solver = diffrax.Dopri5() if solver is None else solver
    return jax.jit(lambda x0, cond=None: sample(velocity_fn, x0, cond, solver=solver, steps=steps))


@pytest.fixture(autouse=True, scope="module")
def in_float64():
    """Enable float64, because error estimates in float32 can be mere rounding errors."""
    with jax.enable_x64(True):
        yield


def assert_equal(actual, expected):
    """Assert bitwise equality, with NaN equal to NaN, for one program and different batches."""
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def assert_close_in_float32(actual, expected, *, x1=1e-5, times=1e-5):
    """Assert equal counts, and points and times within relative tolerances.

    On some processors XLA's rounding of a row depends on its index. Where an error estimate is mere
    rounding, this changes the length of the next step.
    """
    np.testing.assert_allclose(actual.x1, expected.x1, rtol=x1, atol=x1)
    np.testing.assert_allclose(
        actual.stats.step_ends, expected.stats.step_ends, rtol=times, atol=times
    )
    actual, expected = (
        samples._replace(x1=0, stats=samples.stats._replace(step_ends=0))
        for samples in (actual, expected)
    )
    assert_equal(actual, expected)


def assert_close(actual, expected):
    """Assert equal counts, and floats up to rounding, for different programs.

    XLA may contract `a * b + c` in only one of the programs. A velocity error of 1e-16 is up to
    1e-7 of an error estimate of 1e-9, which changes the length of the next step by 2e-8.
    """

    def check(actual_value, expected_value):
        if jnp.issubdtype(actual_value.dtype, jnp.floating):
            np.testing.assert_allclose(actual_value, expected_value, rtol=1e-6, atol=1e-9)
        else:
            np.testing.assert_array_equal(actual_value, expected_value)

    jax.tree.map(check, actual, expected)


def take_rows(samples, index):
    return jax.tree.map(lambda a: a[index], samples)


@pytest.fixture(scope="module")
def separate_samples(in_float64):
    """Samples of the mixture, each solved in a batch of one."""
    x0, solve = noise(NUM, 2), make_solver(PER_SAMPLE)
    samples = [solve(x0[i : i + 1]) for i in range(NUM)]
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *samples)


@pytest.mark.slow
@pytest.mark.parametrize("slots", [None, 4, 3 * NUM])
def test_samples_equal_separate_solves_for_any_slots(slots, separate_samples):
    steps = PER_SAMPLE if slots is None else with_slots(slots)
    samples = make_solver(steps)(noise(NUM, 2))
    assert_close(samples, separate_samples)
    assert samples.succeeded.all()
    # The test needs samples of different cost.
    assert len(set(samples.nfe.tolist())) > 2
    assert samples.stats.num_rejected.sum() > 0


@pytest.mark.slow
def test_single_sample_equals_the_same_sample_in_a_batch():
    """In float32, where error estimates are often mere rounding errors. Unused slots are idle."""
    with jax.enable_x64(False):
        x0, solve = noise(NUM, 2), make_solver(with_slots(4))
        samples = solve(x0)
        for i in (0, 5, NUM - 1):
            assert_close_in_float32(take_rows(samples, slice(i, i + 1)), solve(x0[i : i + 1]))


@pytest.mark.slow
def test_elementwise_field_gives_equal_samples_for_any_slots():
    gaussian = Gaussian(Cosine())
    with jax.enable_x64(False):
        x0 = noise(NUM, 16) * jnp.geomspace(0.01, 100.0, NUM, dtype=jnp.float32)[:, None]
        solve = make_solver(PER_SAMPLE, gaussian.velocity)
        expected = jax.tree.map(
            lambda *parts: jnp.concatenate(parts), *(solve(x0[i : i + 1]) for i in range(NUM))
        )
        for slots in (1, 7, NUM):
            assert_close_in_float32(make_solver(with_slots(slots), gaussian.velocity)(x0), expected)
    assert len(set(expected.nfe.tolist())) > 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "solver",
    [
        diffrax.Tsit5(),
        pytest.param(diffrax.Bosh3(), marks=pytest.mark.slow),
        pytest.param(diffrax.Heun(), marks=pytest.mark.slow),
        diffrax.ReversibleHeun(),
    ],
    ids=lambda solver: type(solver).__name__,
)
def test_streaming_equals_the_batch_solve_for_every_solver(solver):
    x0, steps = noise(8, 2), AdaptiveSteps(1e-2, 1e-2, ErrorControl.PER_SAMPLE, pcoeff=0.3)
    samples = make_solver(with_slots(3, steps), solver=solver)(x0)
    assert_close(samples, make_solver(steps, solver=solver)(x0))
    assert samples.succeeded.all()


@pytest.mark.slow
def test_conditions_stay_with_their_samples():
    # x' = rate (goal - x). Large rates need more steps, so slots are refilled out of order.
    def field(t, x, cond):
        return cond["rate"][:, None] * (cond["goal"] - x)

    x0 = noise(NUM, 2)
    rate = jnp.linspace(20.0, 0.5, NUM)
    cond = {"rate": rate, "goal": 3.0 * noise(NUM, 2, seed=1)}
    samples = make_solver(with_slots(3, AdaptiveSteps(1e-5, 1e-5, ErrorControl.PER_SAMPLE)), field)(
        x0, cond
    )
    expected = cond["goal"] + jnp.exp(-rate)[:, None] * (x0 - cond["goal"])
    # Local errors are below 1e-5 (1 + |x|) over tens of steps, with |x| up to 10.
    np.testing.assert_allclose(samples.x1, expected, atol=1e-3)


def stiff_field(t, x, cond):
    """Field that approaches cos(40 t) at the rate given by the condition."""
    t = t[:, None]
    return -cond[:, None] * (x - jnp.cos(40 * t))


@pytest.mark.slow
def test_failed_samples_are_flagged_without_affecting_others():
    x0, rate = noise(NUM, 2), jnp.ones(NUM).at[2].set(2000.0)
    steps = AdaptiveSteps(1e-3, 1e-3, ErrorControl.PER_SAMPLE, max_steps=64)
    solve = make_solver(with_slots(3, steps), stiff_field)
    reference = solve(x0, jnp.ones(NUM))
    assert reference.succeeded.all()
    samples = solve(x0.at[7, 1].set(jnp.nan), rate)
    valid = np.setdiff1d(np.arange(NUM), [2, 7])
    np.testing.assert_array_equal(np.flatnonzero(samples.succeeded), valid)
    assert_equal(take_rows(samples, valid), take_rows(reference, valid))
    # Sample 2 used exactly `max_steps` steps.
    assert samples.stats.num_accepted[2] + samples.stats.num_rejected[2] == 64
    assert samples.stats.num_accepted[7] == 0
    expected = make_solver(steps, stiff_field)(x0.at[7, 1].set(jnp.nan), rate)
    assert_close(samples, expected)


@pytest.mark.slow
def test_guidance_is_counted_at_the_time_of_each_sample():
    def field(t, x, cond):
        return MIXTURE.velocity(t, x) + 0.1 * cond[:, None]

    guided = classifier_free(field, 0.0, 2.0, interval=(0.2, 0.6))
    x0, cond = noise(NUM, 2), jnp.linspace(-1.0, 1.0, NUM)
    samples = make_solver(with_slots(3), guided)(x0, cond)
    assert_close(samples, make_solver(PER_SAMPLE, guided)(x0, cond))
    unguided = make_solver(with_slots(3), field)(x0, cond)
    assert (samples.nfe > unguided.nfe).all()


@pytest.mark.slow
def test_number_of_network_calls_follows_the_mean_cost():
    calls = []

    def field(t, x, cond):
        jax.debug.callback(lambda: calls.append(len(x)))
        return stiff_field(t, x, cond)

    num, slots, stages = 48, 4, 6
    rate = jnp.where(jnp.arange(num) % 8 == 0, 200.0, 1.0)
    x0 = noise(num, 2)
    samples = make_solver(with_slots(slots, AdaptiveSteps(1e-3, 1e-3, PER_SAMPLE.control)), field)(
        x0, rate
    )
    jax.effects_barrier()
    assert samples.succeeded.all()
    attempts = samples.stats.num_accepted + samples.stats.num_rejected
    assert set(calls) == {slots}
    # Each chunk of the queue starts with two calls. Then each free slot takes the next sample, so
    # the schedule ends before (mean load of a slot) + (longest sample), in any order.
    max_calls = 2 * num / slots + stages * (float(attempts.sum()) / slots + float(attempts.max()))
    assert len(calls) <= max_calls
    # The counted evaluations do not exceed the evaluated rows.
    assert len(calls) >= float(samples.nfe.sum()) / slots
    # Batches of `slots` samples would wait for their slowest sample.
    batch_attempts = attempts.reshape(-1, slots).max(axis=1).sum()
    assert len(calls) < 0.75 * stages * float(batch_attempts)


@pytest.mark.slow
def test_all_tolerances_share_one_program():
    traces = []

    def field(t, x, cond):
        traces.append(t.shape)
        return MIXTURE.velocity(t, x)

    @jax.jit
    def solve(x0, tolerance):
        steps = AdaptiveSteps(tolerance, tolerance, ErrorControl.PER_SAMPLE, slots=4)
        return sample(field, x0, solver=diffrax.Dopri5(), steps=steps)

    loose = solve(noise(NUM, 2), jnp.float32(1e-2))
    num_traces = len(traces)
    tight = solve(noise(NUM, 2), jnp.float32(1e-4))
    assert len(traces) == num_traces
    assert tight.nfe.sum() > loose.nfe.sum()


def network(params, t, x, cond):
    hidden = jnp.tanh(x @ params["in"] + t[:, None] * params["time"] + cond[:, None])
    return hidden @ params["out"]


@pytest.fixture(scope="module")
def params(in_float64):
    shapes = {"in": (8, 64), "time": (1, 64), "out": (64, 8)}
    keys = jax.random.split(jax.random.key(5), len(shapes))
    return {
        name: 2.0 * jax.random.normal(key, shape) / math.sqrt(shape[0])
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


@pytest.mark.slow
def test_network_samples_do_not_depend_on_the_queue_order(params):
    x0, cond = noise(NUM, 8), jnp.linspace(-2.0, 2.0, NUM)
    order = jax.random.permutation(jax.random.key(9), NUM)
    solve = make_solver(with_slots(5), partial(network, params))
    assert_equal(solve(x0[order], cond[order]), take_rows(solve(x0, cond), order))


def make_sharded_solver(slots, params=None):
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    batch_sharding = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))

    @jax.jit
    def solve(params, x0, cond):
        field = MIXTURE.velocity if params is None else partial(network, params)
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return sample(field, x0, cond, solver=diffrax.Dopri5(), steps=with_slots(slots))

    def call(x0, cond):
        return solve(params, *jax.device_put((x0, cond), batch_sharding))

    return call


def test_eight_devices_give_the_samples_of_separate_solves(separate_samples):
    samples = make_sharded_solver(2)(noise(NUM, 2), jnp.zeros(NUM))
    assert_close(samples, separate_samples)
    assert {shard.data.shape for shard in samples.x1.addressable_shards} == {(NUM // 8, 2)}


@pytest.mark.slow
def test_eight_devices_match_one_device_in_float32():
    with jax.enable_x64(False):
        x0 = noise(NUM, 2)
        single_device = jax.jit(
            lambda x0, cond: sample(
                MIXTURE.velocity, x0, cond, solver=diffrax.Dopri5(), steps=with_slots(2)
            )
        )
        actual, expected = (
            solve(x0, jnp.zeros(NUM)) for solve in (make_sharded_solver(2), single_device)
        )
        assert_close_in_float32(actual, expected, x1=5e-4, times=1e-2)


@pytest.mark.slow
def test_devices_receive_the_weights_of_a_traced_field(params):
    x0, cond = noise(NUM, 8), jnp.linspace(-2.0, 2.0, NUM)
    samples = make_sharded_solver(2, params)(x0, cond)
    # Equal slots per device give matrix products of equal shapes.
    assert_close(samples, make_solver(with_slots(2), partial(network, params))(x0, cond))


def assert_refused(message, steps, x0=None, **settings):
    with pytest.raises(ValueError, match=message):
        sample(MIXTURE.velocity, noise(4, 2) if x0 is None else x0, steps=steps(), **settings)


def test_unsupported_streaming_settings_are_refused():
    four_slots = partial(with_slots, 4)
    assert_refused("slots must be at least 1, got 0", partial(with_slots, 0))
    assert_refused(
        "control must be PER_SAMPLE if slots is set, got LARGEST_SAMPLE",
        partial(AdaptiveSteps, slots=4),
    )
    assert_refused(
        r"solver must be explicit if slots is set, got Kvaerno3",
        four_slots,
        solver=diffrax.Kvaerno3(),
    )
    assert_refused(
        r"solver must be explicit if slots is set, got KenCarp3",
        four_slots,
        solver=diffrax.KenCarp3(),
    )
    assert_refused("save_at must be None with slots", four_slots, save_at=[0.5])
    assert_refused("x0 must hold at least one sample, got shape", four_slots, x0=jnp.zeros((0, 2)))
    assert_refused(
        "steps must be FixedSteps for Euler, which estimates no error",
        four_slots,
        solver=diffrax.Euler(),
    )


def test_batch_not_divisible_by_the_devices_is_refused():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    with (
        jax.set_mesh(mesh),
        pytest.raises(ValueError, match="x0 must have a batch size divisible by 8"),
    ):
        sample(MIXTURE.velocity, noise(12, 2), steps=with_slots(4))
