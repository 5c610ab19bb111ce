"""Tests of float32 conversions between predictions against float64 on a dense grid of times."""

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
DISTANCES_TO_ENDS = np.array([1e-12, 1e-7, 1e-6, 1e-5, 1e-4, 5e-4])
TIMES = np.unique(
    np.concatenate(
        [DISTANCES_TO_ENDS, 1.0 - DISTANCES_TO_ENDS, np.linspace(0.0, 1.0, 1001)]
    ).astype(np.float32)
)


@dataclass(frozen=True)
class FlatEnds(Linear):
    """A user-defined schedule whose rates vanish at both ends."""

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


def variance_preserving(integral, rate, floor, floor_rate):
    """Return a formula with alpha = exp(-I/2) and sigma^2 = 1 - alpha^2 + floor, I(1 - t)."""

    def formula(t):
        r = 1 - t
        alpha = np.exp(-0.5 * integral(r))
        sigma = np.sqrt(-np.expm1(-integral(r)) + floor(r))
        alpha_rate = 0.5 * rate(r) * alpha
        return alpha, alpha_rate, sigma, (-alpha * alpha_rate - 0.5 * floor_rate(r)) / sigma

    return formula


def bump(u):
    return np.maximum(1 - u * u, 0) ** 2, -4 * u * np.maximum(1 - u * u, 0)


def cosine_betas(num_steps, offset=0.008):
    omega = 0.5 * np.pi / (1 + offset)
    norm = np.cos(omega * offset) ** 2

    def formula(t):
        def product(t):
            return np.sin(omega * t) ** 2 / norm

        last, first = 0.001 * product(1 / num_steps), 1 - product(1 - 1 / num_steps)
        start_bump, start_bump_rate = bump(num_steps * t)
        alpha = np.sqrt(product(t) + last * start_bump)
        product_rate = omega * np.sin(2 * omega * t) / norm
        end_bump, end_bump_rate = bump(num_steps * (1 - t))
        sigma = np.sqrt(1 - product(t) + 0.01 * first * end_bump)
        return (
            alpha,
            (product_rate + last * num_steps * start_bump_rate) / (2 * alpha),
            sigma,
            (-product_rate - 0.01 * first * num_steps * end_bump_rate) / (2 * sigma),
        )

    return formula


