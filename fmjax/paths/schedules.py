"""The `Schedule` protocol, the schedules of flow matching and diffusion, and their ratios."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fmjax._checks import require, require_at_least, require_numbers, require_positive


@runtime_checkable
class Schedule(Protocol):
    """Elementwise functions of time, differentiable on [0, 1].

    Laws: sigma >= 0 and alpha >= 0; the angle atan2(alpha, sigma) never falls; both and
    their rates are finite on the closed interval [0, 1].
    """

    def alpha(self, t: jax.Array) -> jax.Array:
        """The share of the target, any shape."""
        ...

    def sigma(self, t: jax.Array) -> jax.Array:
        """The share of the source, any shape."""
        ...


def one_minus_exp(u: jax.Array) -> jax.Array:
    """`1 - exp(-u)` for u >= 0: both its value and its rate keep their digits everywhere.

    JAX takes `expm1(-u) + 1` for the rate of `expm1`, which is rounding alone for large u.
    """
    return jnp.where(u < 0.5, -jnp.expm1(-u), 1.0 - jnp.exp(-u))


@dataclass(frozen=True)
class Linear:
    """`alpha = t, sigma = 1 - t`: conditional optimal transport, rectified flow.

    Source: Lipman et al. 2022, arXiv:2210.02747, section 4.1; Liu et al. 2022, arXiv:2209.03003.
    """

    def alpha(self, t: jax.Array) -> jax.Array:
        """The time itself."""
        return t

    def sigma(self, t: jax.Array) -> jax.Array:
        """The time left."""
        return 1.0 - t


@dataclass(frozen=True)
class Cosine:
    """`alpha = sin(pi t / 2), sigma = cos(pi t / 2)`: keeps alpha^2 + sigma^2 = 1.

    Source: Albergo et al. 2023, arXiv:2303.08797; SiT's GVP, arXiv:2401.08740.
    """

    def alpha(self, t: jax.Array) -> jax.Array:
        """sin(pi t / 2), by the smaller angle, so that its rate is exact near t = 1 too."""
        quarter = 0.5 * math.pi
        return jnp.where(t < 0.5, jnp.sin(quarter * t), jnp.cos(quarter * (1.0 - t)))

    def sigma(self, t: jax.Array) -> jax.Array:
        """cos(pi t / 2), by the smaller angle: exactly zero at t = 1."""
        quarter = 0.5 * math.pi
        return jnp.where(t < 0.5, jnp.cos(quarter * t), jnp.sin(quarter * (1.0 - t)))


@dataclass(frozen=True)
class VariancePreserving:
    """The diffusion path: `alpha = exp(-T(1-t)/2)`, `sigma^2 = 1 - alpha^2`.

    `T(r) = beta_min r + (beta_max - beta_min) r^2 / 2`. At t = 0 alpha is
    exp(-T(1)/2), 0.0066 with the default betas, not zero. The rate of sigma is infinite at
    t = 1, so `min_sigma^2` is added to sigma^2: a floor as in conditional optimal transport,
    invisible away from the end (it adds 5e-7 to sigma at t = 0).

    Source: Song et al. 2020, arXiv:2011.13456, equation 33; arXiv:2210.02747, section 4.1.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    min_sigma: float = 1e-3

    def __post_init__(self) -> None:
        require_numbers(self)
        require_positive("beta_min", self.beta_min)
        require(
            self.beta_max >= self.beta_min,
            "beta_max",
            f"be at least {self.beta_min}",
            self.beta_max,
        )
        require_positive("min_sigma", self.min_sigma)

    def _integral(self, t: jax.Array) -> jax.Array:
        r = 1.0 - t
        return r * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * r)

    def alpha(self, t: jax.Array) -> jax.Array:
        """exp(-T(1-t)/2)."""
        return jnp.exp(-0.5 * self._integral(t))

    def sigma(self, t: jax.Array) -> jax.Array:
        """sqrt(1 - alpha^2 + min_sigma^2)."""
        return jnp.sqrt(self.min_sigma**2 + one_minus_exp(self._integral(t)))


