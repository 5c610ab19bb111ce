"""Densities of training times, and time grids for fixed-step solvers.

A density is defined by its quantile function, which maps uniform random numbers to times. Any
density can therefore be stratified, shifted and converted to a grid.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri
from jaxtyping import Array, Float

from fmjax._arrays import PRNGKey, Times
from fmjax._checks import require, require_between, require_count, require_numbers, require_positive

Grid = Float[Array, "points"]


@runtime_checkable
class Density(Protocol):
    """Probability density of training times on [0, 1].

    An implementation must satisfy, up to rounding: `quantile` maps [0, 1] into [0, 1], does not
    decrease, and maps 0 to 0 and 1 to 1.
    """

    def quantile(self, u: jax.Array) -> jax.Array:
        """Inverse cumulative distribution function: the time with cumulative probability `u`.

        Elementwise, for any shape.
        """
        ...


@dataclass(frozen=True)
class Uniform:
    """Uniform density on [0, 1]."""

    def quantile(self, u: jax.Array) -> jax.Array:
        """Quantile function of the uniform density on [0, 1], the identity."""
        return u


@dataclass(frozen=True)
class LogitNormal:
    """Logit-normal density: logit(t) is normal, which emphasizes the middle of the path.

    Attributes:
        mean: Mean of logit(t); positive values move times toward the data. SD3 measures time from
            the data to the noise, so its logit-normal(m, s) is `LogitNormal(-m, s)`.
        std: Standard deviation of logit(t).

    Reference: Esser et al. 2024, arXiv:2403.03206, section 3.1.
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        require_numbers(self)
        require_positive("std", self.std)

    def quantile(self, u: jax.Array) -> jax.Array:
        """Quantile function, `sigmoid(mean + std * Phi^-1(u))`."""
        return jax.nn.sigmoid(self.mean + self.std * ndtri(u))


@dataclass(frozen=True)
class Mode:
    """Mode density of SD3: positive everywhere, with more weight in the middle or at the ends.

    Attributes:
        scale: Positive values put more weight in the middle, negative values at the ends.

    Reference: Esser et al. 2024, arXiv:2403.03206, equation 20, with 1 - t for t; the density is
    symmetric.
    """

    scale: float = 1.29

    def __post_init__(self) -> None:
        require_numbers(self)
        # Outside these bounds the quantile function is not monotone (section 3.1).
        require_between("scale", self.scale, -1.0, 2.0 / (math.pi - 2.0))

    def quantile(self, u: jax.Array) -> jax.Array:
        """Quantile function, `u + scale * (cos^2(pi u / 2) - 1 + u)`."""
        return u + self.scale * (u - jnp.square(jnp.sin(0.5 * math.pi * u)))


@dataclass(frozen=True)
class CosMap:
    """CosMap density: gives the linear schedule the signal-to-noise ratios of the cosine schedule.

    `p(t) = 2 / (pi - 2 pi t + 2 pi t^2)`.

    Reference: Esser et al. 2024, arXiv:2403.03206, equation 21.
    """

    def quantile(self, u: jax.Array) -> jax.Array:
        """Quantile function, `tan(pi u / 2) / (1 + tan(pi u / 2))`, without the pole at u = 1."""
        sine = jnp.sin(0.5 * math.pi * u)
        return sine / (sine + jnp.sin(0.5 * math.pi * (1.0 - u)))


@dataclass(frozen=True)
class UShaped:
    """U-shaped density for reflow, with more weight at both ends.

    `p(t)` is proportional to `exp(a t) + exp(a (1 - t))`.

    Attributes:
        a: Strength of the concentration at the ends; the paper uses 4.

    Reference: Lee et al. 2024, arXiv:2405.20320, section 4.1.
    """

    a: float = 4.0

    def __post_init__(self) -> None:
        require_numbers(self)
        require_positive("a", self.a)

    def quantile(self, u: jax.Array) -> jax.Array:
        """Quantile function, the inverse of `1/2 + sinh(a (t - 1/2)) / (2 sinh(a / 2))`."""
        t = 0.5 + jnp.arcsinh((2.0 * u - 1.0) * math.sinh(0.5 * self.a)) / self.a
        # For some a rounding exceeds an end by 3e-8, where a power of t would be NaN.
        return jnp.clip(t, 0.0, 1.0)


@dataclass(frozen=True)
class Tabulated:
    """Piecewise constant density on [0, 1], for example measured by `fmjax.solvers.calibrate`.

    Attributes:
        times: Boundaries of the pieces, increasing from 0 to 1; one more than `density` has.
        density: Positive density of each piece, not necessarily normalized.
    """

    times: tuple[float, ...] = (0.0, 1.0)
    density: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        require_numbers(self)
        ends, rule = self.times[:1] + self.times[-1:], "increase from 0 to 1"
        increasing = all(low < high for low, high in itertools.pairwise(self.times))
        require(ends == (0.0, 1.0) and increasing, "times", rule, self.times)
        num_pieces = len(self.times) - 1
        rule = f"have {num_pieces} values, one fewer than times"
        require(len(self.density) == num_pieces, "density", rule, len(self.density))
        for value in self.density:
            require_positive("density", value)

    def quantile(self, u: jax.Array) -> jax.Array:
        """Quantile function, the inverse of the integrated density, linear on each piece."""
        times = np.asarray(self.times)
        cumulative = np.append(0.0, np.cumsum(np.asarray(self.density) * np.diff(times)))
        cumulative = jnp.asarray(cumulative / cumulative[-1], u.dtype)
        return jnp.interp(u, cumulative, jnp.asarray(times, u.dtype))


