"""Tests that calls outside of `jit` reuse compiled programs, with the parameters of each call."""

import gc
import weakref
from dataclasses import dataclass

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from fmjax.paths import AffinePath, Cosine, CountedField, uniform_grid
from fmjax.solvers import (
    AdaptiveSteps,
    Ancestral,
    ConstantRate,
    ErrorControl,
    Euler,
    FixedSteps,
    Heun,
    edit,
    invert,
    log_density,
    sample,
    sample_diffusion,
    sample_flow_map,
    sample_sde,
)
from fmjax.solvers.engine import programs
from fmjax.solvers.steppers.ode import Step
from tests.oracles import Gaussian
from tests.solvers.table import noise

X0 = noise(8, 3)
KEYS = jax.random.split(jax.random.key(1), 8)
GRID = FixedSteps(uniform_grid(4))
PATH = AffinePath(Cosine())


def oracle(mean, std=0.5):
    """Return a Gaussian whose mean is an array."""
    return Gaussian(Cosine(), jnp.asarray(mean), std)


@pytest.fixture(autouse=True)
def kept(monkeypatch):
    """Programs that are kept, none at first."""
    kept = programs.Programs()
    monkeypatch.setattr(programs, "_PROGRAMS", kept)
    return kept


def solve_brownian(v, x):
    return sample_sde(v, PATH, x, KEYS, solver=diffrax.ShARK(), steps=GRID, rate=ConstantRate(0.3))


SOLVES = {
    "euler": lambda v, x: sample(v, x, solver=Euler(), steps=GRID).x1,
    "flow_map": lambda v, x: sample_flow_map(lambda r, t, x, c: v(t, x, c), x, steps=GRID).x1,
    "ancestral": lambda v, x: sample_diffusion(v, PATH, x, KEYS, sampler=Ancestral(), steps=GRID),
    "sde": lambda v, x: sample_sde(v, PATH, x, KEYS, steps=GRID),
    "invert": lambda v, x: invert(v, x, solver=Heun(), steps=GRID),
    "edit": lambda v, x: edit(v, PATH, x, KEYS, 0.5, solver=Euler(), steps=GRID),
    "log_density": lambda v, x: log_density(v, x, solver=Heun(), steps=GRID),
    "brownian": solve_brownian,
}


@pytest.mark.parametrize(
    "solve",
    [
        pytest.param(solve, id=name, marks=[] if name == "euler" else [pytest.mark.slow])
        for name, solve in SOLVES.items()
    ],
)
def test_a_second_closure_reuses_the_program_with_its_own_parameters(solve, lowered, kept):
    solve(oracle(1.0).velocity, X0)
    assert len(kept) == 1
    second = oracle(3.0)
    num_lowered = len(lowered)
    result = solve(second.velocity, X0)
    assert len(lowered) == num_lowered
    assert len(kept) == 1
    expected = jax.jit(lambda x: solve(second.velocity, x))(X0)
    for actual, desired in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(actual, desired, rtol=2e-5, atol=2e-5)


@pytest.mark.slow
def test_samples_and_densities_equal_the_closed_form(lowered, kept):
    for tolerance, mean, std in ((1e-5, 1.0, 0.5), (1e-6, -2.0, 0.3)):
        num_lowered = len(lowered)
        steps = AdaptiveSteps(tolerance, tolerance)
        exact = Gaussian(Cosine(), jnp.asarray(mean), jnp.asarray(std))
        x1 = sample(exact.velocity, X0, steps=steps).x1
        result = log_density(exact.velocity, x1, steps=steps)
        num_lowered = len(lowered) - num_lowered
        np.testing.assert_allclose(x1, exact.flow_map(jnp.ones(8), X0), atol=2e-5)
        normal = jax.scipy.stats.norm.logpdf(x1, mean, std)
        np.testing.assert_allclose(result.log_density, jnp.sum(normal, axis=1), atol=2e-4)
    assert num_lowered == 0
    assert len(kept) == 2


class Field:
    """A field whose parameters change between calls of the same object."""

    def __init__(self, rate):
        self.rate = rate

    def __call__(self, t, x, cond=None):
        return x * self.rate


SHARED = {"rate": jnp.asarray(0.0)}


def shared_field(t, x, cond=None):
    return x * SHARED["rate"]


def test_an_object_with_new_parameters_gives_their_samples(lowered, kept):
    field = Field(jnp.asarray(1.0))
    first = SOLVES["euler"](field, X0)
    field.rate = jnp.asarray(-2.0)
    num_lowered = len(lowered)
    second = SOLVES["euler"](field, X0)
    assert len(lowered) == num_lowered
    assert len(kept) == 1
    np.testing.assert_allclose(first, X0 * 1.25**4, rtol=1e-5)
    np.testing.assert_allclose(second, X0 * 0.5**4, rtol=1e-5)


