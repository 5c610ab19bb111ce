"""DDPM's simple loss is flow matching that predicts noise on the betas' path."""

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


def best_noise(t, x, cond=None, gain=1.0):
    """`E[x0 | x_t] = sigma (x - alpha MEAN) / c^2`: x0 and x_t are jointly normal."""
    del cond
    alpha, sigma = (fn(t)[:, None] for fn in (PATH.schedule.alpha, PATH.schedule.sigma))
    return gain * sigma * (x - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)


def test_it_is_the_papers_formula_at_every_example():
    """`|eps - eps_theta(sqrt(abar) x + sqrt(1 - abar) eps, k)|^2`, equation 14 of 2006.11239."""
    net = VelocityNet(lambda key: {}, lambda params, t, x, cond: jnp.sin(x) * (1 - t[:, None]))
    objective = flow_matching_objective(
        net, PATH, density=UniformSteps(1000), prediction=X0, space=X0
    )
    rng = np.random.default_rng(0)
    x1, noise, k = rng.normal(size=(32, 3)), rng.normal(size=(32, 3)), rng.integers(1, 1001, 32)
    products = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[k - 1, None]
    x_k = np.sqrt(products) * x1 + np.sqrt(1 - products) * noise
    want = np.mean((noise - np.sin(x_k) * (k / 1000)[:, None]) ** 2, axis=1)
    float32 = [jnp.asarray(a, jnp.float32) for a in (1 - k / 1000, noise, x1)]
    loss = flow_matching_loss(
        lambda t, x, cond: net.apply({}, t, x, cond), PATH, *float32, prediction=X0, space=X0
    )
    np.testing.assert_allclose(loss, want, rtol=1e-4, atol=1e-6)
    # What the objective draws are those steps, and its loss is the same function of them.
    examples = objective.make_examples(jax.random.key(0), Batch(jnp.asarray(x1, jnp.float32), None))
    steps = 1000 * (1 - np.asarray(examples.t, np.float64))
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-3)
    assert ((steps > 0.5) & (steps < 1000.5)).all()
    drawn = examples._replace(**dict(zip(("t", "x0", "x1"), float32, strict=True)))
    np.testing.assert_allclose(objective.loss({}, drawn), loss, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("t", [0.0, 0.5, 0.9])
def test_the_best_prediction_of_a_gaussians_noise_has_the_least_loss(t):
    num = 1 << 17
    keys = jax.random.split(jax.random.key(0))
    noise, unit = (jax.random.normal(key, (num, 1)) for key in keys)

    def mean_loss(gain):
        def predict(t, x, cond):
            return best_noise(t, x, cond, gain)

        times, x1 = jnp.full((num,), t), MEAN + STD * unit
        loss = flow_matching_loss(predict, PATH, times, noise, x1, prediction=X0, space=X0)
        return float(loss.mean())

    at = jnp.asarray([t])
    alpha, sigma = float(PATH.schedule.alpha(at)[0]), float(PATH.schedule.sigma(at)[0])
    least = (alpha * STD) ** 2 / ((alpha * STD) ** 2 + sigma**2)  # Var(x0 | x_t)
    # A square of a normal has standard deviation sqrt(2) times its mean: 4 standard errors.
    np.testing.assert_allclose(mean_loss(1.0), least, rtol=4 * np.sqrt(2 / num))
    # Any other gain adds (gain - 1)^2 Var E[x0 | x_t], and on this sample twice (gain - 1) the
    # mean product of error and prediction, which are independent: 4 standard errors of both.
    scatter = 0.4 * np.sqrt(least * (1 - least)) + 0.04 * np.sqrt(2) * (1 - least)
    for gain in (0.8, 1.2):
        more = mean_loss(gain) - mean_loss(1.0)
        assert more == pytest.approx(0.04 * (1 - least), abs=4 * scatter / np.sqrt(num))
