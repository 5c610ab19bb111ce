"""Tests of time densities, sampled times and step grids."""

import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from fmjax.paths import (
    AnyDensity,
    CosMap,
    Density,
    LogitNormal,
    Mode,
    Shifted,
    Tabulated,
    Uniform,
    UniformSteps,
    UShaped,
    edm_grid,
    quantile_grid,
    sample_times,
    shift_times,
    shifted_grid,
    uniform_grid,
)

DENSITIES = {
    "uniform": Uniform(),
    "logit-normal": LogitNormal(),
    "JiT's logit-normal": LogitNormal(-0.8, 0.8),
    "mode": Mode(),
    "mode, heaviest middle": Mode(2 / (np.pi - 2)),
    "mode, heaviest ends": Mode(-1.0),
    "cosmap": CosMap(),
    "U-shaped": UShaped(),
    "U-shaped, a = 1": UShaped(1.0),
    "tabulated": Tabulated((0.0, 0.1, 0.7, 1.0), (3.0, 0.5, 2.0)),
    "steps": UniformSteps(),
    "shifted": Shifted(),
    "shifted logit-normal": Shifted(LogitNormal(), 0.5),
}


def mode_pdf(t, scale):
    """Return the density of `1 - u - s (cos^2(pi u / 2) - 1 + u)` for uniform u."""
    u = np.linspace(0, 1, 200_001)
    times = 1 - (1 - u - scale * (np.cos(np.pi * u / 2) ** 2 - 1 + u))
    derivative = np.gradient(times, u)
    return np.interp(t, times, 1 / derivative)


# Published densities, in the time convention of this library.
PDFS = {
    "uniform": lambda t: np.ones_like(t),
    "logit-normal": lambda t: stats.norm.pdf(np.log(t / (1 - t))) / (t * (1 - t)),
    "JiT's logit-normal": (
        lambda t: stats.norm.pdf(np.log(t / (1 - t)), -0.8, 0.8) / (t * (1 - t))
    ),
    "mode": lambda t: mode_pdf(t, 1.29),
    "cosmap": lambda t: 2 / (np.pi - 2 * np.pi * t + 2 * np.pi * t**2),
    "tabulated": lambda t: np.where(t < 0.1, 3.0, np.where(t < 0.7, 0.5, 2.0)) / 1.2,
    "U-shaped": lambda t: (np.exp(4 * t) + np.exp(4 - 4 * t)) * 4 / (2 * np.expm1(4)),
    "U-shaped, a = 1": lambda t: (np.exp(t) + np.exp(1 - t)) / (2 * np.expm1(1)),
}

PROBABILITIES = jnp.linspace(0.0, 1.0, 4097)


@pytest.fixture(params=DENSITIES, scope="module")
def name(request):
    return request.param


def test_all_densities_are_tested():
    assert {type(density) for density in DENSITIES.values()} == {
        *typing.get_args(AnyDensity),
        Shifted,
    }


def test_quantile_increases_from_zero_to_one(name):
    density = DENSITIES[name]
    assert isinstance(density, Density)
    times = jax.jit(density.quantile)(PROBABILITIES)
    np.testing.assert_allclose(times[jnp.array([0, -1])], [0, 1], atol=1e-7)
    assert ((times >= 0) & (times <= 1)).all()
    # Terms of up to 1.75 (in Mode) are each rounded by up to 1.2e-7.
    assert (jnp.diff(times) >= -3e-7).all()


@pytest.mark.parametrize("name", PDFS)
def test_quantile_inverts_cdf_of_published_density(name):
    edges = np.linspace(0, 1, 200_001)
    midpoints = 0.5 * (edges[1:] + edges[:-1])
    cdf = np.concatenate([[0], np.cumsum(PDFS[name](midpoints)) * 5e-6])
    # The error of the midpoint rule is 1e-9, and that of the table of mode_pdf 1e-5.
    np.testing.assert_allclose(cdf[-1], 1, atol=2e-5)
    times = DENSITIES[name].quantile(PROBABILITIES)
    np.testing.assert_allclose(np.interp(times, edges, cdf), PROBABILITIES, atol=2e-5)


@pytest.mark.parametrize("stratified", [False, True])
def test_sampled_times_follow_density(stratified):
    # The Kolmogorov-Smirnov distance of 4096 samples exceeds 1.95 / 64 with probability 1e-3.
    sample = jax.jit(lambda key: sample_times(key, 4096, LogitNormal(), stratified=stratified))
    times = np.asarray(sample(jax.random.key(0)), np.float64)
    distance = stats.kstest(times, lambda t: stats.norm.cdf(np.log(t / (1 - t)))).statistic
    # Stratified samples cover every stratum, so their distance is at most one stratum.
    assert distance < (1 / 4096 + 1e-6 if stratified else 1.95 / 64)
    np.testing.assert_array_equal(sample(jax.random.key(0)), sample(jax.random.key(0)))
    assert (sample(jax.random.key(0)) != sample(jax.random.key(1))).any()


def test_uniform_steps_have_equal_probability():
    times = UniformSteps(8).quantile((jnp.arange(800) + 0.5) / 800)
    np.testing.assert_array_equal(times, np.repeat(1 - np.arange(8, 0, -1) / 8, 100))
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        UniformSteps(0)


def test_stratified_times_cover_strata_in_random_order():
    num = 1024
    times = sample_times(jax.random.key(3), num, Uniform(), stratified=True)
    strata = jnp.floor(times * num).astype(int)
    np.testing.assert_array_equal(jnp.sort(strata), jnp.arange(num))
    # In random order, the rank correlation exceeds 3.3 / sqrt(num) with probability 1e-3.
    assert abs(np.corrcoef(strata, np.arange(num))[0, 1]) < 3.3 / np.sqrt(num)


