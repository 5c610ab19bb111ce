"""Conversions in float32 against float64, at a dense grid of times with both ends."""

import itertools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.paths import (
    AffinePath,
    Cosine,
    CosineBetas,
    Linear,
    LinearBetas,
    Polynomial,
    Prediction,
    VarianceExploding,
    VariancePreserving,
)
from fmjax.paths.ddpm_schedules import _log_products
from fmjax.solvers import (
    DDIM,
    AdaptiveSteps,
    DPMSolverPP2M,
    FixedSteps,
    UniPC,
    sample,
    sample_diffusion,
)

VELOCITY, X1, X0, SCORE = Prediction
PAIRS = list(itertools.permutations(Prediction, 2))
NEAR = np.array([1e-12, 1e-7, 1e-6, 1e-5, 1e-4, 5e-4])
TIMES = np.unique(
    np.concatenate([NEAR, 1.0 - NEAR, np.linspace(0.0, 1.0, 1001)]).astype(np.float32)
)


@dataclass(frozen=True)
class Slow(Linear):
    """A schedule of a user, by its two functions alone, whose rates vanish at both ends."""

    def alpha(self, t):
        return Cosine().alpha(t) ** 2

    def sigma(self, t):
        return Cosine().sigma(t) ** 2


def polynomial(power):
    return lambda t: (
        t**power,
        power * t ** (power - 1),
        -np.expm1(power * np.log(np.maximum(t, 1e-300))),
        -power * t ** (power - 1),
    )


def preserving(integral, rate, floor, floor_rate):
    """alpha = exp(-I/2), sigma^2 = 1 - alpha^2 + floor, I and its rate as functions of 1 - t."""

    def formula(t):
        r = 1 - t
        alpha = np.exp(-0.5 * integral(r))
        sigma = np.sqrt(-np.expm1(-integral(r)) + floor(r))
        alpha_rate = 0.5 * rate(r) * alpha
        return alpha, alpha_rate, sigma, (-alpha * alpha_rate - 0.5 * floor_rate(r)) / sigma

    return formula


def hump(u):
    return np.maximum(1 - u * u, 0) ** 2, -4 * u * np.maximum(1 - u * u, 0)


def cosine_betas(num_steps, offset=0.008):
    turn = 0.5 * np.pi / (1 + offset)
    start = np.cos(turn * offset) ** 2

    def formula(t):
        def product(t):
            return np.sin(turn * t) ** 2 / start

        last, first = 0.001 * product(1 / num_steps), 1 - product(1 - 1 / num_steps)
        height, height_rate = hump(num_steps * t)
        alpha = np.sqrt(product(t) + last * height)
        product_rate = turn * np.sin(2 * turn * t) / start
        floor, floor_rate = hump(num_steps * (1 - t))
        sigma = np.sqrt(1 - product(t) + 0.01 * first * floor)
        return (
            alpha,
            (product_rate + last * num_steps * height_rate) / (2 * alpha),
            sigma,
            (-product_rate - 0.01 * first * num_steps * floor_rate) / (2 * sigma),
        )

    return formula


BETAS = np.polynomial.Polynomial((0.0, *_log_products(1000, 1e-4, 0.02)))
# (schedule, its alpha, alpha', sigma and sigma' by hand, in float64)
TABLE = {
    "linear": (Linear(), lambda t: (t, 1 + 0 * t, 1 - t, -1 + 0 * t)),
    "cosine": (
        Cosine(),
        lambda t: (
            np.sin(0.5 * np.pi * t),
            0.5 * np.pi * np.sin(0.5 * np.pi * (1 - t)),
            np.sin(0.5 * np.pi * (1 - t)),
            -0.5 * np.pi * np.sin(0.5 * np.pi * t),
        ),
    ),
    "variance preserving": (
        VariancePreserving(),
        preserving(
            lambda r: r * (0.1 + 9.95 * r), lambda r: 0.1 + 19.9 * r, lambda r: 1e-6, lambda r: 0
        ),
    ),
    "variance exploding": (
        VarianceExploding(),
        lambda t: (
            1 + 0 * t,
            0 * t,
            0.01 * 5000 ** (1 - t),
            -np.log(5000) * 0.01 * 5000 ** (1 - t),
        ),
    ),
    "power 1": (Polynomial(1.0), polynomial(1.0)),
    "power 1.5": (Polynomial(1.5), polynomial(1.5)),
    "power 2": (Polynomial(2.0), polynomial(2.0)),
    "power 3": (Polynomial(3.0), polynomial(3.0)),
    "linear betas": (
        LinearBetas(),
        preserving(
            BETAS,
            BETAS.deriv(),
            lambda r: 1e-6 * hump(1000 * r)[0],
            lambda r: 1e-3 * hump(1000 * r)[1],
        ),
    ),
    "cosine betas": (CosineBetas(), cosine_betas(1000)),
    "cosine betas, 40 steps": (CosineBetas(40), cosine_betas(40)),
    "slow at both ends": (
        Slow(),
        lambda t: (
            np.sin(0.5 * np.pi * t) ** 2,
            np.pi * np.sin(0.5 * np.pi * t) * np.sin(0.5 * np.pi * (1 - t)),
            np.sin(0.5 * np.pi * (1 - t)) ** 2,
            -np.pi * np.sin(0.5 * np.pi * t) * np.sin(0.5 * np.pi * (1 - t)),
        ),
    ),
}


