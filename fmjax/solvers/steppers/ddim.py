"""One-step diffusion samplers on any affine path: DDIM and DDPM's ancestral sampler.

A network's prediction is converted to the predicted data x1 and the predicted noise x0. With alpha
and sigma at the start of a step (index 0) and at its end (index 1), the samplers use

    q = (alpha_0 / sigma_0) / (alpha_1 / sigma_1) = exp(-h),   h = lambda_1 - lambda_0

which needs no logarithm at the ends of the path, where lambda = log(alpha / sigma) is infinite.
"""

import enum
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from fmjax._arrays import safe_sqrt
from fmjax._checks import require_between


class StepCoefficients(NamedTuple):
    """Index and path coefficients of one step, all scalars.

    Attributes:
        n: Index of the step, from 0.
        last: Whether the step ends at t = 1.
        alpha: Coefficient of the data at the start and the end of the step.
        sigma: Coefficient of the noise at the start and the end of the step.
        before_last: Whether the next step ends at t = 1.
    """

    n: jax.Array
    last: jax.Array
    alpha: tuple[jax.Array, jax.Array]
    sigma: tuple[jax.Array, jax.Array]
    before_last: jax.Array | bool = False

    @property
    def q(self) -> jax.Array:
        """The ratio `alpha / sigma` at the start divided by that at the end, in [0, 1)."""
        has_signal = self.alpha[1] > 0.0  # Otherwise alpha underflows in float32 at both ends.
        divisor = jnp.where(has_signal, self.alpha[1] * self.sigma[0], 1.0)
        return jnp.where(has_signal, self.alpha[0] * self.sigma[1] / divisor, 1.0)

    @property
    def resampled_fraction(self) -> jax.Array:
        """The fraction `1 - q^2` of the noise variance that a diffusion step samples again."""
        # In very short steps q may be rounded to more than 1.
        return jnp.maximum(1.0 - jnp.square(self.q), 0.0)


@runtime_checkable
class DiffusionSolver(Protocol):
    """A diffusion sampler with one network evaluation per step.

    Laws: `advance` is pure, and uses its noise only if `is_stochastic`.
    """

    @property
    def is_stochastic(self) -> bool:
        """Whether the steps add random noise."""
        ...

    def start(self, x0: jax.Array) -> PyTree:
        """Return the memory passed to the first step."""
        ...

    def advance(
        self,
        step: StepCoefficients,
        x: jax.Array,
        x1: jax.Array,
        x0: jax.Array,
        noise: jax.Array | None,
        memory: PyTree,
    ) -> tuple[jax.Array, PyTree]:
        """Take one step.

        Args:
            step: Index and path coefficients of the step.
            x: Points at the start of the step.
            x1: Data predicted at the start of the step.
            x0: Noise predicted at the start of the step.
            noise: Standard normal noise, None for samplers that are not stochastic.
            memory: Memory returned by the last step, or by `start`.

        Returns:
            The points at the end of the step, and the memory for the next step.
        """
        ...


@dataclass(frozen=True)
class DDIM:
    """DDIM sampler: `x = alpha x1 + sigma x0` with predicted x1 and x0.

    Without noise (eta = 0) it is Euler's method for `x / alpha` as a function of `sigma / alpha`;
    on the linear path it is Euler's method in t.

    Attributes:
        eta: Amount of noise, in [0, 1]. The fraction `eta^2 (1 - q^2)` of the noise variance is
            sampled again in each step; 1 is the posterior of the diffusion, DDPM's sampler.

    Reference: Song et al. 2020, arXiv:2010.02502, equations 12 and 16.
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        require_between("eta", self.eta, 0.0, 1.0)

    @property
    def is_stochastic(self) -> bool:
        """Whether the steps add random noise, which is so unless eta is 0."""
        return self.eta > 0.0

    def start(self, x0: jax.Array) -> None:
        """Return no memory."""

    def advance(
        self,
        step: StepCoefficients,
        x: jax.Array,
        x1: jax.Array,
        x0: jax.Array,
        noise: jax.Array | None,
        memory: PyTree,
    ) -> tuple[jax.Array, PyTree]:
        """Combine predicted data, predicted noise and new noise at the end of the step."""
        fraction = self.eta**2 * step.resampled_fraction
        end = step.alpha[1] * x1 + step.sigma[1] * safe_sqrt(1.0 - fraction) * x0
        if self.is_stochastic:
            assert noise is not None  # Passed to every stochastic sampler.
            end = end + step.sigma[1] * safe_sqrt(fraction) * noise
        return end, memory


class StepVariance(enum.Enum):
    """Variance of the noise in an ancestral step; the two extremes of DDPM's section 3.2."""

    POSTERIOR = "posterior"
    """`sigma_1^2 (1 - q^2)`, the variance of the posterior given the data."""
    BETA = "beta"
    """`sigma_0^2 (1 - q^2)`, the variance of the forward step, exact for standard normal data."""


@dataclass(frozen=True)
class Ancestral:
    """DDPM's ancestral sampler: posterior steps of the diffusion, without noise in the last step.

    With fewer steps than in training it uses alpha and sigma at the times of its grid, as in
    Nichol and Dhariwal 2021, arXiv:2102.09672, section 4.

    Attributes:
        variance: Variance of the noise in each step.

    Reference: Ho et al. 2020, arXiv:2006.11239, algorithm 2 and section 3.2.
    """

    variance: StepVariance = StepVariance.POSTERIOR

    @property
    def is_stochastic(self) -> bool:
        """Always True."""
        return True

    def start(self, x0: jax.Array) -> None:
        """Return no memory."""

    def advance(
        self,
        step: StepCoefficients,
        x: jax.Array,
        x1: jax.Array,
        x0: jax.Array,
        noise: jax.Array | None,
        memory: PyTree,
    ) -> tuple[jax.Array, PyTree]:
        """Return the mean of the posterior plus noise."""
        assert noise is not None  # Passed to every stochastic sampler.
        mean = step.alpha[1] * x1 + step.sigma[1] * step.q * x0
        scale = step.sigma[0 if self.variance is StepVariance.BETA else 1]
        std = jnp.where(step.last, 0.0, scale * safe_sqrt(step.resampled_fraction))
        return mean + std * noise, memory
