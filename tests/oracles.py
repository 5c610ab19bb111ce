"""Analytic solutions for tests, derived independently of the library.

They accept float32 and float64, t `[batch]` and x `[batch, *event]`.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import norm


def _expand(t, x):
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim))


@dataclass(frozen=True)
class Gaussian:
    """x0 ~ N(0, I), x1 ~ N(mean, std^2 I), independent; x_t = alpha x1 + sigma x0.

    x_t ~ N(alpha mean, c^2 I) with c^2 = alpha^2 std^2 + sigma^2.
    """

    schedule: Any
    mean: float = 1.0
    std: float = 0.5

    def _coefficients(self, t):
        tangent = jnp.ones_like(t)
        a, da = jax.jvp(self.schedule.alpha, (t,), (tangent,))
        s, ds = jax.jvp(self.schedule.sigma, (t,), (tangent,))
        return a, da, s, ds, jnp.sqrt(a**2 * self.std**2 + s**2)

    def velocity(self, t, x, cond=None):
        """E[alpha' x1 + sigma' x0 | x_t = x] = alpha' mean + (c'/c)(x - alpha mean)."""
        del cond
        a, da, s, ds, c = (_expand(p, x) for p in self._coefficients(t))
        rate = (a * da * self.std**2 + s * ds) / c**2
        return da * self.mean + rate * (x - a * self.mean)

    def flow_map(self, t, x0):
        """Return the position at time t of the trajectory from x0; it keeps the standard score."""
        a, _, _, _, c = (_expand(p, x0) for p in self._coefficients(t))
        c0 = _expand(self._coefficients(jnp.zeros_like(t))[4], x0)
        a0 = _expand(self.schedule.alpha(jnp.zeros_like(t)), x0)
        return a * self.mean + c / c0 * (x0 - a0 * self.mean)

    def mean_velocity(self, r, t, x, cond=None):
        """Return (X(r) - x) / (r - t) on the trajectory X with X(t) = x; the velocity for r = t.

        X(r) keeps the standard score: (X(r) - a_r mean) / c_r = (x - a_t mean) / c_t.
        """
        a_t, _, _, _, c_t = (_expand(p, x) for p in self._coefficients(t))
        a_r, _, _, _, c_r = (_expand(p, x) for p in self._coefficients(r))
        displacement = (a_r - a_t) * self.mean + (c_r - c_t) / c_t * (x - a_t * self.mean)
        span, same = _expand(r - t, x), _expand(r == t, x)
        mean = displacement / jnp.where(same, 1.0, span)
        return jnp.where(same, self.velocity(t, x, cond), mean)

    def log_density(self, t, x):
        """Return log p_t(x) in nats, `[batch]`."""
        a, _, _, _, c = (_expand(p, x) for p in self._coefficients(t))
        terms = -0.5 * ((x - a * self.mean) / c) ** 2 - jnp.log(c) - 0.5 * jnp.log(2 * jnp.pi)
        return jnp.sum(terms, axis=tuple(range(1, x.ndim)))

    def least_loss(self, t):
        """Return Var(alpha' x1 + sigma' x0 | x_t), averaged over dimensions, `[batch]`.

        All variables are jointly Gaussian: Var(u | x_t) = Var(u) - Cov(u, x_t)^2 / Var(x_t).
        """
        a, da, s, ds, c = self._coefficients(t)
        var_u = da**2 * self.std**2 + ds**2
        cov = da * a * self.std**2 + ds * s
        return var_u - cov**2 / c**2


@dataclass(frozen=True)
class GaussianMixture:
    """x0 ~ N(0, I), x1 ~ a mixture of N(mean_k, std^2 I) with equal weights."""

    schedule: Any
    means: tuple[tuple[float, ...], ...] = ((2.0, 0.0), (-1.0, 1.5), (-1.0, -1.5))
    std: float = 0.3

    def _coefficients(self, t, x):
        tangent = jnp.ones_like(t)
        a, da = jax.jvp(self.schedule.alpha, (t,), (tangent,))
        s, ds = jax.jvp(self.schedule.sigma, (t,), (tangent,))
        c2 = a**2 * self.std**2 + s**2
        means = jnp.asarray(self.means, x.dtype)
        offset = x[:, None, :] - a[:, None, None] * means[None]
        logits = -0.5 * jnp.sum(offset**2, axis=-1) / c2[:, None]
        return a, da, s, ds, c2, means, offset, logits

    def velocity(self, t, x, cond=None):
        """Return the posterior mean of the components' velocities; x is `[batch, dim]`."""
        del cond
        a, da, s, ds, c2, means, offset, logits = self._coefficients(t, x)
        weight = jax.nn.softmax(logits, axis=-1)[..., None]
        rate = ((a * da * self.std**2 + s * ds) / c2)[:, None, None]
        velocities = da[:, None, None] * means[None] + rate * offset
        return jnp.sum(weight * velocities, axis=1)

    def flow_map(self, t, x0):
        """Return the position at time t of the trajectory from x0 in one dimension, in float64.

        Trajectories in one dimension do not cross, so x_t is the same quantile of p_t as x0 is of
        the source; bisection finds it. t is a scalar, x0 is `[batch]`, and alpha(0) is 0.
        """
        t = jnp.asarray(t)
        a, s = float(self.schedule.alpha(t)), float(self.schedule.sigma(t))
        c = np.hypot(a * self.std, s)
        quantile = norm.cdf(x0)
        low, high = np.full_like(x0, -20.0), np.full_like(x0, 20.0)
        for _ in range(80):
            middle = 0.5 * (low + high)
            cdf = np.mean([norm.cdf((middle - a * m) / c) for (m,) in self.means], axis=0)
            below = cdf < quantile
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return 0.5 * (low + high)

    def log_density(self, t, x):
        """Return log p_t(x) in nats, `[batch]`."""
        *_, c2, means, _, logits = self._coefficients(t, x)
        constant = 0.5 * x.shape[-1] * jnp.log(2 * jnp.pi * c2) + jnp.log(float(len(means)))
        return jax.nn.logsumexp(logits, axis=-1) - constant
