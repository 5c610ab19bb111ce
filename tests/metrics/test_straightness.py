"""Tests of straightness against closed forms: lines, arcs and flows between Gaussians."""

import functools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.metrics import straightness
from fmjax.paths import Cosine, Linear
from fmjax.solvers.steppers.ode import RK4, AdamsBashforth2, Euler, Heun, Midpoint
from tests.oracles import Gaussian

MEAN, STD = 1.0, 0.5
SCHEDULES = {"linear": Linear(), "cosine": Cosine()}


def noise(*shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(0), shape, dtype)


def measure(velocity_fn, x0, cond=None, **settings):
    return jax.jit(functools.partial(straightness, velocity_fn, **settings))(x0, cond)


def rotation(t, x, cond):
    """Return the velocity of rotations around the origin by the angles `cond`, in radians."""
    return cond[:, None] * jnp.stack([-x[:, 1], x[:, 0]], axis=1)


def gaussian_derivatives(name, t):
    """Return alpha', c', alpha'' and c'' of x_t = alpha mean + c x0 in float64."""
    if name == "linear":
        c = np.sqrt((STD * t) ** 2 + (1 - t) ** 2)
        rate = (STD**2 * t - (1 - t)) / c
        return np.ones_like(t), rate, np.zeros_like(t), STD**2 / c**3
    half = np.pi / 2
    a, s = np.sin(half * t), np.cos(half * t)
    c = np.sqrt((STD * a) ** 2 + s**2)
    rate = half * (STD**2 - 1) * a * s / c
    second_derivative = (half**2 * (STD**2 - 1) * (s**2 - a**2) - rate**2) / c
    return half * s, rate, -(half**2) * a, second_derivative


def gaussian_straightness(name, x0, times, midpoints):
    """Return the exact values in float64 for the flow from N(0, I) to N(MEAN, STD^2 I)."""
    x0 = np.asarray(x0, np.float64)
    x0 = x0.reshape(len(x0), 1, -1)
    d = MEAN + (STD - 1) * x0

    def velocity(t):
        shift, spread, _, _ = gaussian_derivatives(name, t)
        return shift[None, :, None] + spread[None, :, None] * x0

    nodes, weights = np.polynomial.legendre.leggauss(200)
    v = velocity(0.5 * (nodes + 1))
    _, _, shift, spread = gaussian_derivatives(name, midpoints)
    length = np.linalg.norm(v, axis=2) @ (0.5 * weights)
    return {
        "s": np.mean((d - v) ** 2, axis=2) @ (0.5 * weights),
        "length_ratio": length / np.linalg.norm(d, axis=2)[:, 0],
        "deviation": np.mean((d - velocity(times)) ** 2, axis=2),
        "curvature": np.sqrt(
            np.mean((shift[None, :, None] + spread[None, :, None] * x0) ** 2, axis=2)
        ),
    }


def test_constant_velocity_is_straight():
    x0 = noise(5, 3, 2)
    result = measure(lambda t, x, cond: cond, x0, 3.0 * noise(5, 3, 2)[::-1])
    # Each of the 64 steps rounds x, up to 10, by 6e-8; s squares the sum of these errors.
    np.testing.assert_allclose(result.s, 0.0, atol=1e-9)
    np.testing.assert_allclose(result.deviation, 0.0, atol=1e-9)
    np.testing.assert_allclose(result.length_ratio, 1.0, rtol=1e-5)
    np.testing.assert_array_equal(result.curvature, 0.0)
    assert result.curvature.shape == (5, 64)
    np.testing.assert_allclose(result.times, np.linspace(0, 1, 65), atol=1e-7)
    np.testing.assert_allclose(result.midpoints, (np.arange(64) + 0.5) / 64, atol=1e-7)


def test_line_with_changing_speed_has_unit_length_ratio():
    result = measure(lambda t, x, cond: 2.0 * t[:, None] * cond, noise(4, 3), noise(4, 3)[::-1])
    squared = np.mean(np.square(noise(4, 3)[::-1]), axis=1)
    np.testing.assert_allclose(result.s, squared / 3, rtol=1e-5)  # The integral of (1 - 2t)^2.
    np.testing.assert_allclose(result.length_ratio, 1.0, rtol=1e-5)
    curvature = np.repeat(2 * np.sqrt(squared)[:, None], 64, axis=1)
    np.testing.assert_allclose(result.curvature, curvature, rtol=1e-4)


def test_arcs_match_closed_form_for_each_condition():
    x0, angle = noise(6, 2), jnp.linspace(0.2, 3.0, 6)
    result = measure(rotation, x0, angle)
    half, radius = np.asarray(angle, np.float64) / 2, np.linalg.norm(x0, axis=1)
    np.testing.assert_allclose(result.length_ratio, half / np.sin(half), rtol=1e-5)
    # x1 - x0 is the mean of v, so s is (|v|^2 - |x1 - x0|^2) / 2 for two coordinates.
    expected_s = radius**2 * ((2 * half) ** 2 - (2 * np.sin(half)) ** 2) / 2
    np.testing.assert_allclose(result.s, expected_s, rtol=1e-4, atol=1e-6)
    # Differences over h have a relative error of up to (3 h)^2 / 24 and rounding of 64 eps.
    curvature = np.repeat((radius * (2 * half) ** 2 / np.sqrt(2))[:, None], 64, axis=1)
    np.testing.assert_allclose(result.curvature, curvature, rtol=3e-4, atol=1e-5)
    angles = np.asarray(angle)[:, None] * np.asarray(result.times)
    start = np.asarray(x0) @ np.array([1.0, 1.0j])
    positions = start[:, None] * np.exp(1j * angles)
    np.testing.assert_allclose(result.positions @ np.array([1.0, 1.0j]), positions, atol=2e-5)


