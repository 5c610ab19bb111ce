"""Times: densities to train with, and grids to take fixed steps on.

A density is its quantile function: uniform numbers in, times out. So every density can be
stratified, shifted, and turned into a grid, by one line each.
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
from fmjax._checks import (
    require,
    require_between,
    require_count,
    require_numbers,
    require_positive,
)

Grid = Float[Array, "points"]


@runtime_checkable
class Density(Protocol):
    """A density of times on [0, 1].

    Laws: `quantile` maps [0, 1] into [0, 1]; up to rounding it never falls, and it maps 0 to 0
    and 1 to 1.
    """

    def quantile(self, u: jax.Array) -> jax.Array:
        """The time below which the share `u` of all times lies. Elementwise."""
        ...


@dataclass(frozen=True)
class Uniform:
    """All times alike."""

    def quantile(self, u: jax.Array) -> jax.Array:
        """`u` itself."""
        return u


@dataclass(frozen=True)
class LogitNormal:
    """`logit(t)` is normal: the middle of the path, where the task is hardest.

    `mean` is in this library's time: positive leans to the data. SD3 counts from the other
    end, so its logit-normal(m, s) is `LogitNormal(-m, s)`.

    Source: Esser et al. 2024, arXiv:2403.03206, section 3.1.
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        require_numbers(self)
        require_positive("std", self.std)

    def quantile(self, u: jax.Array) -> jax.Array:
        """`sigmoid(mean + std * Phi^-1(u))`."""
        return jax.nn.sigmoid(self.mean + self.std * ndtri(u))


@dataclass(frozen=True)
class Mode:
    """Heavier in the middle (scale > 0) or at the ends (scale < 0), but nowhere zero.

    Source: arXiv:2403.03206, equation 20, with t = 1 - its t; the density is symmetric.
    """

    scale: float = 1.29

    def __post_init__(self) -> None:
        require_numbers(self)
        # Outside these bounds the map is not monotone (arXiv:2403.03206, section 3.1).
        require_between("scale", self.scale, -1.0, 2.0 / (math.pi - 2.0))

    def quantile(self, u: jax.Array) -> jax.Array:
        """`u + scale * (cos^2(pi u / 2) - 1 + u)`."""
        return u + self.scale * (u - jnp.square(jnp.sin(0.5 * math.pi * u)))


@dataclass(frozen=True)
class CosMap:
    """The density under which linear times see the cosine schedule's ratios uniformly.

    `p(t) = 2 / (pi - 2 pi t + 2 pi t^2)`. Source: arXiv:2403.03206, equation 21.
    """

    def quantile(self, u: jax.Array) -> jax.Array:
        """`tan(pi u / 2) / (1 + tan(pi u / 2))`, written without the pole at u = 1."""
        sine = jnp.sin(0.5 * math.pi * u)
        return sine / (sine + jnp.sin(0.5 * math.pi * (1.0 - u)))


@dataclass(frozen=True)
class UShaped:
    """Heavier at both ends: `p(t) ~ exp(a t) + exp(a (1 - t))`, for reflow.

    Source: Lee et al. 2024, arXiv:2405.20320, section 4.1, a = 4.
    """

    a: float = 4.0

    def __post_init__(self) -> None:
        require_numbers(self)
        require_positive("a", self.a)

    def quantile(self, u: jax.Array) -> jax.Array:
        """The inverse of `1/2 + sinh(a (t - 1/2)) / (2 sinh(a / 2))`."""
        t = 0.5 + jnp.arcsinh((2.0 * u - 1.0) * math.sinh(0.5 * self.a)) / self.a
        # Rounding steps over an end by 3e-8 for some a, where a power of t is NaN.
        return jnp.clip(t, 0.0, 1.0)


@dataclass(frozen=True)
class Tabulated:
    """A constant density on each piece of [0, 1], such as `fmjax.solvers.calibrate` measures.

    Attributes:
        times: Ends of the pieces, rising from 0 to 1: one more than there are densities.
        density: Of each piece, in any unit; positive.
    """

    times: tuple[float, ...] = (0.0, 1.0)
    density: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        require_numbers(self)
        ends, rule = self.times[:1] + self.times[-1:], "rise from 0 to 1"
        rises = all(low < high for low, high in itertools.pairwise(self.times))
        require(ends == (0.0, 1.0) and rises, "times", rule, self.times)
        fits = len(self.density) == len(self.times) - 1
        require(fits, "density", f"have {len(self.times) - 1} values", len(self.density))
        for value in self.density:
            require_positive("density", value)

    def quantile(self, u: jax.Array) -> jax.Array:
        """The inverse of the density's integral, linear on each piece."""
        ends = np.asarray(self.times)
        shares = np.append(0.0, np.cumsum(np.asarray(self.density) * np.diff(ends)))
        return jnp.interp(u, jnp.asarray(shares / shares[-1], u.dtype), jnp.asarray(ends, u.dtype))


