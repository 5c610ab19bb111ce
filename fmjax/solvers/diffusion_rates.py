"""Diffusion rates w(t) of SDE sampling: the amount of noise added over time.

For any rate w >= 0 the SDE `dx = (u + w^2/2 score) dt + w dW` has the same distribution at every
time as the flow `dx = u dt` (arXiv:2303.08797; SiT, arXiv:2401.08740). Time runs from noise at
t = 0 to data at t = 1. SiT's SDE has the noise term sqrt(w) dW, so that its coefficient is the
square of the rate here; the classes state which of SiT's coefficients they correspond to.
"""

import math
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from fmjax._checks import require_at_least, require_numbers, require_positive
from fmjax.paths import AnySchedule, Linear, Schedule


@runtime_checkable
class DiffusionRate(Protocol):
    """A diffusion rate w(t), in data units per square root of a unit of time.

    Laws: elementwise, any shape; finite and at least zero on the closed interval [0, 1].
    """

    def __call__(self, t: jax.Array) -> jax.Array:
        """Evaluate w(t), shaped like `t`."""
        ...


@dataclass(frozen=True)
class _Scaled:
    """Base class of the rates.

    Attributes:
        scale: Factor of the rate; 0 adds no noise.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        require_numbers(self)
        require_at_least("scale", self.scale, 0.0)


@dataclass(frozen=True)
class ConstantRate(_Scaled):
    """Constant rate `w = scale`, whose drift term `w^2 / 2 sigma^2` is stiff near t = 1."""

    def __call__(self, t: jax.Array) -> jax.Array:
        """Return the diffusion rate at time t, which is `scale`."""
        return jnp.full_like(t, self.scale)


@dataclass(frozen=True)
class SigmaRate(_Scaled):
    """Rate `w = scale * sigma(t)^power`, proportional to a power of the path's sigma(t).

    With power 1 the drift stays as smooth as the flow's up to t = 1. SiT's choice "sigma",
    `w^2 = sigma`, is power 1/2.

    Attributes:
        schedule: Schedule whose sigma(t) is used. None takes that of the path that is sampled, and
            `Linear()` where the rate is called without a path.
        power: Exponent of sigma(t).
    """

    schedule: AnySchedule | Schedule | None = None
    power: float = 1.0

    def __post_init__(self) -> None:
        require_numbers(self)
        super().__post_init__()
        require_positive("power", self.power)

    def __call__(self, t: jax.Array) -> jax.Array:
        """Return the diffusion rate scale * sigma(t)^power."""
        schedule = Linear() if self.schedule is None else self.schedule
        return self.scale * schedule.sigma(t) ** self.power


@dataclass(frozen=True)
class IncreasingRate(_Scaled):
    """Rate `w = scale * sin^2(pi t / 2)`, zero at the noise: `DecreasingRate` mirrored."""

    def __call__(self, t: jax.Array) -> jax.Array:
        """Return the diffusion rate scale * sin^2(pi t / 2)."""
        return self.scale * jnp.square(jnp.sin(0.5 * math.pi * t))


@dataclass(frozen=True)
class DecreasingRate(_Scaled):
    """Rate `w = scale * cos^2(pi t / 2)`, zero at the data.

    SiT's "decreasing", with `w^2` proportional to `(1 + cos(pi t))^2`.
    """

    def __call__(self, t: jax.Array) -> jax.Array:
        """Return the diffusion rate scale * cos^2(pi t / 2), exactly zero at t = 1."""
        return self.scale * jnp.square(jnp.sin(0.5 * math.pi * (1.0 - t)))


@dataclass(frozen=True)
class IncreasingDecreasingRate(_Scaled):
    """Rate `w = scale * sin(pi t)`, largest in the middle.

    SiT's "increasing-decreasing", with `w^2` proportional to `sin^2(pi t)`.
    """

    def __call__(self, t: jax.Array) -> jax.Array:
        """Return the diffusion rate scale * sin(pi t), exactly zero at both ends."""
        return self.scale * jnp.sin(math.pi * jnp.minimum(t, 1.0 - t))


AnyRate = ConstantRate | SigmaRate | IncreasingRate | DecreasingRate | IncreasingDecreasingRate


def on_schedule(rate: DiffusionRate, schedule: Schedule) -> DiffusionRate:
    """Return the rate on a path with this schedule: a `SigmaRate` without a schedule takes it."""
    if isinstance(rate, SigmaRate) and rate.schedule is None:
        return replace(rate, schedule=schedule)
    return rate
