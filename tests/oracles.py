"""Closed forms to test against: written from the mathematics, not from the library.

All work in float32 and float64 and take t `[batch]`, x `[batch, *event]`.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import norm


def _spread(t, x):
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim))


@dataclass(frozen=True)
class Gaussian:
    """x0 ~ N(0, I), x1 ~ N(mean, std^2 I), independent; x_t = alpha x1 + sigma x0.

    x_t ~ N(alpha mean, c^2 I) with c^2 = alpha^2 std^2 + sigma^2.
    """

    schedule: Any
    mean: float = 1.0
    std: float = 0.5

    def _parts(self, t):
        one = jnp.ones_like(t)
        a, da = jax.jvp(self.schedule.alpha, (t,), (one,))
        s, ds = jax.jvp(self.schedule.sigma, (t,), (one,))
        return a, da, s, ds, jnp.sqrt(a**2 * self.std**2 + s**2)

    def velocity(self, t, x, cond=None):
        """E[alpha' x1 + sigma' x0 | x_t = x] = alpha' mean + (c'/c)(x - alpha mean)."""
        del cond
        a, da, s, ds, c = (_spread(p, x) for p in self._parts(t))
        rate = (a * da * self.std**2 + s * ds) / c**2
        return da * self.mean + rate * (x - a * self.mean)

    def flow_map(self, t, x0):
        """Where the flow has brought x0 by time t: keeps the standard score."""
        a, _, _, _, c = (_spread(p, x0) for p in self._parts(t))
        start = _spread(self._parts(jnp.zeros_like(t))[4], x0)
        a0 = _spread(self.schedule.alpha(jnp.zeros_like(t)), x0)
        return a * self.mean + c / start * (x0 - a0 * self.mean)

    def mean_velocity(self, r, t, x, cond=None):
        """(X(r) - x) / (r - t) on the trajectory that is at x at t; the velocity for r = t.

        X(r) keeps the standard score: (X(r) - a_r mean) / c_r = (x - a_t mean) / c_t.
        """
        a_t, _, _, _, c_t = (_spread(p, x) for p in self._parts(t))
        a_r, _, _, _, c_r = (_spread(p, x) for p in self._parts(r))
        moved = (a_r - a_t) * self.mean + (c_r - c_t) / c_t * (x - a_t * self.mean)
        span, here = _spread(r - t, x), _spread(r == t, x)
        return jnp.where(here, self.velocity(t, x, cond), moved / jnp.where(here, 1.0, span))

    def log_density(self, t, x):
        """log p_t(x) in nats, `[batch]`."""
        a, _, _, _, c = (_spread(p, x) for p in self._parts(t))
        terms = -0.5 * ((x - a * self.mean) / c) ** 2 - jnp.log(c) - 0.5 * jnp.log(2 * jnp.pi)
        return jnp.sum(terms, axis=tuple(range(1, x.ndim)))

    def least_loss(self, t):
        """Mean over dimensions of Var(alpha' x1 + sigma' x0 | x_t), `[batch]`.

        x1 and x0 are jointly Gaussian: the variance of u less what x_t explains of it.
        """
        a, da, s, ds, c = self._parts(t)
        var_u = da**2 * self.std**2 + ds**2
        cov = da * a * self.std**2 + ds * s
        return var_u - cov**2 / c**2


@dataclass(frozen=True)
class GaussianMixture:
    """x0 ~ N(0, I), x1 ~ an even mixture of N(mean_k, std^2 I); means is a tuple of rows."""

    schedule: Any
    means: tuple[tuple[float, ...], ...] = ((2.0, 0.0), (-1.0, 1.5), (-1.0, -1.5))
    std: float = 0.3

    def _parts(self, t, x):
        one = jnp.ones_like(t)
        a, da = jax.jvp(self.schedule.alpha, (t,), (one,))
        s, ds = jax.jvp(self.schedule.sigma, (t,), (one,))
        c2 = a**2 * self.std**2 + s**2
        means = jnp.asarray(self.means, x.dtype)
        gap = x[:, None, :] - a[:, None, None] * means[None]
        logits = -0.5 * jnp.sum(gap**2, axis=-1) / c2[:, None]
        return a, da, s, ds, c2, means, gap, logits

    def velocity(self, t, x, cond=None):
        """The components' velocities, weighted by how likely each is at x. x `[batch, dim]`."""
        del cond
        a, da, s, ds, c2, means, gap, logits = self._parts(t, x)
        weight = jax.nn.softmax(logits, axis=-1)[..., None]
        rate = ((a * da * self.std**2 + s * ds) / c2)[:, None, None]
        each = da[:, None, None] * means[None] + rate * gap
        return jnp.sum(weight * each, axis=1)

    def flow_map(self, t, x0):
        """Where the flow has brought x0 by time t, float64, by bisection; means of one number.

        On a line trajectories cannot cross, so x_t has below it the share of p_t that x0 has of
        the source. t is a number with alpha(0) = 0, x0 `[batch]`.
        """
        t = jnp.asarray(t)
        a, s = float(self.schedule.alpha(t)), float(self.schedule.sigma(t))
        c = np.hypot(a * self.std, s)
        share = norm.cdf(x0)
        low, high = np.full_like(x0, -20.0), np.full_like(x0, 20.0)
        for _ in range(80):
            middle = 0.5 * (low + high)
            below = np.mean([norm.cdf((middle - a * m) / c) for (m,) in self.means], axis=0) < share
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return 0.5 * (low + high)

    def log_density(self, t, x):
        """log p_t(x) in nats, `[batch]`."""
        *_, c2, means, _, logits = self._parts(t, x)
        constant = 0.5 * x.shape[-1] * jnp.log(2 * jnp.pi * c2) + jnp.log(float(len(means)))
        return jax.nn.logsumexp(logits, axis=-1) - constant
