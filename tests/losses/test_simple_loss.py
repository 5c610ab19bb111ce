"""Tests that DDPM's simple loss is flow matching with noise prediction on the betas' path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax._arrays import Batch
from fmjax.losses import flow_matching_loss, flow_matching_objective
from fmjax.paths import AffinePath, LinearBetas, Prediction, UniformSteps, VelocityNet

PATH = AffinePath(LinearBetas())
X0 = Prediction.X0
MEAN, STD = 1.0, 0.5


def optimal_noise(t, x, cond=None, gain=1.0):
    """Return `gain E[x0 | x_t]`, which is linear because x0 and x_t are jointly normal."""
    del cond
    alpha, sigma = (fn(t)[:, None] for fn in (PATH.schedule.alpha, PATH.schedule.sigma))
    return gain * sigma * (x - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)


def test_loss_matches_ddpm_equation_14():
    """The loss is `|eps - eps_theta(sqrt(abar) x + sqrt(1 - abar) eps, k)|^2`, arXiv:2006.11239."""
    net = VelocityNet(lambda key: {}, lambda params, t, x, cond: jnp.sin(x) * (1 - t[:, None]))
    objective = flow_matching_objective(
        net, PATH, density=UniformSteps(1000), prediction=X0, space=X0
    )
    rng = np.random.default_rng(0)
    x1, noise, k = rng.normal(size=(32, 3)), rng.normal(size=(32, 3)), rng.integers(1, 1001, 32)
    products = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[k - 1, None]
    x_k = np.sqrt(products) * x1 + np.sqrt(1 - products) * noise
    expected = np.mean((noise - np.sin(x_k) * (k / 1000)[:, None]) ** 2, axis=1)
    float32 = [jnp.asarray(a, jnp.float32) for a in (1 - k / 1000, noise, x1)]
    loss = flow_matching_loss(
        lambda t, x, cond: net.apply({}, t, x, cond), PATH, *float32, prediction=X0, space=X0
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-4, atol=1e-6)
    # The objective samples the same steps and computes the same loss.
    examples = objective.make_examples(jax.random.key(0), Batch(jnp.asarray(x1, jnp.float32), None))
    steps = 1000 * (1 - np.asarray(examples.t, np.float64))
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-3)
    assert ((steps > 0.5) & (steps < 1000.5)).all()
    known_examples = examples._replace(t=float32[0], x_t=PATH(*float32).x_t, target=float32[1])
    np.testing.assert_allclose(objective.loss({}, known_examples), loss, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("t", [0.0, 0.5, 0.9])
def test_optimal_gaussian_noise_prediction_minimizes_the_loss(t):
    num = 1 << 17
    keys = jax.random.split(jax.random.key(0))
    noise, normal = (jax.random.normal(key, (num, 1)) for key in keys)

    def mean_loss(gain):
        def predict(t, x, cond):
            return optimal_noise(t, x, cond, gain)

        times, x1 = jnp.full((num,), t), MEAN + STD * normal
        loss = flow_matching_loss(predict, PATH, times, noise, x1, prediction=X0, space=X0)
        return float(loss.mean())

    time = jnp.asarray([t])
    alpha, sigma = float(PATH.schedule.alpha(time)[0]), float(PATH.schedule.sigma(time)[0])
    minimum = (alpha * STD) ** 2 / ((alpha * STD) ** 2 + sigma**2)  # Var(x0 | x_t)
    # The square of a normal variable has standard deviation sqrt(2) times its mean. Tolerances are
    # four standard errors.
    np.testing.assert_allclose(mean_loss(1.0), minimum, rtol=4 * np.sqrt(2 / num))
    # Another gain adds (gain - 1)^2 Var E[x0 | x_t], and on a finite sample 2 (gain - 1) times the
    # mean product of error and prediction, which are independent.
    deviation = 0.4 * np.sqrt(minimum * (1 - minimum)) + 0.04 * np.sqrt(2) * (1 - minimum)
    for gain in (0.8, 1.2):
        increase = mean_loss(gain) - mean_loss(1.0)
        assert increase == pytest.approx(0.04 * (1 - minimum), abs=4 * deviation / np.sqrt(num))
