"""Schedule protocol, schedules of flow matching and diffusion, and signal-to-noise ratios."""

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
    """Weights alpha(t) of the data and sigma(t) of the noise, elementwise functions of time.

    An implementation must satisfy: alpha >= 0 and sigma >= 0; the angle atan2(alpha, sigma) does
    not decrease; both functions are differentiable, and they and their rates are finite, on the
    closed interval [0, 1].
    """

    def alpha(self, t: jax.Array) -> jax.Array:
        """Weight of the target point x1 at times t, elementwise."""
        ...

    def sigma(self, t: jax.Array) -> jax.Array:
        """Weight of the source point x0 at times t, elementwise."""
        ...


def one_minus_exp(u: jax.Array) -> jax.Array:
    """Compute `1 - exp(-u)` for u >= 0, with accurate values and derivatives everywhere.

    JAX computes the derivative of `expm1` as `expm1(-u) + 1`, which is only rounding error for
    large u.
    """
    return jnp.where(u < 0.5, -jnp.expm1(-u), 1.0 - jnp.exp(-u))


@dataclass(frozen=True)
class Linear:
    """Linear schedule `alpha = t, sigma = 1 - t` (conditional optimal transport, rectified flow).

    Reference: Lipman et al. 2022, arXiv:2210.02747, section 4.1; Liu et al. 2022, arXiv:2209.03003.
    """

    def alpha(self, t: jax.Array) -> jax.Array:
        """Weight of the data, t."""
        return t

    def sigma(self, t: jax.Array) -> jax.Array:
        """Weight of the noise, 1 - t."""
        return 1.0 - t


@dataclass(frozen=True)
class Cosine:
    """Cosine schedule `alpha = sin(pi t / 2), sigma = cos(pi t / 2)`, so alpha^2 + sigma^2 = 1.

    Reference: Albergo et al. 2023, arXiv:2303.08797; the GVP path of SiT, arXiv:2401.08740.
    """

    def alpha(self, t: jax.Array) -> jax.Array:
        """Weight of the data, sin(pi t / 2), with an accurate rate also near t = 1."""
        half_pi = 0.5 * math.pi
        return jnp.where(t < 0.5, jnp.sin(half_pi * t), jnp.cos(half_pi * (1.0 - t)))

    def sigma(self, t: jax.Array) -> jax.Array:
        """Weight of the noise, cos(pi t / 2), exactly zero at t = 1."""
        half_pi = 0.5 * math.pi
        return jnp.where(t < 0.5, jnp.cos(half_pi * t), jnp.sin(half_pi * (1.0 - t)))


@dataclass(frozen=True)
class VariancePreserving:
    """Variance-preserving diffusion schedule `alpha = exp(-T(1-t)/2)`, `sigma^2 = 1 - alpha^2`.

    `T(r) = beta_min r + (beta_max - beta_min) r^2 / 2`. At t = 0 alpha is exp(-T(1)/2), 0.0066
    with the default betas, not zero. The rate of sqrt(1 - alpha^2) is infinite at t = 1, so
    `min_sigma^2` is added to sigma^2, like the floor of conditional optimal transport. Away from
    t = 1 its effect is negligible (it adds 5e-7 to sigma at t = 0).

    Attributes:
        beta_min: Noise rate at the data, t = 1.
        beta_max: Noise rate at the noise, t = 0.
        min_sigma: sigma at t = 1.

    Reference: Song et al. 2020, arXiv:2011.13456, equation 33; arXiv:2210.02747, section 4.1.
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
        """Return T(1 - t), the integral of the noise rate."""
        r = 1.0 - t
        return r * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * r)

    def alpha(self, t: jax.Array) -> jax.Array:
        """Weight of the data, `exp(-T(1-t)/2)`."""
        return jnp.exp(-0.5 * self._integral(t))

    def sigma(self, t: jax.Array) -> jax.Array:
        """Weight of the noise, `sqrt(1 - alpha^2 + min_sigma^2)`."""
        return jnp.sqrt(self.min_sigma**2 + one_minus_exp(self._integral(t)))


@dataclass(frozen=True)
class VarianceExploding:
    """Variance-exploding schedule `alpha = 1, sigma = sigma_min (sigma_max / sigma_min)^(1-t)`.

    Attributes:
        sigma_min: Standard deviation of the noise at the data, t = 1.
        sigma_max: Standard deviation of the noise at t = 0.

    Reference: Song et al. 2020, arXiv:2011.13456, equation 31.
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
        """Weight of the data, 1."""
        return jnp.ones_like(t)

    def sigma(self, t: jax.Array) -> jax.Array:
        """Weight of the noise, geometric from sigma_max at t = 0 to sigma_min at t = 1."""
        return self.sigma_min * jnp.exp((1.0 - t) * math.log(self.sigma_max / self.sigma_min))


