"""Tests that SDE solvers sample the distributions of the flow for every diffusion rate."""

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
from tests.solvers.table import GAUSSIAN, CountedField, noise, solver_id

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
    pytest.param(SDE_SOLVERS[name](), marks=pytest.mark.slow)
    for name in ("sea", "sra1", "shark", "spark")
]
# Solvers for other types of noise, which skip the drift at some stages.
SLOW_OTHERS = [
    pytest.param(solver, marks=pytest.mark.slow)
    for solver in (diffrax.SlowRK(), diffrax.GeneralShARK())
]
PER_SAMPLE = partial(AdaptiveSteps, control=ErrorControl.PER_SAMPLE)


def keys(batch, seed=1):
    return jax.random.split(jax.random.key(seed), batch)


def drift(t, x, w):
    """Drift u + w^2 / 2 score of the Gaussian at one time for all samples, and evaluations."""
    t = jnp.full(x.shape[:1], t, x.dtype)
    score = jax.grad(lambda x: jnp.sum(GAUSSIAN.log_density(t, x)))(x)
    return GAUSSIAN.velocity(t, x) + 0.5 * w**2 * score, jnp.ones(x.shape[:1], jnp.int32)


def indexed_rate(i):
    """Rate with index `i`, which may be traced so that all rates share one program."""
    return lambda t: jnp.stack([rate(t) for rate in RATES])[i]


def solved_moments(solver, rate, num_steps):
    """Exact mean and standard deviation at t = 1 of a solve that starts from N(0, 1).

    The drift is affine in x, so each step is x1 = a x + b dW + c. Three points determine a, b, c.
    """
    grid = with_last_step(uniform_grid(num_steps).astype(jnp.float64), 0.0)
    x, dw = jnp.asarray([[0.0], [1.0], [0.0]]), jnp.asarray([[0.0], [0.0], [1.0]])

    def step(moments, interval):
        (mean, variance), (t0, t1) = moments, interval

        def step_rate(t):
            return jnp.where(t1 < 1.0, rate(t), 0.0)

        x1, _ = solver.advance_with_noise(drift, step_rate, t0, t1, x, dw)
        c, a, b = x1[0, 0], x1[1, 0] - x1[0, 0], x1[2, 0] - x1[0, 0]
        return (a * mean + c, a**2 * variance + b**2 * (t1 - t0)), None

    zero = jnp.zeros((), jnp.float64)
    (mean, variance), _ = jax.lax.scan(step, (zero, zero + 1.0), (grid[:-1], grid[1:]))
    return mean, jnp.sqrt(variance)


@pytest.mark.slow
@pytest.mark.parametrize(("solver", "order"), [(FIXED[0], 1), (FIXED[1], 2)], ids=solver_id)
def test_moments_converge_at_the_weak_order_for_every_rate(solver, order):
    with jax.enable_x64(True):
        programs = [
            jax.jit(lambda i, n=n: jnp.stack(solved_moments(solver, indexed_rate(i), n)))
            for n in (128, 256)
        ]
        for i in range(len(RATES)):
            coarse, fine = (
                np.abs(np.asarray(program(i)) - (GAUSSIAN.mean, GAUSSIAN.std))
                for program in programs
            )
            slope = np.log2(np.linalg.norm(coarse) / np.linalg.norm(fine))
            assert abs(slope - order) < 0.1, RATES[i]
            assert fine.max() < (1e-2, 1e-4)[order - 1], RATES[i]


class NoiseFirst(StochasticHeun):
    """Heun's method of SiT, which adds the noise before an ODE step."""

    def advance_with_noise(self, field, rate, t0, t1, x, dw):
        x, h = x + rate(t0) * dw, t1 - t0
        k0, n0 = field(t0, x, rate(t0))
        k1, n1 = field(t1, x + h * k0, rate(t1))
        return x + 0.5 * h * (k0 + k1), n0 + n1


def test_noise_before_the_heun_step_has_weak_order_one():
    with jax.enable_x64(True):
        solved = partial(solved_moments, NoiseFirst(), ConstantRate())
        coarse, fine = (float(jax.jit(partial(solved, n))()[1]) for n in (128, 256))
    assert abs(np.log2((coarse - GAUSSIAN.std) / (fine - GAUSSIAN.std)) - 1.0) < 0.1


