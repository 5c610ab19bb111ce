"""Streaming: what is asked of it is that nobody can tell, but for the time it takes."""

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
OWN = AdaptiveSteps(1e-4, 1e-4, ErrorControl.PER_SAMPLE)


def streaming(slots, steps=OWN):
    return dataclasses.replace(steps, slots=slots)


def solver_of(steps, velocity_fn=MIXTURE.velocity, solver=None):
    solver = diffrax.Dopri5() if solver is None else solver
    return jax.jit(lambda x0, cond=None: sample(velocity_fn, x0, cond, solver=solver, steps=steps))


@pytest.fixture(autouse=True, scope="module")
def in_float64():
    """Steps follow from error estimates, which in float32 can be mere rounding."""
    with jax.enable_x64(True):
        yield


def assert_same(found, wanted):
    """Every bit of every field, NaN like NaN: for one program whose batch is another."""
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def assert_same_in_float32(found, wanted, *, x1=1e-5, times=1e-5):
    """Every count, and points and times within relative errors.

    On some processors XLA rounds a row of a batch by its place in it. Where a step's error is mere
    rounding, the length of the next one follows that.
    """
    np.testing.assert_allclose(found.x1, wanted.x1, rtol=x1, atol=x1)
    np.testing.assert_allclose(found.times, wanted.times, rtol=times, atol=times)
    rest = {"x1": 0, "times": 0}
    assert_same(found._replace(**rest), wanted._replace(**rest))


def assert_alike(found, wanted):
    """Every count, and the numbers but for rounding: for two programs.

    XLA contracts `a * b + c` in one program and not in another. 1e-16 of the velocity is up to
    1e-7 of a step's error estimate of 1e-9, and so 2e-8 of the length of the next.
    """
    for name in found._fields:
        ours, theirs = getattr(found, name), getattr(wanted, name)
        if ours is None:
            assert theirs is None
        elif jnp.issubdtype(ours.dtype, jnp.floating):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-9, err_msg=name)
        else:
            np.testing.assert_array_equal(ours, theirs, err_msg=name)


def rows(samples, index):
    return jax.tree.map(lambda a: a[index], samples)


@pytest.fixture(scope="module")
def alone(in_float64):
    """Each sample of the mixture solved by itself, in a batch of one."""
    x0, solve = noise(NUM, 2), solver_of(OWN)
    each = [solve(x0[i : i + 1]) for i in range(NUM)]
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *each)


@pytest.mark.slow
@pytest.mark.parametrize("slots", [None, 4, 3 * NUM])
def test_a_sample_ends_as_in_a_solve_of_its_own_whatever_the_slots(slots, alone):
    steps = OWN if slots is None else streaming(slots)
    samples = solver_of(steps)(noise(NUM, 2))
    assert_alike(samples, alone)
    assert samples.succeeded.all()
    # Samples that all cost the same would be no test.
    assert len(set(samples.nfe.tolist())) > 2
    assert samples.num_rejected.sum() > 0


@pytest.mark.slow
def test_a_sample_alone_is_the_one_among_others():
    """In float32, where a step's error is often mere rounding; the other slots are idle."""
    with jax.enable_x64(False):
        x0, solve = noise(NUM, 2), solver_of(streaming(4))
        samples = solve(x0)
        for i in (0, 5, NUM - 1):
            assert_same_in_float32(rows(samples, slice(i, i + 1)), solve(x0[i : i + 1]))


@pytest.mark.slow
def test_an_elementwise_field_has_the_same_answers_whatever_the_slots():
    gaussian = Gaussian(Cosine())
    with jax.enable_x64(False):
        x0 = noise(NUM, 16) * jnp.geomspace(0.01, 100.0, NUM, dtype=jnp.float32)[:, None]
        alone = solver_of(OWN, gaussian.velocity)
        wanted = jax.tree.map(
            lambda *parts: jnp.concatenate(parts), *(alone(x0[i : i + 1]) for i in range(NUM))
        )
        for slots in (1, 7, NUM):
            assert_same_in_float32(solver_of(streaming(slots), gaussian.velocity)(x0), wanted)
    assert len(set(wanted.nfe.tolist())) > 1


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
def test_every_kind_of_solver_streams_to_the_answer_of_the_whole_batch(solver):
    x0, steps = noise(8, 2), AdaptiveSteps(1e-2, 1e-2, ErrorControl.PER_SAMPLE, pcoeff=0.3)
    streamed = solver_of(streaming(3, steps), solver=solver)(x0)
    assert_alike(streamed, solver_of(steps, solver=solver)(x0))
    assert streamed.succeeded.all()


