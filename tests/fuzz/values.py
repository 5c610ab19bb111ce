"""Values against closed forms, at random places: a wrong one is an `AssertionError`."""

from collections.abc import Callable
from random import Random

import jax
import jax.numpy as jnp
import numpy as np

from fmjax.metrics import sliced_wasserstein
from fmjax.metrics.classifier_cache import train_classifier
from fmjax.metrics.classifier_training import ClassifierTraining
from fmjax.paths import AffinePath, MinibatchOT, Polynomial, Prediction
from fmjax.solvers import AdaptiveSteps, ErrorControl, classifier_free, log_density, sample
from tests.metrics.test_classifier import SMALL, Lines, striped_set
from tests.paths.test_couplings import scipy_plan
from tests.solvers import test_diffusion


def _normal(rng: Random, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(rng.randrange(2**31)), shape)


def plan_of_far_points(rng: Random) -> None:
    """5: the plan's cost is the least, wherever the points lie."""
    x0, x1 = _normal(rng, 24, 2), _normal(rng, 24, 2)
    shift, scale = rng.uniform(5e3, 1e4), 10 ** rng.uniform(-3, 3)
    # On both sides of a gap: about their common mean the points are far away as well.
    apart = shift * (1.0 + jnp.arange(24)[:, None] % 2)
    x0, x1 = scale * (x0 + apart), scale * (x1 + apart)
    cost, least = (
        np.sum(np.square(np.asarray(rows, np.float64) - np.asarray(x1, np.float64)))
        for rows in (MinibatchOT()(x0, x1), scipy_plan(x0, x1))
    )
    assert cost <= least * (1 + 1e-5)


def solves_without_nan(rng: Random) -> None:
    """6: no unused entry is NaN."""
    control = rng.choice(tuple(ErrorControl))
    with jax.debug_nans(True):
        samples = sample(
            lambda t, x, cond=None: -x, _normal(rng, 4, 2), steps=AdaptiveSteps(control=control)
        )
    assert samples.succeeded.all()


def null_of_labels(rng: Random) -> None:
    """7: a null condition that labels cannot hold is refused."""
    guided = classifier_free(lambda t, x, cond: x, rng.uniform(0.1, 0.9), 2.0)
    try:
        guided(jnp.zeros(2), jnp.ones((2, 2)), jnp.array([0, 1]))
    except ValueError:
        return
    raise AssertionError("a fraction became a label")


def infinite_at_the_end(rng: Random) -> None:
    """8: a velocity that is infinite at t = 1 ends its sample soon."""
    rate = rng.uniform(0.5, 2.0)

    def field(t, x, cond=None):
        return jnp.where(t[:, None] >= 1.0, jnp.inf, -rate * x)

    samples = sample(field, _normal(rng, 4, 2))
    assert not samples.succeeded.any()
    assert int(samples.nfe.max()) <= 100, samples.nfe


def gradient_at_rest(rng: Random) -> None:
    """9: where nothing moves, x1 = x0 exp(a) has the gradient of its closed form."""
    x = _normal(rng, 4, 3)
    if rng.random() < 0.5:
        found = jax.grad(lambda a: sample(lambda t, x, cond=None: a * x, x).x1.sum())(0.0)
        wanted = float(x.sum())
    else:
        found = jax.grad(lambda a: log_density(lambda t, x, cond=None: a * x, x).log_density.sum())(
            0.0
        )
        # log N(x exp(-a)) - 3 a for each of four points.
        wanted = float(jnp.square(x).sum()) - 12.0
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def conversion_at_the_ends(rng: Random) -> None:
    """10: conversions are exact at and near both ends."""
    path = AffinePath(Polynomial(2.0))
    t = rng.choice((0.0, 1e-4, rng.uniform(0.0, 0.02), rng.uniform(0.98, 1.0)))
    x0, x1 = _normal(rng, 1, 3), _normal(rng, 1, 3)
    a, s = t**2, -np.expm1(2 * np.log(t)) if t else 1.0
    x, velocity = a * x1 + s * x0, 2 * t * (x1 - x0)
    times = jnp.array([t])
    found = path.convert(times, x, velocity, from_=Prediction.VELOCITY, to=Prediction.X0)
    np.testing.assert_allclose(found, x0, rtol=1e-4, atol=1e-4)


def orders_of_unipc(rng: Random) -> None:
    """11: steps of the diffusion samplers are those of the reference."""
    test_diffusion.test_the_last_steps_of_a_solve_are_of_lower_order(rng.randrange(3))
    for name, sampler in test_diffusion.REFERENCES.items():
        test_diffusion.test_every_step_is_that_of_diffusers(name, sampler)


def distance_of_close_points(rng: Random) -> None:
    """12: points close together keep their distance wherever they lie."""
    generator = np.random.default_rng(rng.randrange(2**31))
    place, spread = rng.uniform(0.5, 10.0), 10 ** rng.uniform(-9, -6)
    x, y = (place + spread * generator.standard_normal((40, 1)) for _ in range(2))
    found = sliced_wasserstein(jax.random.key(0), x, y, num_projections=2, order=2)
    wanted = np.sqrt(np.mean((np.sort(x[:, 0]) - np.sort(y[:, 0])) ** 2))
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


def short_training_of_a_classifier(rng: Random) -> None:
    """28: the classifier of few images stops once its accuracy improves no more."""
    sets = (striped_set(rng.randrange(99), 60), striped_set(100 + rng.randrange(99), 30))
    lines = Lines()
    training = ClassifierTraining(min_steps=2_000, batch_size=8)
    train_classifier(*sets, config=SMALL, training=training, progress=lines)
    assert sum(steps for steps, *_ in lines.lines[1:-1]) < 1_000


CHECKS: tuple[Callable[[Random], None], ...] = (
    plan_of_far_points,
    solves_without_nan,
    null_of_labels,
    infinite_at_the_end,
    gradient_at_rest,
    conversion_at_the_ends,
    orders_of_unipc,
    distance_of_close_points,
    short_training_of_a_classifier,
)
