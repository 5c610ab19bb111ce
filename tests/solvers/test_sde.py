"""The SDE has the flow's distributions for every rate, by fixed and by adaptive steps."""

from functools import cache, partial

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from scipy.stats import norm

from fmjax.paths import AffinePath, Cosine, Prediction, VariancePreserving, uniform_grid
from fmjax.solvers import (
    SDE_SOLVERS,
    AdaptiveSteps,
    ConstantRate,
    DecreasingRate,
    ErrorControl,
    Euler,
    EulerMaruyama,
    FixedSteps,
    Heun,
    IncreasingDecreasingRate,
    IncreasingRate,
    SigmaRate,
    StochasticHeun,
    classifier_free,
    sample,
    sample_sde,
)
from fmjax.solvers.steppers.sde import with_last_step
from tests.oracles import Gaussian, GaussianMixture
from tests.solvers.table import GAUSSIAN, CountedField, name, noise

PATH = AffinePath(Cosine())
RATES = (
    ConstantRate(),
    SigmaRate(schedule=Cosine()),
    SigmaRate(schedule=Cosine(), power=0.5),
    IncreasingRate(),
    DecreasingRate(),
    IncreasingDecreasingRate(),
)
FIXED = (EulerMaruyama(), StochasticHeun())
SLOW_SEA, SLOW_SRA1, SLOW_SHARK, SLOW_SPARK = [
    pytest.param(SDE_SOLVERS[each](), marks=pytest.mark.slow)
    for each in ("sea", "sra1", "shark", "spark")
]
# Made for noise of other kinds; they skip the drift at some of their stages.
SLOW_OTHERS = [
    pytest.param(each, marks=pytest.mark.slow)
    for each in (diffrax.SlowRK(), diffrax.GeneralShARK())
]
OWN = partial(AdaptiveSteps, control=ErrorControl.PER_SAMPLE)


def keys(batch, seed=1):
    return jax.random.split(jax.random.key(seed), batch)


def drift(t, x, w):
    """Of the Gaussian: u + w^2/2 score, at one time for all."""
    t = jnp.full(x.shape[:1], t, x.dtype)
    score = jax.grad(lambda x: jnp.sum(GAUSSIAN.log_density(t, x)))(x)
    return GAUSSIAN.velocity(t, x) + 0.5 * w**2 * score, jnp.ones(x.shape[:1], jnp.int32)


def one_of_all(i):
    """The rate number i, which may be traced: one program serves them all."""
    return lambda t: jnp.stack([rate(t) for rate in RATES])[i]


def solved_moments(solver, rate, num_steps):
    """Mean and standard deviation at t = 1 from N(0, 1), exactly.

    The Gaussian's drift is affine in x, so a step is too: x1 = a x + b dW + c. Three points tell.
    """
    grid = with_last_step(uniform_grid(num_steps).astype(jnp.float64), 0.0)
    x, dw = jnp.asarray([[0.0], [1.0], [0.0]]), jnp.asarray([[0.0], [0.0], [1.0]])

    def step(moments, interval):
        (mean, variance), (t0, t1) = moments, interval

        def rate_here(t):
            return jnp.where(t1 < 1.0, rate(t), 0.0)

        ends, _ = solver.advance_with_noise(drift, rate_here, t0, t1, x, dw)
        c, a, b = ends[0, 0], ends[1, 0] - ends[0, 0], ends[2, 0] - ends[0, 0]
        return (a * mean + c, a**2 * variance + b**2 * (t1 - t0)), None

    zero = jnp.zeros((), jnp.float64)
    (mean, variance), _ = jax.lax.scan(step, (zero, zero + 1.0), (grid[:-1], grid[1:]))
    return mean, jnp.sqrt(variance)


@pytest.mark.slow
@pytest.mark.parametrize(("solver", "order"), [(FIXED[0], 1), (FIXED[1], 2)], ids=name)
def test_moments_go_to_the_closed_form_at_the_weak_order_for_every_rate(solver, order):
    with jax.enable_x64(True):
        programs = [
            jax.jit(lambda i, n=n: jnp.stack(solved_moments(solver, one_of_all(i), n)))
            for n in (128, 256)
        ]
        for i in range(len(RATES)):
            coarse, fine = (
                np.abs(np.asarray(p(i)) - (GAUSSIAN.mean, GAUSSIAN.std)) for p in programs
            )
            slope = np.log2(np.linalg.norm(coarse) / np.linalg.norm(fine))
            assert abs(slope - order) < 0.1, RATES[i]
            assert fine.max() < (1e-2, 1e-4)[order - 1], RATES[i]