@pytest.fixture(params=TABLE, scope="module")
def name(request):
    return request.param


def exact_weights(c, source, target):
    """The weights by Cramer's rule in float64, infinite or NaN where there are none."""
    alpha, alpha_rate, sigma, sigma_rate = c
    zero, one = np.zeros_like(alpha), np.ones_like(alpha)
    rows = {VELOCITY: (alpha_rate, sigma_rate), X1: (one, zero), X0: (zero, one)}
    # The score is x0 in units of -1 / sigma.
    (q1, q0), (r1, r0) = (rows[X0 if kind == SCORE else kind] for kind in (source, target))
    with np.errstate(all="ignore"):
        determinant = alpha * q0 - sigma * q1
        on_point = (r1 * q0 - r0 * q1) / determinant
        on_value = (alpha * r0 - sigma * r1) / determinant
        if {source, target} == {X0, SCORE}:  # There x_t is not needed.
            on_point, on_value = zero, one
        on_value = on_value * (-sigma if source == SCORE else 1)
        return np.stack([on_point, on_value]) / (-sigma if target == SCORE else 1)


def test_weights_are_exact_in_float32_wherever_prediction_and_point_determine_them(name):
    schedule, formula = TABLE[name]
    path, c = AffinePath(schedule), formula(TIMES.astype(np.float64))
    found = jax.jit(lambda t: [path.conversion_weights(t, from_=a, to=b) for a, b in PAIRS])(
        jnp.asarray(TIMES)
    )
    for (source, target), weights in zip(PAIRS, found, strict=True):
        weights, expected = np.stack(weights), exact_weights(c, source, target)
        with np.errstate(invalid="ignore"):
            known = (np.abs(expected) < 3e38).all(axis=0)
        assert known.sum() >= len(TIMES) - 4, (source, target)
        # A few roundings of each of six numbers; weights that vanish are compared to one.
        np.testing.assert_allclose(
            weights[:, known],
            expected[:, known],
            rtol=2e-5,
            atol=2e-6,
            err_msg=f"{source} {target}",
        )
        # The others have no use for the prediction, and are bounded by the schedule's own numbers.
        np.testing.assert_array_equal(weights[1, ~known], 0.0)
        size = np.maximum(np.abs(c).sum(axis=0), 1.0)
        assert (np.abs(weights[0, ~known]) <= size[~known]).all()


def test_where_rates_vanish_a_point_of_noise_alone_is_its_noise_and_one_of_data_its_data():
    def converted(schedule, t, target):
        x, nothing = jnp.array([1.5]), jnp.array([0.0])
        path = AffinePath(schedule)
        return path.convert(jnp.array([t]), x, nothing, from_=VELOCITY, to=target)

    for schedule in (Polynomial(1.5), Polynomial(2.0), Polynomial(7.0), Slow()):
        np.testing.assert_array_equal(converted(schedule, 0.0, X0), 1.5)
        # Nothing is known of the data, whose mean is taken to be zero.
        np.testing.assert_array_equal(converted(schedule, 0.0, X1), 0.0)
    np.testing.assert_array_equal(converted(Slow(), 1.0, X1), 1.5)
    np.testing.assert_array_equal(converted(Slow(), 1.0, X0), 0.0)
    # Of no noise the score of standard normal data is left.
    np.testing.assert_array_equal(converted(Slow(), 1.0, SCORE), -1.5)


STD = 0.5


def exact_network(formula, kind):
    """The best prediction for data of N(0, STD^2), from float64 tables of the schedule."""
    times = np.linspace(0.0, 1.0, 9)
    a, da, s, ds = formula(times)
    variance = (STD * a) ** 2 + s**2
    on_x1, on_x0 = a * STD**2 / variance, s / variance
    weights = {VELOCITY: da * on_x1 + ds * on_x0, X1: on_x1, X0: on_x0, SCORE: -1 / variance}
    table = jnp.asarray(weights[kind], jnp.float32)
    return lambda t, x, cond: table[jnp.round(8 * t).astype(int)][:, None] * x


@pytest.mark.parametrize("prediction", Prediction)
@pytest.mark.parametrize("name", ["cosine betas", "power 2"], scope="module")
def test_ddim_of_an_exact_network_is_ddim_in_float64_whatever_it_predicts(name, prediction):
    schedule, formula = TABLE[name]
    a, _, s, _ = formula(np.linspace(0.0, 1.0, 9))
    scale = s[0]
    for n in range(8):
        variance = (STD * a[n]) ** 2 + s[n] ** 2
        scale *= (a[n + 1] * a[n] * STD**2 + s[n + 1] * s[n]) / variance
    path, noise = AffinePath(schedule), jnp.array([[1.0], [-2.0]])
    samples = jax.jit(
        lambda x: sample_diffusion(
            exact_network(formula, prediction),
            path,
            x,
            prediction=prediction,
            sampler=DDIM(),
            steps=FixedSteps(np.linspace(0.0, 1.0, 9)),
        )
    )(path.start(noise))
    assert samples.succeeded.all()
    # Noise predicted on the cosine betas is divided by alpha(0), 5e-5: so are roundings of 6e-8.
    np.testing.assert_allclose(samples.x1, scale * noise, rtol=2e-3)