@pytest.mark.slow
def test_last_sde_step_without_noise_shrinks_the_data():
    # One Euler step of the ODE or SDE drift from points with the exact moments at t = 0.96.
    t, h = jnp.asarray([0.96]), 0.04
    mean = PATH.schedule.alpha(t) * GAUSSIAN.mean
    std = jnp.hypot(PATH.schedule.alpha(t) * GAUSSIAN.std, PATH.schedule.sigma(t))
    points = jnp.stack([mean - std, mean + std])

    def final_std(w):
        low, high = (points + h * drift(0.96, points, w)[0])[:, 0]
        return 0.5 * float(high - low)

    assert abs(final_std(0.0) / GAUSSIAN.std - 1.0) < 0.01
    assert final_std(1.0) / GAUSSIAN.std - 1.0 < -0.07


def samples_for_all_rates(oracle, solver, steps, num, **settings):
    """Samples of every rate in one dimension, `[rate, num]`."""

    @jax.jit
    def solve(i, x0, keys):
        samples = sample_sde(
            oracle.velocity,
            PATH,
            x0,
            keys,
            rate=indexed_rate(i),
            solver=solver,
            steps=steps,
            **settings,
        )
        return samples.x1[:, 0], samples.succeeded

    results = [solve(i, noise(num, 1, seed=i), keys(num, i)) for i in range(len(RATES))]
    assert all(succeeded.all() for _, succeeded in results)
    return np.stack([x1 for x1, _ in results])


LOOSE = PER_SAMPLE(1e-2, 1e-2)
SOLVERS_AND_STEPS = [
    (EulerMaruyama(), FixedSteps(uniform_grid(400)), 8192),
    (StochasticHeun(), FixedSteps(uniform_grid(50)), 8192),
    (diffrax.ShARK(), LOOSE, 512),
]


@pytest.mark.parametrize(
    ("solver", "steps", "num"),
    # The exact moments and the mixture test check the same property.
    [pytest.param(*values, marks=pytest.mark.slow) for values in SOLVERS_AND_STEPS],
    ids=solver_id,
)
def test_gaussian_samples_have_exact_moments_for_every_rate(solver, steps, num):
    x1 = samples_for_all_rates(GAUSSIAN, solver, steps, num)
    # Four standard errors: the 12 checks fail with probability 1 / 1300. The discretization error
    # is below 2e-3 by the exact moments above, and for ShARK below its tolerance.
    standard_error = GAUSSIAN.std / np.sqrt(num)
    np.testing.assert_allclose(x1.mean(axis=1), GAUSSIAN.mean, atol=4 * standard_error + 2e-3)
    np.testing.assert_allclose(
        x1.std(axis=1), GAUSSIAN.std, atol=4 * standard_error / np.sqrt(2) + 2e-3
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("solver", "steps", "num"),
    [SOLVERS_AND_STEPS[1], pytest.param(*SOLVERS_AND_STEPS[2], marks=pytest.mark.slow)],
    ids=solver_id,
)
def test_mixture_samples_have_exact_distribution_for_every_rate(solver, steps, num):
    mixture = GaussianMixture(Cosine(), means=((-1.5,), (1.0,)), std=0.3)
    x1 = np.sort(samples_for_all_rates(mixture, solver, steps, num), axis=1)
    exact = np.mean([norm.cdf((x1 - mean) / mixture.std) for (mean,) in mixture.means], axis=0)
    statistic = np.abs(exact - (np.arange(num) + 0.5) / num).max(axis=1)
    # Kolmogorov-Smirnov test: P(sqrt(n) D > 1.95) = 2 exp(-2 * 1.95^2) = 0.001 for each rate.
    assert np.all(statistic < 1.95 / np.sqrt(num) + 2e-3)