class NoiseFirst(StochasticHeun):
    """SiT's Heun: an ODE step from the point with its noise."""

    def advance_with_noise(self, field, rate, t0, t1, x, dw):
        x, h = x + rate(t0) * dw, t1 - t0
        k0, n0 = field(t0, x, rate(t0))
        k1, n1 = field(t1, x + h * k0, rate(t1))
        return x + 0.5 * h * (k0 + k1), n0 + n1


def test_noise_before_both_look_ups_is_of_weak_order_one():
    with jax.enable_x64(True):
        solved = partial(solved_moments, NoiseFirst(), ConstantRate())
        coarse, fine = (float(jax.jit(partial(solved, n))()[1]) for n in (128, 256))
    assert abs(np.log2((coarse - GAUSSIAN.std) / (fine - GAUSSIAN.std)) - 1.0) < 0.1


@pytest.mark.slow
def test_a_last_step_of_the_sde_without_its_noise_would_shrink_the_data():
    # Exactly: points at 0.96 with the right mean and spread, one Euler step of either to t = 1.
    t, h = jnp.asarray([0.96]), 0.04
    middle = PATH.schedule.alpha(t) * GAUSSIAN.mean
    spread = jnp.hypot(PATH.schedule.alpha(t) * GAUSSIAN.std, PATH.schedule.sigma(t))
    ends = jnp.stack([middle - spread, middle + spread])

    def std(w):
        low, high = (ends + h * drift(0.96, ends, w)[0])[:, 0]
        return 0.5 * float(high - low)

    assert abs(std(0.0) / GAUSSIAN.std - 1.0) < 0.01
    assert std(1.0) / GAUSSIAN.std - 1.0 < -0.07


def for_every_rate(oracle, solver, steps, num, **settings):
    """Samples of each rate, `[rate, num]`, in one dimension."""

    @jax.jit
    def solve(i, x0, keys):
        solved = sample_sde(
            oracle.velocity,
            PATH,
            x0,
            keys,
            rate=one_of_all(i),
            solver=solver,
            steps=steps,
            **settings,
        )
        return solved.x1[:, 0], solved.succeeded

    solved = [solve(i, noise(num, 1, seed=i), keys(num, i)) for i in range(len(RATES))]
    assert all(succeeded.all() for _, succeeded in solved)
    return np.stack([x1 for x1, _ in solved])


LOOSE = OWN(1e-2, 1e-2)
WAYS = [
    (EulerMaruyama(), FixedSteps(uniform_grid(400)), 8192),
    (StochasticHeun(), FixedSteps(uniform_grid(50)), 8192),
    (diffrax.ShARK(), LOOSE, 512),
]


@pytest.mark.parametrize(
    ("solver", "steps", "num"),
    # The exact moments above and the mixture below hold the same law.
    [pytest.param(*way, marks=pytest.mark.slow) for way in WAYS],
    ids=name,
)
def test_samples_of_a_gaussian_have_its_moments_for_every_rate(solver, steps, num):
    x1 = for_every_rate(GAUSSIAN, solver, steps, num)
    # Four standard errors, for 6 rates twice one chance in 1300; the discretisation's part is
    # below 2e-3 by the exact moments above, and for ShARK below its tolerance.
    error = GAUSSIAN.std / np.sqrt(num)
    np.testing.assert_allclose(x1.mean(axis=1), GAUSSIAN.mean, atol=4 * error + 2e-3)
    np.testing.assert_allclose(x1.std(axis=1), GAUSSIAN.std, atol=4 * error / np.sqrt(2) + 2e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("solver", "steps", "num"),
    [WAYS[1], pytest.param(*WAYS[2], marks=pytest.mark.slow)],
    ids=name,
)
def test_samples_of_a_mixture_have_its_distribution_for_every_rate(solver, steps, num):
    mixture = GaussianMixture(Cosine(), means=((-1.5,), (1.0,)), std=0.3)
    x1 = np.sort(for_every_rate(mixture, solver, steps, num), axis=1)
    exact = np.mean([norm.cdf((x1 - m) / mixture.std) for (m,) in mixture.means], axis=0)
    distance = np.abs(exact - (np.arange(num) + 0.5) / num).max(axis=1)
    # Kolmogorov and Smirnov: P(sqrt(n) D > 1.95) = 2 exp(-2 * 1.95^2) = 0.001 for each rate.
    assert np.all(distance < 1.95 / np.sqrt(num) + 2e-3)


