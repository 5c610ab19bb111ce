"""Tests of diffusion samplers against closed forms, papers and diffusers."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.paths import (
    AffinePath,
    Cosine,
    CosineBetas,
    CountedField,
    Linear,
    LinearBetas,
    Polynomial,
    Prediction,
    VariancePreserving,
    time_at_angle,
    uniform_grid,
)
from fmjax.solvers import (
    DDIM,
    DIFFUSION_SAMPLERS,
    AdaptiveSteps,
    Ancestral,
    DPMSolverPP2M,
    Euler,
    FixedSteps,
    StepVariance,
    UniPC,
    sample,
    sample_diffusion,
)
from fmjax.solvers.steppers.ddim import StepCoefficients
from tests.oracles import Gaussian, GaussianMixture

PATHS = {"linear": AffinePath(Linear()), "cosine": AffinePath(Cosine())}
MEAN, STD = 1.0, 0.5
X0 = jax.random.normal(jax.random.key(0), (16, 2))
KEYS = jax.random.split(jax.random.key(1), 16)


def predictor(path, prediction=Prediction.X0):
    """Optimal predictor for Gaussian data."""
    oracle = Gaussian(path.schedule, MEAN, STD)

    def predict(t, x, cond=None):
        if prediction == Prediction.VELOCITY:
            return oracle.velocity(t, x)
        # E[x0 | x] by Bayes' rule. Converting the velocity divides by zero where the derivatives of
        # alpha and sigma are zero.
        alpha, sigma = (fn(t)[:, None] for fn in (path.schedule.alpha, path.schedule.sigma))
        noise = sigma * (x - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)
        return path.convert(t, x, noise, from_=Prediction.X0, to=prediction)

    return predict


def solve(path, sampler, times, x0=X0, keys=KEYS, prediction=Prediction.X0, **settings):
    steps = FixedSteps(times)
    run = jax.jit(
        lambda x0, keys: sample_diffusion(
            predictor(path, prediction),
            path,
            x0,
            keys,
            prediction=prediction,
            sampler=sampler,
            steps=steps,
            **settings,
        )
    )
    return run(x0, keys)


def test_ddim_equals_euler_on_the_linear_path():
    path, mixture = PATHS["linear"], GaussianMixture(Linear())
    steps = FixedSteps(uniform_grid(7))
    ddim = sample_diffusion(mixture.velocity, path, X0, sampler=DDIM(), steps=steps)
    euler = sample(mixture.velocity, X0, solver=Euler(), steps=steps)
    np.testing.assert_allclose(ddim.x1, euler.x1, atol=2e-6)
    np.testing.assert_array_equal(ddim.nfe, euler.nfe)


@pytest.mark.parametrize("schedule", [Cosine(), LinearBetas()])
def test_ddim_equals_euler_in_rescaled_variables(schedule):
    """With z = x / alpha and s = sigma / alpha the flow is dz/ds = x0(z)."""
    path = AffinePath(schedule)
    times = jnp.array([0.0, 0.3, 0.55, 1.0])
    samples = solve(path, DDIM(), times)
    x = X0
    for t0, t1 in zip(times[:-1], times[1:], strict=True):
        a0, s0, a1, s1 = (
            schedule.alpha(t0),
            schedule.sigma(t0),
            schedule.alpha(t1),
            schedule.sigma(t1),
        )
        noise = predictor(path)(jnp.full(16, t0), x)
        if a0 == 0.0:  # z is infinite, so take the limit.
            x1 = path.convert(jnp.full(16, t0), x, noise, from_=Prediction.X0, to=Prediction.X1)
            x = a1 * x1 + s1 * noise
        else:
            x = a1 * (x / a0 + (s1 / a1 - s0 / a0) * noise)
    # 1 / alpha(0) of LinearBetas amplifies rounding errors by 157.
    np.testing.assert_allclose(samples.x1, x, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "order"),
    [(DDIM(), 1), (DPMSolverPP2M(), 2), (UniPC(1), 2), (UniPC(2), 3)],
)
def test_sampler_converges_at_its_order(sampler, order):
    """Steps are equal in lambda, since equal steps in t do not refine lambda near the ends."""
    schedule = VariancePreserving()
    with jax.enable_x64(True):
        ends = jnp.array([0.0, 1.0])
        first, last = jnp.log(schedule.alpha(ends) / schedule.sigma(ends))

        def grid(num):
            times = time_at_angle(schedule, jnp.arctan(jnp.exp(jnp.linspace(first, last, num + 1))))
            return times.at[0].set(0.0).at[-1].set(1.0)

        x0 = jnp.asarray(X0, jnp.float64)
        exact = Gaussian(schedule, MEAN, STD).flow_map(jnp.ones(16), x0)
        errors = [
            jnp.abs(
                solve(
                    AffinePath(schedule), sampler, grid(num), x0, prediction=Prediction.VELOCITY
                ).x1
                - exact
            ).max()
            for num in (64, 128)
        ]
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.1)


def test_dpm_solver_pp_2m_matches_algorithm_2_of_the_paper():
    """Reference: arXiv:2211.01095, algorithm 2."""
    path, times = PATHS["cosine"], np.array([0.1, 0.3, 0.6, 0.9])
    with jax.enable_x64(True):
        oracle = predictor(path, Prediction.X1)
        a, s = (
            np.asarray(fn(jnp.asarray(times))) for fn in (path.schedule.alpha, path.schedule.sigma)
        )
        lam = np.log(a / s)
        x = np.asarray(X0, np.float64)
        memory = DPMSolverPP2M().start(jnp.asarray(x))
        actual, previous_data = jnp.asarray(x), None
        for n in range(3):
            data = oracle(jnp.full(16, times[n]), jnp.asarray(x))
            h = lam[n + 1] - lam[n]
            extrapolated = data
            if n > 0:
                r = (lam[n] - lam[n - 1]) / h
                extrapolated = (1 + 1 / (2 * r)) * data - 1 / (2 * r) * previous_data
            previous_data = data
            x = s[n + 1] / s[n] * x - a[n + 1] * np.expm1(-h) * np.asarray(extrapolated)
            coefficients = StepCoefficients(
                jnp.asarray(n),
                jnp.asarray(False),
                *((jnp.asarray(v[n]), jnp.asarray(v[n + 1])) for v in (a, s)),
            )
            actual, memory = DPMSolverPP2M().advance(coefficients, actual, data, data, None, memory)
            np.testing.assert_allclose(actual, x, rtol=1e-9)


@pytest.mark.parametrize(("order", "degree"), [(2, 2), (3, 3), (3, 2)])
def test_unipc_is_exact_for_polynomial_data_predictions(order, degree):
    """With data prediction D(lambda), `x / sigma` grows by the integral of `e^lambda D`.

    The corrector is exact for degree `order`, the predictor for degree `order - 1`.
    """
    with jax.enable_x64(True):
        lambdas = jnp.asarray([-1.5, -1.2, -0.7, -0.3, 0.2, 0.9])
        sigma = 1 / jnp.sqrt(1 + jnp.exp(2 * lambdas))
        alpha = sigma * jnp.exp(lambdas)
        coefficients = np.array([0.7, -1.0, 0.4, 0.3])[: degree + 1]
        data = np.polynomial.Polynomial(coefficients)
        nodes, weights = np.polynomial.legendre.leggauss(40)

        def integral(low, high):
            points = 0.5 * (high - low) * nodes + 0.5 * (high + low)
            return 0.5 * (high - low) * np.sum(weights * np.exp(points) * data(points))

        sampler = UniPC(order)
        x = jnp.zeros((1, 1))
        memory, corrected, predicted = sampler.start(x), [], []
        for n in range(5):
            step_coefficients = StepCoefficients(
                jnp.asarray(n),
                jnp.asarray(False),
                (alpha[n], alpha[n + 1]),
                (sigma[n], sigma[n + 1]),
            )
            x1 = jnp.full((1, 1), data(float(lambdas[n])))
            x, memory = sampler.advance(step_coefficients, x, x1, x1, None, memory)
            corrected.append(float(memory.x[0, 0]) / float(sigma[n]))
            predicted.append(float(x[0, 0]) / float(sigma[n + 1]))
        for n in range(order, 4):  # Enough previous predictions for the full order.
            expected = integral(float(lambdas[n]), float(lambdas[n + 1]))
            assert corrected[n + 1] - corrected[n] == pytest.approx(expected, rel=1e-9)
            if order == 3 and degree == 2:
                assert predicted[n] - corrected[n] == pytest.approx(expected, rel=1e-9)


@pytest.mark.slow
def test_ancestral_sampling_equals_ddim_with_eta_1():
    times = uniform_grid(5)
    ancestral, ddim = (
        solve(PATHS["cosine"], sampler, times).x1 for sampler in (Ancestral(), DDIM(1.0))
    )
    np.testing.assert_allclose(ancestral, ddim, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("variance", StepVariance)
def test_ancestral_samples_have_the_closed_form_moments(variance):
    """For Gaussian data each step is affine, so the moments follow a recursion."""
    schedule = LinearBetas()
    path = AffinePath(schedule)
    times = uniform_grid(50)
    # Standard errors for 16,384 values: 0.5 / 128 for the mean and 0.5 / 181 for the deviation.
    x0 = jax.random.normal(jax.random.key(2), (2048, 8))
    keys = jax.random.split(jax.random.key(3), 2048)
    x1 = solve(path, Ancestral(variance), times, x0, keys).x1
    mean, var = 0.0, 1.0
    a, s = (np.asarray(fn(times), np.float64) for fn in (schedule.alpha, schedule.sigma))
    for n in range(50):
        c2 = a[n] ** 2 * STD**2 + s[n] ** 2
        q = a[n] * s[n + 1] / (a[n + 1] * s[n])
        # E[x1 | x] = MEAN + gain (x - a MEAN); x0 = (x - a x1) / s.
        gain = a[n] * STD**2 / c2
        slope = a[n + 1] * gain + s[n + 1] * q * (1 - a[n] * gain) / s[n]
        offset = (a[n + 1] - s[n + 1] * q * a[n] / s[n]) * (1 - gain * a[n]) * MEAN
        scale = s[n + 1] if variance is StepVariance.POSTERIOR else s[n]
        added_variance = 0.0 if n == 49 else scale**2 * (1 - q**2)
        mean, var = slope * mean + offset, slope**2 * var + added_variance
    np.testing.assert_allclose(x1.mean(), mean, atol=4 * 0.5 / 128)
    np.testing.assert_allclose(x1.std(), np.sqrt(var), atol=4 * 0.5 / 181)


@pytest.mark.slow
def test_thousand_ancestral_steps_reach_the_data_moments():
    x0 = jax.random.normal(jax.random.key(2), (2048, 8))
    keys = jax.random.split(jax.random.key(3), 2048)
    samples = solve(AffinePath(CosineBetas()), Ancestral(), uniform_grid(1000), x0, keys)
    np.testing.assert_allclose(samples.x1.mean(), MEAN, atol=4 * 0.5 / 128)
    np.testing.assert_allclose(samples.x1.std(), STD, atol=4 * 0.5 / 181)
    assert (samples.nfe == 1000).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "schedule", [LinearBetas(), pytest.param(CosineBetas(), marks=pytest.mark.slow)]
)
def test_ddpm_noise_prediction_solves_the_flow_ode(schedule):
    """`sample` with the converted prediction gives the flow map from t = 0."""
    path = AffinePath(schedule)
    velocity = path.velocity_fn(predictor(path), Prediction.X0)
    samples = jax.jit(lambda x0: sample(velocity, x0, steps=AdaptiveSteps(1e-5, 1e-5)))(X0)
    assert samples.succeeded.all()
    exact = Gaussian(schedule, MEAN, STD).flow_map(jnp.ones(16), X0)
    np.testing.assert_allclose(samples.x1, exact, atol=3e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", DIFFUSION_SAMPLERS)
def test_samples_do_not_depend_on_the_batch(name):
    sampler, times = DIFFUSION_SAMPLERS[name](), uniform_grid(6)
    full = solve(PATHS["linear"], sampler, times).x1
    part = solve(PATHS["linear"], sampler, times, X0[3:5], KEYS[3:5]).x1
    np.testing.assert_array_equal(full[3:5], part)


@pytest.mark.parametrize("name", ["ancestral", "unipc"])
def test_padded_grid_on_eight_devices_gives_the_same_samples(name):
    sampler, path = DIFFUSION_SAMPLERS[name](), PATHS["cosine"]
    mesh = jax.make_mesh((8,), ("data",))
    batch_sharding = jax.sharding.NamedSharding(mesh, jax.P("data"))

    @jax.jit
    def solve_on_grid(x0, keys, times):
        return sample_diffusion(
            predictor(path),
            path,
            x0,
            keys,
            prediction=Prediction.X0,
            sampler=sampler,
            steps=FixedSteps(times),
        )

    expected = solve(path, sampler, uniform_grid(5))
    times = jnp.concatenate([uniform_grid(5), jnp.ones(3)])
    sharded = solve_on_grid(
        jax.device_put(X0, batch_sharding), jax.device_put(KEYS, batch_sharding), times
    )
    np.testing.assert_allclose(sharded.x1, expected.x1, atol=1e-6)
    assert sharded.x1.sharding.is_equivalent_to(batch_sharding, 2)
    assert (sharded.nfe == 5).all()
    assert (expected.nfe == 5).all()


def test_clip_bounds_the_data_prediction():
    """One step to t = 1 returns the data prediction. A large bound has no effect."""
    one_step = jnp.array([0.0, 1.0])
    x1 = solve(PATHS["linear"], DDIM(), one_step, prediction=Prediction.VELOCITY, clip=0.25).x1
    np.testing.assert_allclose(x1, 0.25)
    large_bound = solve(PATHS["cosine"], DDIM(), jnp.array([0.0, 0.5, 1.0]), clip=1e6).x1
    unclipped = solve(PATHS["cosine"], DDIM(), jnp.array([0.0, 0.5, 1.0])).x1
    np.testing.assert_allclose(large_bound, unclipped, atol=1e-5)


def test_nfe_counts_the_evaluations_of_the_predictor():
    two_evaluations = CountedField(
        predictor(PATHS["linear"]), lambda t: jnp.full(t.shape, 2, jnp.int32)
    )
    samples = sample_diffusion(
        two_evaluations,
        PATHS["linear"],
        X0,
        prediction=Prediction.X0,
        steps=FixedSteps(uniform_grid(3)),
    )
    assert (samples.nfe == 6).all()


def test_nan_source_point_fails_without_affecting_others():
    x0_with_nan = X0.at[2].set(jnp.nan)
    samples, expected = (
        solve(PATHS["linear"], UniPC(), uniform_grid(6), x0) for x0 in (x0_with_nan, X0)
    )
    np.testing.assert_array_equal(samples.succeeded, jnp.arange(16) != 2)
    np.testing.assert_array_equal(jnp.delete(samples.x1, 2, 0), jnp.delete(expected.x1, 2, 0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DDIM(-0.1), r"eta must lie in \[0.0, 1.0\], got -0.1"),
        (lambda: UniPC(4), r"order must lie in \[1, 3\], got 4"),
        (lambda: solve(PATHS["linear"], Euler(), uniform_grid(2)), "sampler must be one of"),
        (lambda: solve(PATHS["linear"], DDIM, uniform_grid(2)), "sampler must be one of"),
        (lambda: solve(PATHS["linear"], DDIM(), uniform_grid(2), clip=0.0), "clip must be posit"),
        (
            lambda: solve(PATHS["linear"], Ancestral(), uniform_grid(2), keys=KEYS[:3]),
            r"keys must be typed keys of shape \(16,\), one per sample, got .* of shape \(3,\)",
        ),
        (
            lambda: sample_diffusion(
                predictor(PATHS["linear"]),
                PATHS["linear"],
                X0,
                sampler=Ancestral(),
                steps=FixedSteps(uniform_grid(2)),
            ),
            "keys must be typed keys of shape .*, got None",
        ),
        (
            lambda: sample_diffusion(
                lambda t, x, cond: x[:1], PATHS["linear"], X0, steps=FixedSteps(uniform_grid(2))
            ),
            r"predict_fn must return shape \(16, 2\), got \(1, 2\)",
        ),
        (
            lambda: sample_diffusion(
                predictor(PATHS["linear"]), PATHS["linear"], X0, steps=AdaptiveSteps()
            ),
            "steps must be FixedSteps for a diffusion sampler",
        ),
        (
            lambda: sample_diffusion(
                predictor(PATHS["linear"]),
                PATHS["linear"],
                jnp.zeros((2, 2), int),
                steps=FixedSteps(uniform_grid(2)),
            ),
            "x0 must be floating point",
        ),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_invalid_arguments_raise_value_error(make, message):
    with pytest.raises(ValueError, match=message):
        make()


GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "flow-samplers.npz")


REFERENCES = {
    "dpm1_midpoint": DDIM(),
    "dpm2_midpoint": DPMSolverPP2M(),
    "unipc1_bh2": UniPC(1),
    "unipc2_bh2": UniPC(2),
    "unipc3_bh2": UniPC(3),
}


@pytest.mark.parametrize(("name", "sampler"), REFERENCES.items())
def test_steps_match_diffusers(name, sampler):
    """For the velocity `dx/dsigma = x A^T + b sigma + c` on the sigma grid of diffusers.

    Reference: diffusers 0.42.1 with `use_flow_sigmas`, in float32.
    """
    sigmas = np.asarray(GOLDEN[f"toy_{name}_sigmas"], np.float64)
    expected = GOLDEN[f"toy_{name}_samples"]
    matrix, b, c = (np.asarray(GOLDEN[f"toy_{letter}"], np.float64) for letter in "Abc")
    with jax.enable_x64(True):
        x = jnp.asarray(GOLDEN["toy_x"], jnp.float64)
        memory = sampler.start(x)
        for n in range(len(sigmas) - 1):
            velocity = x @ matrix.T + (b * sigmas[n] + c)[None]
            coefficients = StepCoefficients(
                n=jnp.asarray(n),
                last=jnp.asarray(n == len(sigmas) - 2),
                alpha=(jnp.asarray(1 - sigmas[n]), jnp.asarray(1 - sigmas[n + 1])),
                sigma=(jnp.asarray(sigmas[n]), jnp.asarray(sigmas[n + 1])),
                before_last=jnp.asarray(n == len(sigmas) - 3),
            )
            x1, x0 = x - sigmas[n] * velocity, x + (1 - sigmas[n]) * velocity
            x, memory = sampler.advance(coefficients, x, x1, x0, None, memory)
            np.testing.assert_allclose(x, expected[n + 1], atol=2e-5, err_msg=f"step {n}")


@pytest.mark.slow
@pytest.mark.parametrize("padding", [0, 2])
def test_unipc_lowers_its_order_in_the_last_steps(padding):
    """A solve_on_grid equals manual steps of orders 1, 2, 3, 2 and 1, also on a padded grid."""
    path, times = PATHS["cosine"], jnp.linspace(0.0, 1.0, 6)
    sampler = UniPC(3)
    predict = predictor(path)
    x, memory = X0, sampler.start(X0)
    alphas, sigmas = path.schedule.alpha(times), path.schedule.sigma(times)
    for n in range(5):
        alpha, sigma = (alphas[n], alphas[n + 1]), (sigmas[n], sigmas[n + 1])
        last, before_last = jnp.asarray(n == 4), jnp.asarray(n == 3)
        coefficients = StepCoefficients(jnp.asarray(n, jnp.int32), last, alpha, sigma, before_last)
        t = jnp.full(16, times[n])
        noise = predict(t, x)
        x1 = path.convert(t, x, noise, from_=Prediction.X0, to=Prediction.X1)
        x, memory = sampler.advance(coefficients, x, x1, noise, None, memory)
        assert int(memory.order) == (1, 2, 3, 2, 1)[n]
    padded = jnp.concatenate([times, jnp.ones(padding)])
    solve_on_grid = jax.jit(
        lambda times: (
            sample_diffusion(
                predict,
                path,
                X0,
                prediction=Prediction.X0,
                sampler=sampler,
                steps=FixedSteps(times),
            ).x1
        )
    )
    np.testing.assert_allclose(solve_on_grid(padded), x, atol=1e-5)


@pytest.mark.parametrize("last", [False, True])
def test_stochastic_steps_match_ddpm_and_ddim_equations(last):
    """Reference: arXiv:2006.11239, equations 7 and 11; arXiv:2010.02502, equations 12 and 16."""
    bar_t, bar_s = 0.35, 0.6  # alpha-bar at the start and at the end of the step.
    rng = np.random.default_rng(0)
    x, eps, z = rng.normal(size=(3, 4, 2))
    data = (x - np.sqrt(1 - bar_t) * eps) / np.sqrt(bar_t)
    with jax.enable_x64(True):
        coefficients = StepCoefficients(
            n=jnp.asarray(3),
            last=jnp.asarray(last),
            alpha=(jnp.sqrt(bar_t), jnp.sqrt(bar_s)),
            sigma=(jnp.sqrt(1 - bar_t), jnp.sqrt(1 - bar_s)),
        )

        def step(sampler):
            arrays = (jnp.asarray(value) for value in (x, data, eps, z))
            return sampler.advance(coefficients, *arrays, sampler.start(jnp.asarray(x)))[0]

        alpha = bar_t / bar_s
        beta = 1 - alpha
        mean = (x - beta / np.sqrt(1 - bar_t) * eps) / np.sqrt(alpha)
        posterior = (1 - bar_s) / (1 - bar_t) * beta
        for variance, value in ((StepVariance.POSTERIOR, posterior), (StepVariance.BETA, beta)):
            expected = mean + (0.0 if last else np.sqrt(value)) * z
            np.testing.assert_allclose(step(Ancestral(variance)), expected, rtol=1e-12)
        for eta in (0.0, 0.5, 1.0):
            std = eta * np.sqrt(posterior)
            expected = np.sqrt(bar_s) * data + np.sqrt(1 - bar_s - std**2) * eps + std * z
            np.testing.assert_allclose(step(DDIM(eta)), expected, rtol=1e-12)


@pytest.mark.parametrize("sampler", [DPMSolverPP2M(), UniPC(3)], ids=repr)
def test_steps_with_negligible_signal_do_not_change_the_result(sampler):
    """At the first three times alpha = t^4 is below 2e-9 sigma, which counts as zero.

    The prediction is constant, so every step is exact.
    """
    path, times = AffinePath(Polynomial(4.0)), jnp.asarray([0.0, 1e-3, 2e-3, 0.5, 0.9, 1.0])

    def predict(t, x, cond=None):
        return jnp.full_like(x, 0.5)

    samples = sample_diffusion(
        predict, path, X0, prediction=Prediction.X1, sampler=sampler, steps=FixedSteps(times)
    )
    np.testing.assert_allclose(samples.x1, np.full(X0.shape, 0.5), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [DDIM(1.0), UniPC(3)], ids=repr)
def test_grid_gradient_matches_finite_differences(sampler):
    path = PATHS["linear"]

    def total(inner):
        times = jnp.concatenate([jnp.zeros(1), inner, jnp.ones(2)])
        return sample_diffusion(
            lambda t, x, cond=None: x, path, X0, KEYS, sampler=sampler, steps=FixedSteps(times)
        ).x1.sum()

    with jax.enable_x64(True):
        inner, total = jnp.asarray([0.3, 0.6]), jax.jit(total)
        expected = [(total(inner + d) - total(inner - d)) / 2e-4 for d in 1e-4 * jnp.eye(2)]
        gradient = jax.jit(jax.grad(total))(inner)
    # The float32 sum of about 10 has an error of 1e-6, which is divided by 2e-4.
    np.testing.assert_allclose(gradient, expected, rtol=0.02, atol=0.05)
