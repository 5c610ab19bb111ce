"""Tests of all schedules: end values, rates, angles and published formulas."""

import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.paths import (
    AnySchedule,
    Cosine,
    CosineBetas,
    Linear,
    LinearBetas,
    Polynomial,
    Schedule,
    VarianceExploding,
    VariancePreserving,
    angle,
    time_at_angle,
    with_rate,
)

SCHEDULES = {
    "linear": Linear(),
    "cosine": Cosine(),
    "variance preserving": VariancePreserving(),
    "variance exploding": VarianceExploding(),
    "quadratic": Polynomial(),
    "power 1": Polynomial(1.0),
    "power 1.5": Polynomial(1.5),
    "gentle variance exploding": VarianceExploding(0.05, 5.0),
    "linear betas": LinearBetas(),
    "wide linear betas": LinearBetas(30, 0.01, 0.5),
    "cosine betas": CosineBetas(),
    "cosine betas, 40 steps": CosineBetas(40),
}


def cosine_products(num_steps, offset=0.008):
    """Return the products of 1 - beta_i for k = 0..T, with betas clipped at 0.999."""
    f = np.cos(0.5 * np.pi * (np.arange(num_steps + 1) / num_steps + offset) / (1 + offset)) ** 2
    return np.cumprod(np.append(1.0, 1 - np.minimum(1 - f[1:] / f[:-1], 0.999)))


PRODUCTS = {
    "linear betas": np.cumprod(np.append(1.0, 1 - np.linspace(1e-4, 0.02, 1000))),
    "wide linear betas": np.cumprod(np.append(1.0, 1 - np.linspace(0.01, 0.5, 30))),
    "cosine betas": cosine_products(1000),
    "cosine betas, 40 steps": cosine_products(40),
}

# Values of (alpha, sigma) at t = 0 and at t = 1.
PRESERVING_START = np.exp(-0.25 * 20.1)
ENDS = {
    "linear": ((0, 1), (1, 0)),
    "cosine": ((0, 1), (1, 0)),
    "variance preserving": ((PRESERVING_START, np.sqrt(1 - PRESERVING_START**2)), (1, 1e-3)),
    "variance exploding": ((1, 50), (1, 0.01)),
    "quadratic": ((0, 1), (1, 0)),
    "power 1": ((0, 1), (1, 0)),
    "power 1.5": ((0, 1), (1, 0)),
    "gentle variance exploding": ((1, 5), (1, 0.05)),
    **{
        name: ((np.sqrt(products[-1]), np.sqrt(1 - products[-1])), (1, 0.1 * np.sqrt(first)))
        for name, products in PRODUCTS.items()
        for first in [1 - products[1]]
    },
}

# Times that include both ends and points close to them, where rates may diverge.
TIMES = jnp.concatenate(
    [jnp.array([0.0, 1e-30, 1e-7, 1e-4]), jnp.linspace(0.01, 1.0, 200), 1 - jnp.array([1e-4, 6e-8])]
).sort()


@pytest.fixture(params=SCHEDULES, scope="module")
def name(request):
    return request.param


@pytest.fixture(scope="module")
def schedule(name):
    return SCHEDULES[name]


@pytest.fixture(scope="module")
def table(schedule):
    """Return (alpha, alpha_rate, sigma, sigma_rate, angle) at TIMES."""
    return jax.jit(
        lambda t: (
            *with_rate(schedule.alpha, t),
            *with_rate(schedule.sigma, t),
            angle(schedule, t),
        )
    )(TIMES)


def test_all_schedules_are_tested():
    assert {type(schedule) for schedule in SCHEDULES.values()} == set(typing.get_args(AnySchedule))


def test_schedule_implements_protocol_and_is_hashable(schedule):
    assert isinstance(schedule, Schedule)
    assert hash(schedule) == hash(type(schedule)(**vars(schedule)))


def test_values_and_rates_are_finite_and_values_nonnegative(table):
    alpha, _, sigma, _, _ = table
    assert all(np.isfinite(column).all() for column in table)
    assert (alpha >= 0).all()
    assert (sigma >= 0).all()


def test_end_values_match_publications(name, table):
    alpha, _, sigma, _, _ = table
    (alpha_0, sigma_0), (alpha_1, sigma_1) = ENDS[name]
    np.testing.assert_allclose(alpha[jnp.array([0, -1])], [alpha_0, alpha_1], rtol=2e-6)
    np.testing.assert_allclose(sigma[jnp.array([0, -1])], [sigma_0, sigma_1], rtol=2e-6)
    if alpha_0 == 0:  # Sampling starts at exact noise and ends at exact data.
        assert (alpha[0], sigma[0], alpha[-1], sigma[-1]) == (0, 1, 1, 0)


def test_angle_is_nondecreasing(table):
    # float32 rounds angles near pi/2 to 1.2e-7; alpha and sigma are rounded before.
    assert (jnp.diff(table[-1]) >= -3e-7).all()
    assert ((table[-1] >= 0) & (table[-1] <= np.float32(np.pi / 2))).all()


