"""DDPM schedules: products of (1 - beta), interpolated to continuous time."""

import functools
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from fmjax._checks import require_between, require_count, require_numbers, require_positive
from fmjax.paths.schedules import one_minus_exp


@dataclass(frozen=True)
class LinearBetas:
    """DDPM schedule with linearly increasing betas; k noise steps give `t = 1 - k / num_steps`.

    At these times alpha^2 is `prod_{i <= k} (1 - beta_i)` to float precision; between them it
    follows the polynomial fitted to the products. At t = 0 alpha is 0.0064 with the default betas,
    not zero. sigma^2 is 1 - alpha^2, except within one step of t = 1, where the rate of sigma would
    be infinite: there a floor is added, which is a hundredth of the first beta at t = 1.

    Attributes:
        num_steps: Number of noise steps of the discrete diffusion.
        beta_min: First beta, of the step next to the data.
        beta_max: Last beta, of the step next to the noise; at most 0.5.

    Reference: Ho et al. 2020, arXiv:2006.11239, section 4.
    """

    num_steps: int = 1000
    beta_min: float = 1e-4
    beta_max: float = 0.02

    def __post_init__(self) -> None:
        require_numbers(self)
        require_count("num_steps", self.num_steps, 1)
        require_between("num_steps", self.num_steps, 1, 1_000_000)
        require_positive("beta_min", self.beta_min)
        # Up to 0.5 the polynomial is accurate to float precision.
        require_between("beta_max", self.beta_max, self.beta_min, 0.5)

    def _integral(self, t: jax.Array) -> jax.Array:
        """Return -log alpha^2."""
        r, slope = 1.0 - t, jnp.zeros_like(t)
        for coefficient in _log_products(self.num_steps, self.beta_min, self.beta_max)[::-1]:
            slope = slope * r + coefficient
        return r * slope

    def alpha(self, t: jax.Array) -> jax.Array:
        """Square root of the product of (1 - beta), the weight of the data."""
        return jnp.exp(-0.5 * self._integral(t))

    def sigma(self, t: jax.Array) -> jax.Array:
        """`sqrt(1 - alpha^2)` with a floor near t = 1, the weight of the noise."""
        floor = 0.01 * self.beta_min * _bump(self.num_steps * (1.0 - t))
        return jnp.sqrt(floor + one_minus_exp(self._integral(t)))


@functools.lru_cache
def _log_products(num_steps: int, beta_min: float, beta_max: float) -> tuple[float, ...]:
    """Fit the polynomial P with `-log prod_{i <= k} (1 - beta_i) = r P(r)`, `r = k / num_steps`.

    Coefficients are ordered from the lowest power. beta_i is linear in i, so the sum consists of
    power sums and a low degree suffices: the relative error is 1e-9 at degree 10 for betas up to
    0.5.
    """
    betas = np.linspace(beta_min, beta_max, num_steps)
    r = np.arange(1, num_steps + 1) / num_steps
    values = -np.cumsum(np.log1p(-betas)) / r
    fitted = np.polynomial.Chebyshev.fit(r, values, min(num_steps - 1, 10), domain=[0.0, 1.0])
    return tuple(fitted.convert(kind=np.polynomial.Polynomial).coef.tolist())


@dataclass(frozen=True)
class CosineBetas:
    """Cosine schedule of Improved DDPM; k noise steps give `t = 1 - k / num_steps`.

    At these times `alpha^2 = f(k) / f(0)` with
    `f(k) = cos^2(pi/2 (k / num_steps + offset) / (1 + offset))`, except at the last step, whose
    beta is capped at 0.999 as in the paper: alpha(0) is 4.9e-5 with 1,000 steps. sigma^2 is
    1 - alpha^2, with a floor near t = 1 as in `LinearBetas`.

    Attributes:
        num_steps: Number of noise steps of the discrete diffusion.
        offset: Shift of the cosine, which keeps the first betas from being too small.

    Reference: Nichol and Dhariwal 2021, arXiv:2102.09672, equation 17.
    """

    num_steps: int = 1000
    offset: float = 0.008

    def __post_init__(self) -> None:
        require_numbers(self)
        require_count("num_steps", self.num_steps, 1)
        require_between("num_steps", self.num_steps, 1, 1_000_000)
        require_positive("offset", self.offset)

    def alpha(self, t: jax.Array) -> jax.Array:
        """Square root of f(k) / f(0), as the sine of the complementary angle, with a floor."""
        floor = 0.001 * (1.0 if self.num_steps == 1 else self._product(1.0 / self.num_steps))
        product = jnp.square(jnp.sin(0.5 * math.pi / (1.0 + self.offset) * t) / self._start)
        return jnp.sqrt(product + floor * _bump(self.num_steps * t))

    def sigma(self, t: jax.Array) -> jax.Array:
        """`sqrt(1 - alpha^2)` with a floor near t = 1, the weight of the noise.

        For t >= 0.5 it is computed as a product of sines. Each of the two forms loses precision,
        in value or in rate, at the other end.
        """
        frequency = 0.5 * math.pi / (1.0 + self.offset)
        angle = frequency * (1.0 - t)
        late = jnp.sin(angle) * jnp.sin(angle + 2.0 * frequency * self.offset) / self._start**2
        early = 1.0 - jnp.square(jnp.sin(frequency * t) / self._start)
        first_beta = 1.0 - self._product(1.0 - 1.0 / self.num_steps)
        floor = 0.01 * first_beta * _bump(self.num_steps * (1.0 - t))
        return jnp.sqrt(jnp.where(t < 0.5, early, late) + floor)

    @property
    def _start(self) -> float:
        """Return the cosine before the first step, the square root of f(0)."""
        return math.cos(0.5 * math.pi * self.offset / (1.0 + self.offset))

    def _product(self, t: float) -> float:
        """Return `f / f(0)` at time t, in float64."""
        return (math.sin(0.5 * math.pi / (1.0 + self.offset) * t) / self._start) ** 2


def _bump(u: jax.Array) -> jax.Array:
    """Return `(1 - u^2)^2` for u < 1 and 0 beyond: differentiable, with zero slope at 0 and 1."""
    return jnp.square(jnp.maximum(1.0 - jnp.square(u), 0.0))
