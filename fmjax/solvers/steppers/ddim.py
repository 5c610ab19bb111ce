"""The samplers of diffusion models, on any affine path: from one time's predictions to the next.

A network's prediction is taken apart into the data and the noise it stands for, x1 and x0. With
alpha and sigma at both ends of a step, 0 where it starts and 1 where it ends, everything here is
said in terms of

    q = (alpha_0 / sigma_0) / (alpha_1 / sigma_1) = exp(-h),   h = lambda_1 - lambda_0

which needs no logarithm at the ends of the path, where lambda = log(alpha / sigma) is infinite.
"""

import enum
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from fmjax._arrays import safe_sqrt
from fmjax._checks import require_between


class StepCoefficients(NamedTuple):
    """One step, all scalars.

    Attributes:
        n: Its number, from 0.
        last: Whether it ends at t = 1.
        alpha: At its start and its end.
        sigma: At its start and its end.
        before_last: Whether the next step ends at t = 1.
    """

    n: jax.Array
    last: jax.Array
    alpha: tuple[jax.Array, jax.Array]
    sigma: tuple[jax.Array, jax.Array]
    before_last: jax.Array | bool = False

    @property
    def q(self) -> jax.Array:
        """The signal-to-noise ratio at the start by that at the end, in [0, 1)."""
        signal = self.alpha[1] > 0.0  # Else alpha is below what float32 holds, at both ends.
        end = jnp.where(signal, self.alpha[1] * self.sigma[0], 1.0)
        return jnp.where(signal, self.alpha[0] * self.sigma[1] / end, 1.0)

    @property
    def share_anew(self) -> jax.Array:
        """`1 - q^2`: of the noise's variance, what a step of the diffusion draws anew."""
        # Of steps that are next to nothing, q is rounded to more than 1.
        return jnp.maximum(1.0 - jnp.square(self.q), 0.0)


@runtime_checkable
class DiffusionSampler(Protocol):
    """One evaluation of the network a step.

    Laws: `advance` is pure, and asks for noise only if `is_stochastic`.
    """

    @property
    def is_stochastic(self) -> bool:
        """Whether steps take noise."""
        ...

    def start(self, x0: jax.Array) -> Any:
        """The memory that the first step is given."""
        ...

    def advance(
        self,
        step: StepCoefficients,
        x: jax.Array,
        x1: jax.Array,
        x0: jax.Array,
        noise: Any,
        memory: Any,
    ) -> tuple[jax.Array, Any]:
        """The points at the step's end, from the data and the noise predicted at its start."""
        ...


@dataclass(frozen=True)
class DDIM:
    """`x = alpha x1 + sigma x0` with the predictions in place of x1 and x0.

    Without noise (eta = 0) it is Euler's method for `x / alpha` as a function of `sigma / alpha`;
    on the linear path it is Euler's method in t. With eta the share `eta^2 (1 - q^2)` of the
    noise's variance is drawn anew: 1 is the posterior of the diffusion, DDPM's sampler.

    Source: Song et al. 2020, arXiv:2010.02502, equations 12 and 16.
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        require_between("eta", self.eta, 0.0, 1.0)

    @property
    def is_stochastic(self) -> bool:
        """If any noise is drawn anew."""
        return self.eta > 0.0

    def start(self, x0: jax.Array) -> None:
        """Nothing to remember."""

    def advance(
        self,
        step: StepCoefficients,
        x: jax.Array,
        x1: jax.Array,
        x0: jax.Array,
        noise: Any,
        memory: Any,
    ) -> tuple[jax.Array, Any]:
        """Put the predictions in, and what is drawn anew."""
        fresh = self.eta**2 * step.share_anew
        end = step.alpha[1] * x1 + step.sigma[1] * safe_sqrt(1.0 - fresh) * x0
        if self.is_stochastic:
            end = end + step.sigma[1] * safe_sqrt(fresh) * noise
        return end, memory


class StepVariance(enum.Enum):
    """How much noise an ancestral step draws; the two extremes of DDPM's section 3.2."""

    POSTERIOR = "posterior"
    """`sigma_1^2 (1 - q^2)`: a step towards data that are known."""
    BETA = "beta"
    """`sigma_0^2 (1 - q^2)`, that of the forward step: towards data that are white noise."""


@dataclass(frozen=True)
class Ancestral:
    """DDPM's sampler: the diffusion's posterior step. The last one draws no noise.

    Attributes:
        variance: How much the others draw.

    On fewer steps than it was trained with, alpha and sigma of the steps taken count, as in
    Nichol and Dhariwal 2021, arXiv:2102.09672, section 4.

    Source: Ho et al. 2020, arXiv:2006.11239, algorithm 2 and section 3.2.
    """

    variance: StepVariance = StepVariance.POSTERIOR

    @property
    def is_stochastic(self) -> bool:
        """Always."""
        return True

    def start(self, x0: jax.Array) -> None:
        """Nothing to remember."""

    def advance(
        self,
        step: StepCoefficients,
        x: jax.Array,
        x1: jax.Array,
        x0: jax.Array,
        noise: Any,
        memory: Any,
    ) -> tuple[jax.Array, Any]:
        """The posterior's mean, and noise."""
        mean = step.alpha[1] * x1 + step.sigma[1] * step.q * x0
        scale = step.sigma[0 if self.variance is StepVariance.BETA else 1]
        std = jnp.where(step.last, 0.0, scale * safe_sqrt(step.share_anew))
        return mean + std * noise, memory
