"""Samplers of diffusion models against closed forms, each other, and the flow they follow."""

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
    """What the best network of a Gaussian predicts."""
    oracle = Gaussian(path.schedule, MEAN, STD)

    def predict(t, x, cond=None):
        if prediction == Prediction.VELOCITY:
            return oracle.velocity(t, x)
        # E[x0 | x] straight from Bayes: to make it of the velocity divides by zero where alpha and
        # sigma stand still.
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


def test_ddim_is_eulers_method_on_the_linear_path():
    path, mixture = PATHS["linear"], GaussianMixture(Linear())
    steps = FixedSteps(uniform_grid(7))
    found = sample_diffusion(mixture.velocity, path, X0, sampler=DDIM(), steps=steps)
    euler = sample(mixture.velocity, X0, solver=Euler(), steps=steps)
    np.testing.assert_allclose(found.x1, euler.x1, atol=2e-6)
    np.testing.assert_array_equal(found.nfe, euler.nfe)


@pytest.mark.parametrize("schedule", [Cosine(), LinearBetas()])
def test_ddim_is_eulers_method_for_x_over_alpha_in_sigma_over_alpha(schedule):
    """With z = x / alpha and s = sigma / alpha the flow is dz/ds = x0(z): one step of it."""
    path = AffinePath(schedule)
    times = jnp.array([0.0, 0.3, 0.55, 1.0])
    found = solve(path, DDIM(), times)
    x = X0
    for t0, t1 in zip(times[:-1], times[1:], strict=True):
        a0, s0, a1, s1 = (
            schedule.alpha(t0),
            schedule.sigma(t0),
            schedule.alpha(t1),
            schedule.sigma(t1),
        )
        noise = predictor(path)(jnp.full(16, t0), x)
        if a0 == 0.0:  # z is infinite: its limit.
            x1 = path.convert(jnp.full(16, t0), x, noise, from_=Prediction.X0, to=Prediction.X1)
            x = a1 * x1 + s1 * noise
        else:
            x = a1 * (x / a0 + (s1 / a1 - s0 / a0) * noise)
    # 1 / alpha(0) of the betas magnifies rounding by 157.
    np.testing.assert_allclose(found.x1, x, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "order"),
    [(DDIM(), 1), (DPMSolverPP2M(), 2), (UniPC(1), 2), (UniPC(2), 3)],
)
def test_errors_fall_at_the_samplers_order(sampler, order):
    """In equal steps of lambda, in which these methods are of their order.

    Equal steps of t stay long in lambda near the ends, however many there are.
    """
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


def test_dpm_solver_pp_2m_takes_the_papers_steps():
    """Algorithm 2 of arXiv:2211.01095, line by line."""
    path, times = PATHS["cosine"], np.array([0.1, 0.3, 0.6, 0.9])
    with jax.enable_x64(True):
        oracle = predictor(path, Prediction.X1)
        a, s = (
            np.asarray(fn(jnp.asarray(times))) for fn in (path.schedule.alpha, path.schedule.sigma)
        )
        lam = np.log(a / s)
        x = np.asarray(X0, np.float64)
        memory = DPMSolverPP2M().start(jnp.asarray(x))
        ours, before = jnp.asarray(x), None
        for n in range(3):
            data = oracle(jnp.full(16, times[n]), jnp.asarray(x))
            h = lam[n + 1] - lam[n]
            mixed = data
            if n > 0:
                r = (lam[n] - lam[n - 1]) / h
                mixed = (1 + 1 / (2 * r)) * data - 1 / (2 * r) * before
            before = data
            x = s[n + 1] / s[n] * x - a[n + 1] * np.expm1(-h) * np.asarray(mixed)
            stretch = StepCoefficients(
                jnp.asarray(n),
                jnp.asarray(False),
                *((jnp.asarray(v[n]), jnp.asarray(v[n + 1])) for v in (a, s)),
            )
            ours, memory = DPMSolverPP2M().advance(stretch, ours, data, data, None, memory)
            np.testing.assert_allclose(ours, x, rtol=1e-9)


