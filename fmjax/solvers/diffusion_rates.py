"""Diffusion rates: how much noise an SDE stirs in along the way from noise to data.

For any rate w >= 0 the SDE `dx = (u + w^2/2 score) dt + w dW` has at every time the same
distribution of points as the flow `dx = u dt` (arXiv:2303.08797; SiT, arXiv:2401.08740). The rates
here are in this library's time, t = 0 noise and t = 1 data. SiT writes its SDE with sqrt(w) before
the noise, so its coefficient is the square of the rate here; each class says where it meets SiT's.
"""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from fmjax._checks import require_at_least, require_numbers, require_positive
from fmjax.paths import AnySchedule, Linear


@runtime_checkable
class DiffusionRate(Protocol):
    """A rate w(t), in data units per square root of a unit of time.

    Laws: elementwise, any shape; finite and at least zero on the closed interval [0, 1].
    """

    def __call__(self, t: jax.Array) -> jax.Array:
        """w(t), shaped like `t`."""
        ...


@dataclass(frozen=True)
class _Scaled:
    """What all rates have: a factor, 0 for none at all."""

    scale: float = 1.0

    def __post_init__(self) -> None:
        require_numbers(self)
        require_at_least("scale", self.scale, 0.0)


@dataclass(frozen=True)
class ConstantRate(_Scaled):
    """`w = scale`. The drift back to the data, `w^2 / 2 sigma^2`, is stiff near t = 1."""

    def __call__(self, t: jax.Array) -> jax.Array:
        """The scale."""
        return jnp.full_like(t, self.scale)


@dataclass(frozen=True)
class SigmaRate(_Scaled):
    """`w = scale * sigma(t)^power`: fades with the noise of the path.

    With power 1 the drift stays as mild as the flow's up to t = 1. SiT's choice "sigma",
    `w^2 = sigma`, is power 1/2.
    """

    schedule: AnySchedule = Linear()
    power: float = 1.0

    def __post_init__(self) -> None:
        require_numbers(self)
        super().__post_init__()
        require_positive("power", self.power)

    def __call__(self, t: jax.Array) -> jax.Array:
        """Scale * sigma(t)^power."""
        return self.scale * self.schedule.sigma(t) ** self.power


@dataclass(frozen=True)
class IncreasingRate(_Scaled):
    """`w = scale * sin^2(pi t / 2)`, from nothing at the noise: `DecreasingRate` mirrored."""

    def __call__(self, t: jax.Array) -> jax.Array:
        """Scale * sin^2(pi t / 2)."""
        return self.scale * jnp.square(jnp.sin(0.5 * math.pi * t))


@dataclass(frozen=True)
class DecreasingRate(_Scaled):
    """`w = scale * cos^2(pi t / 2)`, to nothing at the data.

    SiT's "decreasing": `w^2` goes as `(1 + cos(pi t))^2`.
    """

    def __call__(self, t: jax.Array) -> jax.Array:
        """Scale * cos^2(pi t / 2), written so that it is exactly zero at t = 1."""
        return self.scale * jnp.square(jnp.sin(0.5 * math.pi * (1.0 - t)))


@dataclass(frozen=True)
class IncreasingDecreasingRate(_Scaled):
    """`w = scale * sin(pi t)`: most in the middle.

    SiT's "increasing-decreasing": `w^2` goes as `sin^2(pi t)`.
    """

    def __call__(self, t: jax.Array) -> jax.Array:
        """Scale * sin(pi t), written so that it is exactly zero at both ends, never below."""
        return self.scale * jnp.sin(math.pi * jnp.minimum(t, 1.0 - t))


AnyRate = ConstantRate | SigmaRate | IncreasingRate | DecreasingRate | IncreasingDecreasingRate