@dataclass(frozen=True)
class Polynomial:
    """Polynomial schedule `alpha = t^power, sigma = 1 - t^power`; power 1 is `Linear`.

    Attributes:
        power: Exponent, at least 1.

    Reference: Lipman et al. 2024, arXiv:2412.06264, section 4.
    """

    power: float = 2.0

    def __post_init__(self) -> None:
        require_numbers(self)
        # A power below 1 has an infinite rate at t = 0.
        require_at_least("power", self.power, 1.0)

    def alpha(self, t: jax.Array) -> jax.Array:
        """Weight of the data, `t^power`."""
        return t**self.power

    def sigma(self, t: jax.Array) -> jax.Array:
        """Weight of the noise, `1 - t^power`, computed without cancellation near t = 1."""
        if self.power == 1.0:  # The difference is exact.
            return 1.0 - t
        early = t**self.power < 0.5
        late = -jnp.expm1(self.power * jnp.log(jnp.where(early, 1.0, t)))
        return jnp.where(early, 1.0 - t**self.power, late)


def with_rate(fn: Callable[[jax.Array], jax.Array], t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return `fn(t)` and its derivative `dfn/dt`, for an elementwise `fn`, by forward mode."""
    return jax.jvp(fn, (t,), (jnp.ones_like(t),))


def angle(schedule: Schedule, t: jax.Array) -> jax.Array:
    """Signal-to-noise ratio as an angle, `atan2(alpha, sigma)` in [0, pi/2]; always finite."""
    return jnp.arctan2(schedule.alpha(t), schedule.sigma(t))


def time_at_angle(
    schedule: Schedule, target_angle: jax.Array, *, num_halvings: int = 40
) -> jax.Array:
    """Find the time in [0, 1] at which `schedule` has an angle (see `angle`), by bisection.

    Elementwise, accurate to a few units in the last place. Not differentiable; callers use the
    closed form of the derivative.

    Args:
        schedule: The schedule to invert.
        target_angle: Angles in [0, pi/2], any shape. An angle that the schedule does not reach
            gives its nearest end, 0 or 1.
        num_halvings: Number of bisection steps.
    """

    def halve(_, bounds):
        low, high = bounds
        middle = 0.5 * (low + high)
        below = angle(schedule, middle) < target_angle
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    bounds = (jnp.zeros_like(target_angle), jnp.ones_like(target_angle))
    # Return the upper bound: it is exact at t = 1 and 2^-40 at t = 0.
    _, high = jax.lax.fori_loop(0, num_halvings, halve, bounds)
    return high


def times_of_linear(schedule: Schedule, grid: Float[Array, " points"]) -> Float[Array, " points"]:
    """Map a time grid of the linear path to `schedule` at equal noise-to-data ratios `(1 - t) / t`.

    Args:
        schedule: Schedule of the returned times.
        grid: Times of the linear path; must not be traced. The ends 0 and 1 are kept.

    Raises:
        ValueError: If the schedule does not reach one of the ratios.
    """
    if isinstance(schedule, Linear):
        return grid
    angles = angle(Linear(), grid[1:-1])
    first, last = angle(schedule, jnp.asarray([0.0, 1.0]))
    reaches_all = bool(jnp.all((first < angles) & (angles < last)))
    require(reaches_all, "schedule", "reach every noise-to-data ratio of the grid", schedule)
    return grid.at[1:-1].set(time_at_angle(schedule, angles))
