"""Tests of all diffusion rates."""

import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.paths import Cosine, Linear, VariancePreserving
from fmjax.solvers import (
    AnyRate,
    ConstantRate,
    DecreasingRate,
    DiffusionRate,
    IncreasingDecreasingRate,
    IncreasingRate,
    SigmaRate,
)

RATES = {
    "none": ConstantRate(0.0),
    "constant": ConstantRate(0.7),
    "sigma": SigmaRate(0.5, Cosine()),
    "sigma of SiT": SigmaRate(1.5, Linear(), power=0.5),
    "sigma of diffusion": SigmaRate(schedule=VariancePreserving()),
    "increasing": IncreasingRate(0.7),
    "decreasing": DecreasingRate(0.7),
    "increasing and decreasing": IncreasingDecreasingRate(0.7),
}
# Values at t = 0, 0.5 and 1.
VALUES = {
    "none": (0.0, 0.0, 0.0),
    "constant": (0.7, 0.7, 0.7),
    "sigma": (0.5, 0.5**1.5, 0.0),
    "sigma of SiT": (1.5, 1.5 * 0.5**0.5, 0.0),
    "increasing": (0.0, 0.35, 0.7),
    "decreasing": (0.7, 0.35, 0.0),
    "increasing and decreasing": (0.0, 0.7, 0.0),
}
TIMES = jnp.concatenate([jnp.array([0.0, 1e-30, 1e-7]), jnp.linspace(0.01, 1.0, 200)])


def test_table_contains_every_rate():
    assert {type(rate) for rate in RATES.values()} == set(typing.get_args(AnyRate))


@pytest.mark.parametrize("name", RATES)
def test_rates_are_finite_and_nonnegative(name):
    rate = RATES[name]
    assert isinstance(rate, DiffusionRate)
    w = jax.jit(rate)(TIMES)
    assert w.shape == TIMES.shape
    assert jnp.all(jnp.isfinite(w))
    assert jnp.all(w >= 0.0)


@pytest.mark.parametrize("name", VALUES)
def test_rates_match_closed_form_values(name):
    w = RATES[name](jnp.asarray([0.0, 0.5, 1.0]))
    np.testing.assert_allclose(w, VALUES[name], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("rate", typing.get_args(AnyRate))
@pytest.mark.parametrize("scale", [-1e-3, float("nan")])
def test_negative_or_nan_scale_is_refused(rate, scale):
    with pytest.raises(ValueError, match=r"scale must be (at least 0\.0|finite), got"):
        rate(scale)


def test_nonpositive_power_is_refused():
    with pytest.raises(ValueError, match="power must be positive, got 0.0"):
        SigmaRate(power=0.0)