@pytest.mark.parametrize(("order", "degree"), [(2, 2), (3, 3), (3, 2)])
def test_unipc_has_the_exact_solution_for_polynomials_of_its_order(order, degree):
    """With data D(lambda), `x / sigma` grows by the integral of `e^lambda D`.

    The corrector's polynomial is of degree `order`, the predictor's of one less.
    """
    with jax.enable_x64(True):
        lam = jnp.asarray([-1.5, -1.2, -0.7, -0.3, 0.2, 0.9])
        sigma = 1 / jnp.sqrt(1 + jnp.exp(2 * lam))
        alpha = sigma * jnp.exp(lam)
        coefficients = np.array([0.7, -1.0, 0.4, 0.3])[: degree + 1]
        data = np.polynomial.Polynomial(coefficients)
        fine = np.polynomial.legendre.leggauss(40)

        def integral(low, high):
            at = 0.5 * (high - low) * fine[0] + 0.5 * (high + low)
            return 0.5 * (high - low) * np.sum(fine[1] * np.exp(at) * data(at))

        sampler = UniPC(order)
        x = jnp.zeros((1, 1))
        memory, corrected, predicted = sampler.start(x), [], []
        for n in range(5):
            stretch = StepCoefficients(
                jnp.asarray(n),
                jnp.asarray(False),
                (alpha[n], alpha[n + 1]),
                (sigma[n], sigma[n + 1]),
            )
            x1 = jnp.full((1, 1), data(float(lam[n])))
            x, memory = sampler.advance(stretch, x, x1, x1, None, memory)
            corrected.append(float(memory.x[0, 0]) / float(sigma[n]))
            predicted.append(float(x[0, 0]) / float(sigma[n + 1]))
        for n in range(order, 4):  # From where there are predictions enough.
            expected = integral(float(lam[n]), float(lam[n + 1]))
            assert corrected[n + 1] - corrected[n] == pytest.approx(expected, rel=1e-9)
            if order == 3 and degree == 2:
                assert predicted[n] - corrected[n] == pytest.approx(expected, rel=1e-9)


@pytest.mark.slow
def test_ancestral_sampling_is_ddim_that_draws_all_noise_anew():
    times = uniform_grid(5)
    ours, theirs = (solve(PATHS["cosine"], s, times).x1 for s in (Ancestral(), DDIM(1.0)))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("variance", StepVariance)
def test_ancestral_sampling_has_the_closed_forms_mean_and_spread_after_every_number_of_steps(
    variance,
):
    """On a Gaussian each step is linear, so mean and spread go by a recursion."""
    schedule = LinearBetas()
    path = AffinePath(schedule)
    times = uniform_grid(50)
    # 16,384 numbers: their mean scatters by 0.5 / 128 and their spread by 0.5 / 181.
    x0 = jax.random.normal(jax.random.key(2), (2048, 8))
    keys = jax.random.split(jax.random.key(3), 2048)
    found = solve(path, Ancestral(variance), times, x0, keys).x1
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
        fresh = 0.0 if n == 49 else scale**2 * (1 - q**2)
        mean, var = slope * mean + offset, slope**2 * var + fresh
    np.testing.assert_allclose(found.mean(), mean, atol=4 * 0.5 / 128)
    np.testing.assert_allclose(found.std(), np.sqrt(var), atol=4 * 0.5 / 181)


