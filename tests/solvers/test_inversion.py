"""Encoding against the inverse flow map; editing and interpolation against closed forms."""

from functools import partial

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.paths import AffinePath, Cosine, Linear, edm_grid, shifted_grid, uniform_grid
from fmjax.solvers import (
    RK4,
    AdaptiveSteps,
    ErrorControl,
    Euler,
    FixedSteps,
    Heun,
    Midpoint,
    classifier_free,
    edit,
    interpolate,
    invert,
    sample,
)
from tests.oracles import GaussianMixture
from tests.solvers.table import GAUSSIAN, CountedField, ends, noise

MIXTURE = GaussianMixture(Cosine())
TIGHT = AdaptiveSteps(1e-6, 1e-6)
KEYS = jax.random.split(jax.random.key(3), 6)


def test_to_encode_is_to_invert_the_flow_map():
    x0 = noise()
    found = jax.jit(partial(invert, GAUSSIAN.velocity, steps=TIGHT))(ends(x0))
    np.testing.assert_allclose(found.x0, x0, rtol=0, atol=2e-5)
    assert found.succeeded.all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("solver", "steps", "allowed"),
    [
        (Heun(), FixedSteps(uniform_grid(64)), 2e-2),
        (RK4(), FixedSteps(shifted_grid(64, 2.0)), 1e-4),
        (diffrax.Tsit5(), TIGHT, 1e-4),
        (diffrax.Dopri5(), AdaptiveSteps(1e-6, 1e-6, ErrorControl.PER_SAMPLE, slots=2), 1e-4),
    ],
    ids=["heun", "rk4", "tsit5", "dopri5-slots"],
)
def test_data_come_back_from_the_noise_they_were_encoded_to(solver, steps, allowed):
    x1 = jnp.concatenate([jnp.asarray(MIXTURE.means), jnp.asarray(MIXTURE.means) + 0.25])

    @jax.jit
    def there_and_back(x1):
        there = invert(MIXTURE.velocity, x1, solver=solver, steps=steps)
        return there, sample(MIXTURE.velocity, there.x0, solver=solver, steps=steps)

    there, back = there_and_back(x1)
    assert there.succeeded.all()
    assert back.succeeded.all()
    np.testing.assert_allclose(back.x1, x1, rtol=0, atol=allowed)


