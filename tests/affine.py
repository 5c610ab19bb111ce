"""Reference formulas of affine paths with a Gaussian-mixture target, independent of fmjax.

Schedules and their derivatives are written by hand; posteriors use Bayes' rule. Float64 inputs
(`jax.enable_x64`) give float64 results.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fmjax.paths import Cosine, Linear, Polynomial, VarianceExploding, VariancePreserving


class Coefficients(NamedTuple):
    """alpha, sigma and their time derivatives, `[batch]` each."""

    alpha: jax.Array
    alpha_rate: jax.Array
    sigma: jax.Array
    sigma_rate: jax.Array


def _linear(t):
    return Coefficients(t, jnp.ones_like(t), 1 - t, -jnp.ones_like(t))


def _cosine(t):
    angle = 0.5 * np.pi * t
    sine, cosine = jnp.sin(angle), jnp.cos(angle)
    return Coefficients(sine, 0.5 * np.pi * cosine, cosine, -0.5 * np.pi * sine)


def _variance_preserving(t):
    r = 1 - t
    beta = 0.1 + 19.9 * r
    alpha = jnp.exp(-0.5 * (0.1 * r + 9.95 * r**2))
    sigma = jnp.sqrt(1 - alpha**2 + 1e-6)
    alpha_rate = 0.5 * beta * alpha
    return Coefficients(alpha, alpha_rate, sigma, -alpha * alpha_rate / sigma)


def _variance_exploding(t):
    sigma = 0.01 * 5000.0 ** (1 - t)
    return Coefficients(jnp.ones_like(t), jnp.zeros_like(t), sigma, -np.log(5000) * sigma)


def _quadratic(t):
    return Coefficients(t**2, 2 * t, 1 - t**2, -2 * t)


SCHEDULES = {
    "linear": (Linear(), _linear),
    "cosine": (Cosine(), _cosine),
    "variance preserving": (VariancePreserving(), _variance_preserving),
    "variance exploding": (VarianceExploding(), _variance_exploding),
    "quadratic": (Polynomial(2.0), _quadratic),
}


class Posterior(NamedTuple):
    """Conditional means given `x_t`, `[batch, dim]` each."""

    x1: jax.Array
    x0: jax.Array
    velocity: jax.Array
    score: jax.Array


class Mixture(NamedTuple):
    """Target `sum_k weights_k N(means_k, stds_k^2 I)`; the source is N(0, I)."""

    weights: np.ndarray
    means: np.ndarray
    stds: np.ndarray

    def log_density(self, c: Coefficients, x):
        """Return the log-density of `x_t` at `x`, `[batch]`."""
        return jax.nn.logsumexp(self._log_joint(c, x), axis=1)

    def posterior(self, c: Coefficients, x) -> Posterior:
        """Return the conditional means given `x_t = x`."""
        posterior_weights = jax.nn.softmax(self._log_joint(c, x), axis=1)[:, :, None]
        offset, variance = self._offset(c, x), self._variance(c)[:, :, None]
        alpha, alpha_rate, sigma, sigma_rate = (value[:, None] for value in c)
        gain = alpha[:, None] * self.stds[None, :, None] ** 2 / variance
        x1 = jnp.sum(posterior_weights * (self.means[None] + gain * offset), axis=1)
        whitened = jnp.sum(posterior_weights * offset / variance, axis=1)
        x0 = sigma * whitened
        return Posterior(x1, x0, alpha_rate * x1 + sigma_rate * x0, -whitened)

    def variance_of_x1(self, c: Coefficients, x):
        """Return Var(x1 | x_t = x), averaged over dimensions, `[batch]`.

        It is the variance within the components plus the variance between them.
        """
        posterior_weights = jax.nn.softmax(self._log_joint(c, x), axis=1)
        offset, variance = self._offset(c, x), self._variance(c)
        gain = c.alpha[:, None] * self.stds[None] ** 2 / variance
        means = self.means[None] + gain[:, :, None] * offset
        within = jnp.sum(
            posterior_weights * (self.stds[None] * c.sigma[:, None]) ** 2 / variance, axis=1
        )
        mean = jnp.sum(posterior_weights[:, :, None] * means, axis=1, keepdims=True)
        between = jnp.sum(posterior_weights * jnp.mean((means - mean) ** 2, axis=2), axis=1)
        return within + between

    def _variance(self, c):
        return (c.alpha[:, None] * self.stds[None]) ** 2 + c.sigma[:, None] ** 2

    def _offset(self, c, x):
        return x[:, None, :] - c.alpha[:, None, None] * self.means[None]

    def _log_joint(self, c, x):
        variance, dim = self._variance(c), x.shape[1]
        distance = jnp.sum(self._offset(c, x) ** 2, axis=2) / variance
        log_weights = jnp.log(self.weights)[None]
        return log_weights - 0.5 * (distance + dim * jnp.log(2 * np.pi * variance))


GAUSSIAN = Mixture(np.array([1.0]), np.array([[1.0, -2.0]]), np.array([0.5]))
MIXTURE = Mixture(
    np.array([0.3, 0.5, 0.2]),
    np.array([[1.0, -2.0], [-1.5, 0.5], [2.0, 2.0]]),
    np.array([0.5, 0.3, 0.8]),
)