def test_a_function_with_a_rebound_global_gives_samples_of_its_value(monkeypatch, kept):
    for rate in (1.0, -2.0):
        monkeypatch.setitem(SHARED, "rate", jnp.asarray(rate))
        x1 = SOLVES["euler"](shared_field, X0)
        np.testing.assert_allclose(x1, X0 * (1.0 + rate / 4.0) ** 4, rtol=1e-5)
    assert len(kept) == 1


def test_a_numpy_array_changed_in_place_gives_samples_of_its_values(kept):
    rate = np.ones(3, np.float32)
    field = Field(rate[None])
    for value in (1.0, -2.0):
        rate[:] = value
        x1 = SOLVES["euler"](field, X0)
        np.testing.assert_allclose(x1, X0 * (1.0 + value / 4.0) ** 4, rtol=1e-5)
    assert len(kept) == 1


@pytest.mark.slow
def test_python_values_are_part_of_the_program(kept):
    field = Field(1.0)
    for value in (1.0, -2.0, 0.0):
        field.rate = value
        x1 = SOLVES["euler"](field, X0)
        np.testing.assert_allclose(x1, X0 * (1.0 + value / 4.0) ** 4, rtol=1e-5)
    assert len(kept) == 3


@pytest.mark.slow
def test_a_jitted_field_shares_the_program(kept):
    for rate in (1.0, -2.0):
        x1 = SOLVES["euler"](jax.jit(Field(jnp.full((1, 3), rate)).__call__), X0)
        np.testing.assert_allclose(x1, X0 * (1.0 + rate / 4.0) ** 4, rtol=1e-5)
    assert len(kept) == 1


def test_tolerances_and_times_are_arguments(lowered, kept):
    for times in (uniform_grid(4), uniform_grid(4) ** 2):
        num_lowered = len(lowered)
        result = sample(Field(jnp.asarray(1.0)), X0, solver=Euler(), steps=FixedSteps(times))
        expected = X0 * np.prod(1.0 + np.diff(np.asarray(times)))
        np.testing.assert_allclose(result.x1, expected, rtol=1e-5)
    assert len(lowered) == num_lowered
    assert len(kept) == 1


def test_the_count_of_evaluations_follows_the_field_of_the_call(kept):
    for count, rate in ((1, 1.0), (3, 2.0)):
        number = jnp.asarray(count)

        def evaluations(t, number=number):
            return jnp.full(t.shape, number)

        field = CountedField(Field(jnp.asarray(rate)), evaluations)
        samples = sample(field, X0, solver=Heun(), steps=GRID)
        assert samples.nfe.tolist() == [8 * count] * 8
    assert len(kept) == 1


@pytest.mark.slow
def test_conditions_are_arguments(kept):
    def field(t, x, cond):
        return cond["label"][:, None] * cond["scale"] * x

    for label in (0, 2):
        cond = {"label": jnp.full(8, label), "scale": 0.5}
        x1 = sample(field, X0, cond, solver=Euler(), steps=GRID).x1
        np.testing.assert_allclose(x1, X0 * (1.0 + 0.5 * label / 4.0) ** 4, rtol=1e-5)
    assert len(kept) == 1


@pytest.mark.slow
def test_a_field_that_uses_values_in_python_is_called_directly(kept):
    def field(t, x, cond):
        return x if np.asarray(cond)[0] > 0 else -x

    for sign in (1.0, -1.0):
        x1 = sample(field, X0, sign * jnp.ones(8), solver=Euler(), steps=GRID).x1
        np.testing.assert_allclose(x1, X0 * (1.0 + sign / 4.0) ** 4, rtol=1e-5)
    assert len(kept) == 0


@pytest.mark.slow
def test_transformations_do_not_keep_programs(kept):
    def total(rate):
        return jnp.sum(SOLVES["euler"](Field(rate), X0))

    derivative = np.sum(X0) * 1.25**3
    np.testing.assert_allclose(jax.grad(total)(1.0), derivative, rtol=1e-4)
    np.testing.assert_allclose(jax.vmap(jax.grad(total))(jnp.ones(2)), derivative, rtol=1e-4)
    np.testing.assert_allclose(jax.jit(total)(1.0), np.sum(X0) * 1.25**4, rtol=1e-4)
    # All arrays are known, but the call is inside of `jit`.
    constant = jax.jit(lambda: total(jnp.asarray(1.0)))
    np.testing.assert_allclose(constant(), np.sum(X0) * 1.25**4, rtol=1e-4)
    assert len(kept) == 0