BETAS = np.polynomial.Polynomial((0.0, *_log_products(1000, 1e-4, 0.02)))
# Each schedule with explicit float64 formulas of alpha, alpha', sigma and sigma'.
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
        variance_preserving(
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
        variance_preserving(
            BETAS,
            BETAS.deriv(),
            lambda r: 1e-6 * bump(1000 * r)[0],
            lambda r: 1e-3 * bump(1000 * r)[1],
        ),
    ),
    "cosine betas": (CosineBetas(), cosine_betas(1000)),
    "cosine betas, 40 steps": (CosineBetas(40), cosine_betas(40)),
    "slow at both ends": (
        FlatEnds(),
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


def exact_weights(c, from_, to):
    """Return the float64 weights by Cramer's rule; infinite or NaN if they do not exist."""
    alpha, alpha_rate, sigma, sigma_rate = c
    zeros, ones = np.zeros_like(alpha), np.ones_like(alpha)
    rows = {VELOCITY: (alpha_rate, sigma_rate), X1: (ones, zeros), X0: (zeros, ones)}
    # The score is x0 in units of -1 / sigma.
    (q1, q0), (r1, r0) = (
        rows[X0 if prediction == SCORE else prediction] for prediction in (from_, to)
    )
    with np.errstate(all="ignore"):
        determinant = alpha * q0 - sigma * q1
        point_weight = (r1 * q0 - r0 * q1) / determinant
        value_weight = (alpha * r0 - sigma * r1) / determinant
        if {from_, to} == {X0, SCORE}:  # x_t is not needed.
            point_weight, value_weight = zeros, ones
        value_weight = value_weight * (-sigma if from_ == SCORE else 1)
        return np.stack([point_weight, value_weight]) / (-sigma if to == SCORE else 1)


def test_float32_weights_are_exact_where_determined(name):
    schedule, formula = TABLE[name]
    path, c = AffinePath(schedule), formula(TIMES.astype(np.float64))
    all_weights = jax.jit(lambda t: [path.conversion_weights(t, from_=a, to=b) for a, b in PAIRS])(
        jnp.asarray(TIMES)
    )
    for (from_, to), weights in zip(PAIRS, all_weights, strict=True):
        weights, expected = np.stack(weights), exact_weights(c, from_, to)
        with np.errstate(invalid="ignore"):
            determined = (np.abs(expected) < 3e38).all(axis=0)
        assert determined.sum() >= len(TIMES) - 4, (from_, to)
        # Each weight has a few rounding errors; weights near zero are compared to 1.
        np.testing.assert_allclose(
            weights[:, determined],
            expected[:, determined],
            rtol=2e-5,
            atol=2e-6,
            err_msg=f"{from_} {to}",
        )
        # At other times the prediction has weight 0, and the schedule bounds the weight of x_t.
        np.testing.assert_array_equal(weights[1, ~determined], 0.0)
        size = np.maximum(np.abs(c).sum(axis=0), 1.0)
        assert (np.abs(weights[0, ~determined]) <= size[~determined]).all()


def test_conversion_at_zero_rates_returns_noise_or_data():
    def converted(schedule, t, to):
        x, velocity = jnp.array([1.5]), jnp.array([0.0])
        path = AffinePath(schedule)
        return path.convert(jnp.array([t]), x, velocity, from_=VELOCITY, to=to)

    for schedule in (Polynomial(1.5), Polynomial(2.0), Polynomial(7.0), FlatEnds()):
        np.testing.assert_array_equal(converted(schedule, 0.0, X0), 1.5)
        # The data are not determined; their mean is assumed to be zero.
        np.testing.assert_array_equal(converted(schedule, 0.0, X1), 0.0)
    np.testing.assert_array_equal(converted(FlatEnds(), 1.0, X1), 1.5)
    np.testing.assert_array_equal(converted(FlatEnds(), 1.0, X0), 0.0)
    # Without noise, the score is that of standard normal data.
    np.testing.assert_array_equal(converted(FlatEnds(), 1.0, SCORE), -1.5)


STD = 0.5


def exact_network(formula, prediction):
    """Return the optimal network for data N(0, STD^2), from float64 tables of the schedule."""
    times = np.linspace(0.0, 1.0, 9)
    a, da, s, ds = formula(times)
    variance = (STD * a) ** 2 + s**2
    x1_weight, x0_weight = a * STD**2 / variance, s / variance
    weights = {
        VELOCITY: da * x1_weight + ds * x0_weight,
        X1: x1_weight,
        X0: x0_weight,
        SCORE: -1 / variance,
    }
    table = jnp.asarray(weights[prediction], jnp.float32)
    return lambda t, x, cond: table[jnp.round(8 * t).astype(int)][:, None] * x


@pytest.mark.parametrize("prediction", Prediction)
@pytest.mark.parametrize("name", ["cosine betas", "power 2"], scope="module")
def test_ddim_of_exact_network_matches_float64_for_any_prediction(name, prediction):
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
    # With cosine betas, the rounding error of predicted noise, 6e-8, is divided by alpha(0) = 5e-5.
    np.testing.assert_allclose(samples.x1, scale * noise, rtol=2e-3)


def test_x1_from_predicted_x0_is_accurate_at_start_of_cosine_betas():
    path, t = AffinePath(CosineBetas()), jnp.zeros(2)
    x0, x1 = jnp.array([[0.7], [-1.2]]), jnp.array([[2.0], [-3.0]])
    x_t, _ = path(t, x0, x1)
    result = path.convert(t, x_t, x0, from_=X0, to=X1)
    # The rounding error of x_t, 6e-8, is divided by alpha, 4.9e-5.
    np.testing.assert_allclose(result, x1, atol=5e-3)


def test_min_divisor_applies_only_to_velocity_from_x1():
    t, bounded, exact = jnp.linspace(0.0, 1.0, 101), AffinePath(min_divisor=0.05), AffinePath()
    for from_, to in PAIRS:
        weights = bounded.conversion_weights(t, from_=from_, to=to)
        if (from_, to) == (X1, VELOCITY):
            divisor = np.maximum(1.0 - np.asarray(t), 0.05)
            np.testing.assert_allclose(weights, [-1.0 / divisor, 1.0 / divisor], rtol=1e-6)
        else:
            expected = exact.conversion_weights(t, from_=from_, to=to)
            np.testing.assert_array_equal(weights, expected)


@pytest.mark.parametrize(
    "sampler", [DDIM(), DPMSolverPP2M(), UniPC(3)], ids=lambda s: type(s).__name__
)
def test_samplers_handle_alpha_that_underflows_float32(sampler):
    # alpha is 1e-60 at the first of 20 times; lambda is at its bound until the seventh.
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
def test_adaptive_steps_solve_imprecise_network_of_any_prediction(prediction):
    # Data N(1, 0.25) and predictions with an error of 0.01. For predicted noise near t = 0, the
    # velocity has an error of 0.01 / t.
    def predict(t, x, cond=None):
        t = t[:, None]
        variance = (STD * t) ** 2 + (1.0 - t) ** 2
        x1 = 1.0 + t * STD**2 / variance * (x - t)
        x0 = (1.0 - t) / variance * (x - t)
        return {X0: x0, X1: x1, SCORE: -(x - t) / variance}[prediction] + 0.01 * jnp.cos(x)

    velocity = AffinePath().velocity_fn(predict, prediction)
    x0 = jnp.array([[-1.0], [0.5], [2.0]])
    samples = jax.jit(lambda x: sample(velocity, x, steps=AdaptiveSteps(1e-4, 1e-4)))(x0)
    assert samples.succeeded.all()
    # The errors before t = 0.001, and those of 0.01 / t after it, move points by 0.08 in total.
    np.testing.assert_allclose(samples.x1, 1.0 + STD * x0, atol=0.1)


@pytest.mark.slow
def test_velocity_of_exact_network_is_accurate_at_both_ends():
    t = jnp.array([0.0, 1e-4, 0.5, 1.0 - 1e-4, 1.0])
    x = jnp.array([[-1.0], [0.5], [2.0], [0.3], [1.2]])

    def posterior(t, x):
        variance = (STD * t) ** 2 + (1.0 - t) ** 2
        return 1.0 + t * STD**2 / variance * (x - t), (1.0 - t) / variance * (x - t)

    x1, x0 = posterior(t[:, None], x)
    for prediction, index in ((X1, 0), (X0, 1)):
        velocity = AffinePath().velocity_fn(
            lambda t, x, c, n=index: posterior(t[:, None], x)[n], prediction
        )
        # A shift of 0.001 in time changes u by 0.001 |du/dt|; |du/dt| is at most 8 at the data.
        np.testing.assert_allclose(velocity(t, x, None), x1 - x0, atol=1e-2)