@dataclass(frozen=True)
class VarianceExploding:
    """`alpha = 1, sigma = sigma_min (sigma_max / sigma_min)^(1-t)`: data plus growing noise.

    Source: Song et al. 2020, arXiv:2011.13456, equation 31.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        require_numbers(self)
        require_positive("sigma_min", self.sigma_min)
        require(
            self.sigma_max > self.sigma_min,
            "sigma_max",
            f"be greater than sigma_min = {self.sigma_min}",
            self.sigma_max,
        )

    def alpha(self, t: jax.Array) -> jax.Array:
        """One."""
        return jnp.ones_like(t)

    def sigma(self, t: jax.Array) -> jax.Array:
        """Geometric from sigma_max at t = 0 to sigma_min at t = 1."""
        return self.sigma_min * jnp.exp((1.0 - t) * math.log(self.sigma_max / self.sigma_min))


@dataclass(frozen=True)
class Polynomial:
    """`alpha = t^power, sigma = 1 - t^power`; power 1 is `Linear`.

    Source: Lipman et al. 2024, arXiv:2412.06264, section 4.
    """

    power: float = 2.0

    def __post_init__(self) -> None:
        require_numbers(self)
        # Below one the rate is infinite at t = 0.
        require_at_least("power", self.power, 1.0)

    def alpha(self, t: jax.Array) -> jax.Array:
        """t^power."""
        return t**self.power

    def sigma(self, t: jax.Array) -> jax.Array:
        """1 - t^power, near t = 1 by its logarithm: the difference would lose its digits."""
        if self.power == 1.0:  # Exact as it is.
            return 1.0 - t
        early = t**self.power < 0.5
        late = -jnp.expm1(self.power * jnp.log(jnp.where(early, 1.0, t)))
        return jnp.where(early, 1.0 - t**self.power, late)


def with_rate(fn: Callable[[jax.Array], jax.Array], t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`fn(t)` and its derivative `dfn/dt`, for an elementwise `fn`, by forward mode."""
    return jax.jvp(fn, (t,), (jnp.ones_like(t),))


def angle(schedule: Schedule, t: jax.Array) -> jax.Array:
    """`atan2(alpha, sigma)` in [0, pi/2]: the signal-to-noise ratio, finite at both ends."""
    return jnp.arctan2(schedule.alpha(t), schedule.sigma(t))


def time_at_angle(schedule: Schedule, wanted: jax.Array, *, num_halvings: int = 40) -> jax.Array:
    """The time in [0, 1] at which `schedule` has the angle `wanted`, by bisection.

    An angle that the schedule never has gives the nearest end. Elementwise, any shape,
    accurate to a few units in the last place; not differentiable (the callers know the
    derivative in closed form).
    """

    def halve(_, bounds):
        low, high = bounds
        middle = 0.5 * (low + high)
        below = angle(schedule, middle) < wanted
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    # The upper bound, because it is exact at t = 1 and 2^-40 at t = 0.
    _, high = jax.lax.fori_loop(
        0, num_halvings, halve, (jnp.zeros_like(wanted), jnp.ones_like(wanted))
    )
    return high


def times_of_linear(schedule: Schedule, grid: Float[Array, " points"]) -> Float[Array, " points"]:
    """When `schedule` has the noise-to-data ratios `(1 - t) / t` of a grid of the linear path.

    The ends 0 and 1 stay. The grid's numbers must be known, not traced.

    Raises:
        ValueError: If the schedule never has one of the ratios.
    """
    if isinstance(schedule, Linear):
        return grid
    wanted = angle(Linear(), grid[1:-1])
    first, last = angle(schedule, jnp.asarray([0.0, 1.0]))
    has_all = bool(jnp.all((first < wanted) & (wanted < last)))
    require(has_all, "schedule", "have every noise-to-data ratio of the grid", schedule)
    return grid.at[1:-1].set(time_at_angle(schedule, wanted))
