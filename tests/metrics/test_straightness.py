"""Straightness against closed forms: lines, arcs of circles, and the flow between two Gaussians."""

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


def turning(t, x, cond):
    """Each sample turns around the origin by its angle `cond`, in radians."""
    return cond[:, None] * jnp.stack([-x[:, 1], x[:, 0]], axis=1)


def shift_and_spread(name, t):
    """alpha' and c', alpha'' and c'' of x_t = alpha mean + c x0, float64, by hand."""
    if name == "linear":
        c = np.sqrt((STD * t) ** 2 + (1 - t) ** 2)
        rate = (STD**2 * t - (1 - t)) / c
        return np.ones_like(t), rate, np.zeros_like(t), STD**2 / c**3
    half = np.pi / 2
    a, s = np.sin(half * t), np.cos(half * t)
    c = np.sqrt((STD * a) ** 2 + s**2)
    rate = half * (STD**2 - 1) * a * s / c
    bend = (half**2 * (STD**2 - 1) * (s**2 - a**2) - rate**2) / c
    return half * s, rate, -(half**2) * a, bend


def of_gaussian(name, x0, times, midpoints):
    """s, length ratio, deviation and curvature of N(0, I) -> N(mean, std^2 I), float64."""
    x0 = np.asarray(x0, np.float64)
    x0 = x0.reshape(len(x0), 1, -1)
    d = MEAN + (STD - 1) * x0

    def velocity(t):
        shift, spread, _, _ = shift_and_spread(name, t)
        return shift[None, :, None] + spread[None, :, None] * x0

    nodes, weights = np.polynomial.legendre.leggauss(200)
    v = velocity(0.5 * (nodes + 1))
    _, _, shift, spread = shift_and_spread(name, midpoints)
    length = np.linalg.norm(v, axis=2) @ (0.5 * weights)
    return {
        "s": np.mean((d - v) ** 2, axis=2) @ (0.5 * weights),
        "length_ratio": length / np.linalg.norm(d, axis=2)[:, 0],
        "deviation": np.mean((d - velocity(times)) ** 2, axis=2),
        "curvature": np.sqrt(
            np.mean((shift[None, :, None] + spread[None, :, None] * x0) ** 2, axis=2)
        ),
    }


def test_lines_at_constant_speed_are_straight_in_every_way():
    x0 = noise(5, 3, 2)
    found = measure(lambda t, x, cond: cond, x0, 3.0 * noise(5, 3, 2)[::-1])
    # Each of the 64 steps rounds x by 6e-8 of up to 10, and s squares the sum.
    np.testing.assert_allclose(found.s, 0.0, atol=1e-9)
    np.testing.assert_allclose(found.deviation, 0.0, atol=1e-9)
    np.testing.assert_allclose(found.length_ratio, 1.0, rtol=1e-5)
    np.testing.assert_array_equal(found.curvature, 0.0)
    assert found.curvature.shape == (5, 64)
    np.testing.assert_allclose(found.times, np.linspace(0, 1, 65), atol=1e-7)
    np.testing.assert_allclose(found.midpoints, (np.arange(64) + 0.5) / 64, atol=1e-7)


def test_a_line_at_changing_speed_is_straight_and_yet_not_one_step():
    found = measure(lambda t, x, cond: 2.0 * t[:, None] * cond, noise(4, 3), noise(4, 3)[::-1])
    squared = np.mean(np.square(noise(4, 3)[::-1]), axis=1)
    np.testing.assert_allclose(found.s, squared / 3, rtol=1e-5)  # Integral of (1 - 2t)^2.
    np.testing.assert_allclose(found.length_ratio, 1.0, rtol=1e-5)
    bend = np.repeat(2 * np.sqrt(squared)[:, None], 64, axis=1)
    np.testing.assert_allclose(found.curvature, bend, rtol=1e-4)


def test_an_arc_is_longer_than_its_chord_each_example_under_its_own_condition():
    x0, angle = noise(6, 2), jnp.linspace(0.2, 3.0, 6)
    found = measure(turning, x0, angle)
    half, radius = np.asarray(angle, np.float64) / 2, np.linalg.norm(x0, axis=1)
    np.testing.assert_allclose(found.length_ratio, half / np.sin(half), rtol=1e-5)
    # x1 - x0 is the mean of v: mean over 2 coordinates of |v|^2 - |x1 - x0|^2.
    squares = radius**2 * ((2 * half) ** 2 - (2 * np.sin(half)) ** 2) / 2
    np.testing.assert_allclose(found.s, squares, rtol=1e-4, atol=1e-6)
    # A difference over h falls short of angle^2 by up to (3 h)^2 / 24, and rounds by 64 eps.
    bend = np.repeat((radius * (2 * half) ** 2 / np.sqrt(2))[:, None], 64, axis=1)
    np.testing.assert_allclose(found.curvature, bend, rtol=3e-4, atol=1e-5)
    turned = np.asarray(angle)[:, None] * np.asarray(found.times)
    start = np.asarray(x0) @ np.array([1.0, 1.0j])
    where = start[:, None] * np.exp(1j * turned)
    np.testing.assert_allclose(found.positions @ np.array([1.0, 1.0j]), where, atol=2e-5)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_gaussian_flow_has_its_closed_form(name):
    x0 = noise(6, 2, 3)
    found = measure(Gaussian(SCHEDULES[name], MEAN, STD).velocity, x0)
    wanted = of_gaussian(name, x0, np.asarray(found.times), np.asarray(found.midpoints))
    for field in ("s", "length_ratio", "deviation"):
        np.testing.assert_allclose(getattr(found, field), wanted[field], rtol=3e-5, atol=3e-6)
    # The difference errs by h^2 / 24 of the fourth derivative of c, 50 at most: 5e-4.
    np.testing.assert_allclose(found.curvature, wanted["curvature"], rtol=0, atol=2e-3)