def test_rates_match_finite_differences(schedule):
    step = 1e-5
    with jax.enable_x64():
        t = jnp.linspace(0.02, 0.98, 50, dtype=jnp.float64)
        for fn in (schedule.alpha, schedule.sigma):
            value, rate = with_rate(fn, t)
            np.testing.assert_allclose(value, fn(t), rtol=1e-15)
            # Central differences have the error step^2 f''' / 6. The largest third derivative is
            # that of sigma of VarianceExploding: 50 log(5000)^3 = 3e4 at a value of 50.
            differences = (fn(t + step) - fn(t - step)) / (2 * step)
            np.testing.assert_allclose(rate, differences, rtol=1e-6, atol=1e-6)


def test_time_at_angle_inverts_angle(schedule):
    round_trip = jax.jit(lambda t: time_at_angle(schedule, angle(schedule, t)))
    # If the angle changes slowly, its rounding error of 1e-7 changes the time. The slowest rate is
    # 0.085 per unit of time, of VarianceExploding near the data.
    t = jnp.linspace(0.0, 1.0, 101)
    np.testing.assert_allclose(round_trip(t), t, atol=3e-6)


def test_time_at_unreachable_angle_is_nearest_end():
    low, high = time_at_angle(VariancePreserving(), jnp.array([0.0, np.pi / 2]))
    assert 0.0 <= low < 1e-9
    assert high == 1.0


@pytest.mark.parametrize("name", ["cosine", "variance preserving"])
def test_variance_preserving_schedules_have_unit_variance(name):
    schedule = SCHEDULES[name]
    variance = schedule.alpha(TIMES) ** 2 + schedule.sigma(TIMES) ** 2
    # VariancePreserving adds 1e-6 to keep its rate finite.
    np.testing.assert_allclose(variance, 1.0, atol=2e-6)


def test_variance_preserving_satisfies_diffusion_equation():
    # d alpha / d(1-t) = -beta alpha / 2 with beta linear from 0.1 to 20.
    t = jnp.linspace(0.0, 1.0, 33)
    alpha, rate = with_rate(VariancePreserving().alpha, t)
    beta = 0.1 + 19.9 * (1.0 - t)
    np.testing.assert_allclose(rate, 0.5 * beta * alpha, rtol=2e-6)


@pytest.mark.parametrize("name", PRODUCTS)
def test_discrete_schedules_match_products_of_betas(name):
    schedule, products = SCHEDULES[name], PRODUCTS[name]
    k = np.arange(1, schedule.num_steps + 1)
    t = jnp.asarray(1 - k / schedule.num_steps, jnp.float32)
    # Products are sums of logarithms of up to 12, which float32 rounds to 1e-6.
    np.testing.assert_allclose(schedule.alpha(t), np.sqrt(products[1:]), rtol=3e-6, atol=1e-9)
    # 1 - t is rounded to 6e-8, a relative error of 6e-5 at the first of 1,000 steps.
    np.testing.assert_allclose(schedule.sigma(t), np.sqrt(1 - products[1:]), rtol=4e-5)
    with jax.enable_x64():
        t = jnp.asarray(1 - k / schedule.num_steps)
        np.testing.assert_allclose(schedule.alpha(t) ** 2, products[1:], rtol=2e-8, atol=1e-16)


def test_polynomial_of_power_one_is_linear():
    polynomial, linear = Polynomial(1.0), Linear()
    for actual, expected in ((polynomial.alpha, linear.alpha), (polynomial.sigma, linear.sigma)):
        np.testing.assert_array_equal(with_rate(actual, TIMES), with_rate(expected, TIMES))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VariancePreserving(beta_min=0.0), "beta_min must be positive, got 0.0"),
        (lambda: VariancePreserving(3.0, 2.0), "beta_max must be at least 3.0, got 2.0"),
        (lambda: VariancePreserving(min_sigma=0.0), "min_sigma must be positive, got 0.0"),
        (lambda: VarianceExploding(sigma_min=0.0), "sigma_min must be positive, got 0.0"),
        (
            lambda: VarianceExploding(2.0, 1.0),
            "sigma_max must be greater than sigma_min = 2.0, got 1.0",
        ),
        (lambda: LinearBetas(0), "num_steps must be at least 1, got 0"),
        (lambda: LinearBetas(beta_min=0.0), "beta_min must be positive, got 0.0"),
        (lambda: LinearBetas(beta_max=0.6), r"beta_max must lie in \[0.0001, 0.5\], got 0.6"),
        (lambda: CosineBetas(0), "num_steps must be at least 1, got 0"),
        (lambda: CosineBetas(offset=0.0), "offset must be positive, got 0.0"),
        (lambda: Polynomial(0.5), "power must be at least 1.0, got 0.5"),
    ],
)
def test_invalid_schedule_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
