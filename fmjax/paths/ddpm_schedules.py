"""The schedules of DDPM: products of betas, continued between the steps."""

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
    """DDPM's discrete diffusion, k steps of noise at `t = 1 - k / num_steps`.

    There alpha^2 is `prod_{i <= k} (1 - beta_i)`, its betas rising linearly, to float precision;
    between them the polynomial through these products. At t = 0 alpha is 0.0064 with the
    default betas, not zero. sigma^2 = 1 - alpha^2, but less than one step from t = 1, where its
    root has an infinite rate: it ends at a hundredth of the first beta.

    Source: Ho et al. 2020, arXiv:2006.11239, section 4.
    """

    num_steps: int = 1000
    beta_min: float = 1e-4
    beta_max: float = 0.02

    def __post_init__(self) -> None:
        require_numbers(self)
        require_count("num_steps", self.num_steps, 1)
        require_between("num_steps", self.num_steps, 1, 1_000_000)
        require_positive("beta_min", self.beta_min)
        # The polynomial is one of float precision up to here.
        require_between("beta_max", self.beta_max, self.beta_min, 0.5)

    def _integral(self, t: jax.Array) -> jax.Array:
        """-log alpha^2."""
        r, slope = 1.0 - t, jnp.zeros_like(t)
        for coefficient in _log_products(self.num_steps, self.beta_min, self.beta_max)[::-1]:
            slope = slope * r + coefficient
        return r * slope

    def alpha(self, t: jax.Array) -> jax.Array:
        """The root of the product."""
        return jnp.exp(-0.5 * self._integral(t))

    def sigma(self, t: jax.Array) -> jax.Array:
        """sqrt(1 - alpha^2), and a floor."""
        floor = 0.01 * self.beta_min * _within_one(self.num_steps * (1.0 - t))
        return jnp.sqrt(floor + one_minus_exp(self._integral(t)))


@functools.lru_cache
def _log_products(num_steps: int, beta_min: float, beta_max: float) -> tuple[float, ...]:
    """The polynomial P, lowest power first, with `-log prod_{i <= k} (1 - beta_i) = r P(r)`.

    r is `k / num_steps`. As beta_i is linear in i the sum's terms are power sums, so that a low
    degree is enough: 1e-9 of the sum at degree 10 for betas up to 0.5.
    """
    betas = np.linspace(beta_min, beta_max, num_steps)
    r = np.arange(1, num_steps + 1) / num_steps
    values = -np.cumsum(np.log1p(-betas)) / r
    fitted = np.polynomial.Chebyshev.fit(r, values, min(num_steps - 1, 10), domain=[0.0, 1.0])
    return tuple(fitted.convert(kind=np.polynomial.Polynomial).coef.tolist())


@dataclass(frozen=True)
class CosineBetas:
    """Improved DDPM's discrete diffusion, k steps of noise at `t = 1 - k / num_steps`.

    There `alpha^2 = f(k) / f(0)` with `f = cos^2(pi/2 (k / num_steps + offset) / (1 + offset))`,
    but at the last step, whose beta is held at 0.999 as in the paper: alpha(0) is 4.9e-5 with
    1,000 steps. sigma^2 = 1 - alpha^2, with a floor near t = 1 as in `LinearBetas`.

    Source: Nichol and Dhariwal 2021, arXiv:2102.09672, equation 17.
    """

    num_steps: int = 1000
    offset: float = 0.008

    def __post_init__(self) -> None:
        require_numbers(self)
        require_count("num_steps", self.num_steps, 1)
        require_between("num_steps", self.num_steps, 1, 1_000_000)
        require_positive("offset", self.offset)

    def alpha(self, t: jax.Array) -> jax.Array:
        """The root of the product; `pi/2 (k / T + offset) / (1 + offset)` counted from the end."""
        last = 0.001 * (1.0 if self.num_steps == 1 else self._product(1.0 / self.num_steps))
        product = jnp.square(jnp.sin(0.5 * math.pi / (1.0 + self.offset) * t) / self._start)
        return jnp.sqrt(product + last * _within_one(self.num_steps * t))

    def sigma(self, t: jax.Array) -> jax.Array:
        """sqrt(1 - alpha^2), near the data as a product of sines, and a floor.

        Either form loses the digits of its value or of its rate at the other end.
        """
        turn = 0.5 * math.pi / (1.0 + self.offset)
        gap = turn * (1.0 - t)
        late = jnp.sin(gap) * jnp.sin(gap + 2.0 * turn * self.offset) / self._start**2
        fallen = jnp.where(t < 0.5, 1.0 - jnp.square(jnp.sin(turn * t) / self._start), late)
        first_beta = 1.0 - self._product(1.0 - 1.0 / self.num_steps)
        floor = 0.01 * first_beta * _within_one(self.num_steps * (1.0 - t))
        return jnp.sqrt(fallen + floor)

    @property
    def _start(self) -> float:
        """The cosine before the first step."""
        return math.cos(0.5 * math.pi * self.offset / (1.0 + self.offset))

    def _product(self, t: float) -> float:
        """`f / f(0)`, in float64."""
        return (math.sin(0.5 * math.pi / (1.0 + self.offset) * t) / self._start) ** 2


def _within_one(u: jax.Array) -> jax.Array:
    """A hump of height 1 at u = 0, flat there and at u = 1, from where on it is zero."""
    return jnp.square(jnp.maximum(1.0 - jnp.square(u), 0.0))