@pytest.mark.slow
def test_a_condition_travels_with_its_sample():
    # x' = rate (goal - x): steep ones take more steps, so that slots are refilled out of order.
    def field(t, x, cond):
        return cond["rate"][:, None] * (cond["goal"] - x)

    x0 = noise(NUM, 2)
    rate = jnp.linspace(20.0, 0.5, NUM)
    cond = {"rate": rate, "goal": 3.0 * noise(NUM, 2, seed=1)}
    solved = solver_of(streaming(3, AdaptiveSteps(1e-5, 1e-5, ErrorControl.PER_SAMPLE)), field)(
        x0, cond
    )
    wanted = cond["goal"] + jnp.exp(-rate)[:, None] * (x0 - cond["goal"])
    # Local errors below 1e-5 (1 + |x|) of some tens of steps, |x| up to 10.
    np.testing.assert_allclose(solved.x1, wanted, atol=1e-3)


def steep_valley(t, x, cond):
    """As steep as the condition says: follows cos(40 t)."""
    t = t[:, None]
    return -cond[:, None] * (x - jnp.cos(40 * t))


@pytest.mark.slow
def test_what_fails_is_flagged_and_spoils_no_neighbour():
    x0, rate = noise(NUM, 2), jnp.ones(NUM).at[2].set(2000.0)
    steps = AdaptiveSteps(1e-3, 1e-3, ErrorControl.PER_SAMPLE, max_steps=64)
    solve = solver_of(streaming(3, steps), steep_valley)
    kind = solve(x0, jnp.ones(NUM))
    assert kind.succeeded.all()
    samples = solve(x0.at[7, 1].set(jnp.nan), rate)
    well = np.setdiff1d(np.arange(NUM), [2, 7])
    np.testing.assert_array_equal(np.flatnonzero(samples.succeeded), well)
    assert_same(rows(samples, well), rows(kind, well))
    # The one that wore out took every step it had, and no more.
    assert samples.num_accepted[2] + samples.num_rejected[2] == 64
    assert samples.num_accepted[7] == 0
    wanted = solver_of(steps, steep_valley)(x0.at[7, 1].set(jnp.nan), rate)
    assert_alike(samples, wanted)


@pytest.mark.slow
def test_guidance_is_counted_at_each_samples_own_time():
    def field(t, x, cond):
        return MIXTURE.velocity(t, x) + 0.1 * cond[:, None]

    guided = classifier_free(field, 0.0, 2.0, interval=(0.2, 0.6))
    x0, cond = noise(NUM, 2), jnp.linspace(-1.0, 1.0, NUM)
    found = solver_of(streaming(3), guided)(x0, cond)
    assert_alike(found, solver_of(OWN, guided)(x0, cond))
    plain = solver_of(streaming(3), field)(x0, cond)
    assert (found.nfe > plain.nfe).all()


@pytest.mark.slow
def test_the_network_is_called_for_about_the_mean_of_the_samples():
    calls = []

    def field(t, x, cond):
        jax.debug.callback(lambda: calls.append(len(x)))
        return steep_valley(t, x, cond)

    num, slots, stages = 48, 4, 6
    rate = jnp.where(jnp.arange(num) % 8 == 0, 200.0, 1.0)
    x0 = noise(num, 2)
    samples = solver_of(streaming(slots, AdaptiveSteps(1e-3, 1e-3, OWN.control)), field)(x0, rate)
    jax.effects_barrier()
    assert samples.succeeded.all()
    attempts = samples.num_accepted + samples.num_rejected
    assert set(calls) == {slots}
    # Two calls open every chunk of the queue. Then whoever is free takes the next sample: such a
    # schedule ends before (mean load of a slot) + (the longest sample), whatever the order.
    most = 2 * num / slots + stages * (float(attempts.sum()) / slots + float(attempts.max()))
    assert len(calls) <= most
    # Each call is of use: no more calls than evaluations that were paid for.
    assert len(calls) >= float(samples.nfe.sum()) / slots
    # Batches of `slots` wait for their slowest.
    waited = attempts.reshape(-1, slots).max(axis=1).sum()
    assert len(calls) < 0.75 * stages * float(waited)