def test_stratified_times_have_same_mean_and_less_variance():
    sample_means = jax.jit(
        lambda keys: tuple(
            jax.vmap(lambda key, s=s: sample_times(key, 16, UShaped(), stratified=s).mean())(keys)
            for s in (False, True)
        )
    )
    independent, stratified = sample_means(jax.random.split(jax.random.key(0), 2000))
    # The density is symmetric, so the mean is 1/2. The tolerance is 4 standard errors.
    for means in (independent, stratified):
        assert abs(means.mean() - 0.5) < 4 * means.std() / np.sqrt(2000)
    assert stratified.std() < 0.25 * independent.std()


def test_each_stratified_time_follows_density():
    # The first time is uniform over many batches of 4.
    sample_first = jax.vmap(lambda key: sample_times(key, 4, Uniform(), stratified=True)[0])
    first = np.asarray(sample_first(jax.random.split(jax.random.key(5), 4096)))
    assert stats.kstest(first, "uniform").statistic < 1.95 / 64


@pytest.mark.parametrize("shift", [0.3, 1.0, 3.0])
def test_shift_matches_sd3_and_is_invertible(shift):
    t = np.linspace(0, 1, 101)
    sigma = 1 - t
    shifted = 1 - shift * sigma / (1 + (shift - 1) * sigma)
    np.testing.assert_allclose(shift_times(jnp.asarray(t), shift), shifted, atol=2e-7)
    np.testing.assert_allclose(shift_times(jnp.asarray(shifted), 1 / shift), t, atol=4e-7)
    np.testing.assert_allclose(
        Shifted(Mode(), shift).quantile(jnp.asarray(t)),
        shift_times(Mode().quantile(jnp.asarray(t)), shift),
        atol=1e-7,
    )


GRIDS = {
    "uniform": uniform_grid,
    "shifted": lambda num_steps: shifted_grid(num_steps, 3.0),
    "edm": edm_grid,
    **{
        f"quantiles, {name}": lambda num_steps, density=density: quantile_grid(num_steps, density)
        for name, density in DENSITIES.items()
    },
}


@pytest.mark.parametrize("name", GRIDS)
def test_grid_increases_strictly_from_zero_to_one(name):
    for num_steps in (1, 64):
        grid = GRIDS[name](num_steps)
        assert grid.shape == (num_steps + 1,)
        assert (grid[0], grid[-1]) == (0, 1)
        assert (jnp.diff(grid) > 0).all()


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("num_steps", [0, -1])
def test_grid_without_steps_is_refused(name, num_steps):
    with pytest.raises(ValueError, match=f"num_steps must be at least 1, got {num_steps}"):
        GRIDS[name](num_steps)


def test_grids_match_formulas():
    u = np.linspace(0, 1, 11)
    np.testing.assert_allclose(uniform_grid(10), u, atol=1e-7)
    np.testing.assert_allclose(shifted_grid(10, 3.0), u / (3 - 2 * u), atol=1e-7)
    quantiles = quantile_grid(10, LogitNormal(-0.5, 2.0))
    logits = np.log(quantiles[1:-1] / (1 - quantiles[1:-1]))
    np.testing.assert_allclose(stats.norm.cdf(logits, -0.5, 2.0), u[1:-1], atol=1e-6)


@pytest.mark.parametrize(("rho", "sigma_min", "sigma_max"), [(7.0, 0.002, 80.0), (3.0, 0.01, 5.0)])
def test_edm_grid_matches_equation_5(rho, sigma_min, sigma_max):
    num = 18
    ramp = np.arange(num) / (num - 1)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    levels = (high + ramp * (low - high)) ** rho
    grid = np.asarray(edm_grid(num, rho, sigma_min=sigma_min, sigma_max=sigma_max), np.float64)
    np.testing.assert_allclose(grid[1:-1], 1 / (1 + levels[1:]), rtol=1e-6)
    # The noise-to-data ratios of the linear path at these times are the noise levels of EDM. Near
    # the data, 1 - t has an absolute error of 6e-8.
    np.testing.assert_allclose((1 - grid[1:-1]) / grid[1:-1], levels[1:], rtol=3e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LogitNormal(std=0.0), "std must be positive, got 0.0"),
        (lambda: Mode(-1.1), r"scale must lie in \[-1.0, 1.75.*\], got -1.1"),
        (lambda: Mode(1.8), r"scale must lie in \[-1.0, 1.75.*\], got 1.8"),
        (lambda: UShaped(0.0), "a must be positive, got 0.0"),
        (lambda: Shifted(shift=0.0), "shift must be positive, got 0.0"),
        (
            lambda: Tabulated((0.0, 0.5), (1.0,)),
            r"times must increase from 0 to 1, got \(0.0, 0.5\)",
        ),
        (lambda: Tabulated((0.0, 0.0, 1.0), (1.0, 1.0)), "times must increase from 0 to 1"),
        (
            lambda: Tabulated((0.0, 1.0), (1.0, 1.0)),
            "density must have 1 values, one fewer than times, got 2",
        ),
        (lambda: Tabulated((0.0, 1.0), (0.0,)), "density must be positive, got 0.0"),
        (lambda: shifted_grid(4, -1.0), "shift must be positive, got -1.0"),
        (lambda: edm_grid(4, 0.0), "rho must be positive, got 0.0"),
        (lambda: edm_grid(4, sigma_min=0.0), "sigma_min must be positive, got 0.0"),
        (
            lambda: edm_grid(4, sigma_min=3.0, sigma_max=2.0),
            "sigma_max must be greater than 3.0, got 2.0",
        ),
    ],
)
def test_invalid_density_and_grid_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