@pytest.mark.parametrize("rate", [ConstantRate(0.0), SigmaRate(0.0, Cosine())])
@pytest.mark.parametrize(
    ("solver", "ode_solver"), [(FIXED[0], Euler()), (FIXED[1], Heun())], ids=solver_id
)
def test_zero_rate_solves_the_flow_ode(solver, ode_solver, rate):
    x0, steps = noise(), FixedSteps(uniform_grid(8))
    actual = sample_sde(GAUSSIAN.velocity, PATH, x0, keys(6), rate=rate, solver=solver, steps=steps)
    expected = sample(GAUSSIAN.velocity, x0, solver=ode_solver, steps=steps)
    np.testing.assert_allclose(actual.x1, expected.x1, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(actual.stats.step_ends, expected.stats.step_ends, rtol=1e-6)
    assert actual.nfe.tolist() == expected.nfe.tolist()


@pytest.mark.parametrize("solver", FIXED, ids=solver_id)
def test_trajectories_converge_at_strong_order_one(solver):
    finest, rate = 4096, DecreasingRate()
    increments = jax.random.normal(jax.random.key(3), (finest, 64, 1)) / np.sqrt(finest)

    @partial(jax.jit, static_argnums=0)
    def solve(num_steps):
        times = jnp.linspace(0.0, 1.0, num_steps + 1)
        dw = increments.reshape(num_steps, -1, 64, 1).sum(axis=1)

        def step(x, interval):
            return solver.advance_with_noise(drift, rate, *interval[:2], x, interval[2])[0], None

        return jax.lax.scan(step, noise(64, 1), (times[:-1], times[1:], dw))[0]

    fine = solve(finest)
    coarse, half = (float(jnp.sqrt(jnp.mean((solve(n) - fine) ** 2))) for n in (64, 256))
    # If the error of n steps is C / n, the error of the fine solve makes the slope
    # log4((1/64 - 1/4096) / (1/256 - 1/4096)) = 1.035. The rms over 64 trajectories has a relative
    # standard error of 1 / sqrt(128) = 9 %. The slope is more accurate: both grids share the noise.
    assert abs(np.log(coarse / half) / np.log(4.0) - 1.035) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("solver", [diffrax.ShARK(), SLOW_SRA1, SLOW_SPARK], ids=solver_id)
def test_adaptive_samples_match_a_fine_grid_with_the_same_keys(solver):
    x0 = noise(16, 2)

    def solve(steps):
        return jax.jit(
            partial(
                sample_sde, GAUSSIAN.velocity, PATH, rate=ConstantRate(), solver=solver, steps=steps
            )
        )(x0, keys(16))

    expected = solve(FixedSteps(uniform_grid(512)))
    actual = solve(PER_SAMPLE(1e-3, 1e-3))
    assert actual.succeeded.all()
    # Local errors are below 1e-3 (1 + |x|), with independent signs.
    np.testing.assert_allclose(actual.x1, expected.x1, atol=2e-3)
    assert len(set(actual.nfe.tolist())) > 1


@pytest.mark.parametrize("prediction", Prediction)
def test_samples_do_not_depend_on_the_prediction(prediction):
    # VariancePreserving has alpha(0) > 0. With alpha = 0, x0 does not determine x1.
    path = AffinePath(VariancePreserving())
    velocity = Gaussian(path.schedule).velocity

    def predict(t, x, cond):
        u = velocity(t, x)
        return path.convert(t, x, u, from_=Prediction.VELOCITY, to=prediction)

    steps = FixedSteps(uniform_grid(8))
    actual = sample_sde(predict, path, noise(), keys(6), prediction=prediction, steps=steps)
    expected = sample_sde(velocity, path, noise(), keys(6), steps=steps)
    np.testing.assert_allclose(actual.x1, expected.x1, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("solver", "steps"),
    [
        (StochasticHeun(), FixedSteps(uniform_grid(5))),
        pytest.param(diffrax.ShARK(), LOOSE, marks=pytest.mark.slow),
    ],
    ids=solver_id,
)
class TestSampleIndependence:
    """Each sample depends only on its source point, key and condition."""

    @staticmethod
    @cache
    def solve(solver, steps):
        def field(t, x, cond):
            return GAUSSIAN.velocity(t, x) + cond[:, None]

        return jax.jit(
            partial(sample_sde, field, PATH, rate=ConstantRate(), solver=solver, steps=steps)
        )

    @pytest.mark.slow
    def test_samples_depend_only_on_their_keys(self, solver, steps):
        solve = self.solve(solver, steps)
        inputs = noise(8, 2), keys(8), jnp.linspace(0.0, 1.0, 8)
        full = solve(*inputs)
        reordered = solve(*(jnp.concatenate([array[5:2:-1], array[:5]]) for array in inputs))
        np.testing.assert_allclose(reordered.x1[:3], full.x1[5:2:-1], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(solve(*inputs).x1, full.x1)
        assert jnp.all(solve(inputs[0], keys(8, 2), inputs[2]).x1 != full.x1)

    @pytest.mark.slow
    def test_eight_devices_give_the_samples_of_one(self, solver, steps):
        mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
        batch_sharding = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
        solve, inputs = self.solve(solver, steps), (noise(8, 2), keys(8), jnp.linspace(0.0, 1.0, 8))
        expected, sharded = solve(*inputs), solve(*jax.device_put(inputs, batch_sharding))
        # Adaptive steps end on a raster, so that rounding errors do not change them.
        assert sharded.x1.sharding.is_equivalent_to(batch_sharding, 2)
        np.testing.assert_allclose(sharded.x1, expected.x1, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(sharded.nfe, expected.nfe)

    def test_nan_source_point_fails_without_affecting_others(self, solver, steps):
        solve = self.solve(solver, steps)
        k, cond = keys(8), jnp.zeros(8)
        expected = solve(noise(8, 2), k, cond)
        samples = solve(noise(8, 2).at[3, 0].set(jnp.nan), k, cond)
        assert samples.succeeded.tolist() == [i != 3 for i in range(8)]
        others = np.arange(8) != 3
        np.testing.assert_array_equal(samples.x1[others], expected.x1[others])
        np.testing.assert_array_equal(samples.nfe[others], expected.nfe[others])


@pytest.mark.parametrize(
    "solver", [*FIXED, SLOW_SEA, SLOW_SRA1, SLOW_SHARK, SLOW_SPARK, *SLOW_OTHERS], ids=solver_id
)
def test_nfe_of_fixed_steps_equals_field_calls(solver):
    field = CountedField(GAUSSIAN.velocity)
    steps = FixedSteps(jnp.asarray([0.0, 0.3, 0.5, 1.0]))
    solve = jax.jit(lambda x, k: sample_sde(field, PATH, x, k, solver=solver, steps=steps))
    samples, calls = field.count_calls(solve, noise(1, 2), keys(1))
    assert samples.nfe.tolist() == [calls]
    assert samples.stats.num_accepted.tolist() == [3]
    assert samples.stats.step_ends.ravel().tolist() == pytest.approx([0.3, 0.5, 1.0])


@pytest.mark.slow
@pytest.mark.parametrize("solver", [diffrax.ShARK(), SLOW_SPARK], ids=solver_id)
def test_nfe_of_adaptive_steps_equals_field_calls(solver):
    field = CountedField(GAUSSIAN.velocity)
    solve = jax.jit(
        lambda x, k: sample_sde(
            field, PATH, x, k, rate=ConstantRate(), solver=solver, steps=PER_SAMPLE(1e-3, 1e-3)
        )
    )
    samples, calls = field.count_calls(solve, noise(1, 2), keys(1))
    assert samples.nfe.tolist() == [calls]
    assert int(samples.stats.num_rejected[0]) > 0
    num_accepted = int(samples.stats.num_accepted[0])
    times = np.asarray(samples.stats.step_ends[0])
    assert np.all(np.diff(times[:num_accepted]) > 0.0)
    assert times[num_accepted - 2 : num_accepted].tolist() == pytest.approx([0.96, 1.0])
    assert np.all(times[num_accepted:] == np.inf)


# Steps that start from 0.2 to 0.5 are guided. ShARK also evaluates at 5/6 of a step, which is
# guided for steps that start from 0.1 to 0.4.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("solver", "nfe"), [(EulerMaruyama(), 10 + 4), (diffrax.ShARK(), 20 + 8)], ids=solver_id
)
def test_guidance_costs_two_evaluations_inside_its_interval(solver, nfe):
    guided = classifier_free(GAUSSIAN.velocity, null_cond=0, scale=2.0, interval=(0.15, 0.55))
    labels, steps = jnp.zeros(6, jnp.int32), FixedSteps(uniform_grid(10))
    solve = jax.jit(partial(sample_sde, guided, PATH, solver=solver, steps=steps))
    assert solve(noise(), keys(6), labels).nfe.tolist() == [nfe] * 6


@pytest.mark.parametrize(
    ("times", "last_step", "expected"),
    [
        ([0.0, 0.5, 1.0], 0.04, [0.5, 1.0]),  # The last step is long enough.
        ([0.0, 0.5, 0.9, 1.0], 0.2, [0.5, 0.8, 1.0]),
        ([0.0, 0.5, 0.9, 0.95, 1.0], 0.2, [0.5, 0.8, 1.0]),  # Two times are removed.
        ([0.0, 0.99, 1.0], 0.0, [0.99, 1.0]),
        ([0.0, 1.0], 0.04, [1.0]),
    ],
)
def test_last_step_has_a_minimum_length_and_no_noise(times, last_step, expected):
    def solve(keys):
        steps = FixedSteps(jnp.asarray(times))
        return sample_sde(
            lambda t, x, cond: 0.0 * x,
            PATH,
            noise(),
            keys,
            rate=rate,
            steps=steps,
            last_step=last_step,
        )

    def rate(t):
        return jnp.where(t < expected[-2] if len(expected) > 1 else False, 0.0, 1.0)

    samples = solve(keys(6))
    np.testing.assert_allclose(samples.stats.step_ends[: len(expected)], expected, rtol=1e-6)
    assert jnp.all(samples.stats.step_ends[len(expected) :] == jnp.inf)
    assert samples.stats.num_accepted.tolist() == [len(expected)] * 6
    # The rate is 1 only in the last step, which adds no noise.
    np.testing.assert_array_equal(samples.x1, noise())


@pytest.mark.parametrize("solver", [StochasticHeun(), SLOW_SEA], ids=solver_id)
def test_padded_grids_share_a_program_and_keep_the_samples(solver):
    @jax.jit
    def solve(x, k, times):
        return sample_sde(GAUSSIAN.velocity, PATH, x, k, solver=solver, steps=FixedSteps(times))

    expected = solve(noise(), keys(6), uniform_grid(4))
    padded = solve(noise(), keys(6), jnp.append(uniform_grid(4), jnp.ones(3)))
    np.testing.assert_allclose(padded.x1, expected.x1, rtol=1e-5, atol=1e-6)
    assert padded.nfe.tolist() == expected.nfe.tolist()
    assert padded.stats.num_accepted.tolist() == [4] * 6
    # A single step is the last step, which these solvers take with Heun's method.
    flow = sample(GAUSSIAN.velocity, noise(), solver=Heun(), steps=FixedSteps(uniform_grid(1)))
    single = solve(noise(), keys(6), jnp.append(uniform_grid(1), jnp.ones(6)))
    np.testing.assert_allclose(single.x1, flow.x1, rtol=1e-5, atol=1e-6)
    assert single.nfe.tolist() == [2] * 6


@pytest.mark.parametrize("num_steps", [10, 30])
def test_grid_time_at_the_last_step_start_adds_no_tiny_step(num_steps):
    for length in range(1, num_steps // 2):
        steps = np.diff(with_last_step(uniform_grid(num_steps), length / num_steps))
        assert (steps > 0.0).sum() == num_steps - length + 1
        assert steps[steps > 0.0].min() > 0.9 / num_steps


def test_bfloat16_points_are_solved_in_float32():
    x0 = noise().astype(jnp.bfloat16)
    steps = FixedSteps(uniform_grid(2))
    assert sample_sde(GAUSSIAN.velocity, PATH, x0, keys(6), steps=steps).x1.dtype == jnp.float32


def assert_refused(match, x0=None, k=None, field=GAUSSIAN.velocity, **settings):
    x0 = noise() if x0 is None else x0
    with pytest.raises(ValueError, match=match):
        sample_sde.__wrapped__(
            field,
            PATH,
            x0,
            keys(6) if k is None else k,
            **{"steps": FixedSteps(uniform_grid(4)), **settings},
        )


def test_invalid_arguments_raise_value_error():
    assert_refused("x0 must be floating point, got int32", x0=jnp.ones((6, 2), jnp.int32))
    assert_refused(
        r"keys must be typed keys of shape \(6,\), one per sample, got .* of shape \(5,\)",
        k=keys(5),
    )
    assert_refused(
        "keys must be typed keys .*, got uint32 of shape", k=jax.random.key_data(keys(6))
    )
    assert_refused(
        r"predict_fn must return shape \(6, 3\), got \(6, 1\)", field=lambda t, x, c: x[:, :1]
    )
    assert_refused(r"last_step must lie in \[0, 1\), got 1.0", last_step=1.0)
    assert_refused(
        "last_step must be positive with AdaptiveSteps, got 0.0",
        last_step=0.0,
        steps=LOOSE,
        solver=diffrax.ShARK(),
    )
    assert_refused(
        "control must be PER_SAMPLE without slots for an SDE, got LARGEST_SAMPLE",
        solver=diffrax.ShARK(),
        steps=AdaptiveSteps(),
    )


@pytest.mark.parametrize(
    "solver",
    [Euler(), diffrax.Tsit5(), "shark", diffrax.ShARK, diffrax.HalfSolver(diffrax.ShARK())],
)
def test_non_sde_solver_is_refused(solver):
    assert_refused("solver must be one of fmjax.solvers.SDE_SOLVERS, got", solver=solver)


@pytest.mark.parametrize("solver", [*FIXED, diffrax.SEA()], ids=solver_id)
def test_adaptive_steps_require_an_error_estimate(solver):
    assert_refused(
        f"steps must be FixedSteps for {type(solver).__name__}, which estimates no error",
        solver=solver,
        steps=LOOSE,
    )