@pytest.mark.slow
def test_one_program_serves_all_tolerances():
    traces = []

    def field(t, x, cond):
        traces.append(t.shape)
        return MIXTURE.velocity(t, x)

    @jax.jit
    def solve(x0, tolerance):
        steps = AdaptiveSteps(tolerance, tolerance, ErrorControl.PER_SAMPLE, slots=4)
        return sample(field, x0, solver=diffrax.Dopri5(), steps=steps)

    loose = solve(noise(NUM, 2), jnp.float32(1e-2))
    first = len(traces)
    tight = solve(noise(NUM, 2), jnp.float32(1e-4))
    assert len(traces) == first
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
def test_a_network_gives_the_same_answers_whatever_the_order_of_the_queue(params):
    x0, cond = noise(NUM, 8), jnp.linspace(-2.0, 2.0, NUM)
    order = jax.random.permutation(jax.random.key(9), NUM)
    solve = solver_of(streaming(5), partial(network, params))
    assert_same(solve(x0[order], cond[order]), rows(solve(x0, cond), order))


def on_eight_devices(slots, params=None):
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    split = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))

    @jax.jit
    def solve(params, x0, cond):
        field = MIXTURE.velocity if params is None else partial(network, params)
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return sample(field, x0, cond, solver=diffrax.Dopri5(), steps=streaming(slots))

    def call(x0, cond):
        return solve(params, *jax.device_put((x0, cond), split))

    return call


def test_eight_devices_loop_by_themselves_to_the_answers_of_one(alone):
    samples = on_eight_devices(2)(noise(NUM, 2), jnp.zeros(NUM))
    assert_alike(samples, alone)
    assert {shard.data.shape for shard in samples.x1.addressable_shards} == {(NUM // 8, 2)}


@pytest.mark.slow
def test_eight_devices_have_the_answers_of_one_with_as_many_slots_in_float32():
    with jax.enable_x64(False):
        x0 = noise(NUM, 2)
        one = jax.jit(
            lambda x0, cond: sample(
                MIXTURE.velocity, x0, cond, solver=diffrax.Dopri5(), steps=streaming(2)
            )
        )
        found, wanted = (solve(x0, jnp.zeros(NUM)) for solve in (on_eight_devices(2), one))
        assert_same_in_float32(found, wanted, x1=5e-4, times=1e-2)


@pytest.mark.slow
def test_devices_are_given_the_weights_that_a_traced_field_closes_over(params):
    x0, cond = noise(NUM, 8), jnp.linspace(-2.0, 2.0, NUM)
    samples = on_eight_devices(2, params)(x0, cond)
    # The same number of slots on each device, so the same products of matrices.
    assert_alike(samples, solver_of(streaming(2), partial(network, params))(x0, cond))


def refused(message, steps, x0=None, **settings):
    with pytest.raises(ValueError, match=message):
        sample(MIXTURE.velocity, noise(4, 2) if x0 is None else x0, steps=steps(), **settings)


def test_what_cannot_stream_is_refused():
    four = partial(streaming, 4)
    refused("slots must be at least 1, got 0", partial(streaming, 0))
    refused(
        "control must be PER_SAMPLE if slots is set, got LARGEST_SAMPLE",
        partial(AdaptiveSteps, slots=4),
    )
    refused(
        r"solver must be explicit if slots is set, got Kvaerno3",
        four,
        solver=diffrax.Kvaerno3(),
    )
    refused(
        r"solver must be explicit if slots is set, got KenCarp3",
        four,
        solver=diffrax.KenCarp3(),
    )
    refused("save_at must be None with slots", four, save_at=[0.5])
    refused("x0 must hold at least one sample, got shape", four, x0=jnp.zeros((0, 2)))
    refused(
        "steps must be FixedSteps for Euler, which estimates no error", four, solver=diffrax.Euler()
    )


def test_a_batch_that_does_not_divide_by_the_devices_is_refused():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    with (
        jax.set_mesh(mesh),
        pytest.raises(ValueError, match="x0 must have a batch size divisible by 8"),
    ):
        sample(MIXTURE.velocity, noise(12, 2), steps=streaming(4))