@dataclass(frozen=True)
class Doubled:
    """Euler's method that calls the field for two copies of the batch at once."""

    convergence_order = 1

    def start(self, x0):
        return None

    def advance(self, field, t0, t1, x, memory):
        k, nfe = field(t0, jnp.concatenate([x, x]))
        k, nfe = k[: len(x)], nfe[: len(x)]
        return Step(x + (t1 - t0) * k, (k, k), nfe, memory)


@pytest.mark.slow
def test_a_solver_that_calls_other_shapes_gives_the_samples_of_each_call(kept):
    for rate in (1.0, -2.0):
        x1 = sample(Field(jnp.asarray(rate)), X0, solver=Doubled(), steps=GRID).x1
        np.testing.assert_allclose(x1, X0 * (1.0 + rate / 4.0) ** 4, rtol=1e-5)
    assert len(kept) == 0


@pytest.mark.slow
def test_settings_that_can_change_are_not_kept(kept):
    class Mutable:
        convergence_order, factor = 1, 1.0

        def start(self, x0):
            return None

        def advance(self, field, t0, t1, x, memory):
            k, nfe = field(t0, x)
            return Step(x + self.factor * (t1 - t0) * k, (k, k), nfe, memory)

    solver = Mutable()
    for factor in (1.0, -2.0):
        solver.factor = factor
        x1 = sample(Field(jnp.asarray(1.0)), X0, solver=solver, steps=GRID).x1
        np.testing.assert_allclose(x1, X0 * (1.0 + factor / 4.0) ** 4, rtol=1e-5)
    assert len(kept) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("solver", "steps", "growth"),
    [
        (diffrax.ImplicitEuler(), GRID, lambda rate: (1.0 - rate / 4.0) ** -4),
        (diffrax.Tsit5(), AdaptiveSteps(control=ErrorControl.PER_SAMPLE, slots=2), np.exp),
    ],
    ids=["implicit", "streaming"],
)
def test_solves_of_separate_samples_share_a_program(solver, steps, growth, lowered, kept):
    for rate in (1.0, -2.0):
        field, num_lowered = Field(jnp.asarray(rate)), len(lowered)
        x1 = sample(field, X0, solver=solver, steps=steps).x1
        np.testing.assert_allclose(x1, X0 * growth(rate), rtol=1e-3)
    assert len(lowered) == num_lowered
    assert len(kept) == 1


@pytest.mark.slow
def test_an_implicit_solver_uses_the_derivatives_of_each_field(kept):
    def nfe(factor):
        field = jax.custom_jvp(lambda x: -3.0 * jnp.sinh(x))
        field.defjvp(lambda x, dx: (field(x[0]), -3.0 * factor * jnp.cosh(x[0]) * dx[0]))
        solver = diffrax.ImplicitEuler()
        return sample(lambda t, x, cond: field(x), X0, solver=solver, steps=GRID).nfe

    assert jnp.any(nfe(1.0) != nfe(0.5))  # A wrong Jacobian costs iterations.


@pytest.mark.slow
def test_eight_devices_equal_one(lowered, kept):
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    columns = NamedSharding(mesh, PartitionSpec(None, "fsdp"))
    for seed in (0, 1):
        weight = jax.random.normal(jax.random.key(seed), (3, 4)) @ jnp.ones((4, 3))
        split = jax.device_put(jnp.pad(weight, ((0, 0), (0, 1))), columns)
        num_lowered = len(lowered)
        sharded = SOLVES["euler"](
            lambda t, x, cond, w=split: jnp.tanh(x @ w)[:, :3], jax.device_put(X0, rows)
        )
        assert sharded.sharding.is_equivalent_to(rows, 2)
        single = SOLVES["euler"](lambda t, x, cond, w=weight: jnp.tanh(x @ w), X0)
        np.testing.assert_allclose(sharded, single, rtol=1e-5, atol=1e-5)
    assert len(lowered) - num_lowered <= 0
    assert len(kept) == 2


@pytest.mark.slow
def test_the_number_of_programs_is_bounded(monkeypatch, kept):
    monkeypatch.setattr(programs, "MAX_PROGRAMS", 2)
    for rate in (1.0, 2.0, 3.0, 1.0):
        SOLVES["euler"](Field(rate), X0)
    assert len(kept) == 2


def test_programs_keep_no_parameters(kept):
    field = Field(jnp.full((1, 3), 0.5) + 0.0)
    parameters = weakref.ref(field.rate)
    SOLVES["euler"](jax.jit(field.__call__), X0)
    del field
    gc.collect()
    assert len(kept) == 1
    assert parameters() is None


@pytest.mark.slow
def test_debug_nans_checks_separate_operations(kept):
    with jax.debug_nans(True):
        SOLVES["euler"](Field(jnp.asarray(1.0)), X0)
        assert len(kept) == 0
