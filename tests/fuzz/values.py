"""Compare results for random inputs with closed forms; a difference is an `AssertionError`."""

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


def transport_plan_of_distant_points(rng: Random) -> None:
    """The cost of a minibatch plan is minimal far from the origin."""
    x0, x1 = _normal(rng, 24, 2), _normal(rng, 24, 2)
    shift, scale = rng.uniform(5e3, 1e4), 10 ** rng.uniform(-3, 3)
    # Two distant clusters: the points are also far from their common mean.
    offset = shift * (1.0 + jnp.arange(24)[:, None] % 2)
    x0, x1 = scale * (x0 + offset), scale * (x1 + offset)
    cost, min_cost = (
        np.sum(np.square(np.asarray(rows, np.float64) - np.asarray(x1, np.float64)))
        for rows in (MinibatchOT()(x0, x1), scipy_plan(x0, x1))
    )
    assert cost <= min_cost * (1 + 1e-5)


def samples_under_debug_nans(rng: Random) -> None:
    """Adaptive solvers run with `jax_debug_nans`."""
    control = rng.choice(tuple(ErrorControl))
    with jax.debug_nans(True):
        samples = sample(
            lambda t, x, cond=None: -x, _normal(rng, 4, 2), steps=AdaptiveSteps(control=control)
        )
    assert samples.succeeded.all()


def null_condition_of_labels(rng: Random) -> None:
    """A fractional null condition is refused for integer labels."""
    guided = classifier_free(lambda t, x, cond: x, rng.uniform(0.1, 0.9), 2.0)
    try:
        guided(jnp.zeros(2), jnp.ones((2, 2)), jnp.array([0, 1]))
    except ValueError:
        return
    raise AssertionError("a fraction was cast to a label")


def velocity_infinite_at_the_end(rng: Random) -> None:
    """Samples fail within 100 evaluations if the velocity is infinite at t = 1."""
    rate = rng.uniform(0.5, 2.0)

    def field(t, x, cond=None):
        return jnp.where(t[:, None] >= 1.0, jnp.inf, -rate * x)

    samples = sample(field, _normal(rng, 4, 2))
    assert not samples.succeeded.any()
    assert int(samples.nfe.max()) <= 100, samples.nfe


def gradient_of_zero_velocity(rng: Random) -> None:
    """The gradient of x1 = x0 exp(a) at a = 0 equals its closed form."""
    x = _normal(rng, 4, 3)
    if rng.random() < 0.5:
        actual = jax.grad(lambda a: sample(lambda t, x, cond=None: a * x, x).x1.sum())(0.0)
        expected = float(x.sum())
    else:

        def total_log_density(a):
            return log_density(lambda t, x, cond=None: a * x, x).log_density.sum()

        actual = jax.grad(total_log_density)(0.0)
        # The log density of each of the four points is log N(x exp(-a)) - 3 a.
        expected = float(jnp.square(x).sum()) - 12.0
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def conversion_near_the_ends(rng: Random) -> None:
    """Conversion from velocity to x0 is accurate at and near both ends of the path."""
    path = AffinePath(Polynomial(2.0))
    t = rng.choice((0.0, 1e-4, rng.uniform(0.0, 0.02), rng.uniform(0.98, 1.0)))
    x0, x1 = _normal(rng, 1, 3), _normal(rng, 1, 3)
    a, s = t**2, -np.expm1(2 * np.log(t)) if t else 1.0
    x, velocity = a * x1 + s * x0, 2 * t * (x1 - x0)
    times = jnp.array([t])
    actual = path.convert(times, x, velocity, from_=Prediction.VELOCITY, to=Prediction.X0)
    np.testing.assert_allclose(actual, x0, rtol=1e-4, atol=1e-4)


def diffusion_sampler_steps(rng: Random) -> None:
    """Steps of the diffusion samplers match diffusers."""
    test_diffusion.test_unipc_lowers_its_order_in_the_last_steps(rng.randrange(3))
    for name, sampler in test_diffusion.REFERENCES.items():
        test_diffusion.test_steps_match_diffusers(name, sampler)


def wasserstein_distance_of_close_points(rng: Random) -> None:
    """The distance of tight clusters is accurate away from the origin."""
    generator = np.random.default_rng(rng.randrange(2**31))
    center, spread = rng.uniform(0.5, 10.0), 10 ** rng.uniform(-9, -6)
    x, y = (center + spread * generator.standard_normal((40, 1)) for _ in range(2))
    actual = sliced_wasserstein(jax.random.key(0), x, y, num_projections=2, order=2)
    expected = np.sqrt(np.mean((np.sort(x[:, 0]) - np.sort(y[:, 0])) ** 2))
    np.testing.assert_allclose(actual, expected, rtol=1e-4)


def early_stopping_of_a_classifier(rng: Random) -> None:
    """Training on few images stops once the accuracy stops improving."""
    sets = (striped_set(rng.randrange(99), 60), striped_set(100 + rng.randrange(99), 30))
    lines = Lines()
    training = ClassifierTraining(min_steps=2_000, batch_size=8)
    train_classifier(*sets, config=SMALL, training=training, progress=lines)
    assert sum(steps for steps, *_ in lines.lines[1:-1]) < 1_000


CHECKS: tuple[Callable[[Random], None], ...] = (
    transport_plan_of_distant_points,
    samples_under_debug_nans,
    null_condition_of_labels,
    velocity_infinite_at_the_end,
    gradient_of_zero_velocity,
    conversion_near_the_ends,
    diffusion_sampler_steps,
    wasserstein_distance_of_close_points,
    early_stopping_of_a_classifier,
)