@pytest.mark.parametrize("solver", [Euler(), Midpoint(), Heun(), AdamsBashforth2(), RK4()])
def test_errors_fall_at_the_order_that_is_promised(solver):
    order, field = solver.convergence_order, Gaussian(Cosine(), MEAN, STD).velocity
    errors = {"s": [], "length_ratio": [], "deviation": [], "curvature": []}
    with jax.enable_x64(True):
        x0 = noise(4, 3, dtype=jnp.float64)
        for num_steps in (128, 256) if order < 4 else (32, 64):
            found = measure(field, x0, num_steps=num_steps, solver=solver)
            times, midpoints = np.asarray(found.times), np.asarray(found.midpoints)
            wanted = of_gaussian("cosine", x0, times, midpoints)
            for name, of_name in errors.items():
                gap = np.asarray(getattr(found, name)) - wanted[name]
                of_name.append(np.sqrt(np.mean(gap**2)))
    slopes = {name: np.log2(coarse / fine) for name, (coarse, fine) in errors.items()}
    promised = dict.fromkeys(errors, order) | {"curvature": min(order, 2)}
    assert slopes == pytest.approx(promised, abs=0.1)


def test_the_papers_own_unit_is_the_mean_times_the_number_of_coordinates():
    field, x0 = Gaussian(Linear(), MEAN, STD).velocity, noise(4, 3)
    found, tiled = (measure(field, x) for x in (x0, jnp.concatenate([x0, x0], axis=1)))
    # Twice the coordinates are twice the paper's S, and the same s.
    np.testing.assert_allclose(found.s, tiled.s, rtol=1e-6)
    np.testing.assert_allclose(found.curvature, tiled.curvature, rtol=1e-4, atol=1e-5)


def test_where_nothing_moves_the_path_is_straight():
    found = measure(lambda t, x, cond: 0.0 * x, noise(3, 2))
    np.testing.assert_array_equal(found.length_ratio, 1.0)
    np.testing.assert_array_equal(found.s, 0.0)


def test_a_path_that_is_not_finite_spoils_no_other():
    x0, angle = noise(4, 2), jnp.array([0.5, 1.0, jnp.nan, 2.0])
    found, sound = measure(turning, x0, angle), measure(turning, x0, angle.at[2].set(1.0))
    for broken, whole in zip(found[:3], sound[:3], strict=True):
        np.testing.assert_array_equal(np.isnan(broken[2]), True)
        kept = np.array([0, 1, 3])
        np.testing.assert_array_equal(broken[kept], whole[kept])


def test_low_precision_is_measured_as_float32():
    x0, angle = noise(4, 2).astype(jnp.bfloat16), jnp.ones(4)
    found, wanted = measure(turning, x0, angle), measure(turning, x0.astype(jnp.float32), angle)
    assert found.s.dtype == jnp.float32
    np.testing.assert_array_equal(found.s, wanted.s)


def test_paths_over_eight_devices_are_those_of_one_jitted_or_not():
    x0, angle = noise(16, 2), jnp.linspace(0.2, 3.0, 16)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.NamedSharding(mesh, jax.P("data"))
    alone = measure(turning, x0, angle, num_steps=8)
    spread = measure(turning, *jax.device_put((x0, angle), rows), num_steps=8)
    assert spread.s.sharding.is_equivalent_to(rows, 1)
    assert spread.deviation.sharding.is_equivalent_to(rows, 2)
    for other in (spread, straightness(turning, x0, angle, num_steps=8)):
        for a, b in zip(other, alone, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_steps", [-2, 0, 1, 7])
def test_numbers_of_steps_that_simpsons_rule_lacks_are_refused(num_steps):
    message = f"num_steps must be even and at least 2, got {num_steps}"
    with pytest.raises(ValueError, match=message):
        straightness(turning, noise(2, 2), jnp.ones(2), num_steps=num_steps)


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_measured_is_refused():
    x0, cond = noise(2, 2), jnp.ones(2)
    with pytest.raises(ValueError, match="solver must be a fixed-step solver .*, got Tsit5"):
        straightness(turning, x0, cond, solver=diffrax.Tsit5())  # pyright: ignore
    with pytest.raises(ValueError, match="x0 must be floating point, got int32"):
        straightness(turning, jnp.ones((2, 2), jnp.int32), cond)
    with pytest.raises(ValueError, match=r"velocity_fn must return shape \(2, 2\), got \(2,\)"):
        straightness(lambda t, x, cond: t, x0, cond)