@dataclass(frozen=True)
class UniformSteps:
    """Uniform distribution over the times `1 - k / num_steps` of a discrete diffusion's steps k.

    Attributes:
        num_steps: Number of steps of the discrete diffusion.

    Reference: Ho et al. 2020, arXiv:2006.11239, algorithm 1.
    """

    num_steps: int = 1000

    def __post_init__(self) -> None:
        require_numbers(self)
        _check_num_steps(self.num_steps)

    def quantile(self, u: jax.Array) -> jax.Array:
        """Quantile function of the discrete times: u rounded down to a multiple of the step."""
        return jnp.floor(u * self.num_steps) / self.num_steps


AnyDensity = Uniform | LogitNormal | Mode | CosMap | UShaped | UniformSteps | Tabulated


@dataclass(frozen=True)
class Shifted:
    """Density with times moved toward the noise by SD3's resolution shift, for larger images.

    Attributes:
        density: Density before the shift.
        shift: Factor k of the noise-to-data ratio (see `shift_times`).

    Reference: Esser et al. 2024, arXiv:2403.03206, section 5.3.2.
    """

    density: AnyDensity | Density = Uniform()
    shift: float = 3.0

    def __post_init__(self) -> None:
        require_numbers(self)
        require_positive("shift", self.shift)

    def quantile(self, u: jax.Array) -> jax.Array:
        """Quantile function, the shifted quantile of `density`."""
        return shift_times(self.density.quantile(u), self.shift)


def shift_times(t: jax.Array, shift: float) -> jax.Array:
    """Apply SD3's resolution shift, `sigma' = k sigma / (1 + (k - 1) sigma)` with sigma = 1 - t.

    Elementwise; `shift_times(shift_times(t, k), 1 / k) == t`.

    Args:
        t: Times in [0, 1].
        shift: The factor k, usually `sqrt(pixels / pixels of the base resolution)`; k > 1 moves
            times toward the noise.

    Reference: Esser et al. 2024, arXiv:2403.03206, equation 23.
    """
    return t / (t + shift * (1.0 - t))


def sample_times(key: PRNGKey, num: int, density: Density, *, stratified: bool = False) -> Times:
    """Sample `num` training times from `density`.

    Args:
        key: Random key.
        num: Number of times.
        density: Density to sample from.
        stratified: Sample one time from each of `num` equally likely strata, in random order. The
            batch then covers the density evenly, which lowers the variance of the loss and keeps
            its mean.
    """
    uniform_key, order_key = jax.random.split(key)
    u = jax.random.uniform(uniform_key, (num,))
    if stratified:
        u = (jax.random.permutation(order_key, num) + u) / num
    # u can be 0, and float32 rounds the largest stratified u up to 1: both are valid times.
    return density.quantile(u)


def _check_num_steps(num_steps: int) -> None:
    require_count("num_steps", num_steps, 1)


def quantile_grid(num_steps: int, density: Density) -> Grid:
    """Time grid of `num_steps` steps from 0 to 1 with equal probability under `density`."""
    _check_num_steps(num_steps)
    grid = density.quantile(jnp.linspace(0.0, 1.0, num_steps + 1))
    return grid.at[0].set(0.0).at[-1].set(1.0)


def uniform_grid(num_steps: int) -> Grid:
    """Time grid of `num_steps` equal steps from 0 to 1."""
    return quantile_grid(num_steps, Uniform())


def shifted_grid(num_steps: int, shift: float) -> Grid:
    """Time grid with SD3's resolution shift; steps are shorter near the noise for shift > 1."""
    return quantile_grid(num_steps, Shifted(Uniform(), shift))


def edm_grid(
    num_steps: int, rho: float = 7.0, *, sigma_min: float = 0.002, sigma_max: float = 80.0
) -> Grid:
    """Time grid of the EDM sampler, as times `t = 1 / (1 + sigma)` of the linear path.

    The `num_steps` sigmas are equally spaced in `sigma^(1/rho)` from `sigma_max` to `sigma_min`,
    followed by zero; sigma is the noise-to-data ratio `(1 - t) / t`. The first time is set to 0,
    pure noise, so that sampling starts at the source distribution. The ends 0 and 1 are exact.

    Args:
        num_steps: Number of steps.
        rho: Exponent of the spacing; larger values give shorter steps near the data.
        sigma_min: Smallest sigma before the final zero.
        sigma_max: Largest sigma.

    Reference: Karras et al. 2022, arXiv:2206.00364, equation 5.
    """
    _check_num_steps(num_steps)
    require_positive("rho", rho)
    require_positive("sigma_min", sigma_min)
    require(sigma_max > sigma_min, "sigma_max", f"be greater than {sigma_min}", sigma_max)
    low, high = sigma_min ** (1.0 / rho), sigma_max ** (1.0 / rho)
    sigmas = jnp.linspace(high, low, num_steps) ** rho
    return jnp.append(1.0 / (1.0 + sigmas), 1.0).at[0].set(0.0)