@pytest.mark.parametrize("rate", [ConstantRate(0.0), SigmaRate(0.0, Cosine())])
@pytest.mark.parametrize(("solver", "plain"), [(FIXED[0], Euler()), (FIXED[1], Heun())], ids=name)
def test_without_noise_it_is_the_flow(solver, plain, rate):
    x0, steps = noise(), FixedSteps(uniform_grid(8))
    got = sample_sde(GAUSSIAN.velocity, PATH, x0, keys(6), rate=rate, solver=solver, steps=steps)
    want = sample(GAUSSIAN.velocity, x0, solver=plain, steps=steps)
    np.testing.assert_allclose(got.x1, want.x1, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(got.times, want.times, rtol=1e-6)
    assert got.nfe.tolist() == want.nfe.tolist()


@pytest.mark.parametrize("solver", FIXED, ids=name)
def test_paths_converge_at_the_strong_order_one(solver):
    finest, rate = 4096, DecreasingRate()
    steps = jax.random.normal(jax.random.key(3), (finest, 64, 1)) / np.sqrt(finest)

    @partial(jax.jit, static_argnums=0)
    def solve(num_steps):
        times = jnp.linspace(0.0, 1.0, num_steps + 1)
        dw = steps.reshape(num_steps, -1, 64, 1).sum(axis=1)

        def step(x, interval):
            return solver.advance_with_noise(drift, rate, *interval[:2], x, interval[2])[0], None

        return jax.lax.scan(step, noise(64, 1), (times[:-1], times[1:], dw))[0]

    fine = solve(finest)
    coarse, half = (float(jnp.sqrt(jnp.mean((solve(n) - fine) ** 2))) for n in (64, 256))
    # Were the error of n steps just C / n, the fine solve's own would make the slope
    # log4((1/64 - 1/4096) / (1/256 - 1/4096)) = 1.035. An rms over 64 paths is known to
    # 1 / sqrt(128) = 9 %; those of two grids go together, so the slope is better known.
    assert abs(np.log(coarse / half) / np.log(4.0) - 1.035) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("solver", [diffrax.ShARK(), SLOW_SRA1, SLOW_SPARK], ids=name)
def test_adaptive_steps_follow_the_path_of_the_key_within_the_tolerance(solver):
    x0 = noise(16, 2)

    def solve(steps):
        return jax.jit(
            partial(
                sample_sde, GAUSSIAN.velocity, PATH, rate=ConstantRate(), solver=solver, steps=steps
            )
        )(x0, keys(16))

    want = solve(FixedSteps(uniform_grid(512)))
    got = solve(OWN(1e-3, 1e-3))
    assert got.succeeded.all()
    # Errors below 1e-3 (1 + |x|) a step, of a sign of their own.
    np.testing.assert_allclose(got.x1, want.x1, atol=2e-3)
    assert len(set(got.nfe.tolist())) > 1


@pytest.mark.parametrize("prediction", Prediction)
def test_every_prediction_gives_the_same_samples(prediction):
    # Its alpha(0) is above zero: where a point is nothing but x0, x0 says nothing of x1.
    path = AffinePath(VariancePreserving())
    velocity = Gaussian(path.schedule).velocity

    def predict(t, x, cond):
        u = velocity(t, x)
        return path.convert(t, x, u, from_=Prediction.VELOCITY, to=prediction)

    steps = FixedSteps(uniform_grid(8))
    got = sample_sde(predict, path, noise(), keys(6), prediction=prediction, steps=steps)
    want = sample_sde(velocity, path, noise(), keys(6), steps=steps)
    np.testing.assert_allclose(got.x1, want.x1, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("solver", "steps"),
    [
        (StochasticHeun(), FixedSteps(uniform_grid(5))),
        pytest.param(diffrax.ShARK(), LOOSE, marks=pytest.mark.slow),
    ],
    ids=name,
)
class TestOfEachSampleAlone:
    """What holds for one sample whatever stands beside it."""

    @staticmethod
    @cache
    def solve(solver, steps):
        def field(t, x, cond):
            return GAUSSIAN.velocity(t, x) + cond[:, None]

        return jax.jit(
            partial(sample_sde, field, PATH, rate=ConstantRate(), solver=solver, steps=steps)
        )

    @pytest.mark.slow
    def test_its_noise_is_its_own_whoever_stands_beside_it(self, solver, steps):
        solve = self.solve(solver, steps)
        given = noise(8, 2), keys(8), jnp.linspace(0.0, 1.0, 8)
        whole = solve(*given)
        moved = solve(*(jnp.concatenate([a[5:2:-1], a[:5]]) for a in given))
        np.testing.assert_allclose(moved.x1[:3], whole.x1[5:2:-1], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(solve(*given).x1, whole.x1)
        assert jnp.all(solve(given[0], keys(8, 2), given[2]).x1 != whole.x1)

    @pytest.mark.slow
    def test_on_eight_devices_it_is_what_it_is_on_one(self, solver, steps):
        mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
        rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
        solve, given = self.solve(solver, steps), (noise(8, 2), keys(8), jnp.linspace(0.0, 1.0, 8))
        alone, spread = solve(*given), solve(*jax.device_put(given, rows))
        # Of adaptive steps too: their raster keeps rounding from moving them.
        assert spread.x1.sharding.is_equivalent_to(rows, 2)
        np.testing.assert_allclose(spread.x1, alone.x1, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(spread.nfe, alone.nfe)

    def test_noise_that_is_not_a_number_is_flagged_and_spoils_no_neighbour(self, solver, steps):
        solve = self.solve(solver, steps)
        k, cond = keys(8), jnp.zeros(8)
        well, ill = solve(noise(8, 2), k, cond), solve(noise(8, 2).at[3, 0].set(jnp.nan), k, cond)
        assert ill.succeeded.tolist() == [i != 3 for i in range(8)]
        others = np.arange(8) != 3
        np.testing.assert_array_equal(ill.x1[others], well.x1[others])
        np.testing.assert_array_equal(ill.nfe[others], well.nfe[others])


@pytest.mark.parametrize(
    "solver", [*FIXED, SLOW_SEA, SLOW_SRA1, SLOW_SHARK, SLOW_SPARK, *SLOW_OTHERS], ids=name
)
def test_fixed_steps_cost_what_the_field_counts(solver):
    field = CountedField(GAUSSIAN.velocity)
    steps = FixedSteps(jnp.asarray([0.0, 0.3, 0.5, 1.0]))
    solve = jax.jit(lambda x, k: sample_sde(field, PATH, x, k, solver=solver, steps=steps))
    samples, calls = field.counted(solve, noise(1, 2), keys(1))
    assert samples.nfe.tolist() == [calls]
    assert samples.num_accepted.tolist() == [3]
    assert samples.times.ravel().tolist() == pytest.approx([0.3, 0.5, 1.0])


@pytest.mark.slow
@pytest.mark.parametrize("solver", [diffrax.ShARK(), SLOW_SPARK], ids=name)
def test_adaptive_steps_cost_what_the_field_counts(solver):
    field = CountedField(GAUSSIAN.velocity)
    solve = jax.jit(
        lambda x, k: sample_sde(
            field, PATH, x, k, rate=ConstantRate(), solver=solver, steps=OWN(1e-3, 1e-3)
        )
    )
    samples, calls = field.counted(solve, noise(1, 2), keys(1))
    assert samples.nfe.tolist() == [calls]
    assert int(samples.num_rejected[0]) > 0
    taken = int(samples.num_accepted[0])
    ends = np.asarray(samples.times[0])
    assert np.all(np.diff(ends[:taken]) > 0.0)
    assert ends[taken - 2 : taken].tolist() == pytest.approx([0.96, 1.0])
    assert np.all(ends[taken:] == np.inf)


# Inside are the steps from 0.2 to 0.5 and, of ShARK, at 5/6 of a step, those from 0.1 to 0.4.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("solver", "nfe"), [(EulerMaruyama(), 10 + 4), (diffrax.ShARK(), 20 + 8)], ids=name
)
def test_guidance_costs_two_evaluations_inside_its_interval(solver, nfe):
    guided = classifier_free(GAUSSIAN.velocity, null_cond=0, scale=2.0, interval=(0.15, 0.55))
    labels, steps = jnp.zeros(6, jnp.int32), FixedSteps(uniform_grid(10))
    solve = jax.jit(partial(sample_sde, guided, PATH, solver=solver, steps=steps))
    assert solve(noise(), keys(6), labels).nfe.tolist() == [nfe] * 6


@pytest.mark.parametrize(
    ("times", "last_step", "want"),
    [
        ([0.0, 0.5, 1.0], 0.04, [0.5, 1.0]),  # Longer already.
        ([0.0, 0.5, 0.9, 1.0], 0.2, [0.5, 0.8, 1.0]),
        ([0.0, 0.5, 0.9, 0.95, 1.0], 0.2, [0.5, 0.8, 1.0]),  # Two times left out are one step.
        ([0.0, 0.99, 1.0], 0.0, [0.99, 1.0]),
        ([0.0, 1.0], 0.04, [1.0]),
    ],
)
def test_the_last_step_is_at_least_so_long_and_without_noise(times, last_step, want):
    def solve(keys):
        steps = FixedSteps(jnp.asarray(times))
        return sample_sde(
            lambda t, x, cond: 0.0 * x,
            PATH,
            noise(),
            keys,
            rate=at_the_start,
            steps=steps,
            last_step=last_step,
        )

    def at_the_start(t):
        return jnp.where(t < want[-2] if len(want) > 1 else False, 0.0, 1.0)

    solved = solve(keys(6))
    np.testing.assert_allclose(solved.times[: len(want)], want, rtol=1e-6)
    assert jnp.all(solved.times[len(want) :] == jnp.inf)
    assert solved.num_accepted.tolist() == [len(want)] * 6
    # The rate is one in the last step only, where it must not be felt.
    np.testing.assert_array_equal(solved.x1, noise())


@pytest.mark.parametrize("solver", [StochasticHeun(), SLOW_SEA], ids=name)
def test_grids_padded_with_ones_share_a_program_and_change_nothing(solver):
    @jax.jit
    def solve(x, k, times):
        return sample_sde(GAUSSIAN.velocity, PATH, x, k, solver=solver, steps=FixedSteps(times))

    alone = solve(noise(), keys(6), uniform_grid(4))
    padded = solve(noise(), keys(6), jnp.append(uniform_grid(4), jnp.ones(3)))
    np.testing.assert_allclose(padded.x1, alone.x1, rtol=1e-5, atol=1e-6)
    assert padded.nfe.tolist() == alone.nfe.tolist()
    assert padded.num_accepted.tolist() == [4] * 6
    # One step is the last step, which these take by Heun's method.
    flow = sample(GAUSSIAN.velocity, noise(), solver=Heun(), steps=FixedSteps(uniform_grid(1)))
    single = solve(noise(), keys(6), jnp.append(uniform_grid(1), jnp.ones(6)))
    np.testing.assert_allclose(single.x1, flow.x1, rtol=1e-5, atol=1e-6)
    assert single.nfe.tolist() == [2] * 6


@pytest.mark.parametrize("num_steps", [10, 30])
def test_a_grid_time_where_the_last_step_begins_makes_no_step_of_rounding(num_steps):
    for length in range(1, num_steps // 2):
        steps = np.diff(with_last_step(uniform_grid(num_steps), length / num_steps))
        assert (steps > 0.0).sum() == num_steps - length + 1
        assert steps[steps > 0.0].min() > 0.9 / num_steps


def test_half_precision_is_solved_in_float32():
    x0 = noise().astype(jnp.bfloat16)
    steps = FixedSteps(uniform_grid(2))
    assert sample_sde(GAUSSIAN.velocity, PATH, x0, keys(6), steps=steps).x1.dtype == jnp.float32


def refused(match, x0=None, k=None, field=GAUSSIAN.velocity, **settings):
    x0 = noise() if x0 is None else x0
    with pytest.raises(ValueError, match=match):
        sample_sde.__wrapped__(
            field,
            PATH,
            x0,
            keys(6) if k is None else k,
            **{"steps": FixedSteps(uniform_grid(4)), **settings},
        )


def test_refusals_are_one_clear_line():
    refused("x0 must be floating point, got int32", x0=jnp.ones((6, 2), jnp.int32))
    refused(
        r"keys must be typed keys of shape \(6,\), one per sample, got .* of shape \(5,\)",
        k=keys(5),
    )
    refused("keys must be typed keys .*, got uint32 of shape", k=jax.random.key_data(keys(6)))
    refused(r"predict_fn must return shape \(6, 3\), got \(6, 1\)", field=lambda t, x, c: x[:, :1])
    refused(r"last_step must lie in \[0, 1\), got 1.0", last_step=1.0)
    refused(
        "last_step must be positive with AdaptiveSteps, got 0.0",
        last_step=0.0,
        steps=LOOSE,
        solver=diffrax.ShARK(),
    )
    refused(
        "control must be PER_SAMPLE without slots for an SDE, got LARGEST_SAMPLE",
        solver=diffrax.ShARK(),
        steps=AdaptiveSteps(),
    )


@pytest.mark.parametrize(
    "solver",
    [Euler(), diffrax.Tsit5(), "shark", diffrax.ShARK, diffrax.HalfSolver(diffrax.ShARK())],
)
def test_what_is_no_sde_solver_is_refused(solver):
    refused("solver must be one of fmjax.solvers.SDE_SOLVERS, got", solver=solver)


@pytest.mark.parametrize("solver", [*FIXED, diffrax.SEA()], ids=name)
def test_adaptive_steps_need_an_error_estimate(solver):
    refused(
        f"steps must be FixedSteps for {type(solver).__name__}, which estimates no error",
        solver=solver,
        steps=LOOSE,
    )