@pytest.mark.parametrize("name", SCHEDULES)
def test_gaussian_flow_matches_closed_form(name):
    x0 = noise(6, 2, 3)
    result = measure(Gaussian(SCHEDULES[name], MEAN, STD).velocity, x0)
    expected = gaussian_straightness(
        name, x0, np.asarray(result.times), np.asarray(result.midpoints)
    )
    for field in ("s", "length_ratio", "deviation"):
        np.testing.assert_allclose(getattr(result, field), expected[field], rtol=3e-5, atol=3e-6)
    # The error of the difference is h^2 / 24 times the fourth derivative of c, at most 50: 5e-4.
    np.testing.assert_allclose(result.curvature, expected["curvature"], rtol=0, atol=2e-3)


@pytest.mark.parametrize("solver", [Euler(), Midpoint(), Heun(), AdamsBashforth2(), RK4()])
def test_errors_decrease_at_convergence_order(solver):
    order, field = solver.convergence_order, Gaussian(Cosine(), MEAN, STD).velocity
    errors = {"s": [], "length_ratio": [], "deviation": [], "curvature": []}
    with jax.enable_x64(True):
        x0 = noise(4, 3, dtype=jnp.float64)
        for num_steps in (128, 256) if order < 4 else (32, 64):
            result = measure(field, x0, num_steps=num_steps, solver=solver)
            times, midpoints = np.asarray(result.times), np.asarray(result.midpoints)
            expected = gaussian_straightness("cosine", x0, times, midpoints)
            for name, values in errors.items():
                error = np.asarray(getattr(result, name)) - expected[name]
                values.append(np.sqrt(np.mean(error**2)))
    slopes = {name: np.log2(coarse / fine) for name, (coarse, fine) in errors.items()}
    orders = dict.fromkeys(errors, order) | {"curvature": min(order, 2)}
    assert slopes == pytest.approx(orders, abs=0.1)


def test_repeated_coordinates_do_not_change_result():
    field, x0 = Gaussian(Linear(), MEAN, STD).velocity, noise(4, 3)
    result, tiled = (measure(field, x) for x in (x0, jnp.concatenate([x0, x0], axis=1)))
    # Repeated coordinates double S of the paper, the sum, but not s, the mean.
    np.testing.assert_allclose(result.s, tiled.s, rtol=1e-6)
    np.testing.assert_allclose(result.curvature, tiled.curvature, rtol=1e-4, atol=1e-5)


def test_zero_velocity_is_straight():
    result = measure(lambda t, x, cond: 0.0 * x, noise(3, 2))
    np.testing.assert_array_equal(result.length_ratio, 1.0)
    np.testing.assert_array_equal(result.s, 0.0)


def test_nonfinite_trajectory_does_not_affect_others():
    x0, angle = noise(4, 2), jnp.array([0.5, 1.0, jnp.nan, 2.0])
    result, finite = measure(rotation, x0, angle), measure(rotation, x0, angle.at[2].set(1.0))
    for actual, expected in zip(result[:3], finite[:3], strict=True):
        np.testing.assert_array_equal(np.isnan(actual[2]), True)
        kept = np.array([0, 1, 3])
        np.testing.assert_array_equal(actual[kept], expected[kept])


def test_bfloat16_is_measured_in_float32():
    x0, angle = noise(4, 2).astype(jnp.bfloat16), jnp.ones(4)
    result, expected = (
        measure(rotation, x0, angle),
        measure(rotation, x0.astype(jnp.float32), angle),
    )
    assert result.s.dtype == jnp.float32
    np.testing.assert_array_equal(result.s, expected.s)


def test_result_on_eight_devices_matches_single_device():
    x0, angle = noise(16, 2), jnp.linspace(0.2, 3.0, 16)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.NamedSharding(mesh, jax.P("data"))
    single = measure(rotation, x0, angle, num_steps=8)
    sharded = measure(rotation, *jax.device_put((x0, angle), rows), num_steps=8)
    assert sharded.s.sharding.is_equivalent_to(rows, 1)
    assert sharded.deviation.sharding.is_equivalent_to(rows, 2)
    for result in (sharded, straightness(rotation, x0, angle, num_steps=8)):
        for a, b in zip(result, single, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_steps", [-2, 0, 1, 7])
def test_odd_or_too_few_steps_are_refused(num_steps):
    message = f"num_steps must be even and at least 2, got {num_steps}"
    with pytest.raises(ValueError, match=message):
        straightness(rotation, noise(2, 2), jnp.ones(2), num_steps=num_steps)


@pytest.mark.usefixtures("unchecked")
def test_invalid_arguments_are_refused():
    x0, cond = noise(2, 2), jnp.ones(2)
    with pytest.raises(ValueError, match="solver must be a fixed-step solver .*, got Tsit5"):
        straightness(rotation, x0, cond, solver=diffrax.Tsit5())  # pyright: ignore
    with pytest.raises(ValueError, match="x0 must be floating point, got int32"):
        straightness(rotation, jnp.ones((2, 2), jnp.int32), cond)
    with pytest.raises(ValueError, match=r"velocity_fn must return shape \(2, 2\), got \(2,\)"):
        straightness(lambda t, x, cond: t, x0, cond)