@pytest.mark.slow
@pytest.mark.parametrize("padding", [0, 3])
def test_a_grid_is_walked_backwards_over_its_own_times(padding):
    """A midpoint step sees its end and its middle, and the field is asked there alone."""
    times = jnp.concatenate([edm_grid(4), jnp.ones(padding)])
    asked = []

    def field(t, x, cond=None):
        jax.debug.callback(lambda t: asked.append(float(t)), t[0])
        return 0.0 * x

    def run(times):
        return invert(field, jnp.ones((2, 3)), solver=Midpoint(), steps=FixedSteps(times)).nfe

    nfe = (jax.jit(run) if padding else run)(times)
    jax.effects_barrier()
    grid = np.asarray(edm_grid(4), np.float64)[::-1]
    middles = (grid[:-1] + grid[1:]) / 2
    wanted = np.stack([grid[:-1], middles], axis=1).ravel()
    # Callbacks come in any order; no two times are alike.
    np.testing.assert_allclose(sorted(asked), sorted(wanted), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(nfe, 8)


def test_encoding_counts_the_calls_and_guidance_inside_its_interval_twice():
    field, steps = CountedField(GAUSSIAN.velocity), FixedSteps(uniform_grid(4))
    fn = jax.jit(partial(invert, field, solver=Heun(), steps=steps))
    found, calls = field.counted(fn, noise())
    np.testing.assert_array_equal(found.nfe, calls)

    def scaled(t, x, cond=None):
        return x if cond is None else cond[:, None] * x

    # Euler's backward steps begin at 1, 3/4, 1/2 and 1/4, the last of them alone inside.
    guided = classifier_free(scaled, 0.0, 2.0, (0.0, 0.3))
    found = invert(guided, noise(), jnp.ones(6), solver=Euler(), steps=steps)
    np.testing.assert_array_equal(found.nfe, 5)


@pytest.mark.slow
def test_a_point_that_is_not_finite_is_flagged_and_spoils_no_other():
    x1 = noise().at[2, 0].set(jnp.nan)
    steps = AdaptiveSteps(1e-3, 1e-3, ErrorControl.PER_SAMPLE, max_steps=64)
    fn = jax.jit(partial(invert, GAUSSIAN.velocity, solver=diffrax.Bosh3(), steps=steps))
    found, alone = fn(x1), fn(noise())
    np.testing.assert_array_equal(found.succeeded, np.arange(6) != 2)
    np.testing.assert_array_equal(np.delete(found.x0, 2, 0), np.delete(alone.x0, 2, 0))


def test_what_is_no_point_is_refused(unchecked):
    steps = FixedSteps(uniform_grid(2))
    whole = jnp.zeros((2, 3), jnp.uint8)
    with pytest.raises(ValueError, match="x1 must be floating point, got uint8"):
        invert(GAUSSIAN.velocity, whole, solver=RK4(), steps=steps)
    with pytest.raises(ValueError, match="x1 must be floating point, got uint8"):
        edit(GAUSSIAN.velocity, AffinePath(), whole, KEYS[:2], 0.5)
    with pytest.raises(ValueError, match=r"velocity_fn must return shape \(6, 3\), got \(6, 1\)"):
        invert(lambda t, x, cond: x[:, :1], noise(), solver=RK4(), steps=steps)


def test_an_arc_joins_its_ends_and_its_norms_go_evenly():
    a, b = noise(4, 3, 5), 2.0 * noise(4, 3, 5, seed=1)
    arc = interpolate(a, b, 5)
    assert arc.shape == (5, 4, 3, 5)
    np.testing.assert_allclose(arc[0], a, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(arc[-1], b, rtol=1e-5, atol=1e-6)
    lengths = np.linalg.norm(arc.reshape(5, 4, -1), axis=-1)
    np.testing.assert_allclose(lengths, np.linspace(lengths[0], lengths[-1], 5), rtol=1e-5)


def test_an_arc_turns_evenly():
    a, b = jnp.array([[1.0, 0.0]]), jnp.array([[-3.0, 3.0]])
    arc = interpolate(a, b, 4)[:, 0]
    angles = np.degrees(np.arctan2(arc[:, 1], arc[:, 0]))
    np.testing.assert_allclose(angles, [0.0, 45.0, 90.0, 135.0], atol=1e-4)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([2.0], [-1.0]),
        ([1.0], [3.0]),
        ([1.0, 2.0], [2.0, 4.0]),
        ([1.0, 2.0], [-1.0, -2.0]),
        ([0.0, 0.0], [1.0, 2.0]),
        ([0.0], [0.0]),
    ],
    ids=["opposite", "along", "parallel", "half-circle", "from-zero", "nothing"],
)
def test_where_there_is_no_one_arc_the_way_is_straight(a, b):
    a, b = jnp.array([a]), jnp.array([b])
    np.testing.assert_allclose(interpolate(a, b, 3)[1], (a + b) / 2, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_interpolated_noise_has_no_direction_that_it_prefers():
    """Second moments over the squared norm are I / 4; the mean is zero.

    4,096 arcs: a direction's component has variance 1/4, its square and its product with
    another, of a uniform direction in 4 dimensions, variance 1/16 (E u^4 = 3/24, less 1/16) and
    1/24. Five standard errors: 5 x 0.5 / 64 and 5 x 0.25 / 64.
    """
    arc = interpolate(noise(4096, 4), noise(4096, 4, seed=1), 3)[1]
    unit = np.asarray(arc / jnp.linalg.norm(arc, axis=1, keepdims=True), np.float64)
    np.testing.assert_allclose(unit.mean(0), 0.0, atol=0.04)
    np.testing.assert_allclose(unit.T @ unit / len(unit), np.eye(4) / 4, atol=0.02)


def test_ends_that_do_not_fit_and_a_single_point_are_refused(unchecked):
    with pytest.raises(ValueError, match=r"b must have the shape of a, \(6, 3\), got \(6, 2\)"):
        interpolate(noise(), noise(6, 2), 3)
    with pytest.raises(ValueError, match="num must be at least 2, got 1"):
        interpolate(noise(), noise(), 1)


def edited(strength, x1, keys=KEYS, **solving):
    path = AffinePath(Cosine())
    return edit(GAUSSIAN.velocity, path, x1, keys, strength, **(solving or {"steps": TIGHT}))


@pytest.mark.slow
def test_strength_0_gives_the_data_back_and_strength_1_a_fresh_sample():
    x1 = ends(noise())
    fn = jax.jit(edited)  # One program for all strengths.
    same, fresh = fn(0.0, x1), fn(1.0, x1)
    np.testing.assert_array_equal(same.x1, x1)
    x0 = jax.vmap(lambda key: jax.random.normal(key, (3,)))(KEYS)
    np.testing.assert_allclose(fresh.x1, ends(x0), rtol=0, atol=2e-5)
    assert same.succeeded.all()
    assert fresh.succeeded.all()


def test_what_is_edited_goes_on_along_the_flow_from_its_noised_point():
    x1 = ends(noise())
    x0 = jax.vmap(lambda key: jax.random.normal(key, (3,)))(KEYS)
    t = jnp.full(6, 0.7)
    x_t = AffinePath(Cosine())(t, x0, x1).x_t
    # The flow keeps the standard score: from the mean and spread at 0.7 to those at 1.
    low, high = (GAUSSIAN.flow_map(t, jnp.full((6, 3), z)) for z in (0.0, 1.0))
    wanted = GAUSSIAN.mean + GAUSSIAN.std * (x_t - low) / (high - low)
    found = jax.jit(edited)(0.3, x1)
    np.testing.assert_allclose(found.x1, wanted, rtol=0, atol=2e-5)


@pytest.mark.slow
def test_edited_data_are_distributed_as_the_data():
    """4,096 examples in 2 dimensions of N(1, 1/4): standard errors 0.0078 and 0.0055."""
    num = 4096
    x1 = ends(noise(num, 2))
    keys = jax.random.split(jax.random.key(5), num)
    fn = jax.jit(partial(edited, solver=RK4(), steps=FixedSteps(uniform_grid(8))))
    found = np.asarray(fn(0.6, x1, keys).x1, np.float64)
    np.testing.assert_allclose(found.mean(0), 1.0, atol=0.035)
    np.testing.assert_allclose(found.std(0), 0.5, atol=0.025)
    # And they are not the same: of the standard score, alpha / c of t = 0.4 is kept, which is
    # tan(36 deg) std / sqrt(1 + (tan(36 deg) std)^2) = 0.341; errors of 0.014.
    kept = np.corrcoef(found[:, 0], np.asarray(x1)[:, 0])[0, 1]
    np.testing.assert_allclose(kept, 0.341, atol=0.07)


@pytest.mark.slow
def test_an_edit_does_not_depend_on_the_devices():
    x1, keys = ends(noise(8, 2)), jax.random.split(jax.random.key(1), 8)
    steps = FixedSteps(uniform_grid(4))

    def both(x1, keys):
        there = invert(GAUSSIAN.velocity, x1, solver=RK4(), steps=steps)
        return there.x0, edit(
            GAUSSIAN.velocity, AffinePath(Linear()), x1, keys, 0.5, solver=RK4(), steps=steps
        ).x1

    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.NamedSharding(mesh, jax.P("data"))
    one = jax.jit(both)(x1, keys)
    eight = jax.jit(both)(jax.device_put(x1, rows), jax.device_put(keys, rows))
    for a, b in zip(one, eight, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_a_strength_outside_its_interval_is_refused(strength):
    with pytest.raises(ValueError, match=r"strength must lie in \[0.0, 1.0\], got"):
        edited(strength, noise())


@pytest.mark.parametrize("keys", [KEYS[:3], jnp.zeros(6, jnp.uint32)], ids=["few", "raw"])
def test_keys_that_are_not_one_per_example_are_refused(keys):
    with pytest.raises(ValueError, match=r"keys must be typed keys of shape \(6,\), one per"):
        edited(0.5, noise(), keys)