def test_data_from_predicted_noise_have_their_full_size_at_the_start_of_the_cosine_betas():
    path, t = AffinePath(CosineBetas()), jnp.zeros(2)
    x0, x1 = jnp.array([[0.7], [-1.2]]), jnp.array([[2.0], [-3.0]])
    x_t, _ = path(t, x0, x1)
    found = path.convert(t, x_t, x0, from_=X0, to=X1)
    # x_t is rounded to 6e-8 of itself and divided by alpha, 4.9e-5.
    np.testing.assert_allclose(found, x1, atol=5e-3)


def test_a_bound_on_the_divisor_is_for_the_velocity_of_predicted_data_alone():
    t, bounded, exact = jnp.linspace(0.0, 1.0, 101), AffinePath(min_divisor=0.05), AffinePath()
    for source, target in PAIRS:
        weights = bounded.conversion_weights(t, from_=source, to=target)
        if (source, target) == (X1, VELOCITY):
            rest = np.maximum(1.0 - np.asarray(t), 0.05)
            np.testing.assert_allclose(weights, [-1.0 / rest, 1.0 / rest], rtol=1e-6)
        else:
            expected = exact.conversion_weights(t, from_=source, to=target)
            np.testing.assert_array_equal(weights, expected)


@pytest.mark.parametrize(
    "sampler", [DDIM(), DPMSolverPP2M(), UniPC(3)], ids=lambda s: type(s).__name__
)
def test_samplers_pass_times_whose_signal_is_too_small_for_float32(sampler):
    # alpha is 1e-60 at the first of 20 times, and lambda at its bound until the seventh.
    schedule, std = Polynomial(45.0), 0.5

    def predict(t, x, cond):
        a, s = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
        return std**2 * a * x / ((std * a) ** 2 + s**2)

    @jax.jit
    def solve(x):
        return sample_diffusion(
            predict,
            AffinePath(schedule),
            x,
            prediction=X1,
            sampler=sampler,
            steps=FixedSteps(np.linspace(0.0, 1.0, 21)),
        )

    noise = np.array([[1.0], [-2.0]])
    samples = solve(jnp.asarray(noise, jnp.float32))
    assert samples.succeeded.all()
    with jax.enable_x64():
        expected = solve(jnp.asarray(noise)).x1
    np.testing.assert_allclose(samples.x1, expected, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("prediction", [X0, SCORE, X1])
def test_an_imprecise_network_of_any_kind_is_solved_by_adaptive_steps(prediction):
    # Data N(1, 0.25), each prediction 1 % off: of noise at t = 0 that is an error of 0.01 / t.
    def predict(t, x, cond=None):
        t = t[:, None]
        variance = (STD * t) ** 2 + (1.0 - t) ** 2
        x1 = 1.0 + t * STD**2 / variance * (x - t)
        x0 = (1.0 - t) / variance * (x - t)
        return {X0: x0, X1: x1, SCORE: -(x - t) / variance}[prediction] + 0.01 * jnp.cos(x)

    velocity = AffinePath().velocity_fn(predict, prediction)
    x0 = jnp.array([[-1.0], [0.5], [2.0]])
    found = jax.jit(lambda x: sample(velocity, x, steps=AdaptiveSteps(1e-4, 1e-4)))(x0)
    assert found.succeeded.all()
    # An error of 0.01 up to t = 0.001 and of 0.01 / t from there moves points by 0.08.
    np.testing.assert_allclose(found.x1, 1.0 + STD * x0, atol=0.1)


@pytest.mark.slow
def test_the_field_of_an_exact_network_is_right_up_to_both_ends():
    t = jnp.array([0.0, 1e-4, 0.5, 1.0 - 1e-4, 1.0])
    x = jnp.array([[-1.0], [0.5], [2.0], [0.3], [1.2]])

    def posterior(t, x):
        variance = (STD * t) ** 2 + (1.0 - t) ** 2
        return 1.0 + t * STD**2 / variance * (x - t), (1.0 - t) / variance * (x - t)

    x1, x0 = posterior(t[:, None], x)
    for kind, nth in ((X1, 0), (X0, 1)):
        velocity = AffinePath().velocity_fn(
            lambda t, x, c, n=nth: posterior(t[:, None], x)[n], kind
        )
        # 0.001 in time is up to 0.001 |du/dt|, with |du/dt| of up to 8 at the data.
        np.testing.assert_allclose(velocity(t, x, None), x1 - x0, atol=1e-2)