@dataclass(frozen=True)
class UniformSteps:
    """The times `1 - k / num_steps` of a discrete diffusion's steps k, all alike.

    Source: Ho et al. 2020, arXiv:2006.11239, algorithm 1.
    """

    num_steps: int = 1000

    def __post_init__(self) -> None:
        require_numbers(self)
        _check_num_steps(self.num_steps)

    def quantile(self, u: jax.Array) -> jax.Array:
        """The step's time below `u`; t = 1, where nothing is left to predict, only at u = 1."""
        return jnp.floor(u * self.num_steps) / self.num_steps


AnyDensity = Uniform | LogitNormal | Mode | CosMap | UShaped | UniformSteps | Tabulated


@dataclass(frozen=True)
class Shifted:
    """Another density's times moved towards the noise, as larger images want.

    Source: arXiv:2403.03206, section 5.3.2 (see `shift_times`).
    """

    density: AnyDensity = Uniform()
    shift: float = 3.0

    def __post_init__(self) -> None:
        require_numbers(self)
        require_positive("shift", self.shift)

    def quantile(self, u: jax.Array) -> jax.Array:
        """The shifted quantile of the density underneath."""
        return shift_times(self.density.quantile(u), self.shift)


def shift_times(t: jax.Array, shift: float) -> jax.Array:
    """SD3's resolution shift: `sigma' = k sigma / (1 + (k - 1) sigma)` with sigma = 1 - t.

    `k = sqrt(pixels / pixels of the base resolution)`; k > 1 spends more time near the noise.
    Elementwise; `shift_times(shift_times(t, k), 1 / k) == t`.

    Source: arXiv:2403.03206, equation 23.
    """
    return t / (t + shift * (1.0 - t))


def sample_times(key: PRNGKey, num: int, density: Density, *, stratified: bool = False) -> Times:
    """Draw `num` training times.

    Stratified: one time from each of `num` equally likely strata, in random order, so that a
    batch covers the density evenly (lower variance of the loss, the same mean).
    """
    draw_key, order_key = jax.random.split(key)
    u = jax.random.uniform(draw_key, (num,))
    if stratified:
        u = (jax.random.permutation(order_key, num) + u) / num
    # float32 rounds the largest draws up to 1 and uniform() gives 0: both are ends of the path.
    return density.quantile(u)


def _check_num_steps(num_steps: int) -> None:
    require_count("num_steps", num_steps, 1)


def quantile_grid(num_steps: int, density: Density) -> Grid:
    """`num_steps + 1` times from 0 to 1 between which the density has equal shares."""
    _check_num_steps(num_steps)
    grid = density.quantile(jnp.linspace(0.0, 1.0, num_steps + 1))
    return grid.at[0].set(0.0).at[-1].set(1.0)


def uniform_grid(num_steps: int) -> Grid:
    """`num_steps` equal steps from 0 to 1: `num_steps + 1` times."""
    return quantile_grid(num_steps, Uniform())


def shifted_grid(num_steps: int, shift: float) -> Grid:
    """Equal steps under SD3's resolution shift: shorter near the noise for shift > 1."""
    return quantile_grid(num_steps, Shifted(Uniform(), shift))


def edm_grid(
    num_steps: int, rho: float = 7.0, *, sigma_min: float = 0.002, sigma_max: float = 80.0
) -> Grid:
    """EDM's sigmas as times of the linear path: `t = 1 / (1 + sigma)`.

    They go evenly in `sigma^(1/rho)` from `sigma_max` to `sigma_min`, `num_steps` of them, then
    to zero; sigma is the noise-to-data ratio `(1 - t) / t`. The first is taken as pure noise,
    t = 0, so that sampling starts where the path does. 0 and 1 are exact.

    Source: Karras et al. 2022, arXiv:2206.00364, equation 5.
    """
    _check_num_steps(num_steps)
    require_positive("rho", rho)
    require_positive("sigma_min", sigma_min)
    require(sigma_max > sigma_min, "sigma_max", f"be greater than {sigma_min}", sigma_max)
    low, high = sigma_min ** (1.0 / rho), sigma_max ** (1.0 / rho)
    sigmas = jnp.linspace(high, low, num_steps) ** rho
    return jnp.append(1.0 / (1.0 + sigmas), 1.0).at[0].set(0.0)
