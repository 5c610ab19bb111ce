"""Simulators whose posterior is known: reference problems for the inference of parameters.

They are derived independently of the library and use float64. Parameters are `[n, parameters]` and
observations `[n, values]`.
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

SQRT2 = np.sqrt(2.0)


@dataclass(frozen=True)
class LinearGaussian:
    """theta ~ N(0, I), x = A theta + b + noise with noise ~ N(0, diag(noise_std^2)).

    The posterior is N(mean(x), C) with 1/C = I + A^T A / noise_std^2 and
    mean(x) = C A^T (x - b) / noise_std^2.
    """

    num_parameters: int = 3
    num_values: int = 8
    seed: int = 0

    @property
    def matrix(self):
        """A, `[values, parameters]`."""
        shape = (self.num_values, self.num_parameters)
        return np.random.default_rng(self.seed).uniform(-1.0, 1.0, shape)

    @property
    def offset(self):
        """b, `[values]`."""
        return np.linspace(-1.0, 2.0, self.num_values)

    @property
    def noise_std(self):
        """Standard deviation of the noise of each value, `[values]`."""
        return np.linspace(0.5, 1.0, self.num_values)

    def sample_prior(self, generator, num):
        return generator.standard_normal((num, self.num_parameters))

    def simulate(self, generator, theta):
        noise = self.noise_std * generator.standard_normal((len(theta), self.num_values))
        return theta @ self.matrix.T + self.offset + noise

    def covariance(self):
        """Return the posterior covariance, `[parameters, parameters]`; it does not depend on x."""
        scaled = self.matrix / self.noise_std[:, None]
        return np.linalg.inv(np.eye(self.num_parameters) + scaled.T @ scaled)

    def mean(self, x):
        """Return the posterior means, `[n, parameters]`."""
        return (x - self.offset) / self.noise_std**2 @ self.matrix @ self.covariance()

    def log_likelihood(self, theta, x):
        """Return log p(x | theta), for arrays that broadcast to `[n, ...]`."""
        return norm.logpdf(x, theta @ self.matrix.T + self.offset, self.noise_std).sum(axis=-1)

    def log_density(self, theta, x):
        """Return log p(theta | x) in nats, `[n]`, or `[n, m]` for theta `[n, m, parameters]`."""
        mean = self.mean(x)
        offset = theta - mean.reshape(len(mean), *(1,) * (theta.ndim - 2), self.num_parameters)
        covariance = self.covariance()
        squared = np.sum(offset @ np.linalg.inv(covariance) * offset, axis=-1)
        return -0.5 * (squared + np.linalg.slogdet(2 * np.pi * covariance)[1])

    def sample_posterior(self, generator, num, x):
        """Draw `num` parameters from the posterior of each observation, `[n, num, parameters]`."""
        noise = generator.standard_normal((len(x), num, self.num_parameters))
        return self.mean(x)[:, None] + noise @ np.linalg.cholesky(self.covariance()).T


@dataclass(frozen=True)
class TwoMoons:
    """theta ~ U[-1, 1]^2, x = p + (-|theta_1 + theta_2|, theta_2 - theta_1) / sqrt(2).

    p = (r cos a + 0.25, r sin a) with a ~ U(-pi/2, pi/2) and r ~ N(0.1, 0.01^2), a crescent. The
    density of p at radius r is N(r; 0.1, 0.01^2) / (pi r). The map from theta to
    (s, d) = (theta_1 + theta_2, theta_2 - theta_1) / sqrt(2) is a rotation, so on each half s > 0
    and s < 0 the parameters given x are p mirrored and shifted: two crescents.

    Reference: Greenberg et al. 2019, arXiv:1905.07488; Lueckmann et al. 2021, arXiv:2101.04653,
        task T.8. (The likelihood there has no factor 1 / r; the simulator is the same.)
    """

    radius: float = 0.1
    radius_std: float = 0.01
    shift: float = 0.25

    num_parameters = 2
    num_values = 2

    def sample_prior(self, generator, num):
        return generator.uniform(-1.0, 1.0, (num, 2))

    def simulate(self, generator, theta):
        s, d = _rotate(theta)
        return self._sample_crescent(generator, len(theta)) + np.stack([-np.abs(s), d], axis=-1)

    def log_likelihood(self, theta, x):
        """Return log p(x | theta), for arrays that broadcast to `[..., 2]`."""
        s, d = _rotate(theta)
        u, v = x[..., 0] + np.abs(s) - self.shift, x[..., 1] - d
        r = np.hypot(u, v)
        inside = (u > 0) & (r > 0)
        r = np.where(inside, r, 1.0)
        log_density = norm.logpdf(r, self.radius, self.radius_std) - np.log(np.pi * r)
        return np.where(inside, log_density, -np.inf)

    def log_density(self, theta, x):
        """Return log p(theta | x) in nats; theta is `[m, 2]` and x a single observation `[2]`.

        The integral of the likelihood over the prior's support is the expected number of crescents
        that contain a point of the support, over p; midpoints of equally probable cells of a and r
        give it.
        """
        middle = (np.arange(400) + 0.5) / 400
        angles, radii = np.meshgrid(
            np.pi * (middle - 0.5), norm.ppf(middle, self.radius, self.radius_std)
        )
        p = self._at(angles, radii).reshape(-1, 2)
        candidates = [self._parameters(p, x, sign) for sign in (-1.0, 1.0)]
        integral = sum(np.mean(valid) for _, valid in candidates)
        inside = np.all(np.abs(theta) <= 1.0, axis=-1)
        return np.where(inside, self.log_likelihood(theta, x), -np.inf) - np.log(integral)

    def sample_posterior(self, generator, num, x):
        """Draw `num` parameters from the posterior of each observation, `[n, num, 2]`.

        Crescent points are mirrored to a random half; those that leave the half or the prior's
        support are rejected.
        """
        return np.stack([self._sample_one(generator, num, observation) for observation in x])

    def _sample_one(self, generator, num, x):
        accepted = np.empty((0, 2))
        while len(accepted) < num:
            p = self._sample_crescent(generator, 2 * num)
            theta, valid = self._parameters(p, x, generator.choice([-1.0, 1.0], 2 * num))
            accepted = np.concatenate([accepted, theta[valid]])
        return accepted[:num]

    def _parameters(self, p, x, sign):
        """Return the parameters with x = p + ... in the half of `sign`, and whether they exist."""
        s, d = p[:, 0] - x[0], x[1] - p[:, 1]
        theta = np.stack([sign * s - d, sign * s + d], axis=-1) / SQRT2
        return theta, (s >= 0) & np.all(np.abs(theta) <= 1.0, axis=-1)

    def _sample_crescent(self, generator, num):
        angles = generator.uniform(-np.pi / 2, np.pi / 2, num)
        return self._at(angles, generator.normal(self.radius, self.radius_std, num))

    def _at(self, angles, radii):
        return np.stack([radii * np.cos(angles) + self.shift, radii * np.sin(angles)], axis=-1)


def _rotate(theta):
    """Return (theta_1 + theta_2) / sqrt(2) and (theta_2 - theta_1) / sqrt(2)."""
    return (theta[..., 0] + theta[..., 1]) / SQRT2, (theta[..., 1] - theta[..., 0]) / SQRT2