@pytest.mark.slow
def test_a_thousand_ancestral_steps_give_the_data():
    x0 = jax.random.normal(jax.random.key(2), (2048, 8))
    keys = jax.random.split(jax.random.key(3), 2048)
    found = solve(AffinePath(CosineBetas()), Ancestral(), uniform_grid(1000), x0, keys)
    np.testing.assert_allclose(found.x1.mean(), MEAN, atol=4 * 0.5 / 128)
    np.testing.assert_allclose(found.x1.std(), STD, atol=4 * 0.5 / 181)
    assert (found.nfe == 1000).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "schedule", [LinearBetas(), pytest.param(CosineBetas(), marks=pytest.mark.slow)]
)
def test_the_weights_of_a_ddpm_sample_as_a_flow(schedule):
    """Under `sample` through the conversions: the Gaussian's flow map, from t = 0."""
    path = AffinePath(schedule)
    velocity = path.velocity_fn(predictor(path), Prediction.X0)
    found = jax.jit(lambda x0: sample(velocity, x0, steps=AdaptiveSteps(1e-5, 1e-5)))(X0)
    assert found.succeeded.all()
    exact = Gaussian(schedule, MEAN, STD).flow_map(jnp.ones(16), X0)
    np.testing.assert_allclose(found.x1, exact, atol=3e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", DIFFUSION_SAMPLERS)
def test_a_sample_is_its_own_whatever_its_batch(name):
    sampler, times = DIFFUSION_SAMPLERS[name](), uniform_grid(6)
    whole = solve(PATHS["linear"], sampler, times).x1
    part = solve(PATHS["linear"], sampler, times, X0[3:5], KEYS[3:5]).x1
    np.testing.assert_array_equal(whole[3:5], part)


@pytest.mark.parametrize("name", ["ancestral", "unipc"])
def test_grids_padded_with_ones_and_eight_devices_change_nothing(name):
    sampler, path = DIFFUSION_SAMPLERS[name](), PATHS["cosine"]
    mesh = jax.make_mesh((8,), ("data",))
    rows = jax.sharding.NamedSharding(mesh, jax.P("data"))

    @jax.jit
    def padded(x0, keys, times):
        return sample_diffusion(
            predictor(path),
            path,
            x0,
            keys,
            prediction=Prediction.X0,
            sampler=sampler,
            steps=FixedSteps(times),
        )

    plain = solve(path, sampler, uniform_grid(5))
    times = jnp.concatenate([uniform_grid(5), jnp.ones(3)])
    spread = padded(jax.device_put(X0, rows), jax.device_put(KEYS, rows), times)
    np.testing.assert_allclose(spread.x1, plain.x1, atol=1e-6)
    assert spread.x1.sharding.is_equivalent_to(rows, 2)
    assert (spread.nfe == 5).all()
    assert (plain.nfe == 5).all()


def test_clipped_data_stay_within_the_bound_and_the_noise_follows():
    """One step to t = 1, where the data predicted are the answer."""
    once = jnp.array([0.0, 1.0])
    found = solve(PATHS["linear"], DDIM(), once, prediction=Prediction.VELOCITY, clip=0.25).x1
    np.testing.assert_allclose(found, 0.25)
    first = solve(PATHS["cosine"], DDIM(), jnp.array([0.0, 0.5, 1.0]), clip=1e6).x1
    plain = solve(PATHS["cosine"], DDIM(), jnp.array([0.0, 0.5, 1.0])).x1
    np.testing.assert_allclose(first, plain, atol=1e-5)


def test_guided_predictions_cost_what_they_say():
    twice = CountedField(predictor(PATHS["linear"]), lambda t: jnp.full(t.shape, 2, jnp.int32))
    found = sample_diffusion(
        twice, PATHS["linear"], X0, prediction=Prediction.X0, steps=FixedSteps(uniform_grid(3))
    )
    assert (found.nfe == 6).all()


def test_a_noise_that_is_not_a_number_is_flagged_alone():
    spoiled = X0.at[2].set(jnp.nan)
    found, plain = (solve(PATHS["linear"], UniPC(), uniform_grid(6), x) for x in (spoiled, X0))
    np.testing.assert_array_equal(found.succeeded, jnp.arange(16) != 2)
    np.testing.assert_array_equal(jnp.delete(found.x1, 2, 0), jnp.delete(plain.x1, 2, 0))


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
def test_what_has_no_sense_is_refused(make, message):
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
def test_every_step_is_that_of_diffusers(name, sampler):
    """On a linear velocity `dx/dsigma = x A^T + b sigma + c`, from sigma to sigma of their grid.

    The files are those of diffusers 0.42.1 (`use_flow_sigmas`), in float32.
    """
    sigmas = np.asarray(GOLDEN[f"toy_{name}_sigmas"], np.float64)
    wanted = GOLDEN[f"toy_{name}_samples"]
    matrix, b, c = (np.asarray(GOLDEN[f"toy_{part}"], np.float64) for part in "Abc")
    with jax.enable_x64(True):
        x = jnp.asarray(GOLDEN["toy_x"], jnp.float64)
        memory = sampler.start(x)
        for n in range(len(sigmas) - 1):
            slope = x @ matrix.T + (b * sigmas[n] + c)[None]
            stretch = StepCoefficients(
                n=jnp.asarray(n),
                last=jnp.asarray(n == len(sigmas) - 2),
                alpha=(jnp.asarray(1 - sigmas[n]), jnp.asarray(1 - sigmas[n + 1])),
                sigma=(jnp.asarray(sigmas[n]), jnp.asarray(sigmas[n + 1])),
                before_last=jnp.asarray(n == len(sigmas) - 3),
            )
            x1, x0 = x - sigmas[n] * slope, x + (1 - sigmas[n]) * slope
            x, memory = sampler.advance(stretch, x, x1, x0, None, memory)
            np.testing.assert_allclose(x, wanted[n + 1], atol=2e-5, err_msg=f"step {n}")


@pytest.mark.slow
@pytest.mark.parametrize("padding", [0, 2])
def test_the_last_steps_of_a_solve_are_of_lower_order(padding):
    """As the steps by hand, whose orders are 1, 2, 3, 2 and 1; of a grid that is padded too."""
    path, times = PATHS["cosine"], jnp.linspace(0.0, 1.0, 6)
    sampler = UniPC(3)
    predict = predictor(path)
    x, memory = X0, sampler.start(X0)
    alphas, sigmas = path.schedule.alpha(times), path.schedule.sigma(times)
    for n in range(5):
        alpha, sigma = (alphas[n], alphas[n + 1]), (sigmas[n], sigmas[n + 1])
        last, before_last = jnp.asarray(n == 4), jnp.asarray(n == 3)
        stretch = StepCoefficients(jnp.asarray(n, jnp.int32), last, alpha, sigma, before_last)
        t = jnp.full(16, times[n])
        noise = predict(t, x)
        x1 = path.convert(t, x, noise, from_=Prediction.X0, to=Prediction.X1)
        x, memory = sampler.advance(stretch, x, x1, noise, None, memory)
        assert int(memory.order) == (1, 2, 3, 2, 1)[n]
    padded = jnp.concatenate([times, jnp.ones(padding)])
    found = jax.jit(
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
    np.testing.assert_allclose(found(padded), x, atol=1e-5)


@pytest.mark.parametrize("last", [False, True])
def test_noisy_steps_are_those_of_ddpm_and_ddim(last):
    """In DDPM's own letters: equations 7 and 11 of arXiv:2006.11239, 12 and 16 of 2010.02502."""
    bar_t, bar_s = 0.35, 0.6  # alpha-bar where the step starts, and nearer to the data.
    rng = np.random.default_rng(0)
    x, eps, z = rng.normal(size=(3, 4, 2))
    data = (x - np.sqrt(1 - bar_t) * eps) / np.sqrt(bar_t)
    with jax.enable_x64(True):
        stretch = StepCoefficients(
            n=jnp.asarray(3),
            last=jnp.asarray(last),
            alpha=(jnp.sqrt(bar_t), jnp.sqrt(bar_s)),
            sigma=(jnp.sqrt(1 - bar_t), jnp.sqrt(1 - bar_s)),
        )

        def step(sampler):
            given = (jnp.asarray(value) for value in (x, data, eps, z))
            return sampler.advance(stretch, *given, sampler.start(jnp.asarray(x)))[0]

        alpha = bar_t / bar_s
        beta = 1 - alpha
        mean = (x - beta / np.sqrt(1 - bar_t) * eps) / np.sqrt(alpha)
        posterior = (1 - bar_s) / (1 - bar_t) * beta
        for variance, value in ((StepVariance.POSTERIOR, posterior), (StepVariance.BETA, beta)):
            wanted = mean + (0.0 if last else np.sqrt(value)) * z
            np.testing.assert_allclose(step(Ancestral(variance)), wanted, rtol=1e-12)
        for eta in (0.0, 0.5, 1.0):
            std = eta * np.sqrt(posterior)
            wanted = np.sqrt(bar_s) * data + np.sqrt(1 - bar_s - std**2) * eps + std * z
            np.testing.assert_allclose(step(DDIM(eta)), wanted, rtol=1e-12)


@pytest.mark.parametrize("sampler", [DPMSolverPP2M(), UniPC(3)], ids=repr)
def test_steps_on_pure_noise_change_no_answer(sampler):
    """alpha = t^4 is below 2e-9 sigma, the least that is told from zero, at the first three times.

    The network predicts one point, so every step goes to it exactly.
    """
    path, times = AffinePath(Polynomial(4.0)), jnp.asarray([0.0, 1e-3, 2e-3, 0.5, 0.9, 1.0])

    def predict(t, x, cond=None):
        return jnp.full_like(x, 0.5)

    found = sample_diffusion(
        predict, path, X0, prediction=Prediction.X1, sampler=sampler, steps=FixedSteps(times)
    )
    np.testing.assert_allclose(found.x1, np.full(X0.shape, 0.5), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [DDIM(1.0), UniPC(3)], ids=repr)
def test_a_grids_gradient_is_that_of_finite_differences(sampler):
    path = PATHS["linear"]

    def total(inner):
        times = jnp.concatenate([jnp.zeros(1), inner, jnp.ones(2)])
        return sample_diffusion(
            lambda t, x, cond=None: x, path, X0, KEYS, sampler=sampler, steps=FixedSteps(times)
        ).x1.sum()

    with jax.enable_x64(True):
        inner, total = jnp.asarray([0.3, 0.6]), jax.jit(total)
        wanted = [(total(inner + d) - total(inner - d)) / 2e-4 for d in 1e-4 * jnp.eye(2)]
        found = jax.jit(jax.grad(total))(inner)
    # The points are float32: their sum, some 10, is told to 1e-6 of a difference of 2e-4.
    np.testing.assert_allclose(found, wanted, rtol=0.02, atol=0.05)
