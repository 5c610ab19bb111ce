"""The samplers of diffusion models, on any affine path: from one time's predictions to the next.

A network's prediction is taken apart into the data and the noise it stands for, x1 and x0. With
alpha and sigma at both ends of a step, 0 where it starts and 1 where it ends, everything here is
said in terms of

    q = (alpha_0 / sigma_0) / (alpha_1 / sigma_1) = exp(-h),   h = lambda_1 - lambda_0

which needs no logarithm at the ends of the path, where lambda = log(alpha / sigma) is infinite.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from fmjax._checks import require_between, require_one_of

# Beyond e^20 to one there is nothing to be told of data or noise in float32.
_MAX_LAMBDA = 20.0


class Stretch(NamedTuple):
    """One step, all scalars.

    Attributes:
        n: Its number, from 0.
        last: Whether it ends at t = 1.
        alpha: At its start and its end.
        sigma: At its start and its end.
    """

    n: jax.Array
    last: jax.Array
    alpha: tuple[jax.Array, jax.Array]
    sigma: tuple[jax.Array, jax.Array]

    @property
    def q(self) -> jax.Array:
        """The signal-to-noise ratio at the start by that at the end, in [0, 1)."""
        return self.alpha[0] * self.sigma[1] / (self.alpha[1] * self.sigma[0])

    @property
    def lambdas(self) -> tuple[jax.Array, jax.Array]:
        """`log(alpha / sigma)` at both ends, held within what float32 can tell."""
        start, end = (
            jnp.clip(jnp.log(alpha / sigma), -_MAX_LAMBDA, _MAX_LAMBDA)
            for alpha, sigma in zip(self.alpha, self.sigma, strict=True)
        )
        return start, end


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
        self, step: Stretch, x: jax.Array, x1: jax.Array, x0: jax.Array, noise: Any, memory: Any
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
        self, step: Stretch, x: jax.Array, x1: jax.Array, x0: jax.Array, noise: Any, memory: Any
    ) -> tuple[jax.Array, Any]:
        """Put the predictions in, and what is drawn anew."""
        fresh = self.eta**2 * (1.0 - jnp.square(step.q))
        end = step.alpha[1] * x1 + step.sigma[1] * jnp.sqrt(1.0 - fresh) * x0
        if self.is_stochastic:
            end = end + step.sigma[1] * jnp.sqrt(fresh) * noise
        return end, memory


@dataclass(frozen=True)
class Ancestral:
    """DDPM's sampler: the diffusion's posterior step, with one of two variances.

    Attributes:
        variance: "posterior", that of a step towards known data, `sigma_1^2 (1 - q^2)`; or "beta",
            that of the forward step, `sigma_0^2 (1 - q^2)`, for data that are white noise. The
            last step draws none.

    On fewer steps than it was trained with, alpha and sigma of the steps taken count, as in
    Nichol and Dhariwal 2021, arXiv:2102.09672, section 4.

    Source: Ho et al. 2020, arXiv:2006.11239, algorithm 2 and section 3.2.
    """

    variance: str = "posterior"

    def __post_init__(self) -> None:
        require_one_of("variance", self.variance, ("posterior", "beta"))

    @property
    def is_stochastic(self) -> bool:
        """Always."""
        return True

    def start(self, x0: jax.Array) -> None:
        """Nothing to remember."""

    def advance(
        self, step: Stretch, x: jax.Array, x1: jax.Array, x0: jax.Array, noise: Any, memory: Any
    ) -> tuple[jax.Array, Any]:
        """The posterior's mean, and noise."""
        mean = step.alpha[1] * x1 + step.sigma[1] * step.q * x0
        scale = step.sigma[1] if self.variance == "posterior" else step.sigma[0]
        std = jnp.where(step.last, 0.0, scale * jnp.sqrt(1.0 - jnp.square(step.q)))
        return mean + std * noise, memory


class _History(NamedTuple):
    """Data predictions at earlier times, the newest first, and their lambdas."""

    x1: tuple[jax.Array, ...]
    lambdas: tuple[jax.Array, ...]

    @classmethod
    def empty(cls, x0: jax.Array, length: int) -> "_History":
        zero = jnp.zeros((), x0.dtype)
        return cls((jnp.zeros_like(x0),) * length, (zero,) * length)

    def pushed(self, x1: jax.Array, lam: jax.Array) -> "_History":
        return _History((x1, *self.x1)[: len(self.x1)], (lam, *self.lambdas)[: len(self.x1)])


@dataclass(frozen=True)
class DPMSolverPP2M:
    """DPM-Solver++(2M): the data prediction goes on in lambda as a line through the last two.

    The first and the last step are of first order (DDIM): one has no line yet, to the other
    lambda is infinite or nearly so.

    Source: Lu et al. 2022, arXiv:2211.01095, algorithm 2.
    """

    @property
    def is_stochastic(self) -> bool:
        """Never."""
        return False

    def start(self, x0: jax.Array) -> _History:
        """No prediction yet."""
        return _History.empty(x0, 1)

    def advance(
        self, step: Stretch, x: jax.Array, x1: jax.Array, x0: jax.Array, noise: Any,
        memory: _History,
    ) -> tuple[jax.Array, _History]:  # fmt: skip
        """The exact solution for that line, as UniPC predicts it."""
        order = jnp.where((step.n == 0) | step.last, 1, 2)
        return _predict(step, x, x1, memory, order), memory.pushed(x1, step.lambdas[0])


class _UniMemory(NamedTuple):
    """Of the step before: where it started, what it was, and the predictions before its end."""

    x: jax.Array
    step: Stretch
    history: _History


@dataclass(frozen=True)
class UniPC:
    """UniPC: a multistep predictor, then a corrector that uses the next step's own evaluation.

    The corrector is of one order more than the predictor; first steps are of the order that
    there are predictions for, and the last one, which nothing corrects, of first order.

    Attributes:
        order: Of the predictor, 1 to 3, with the paper's `B_2(h) = e^h - 1`.

    Source: Zhao et al. 2023, arXiv:2302.04867, algorithms 1 to 4 for data prediction.
    """

    order: int = 2

    def __post_init__(self) -> None:
        require_between("order", self.order, 1, 3)

    @property
    def is_stochastic(self) -> bool:
        """Never."""
        return False

    def start(self, x0: jax.Array) -> _UniMemory:
        """No step yet."""
        zero = jnp.zeros((), x0.dtype)
        one = zero + 1.0
        none = Stretch(jnp.zeros((), jnp.int32), zero > 0, (one, one), (one, one))
        return _UniMemory(x0, none, _History.empty(x0, self.order))

    def advance(
        self, step: Stretch, x: jax.Array, x1: jax.Array, x0: jax.Array, noise: Any,
        memory: _UniMemory,
    ) -> tuple[jax.Array, _UniMemory]:  # fmt: skip
        """Correct the step before by what was predicted here, then predict the next."""
        before, history = memory.step, memory.history
        known = jnp.minimum(step.n, self.order)
        corrected = _correct(before, memory.x, x1, step.lambdas[0], history, known)
        x = jnp.where(step.n == 0, x, corrected)
        order = jnp.where(step.last, 1, jnp.minimum(step.n + 1, self.order))
        end = _predict(step, x, x1, history, order)
        return end, _UniMemory(x, step, history.pushed(x1, step.lambdas[0]))


def _predict(
    step: Stretch, x: jax.Array, x1: jax.Array, history: _History, order: jax.Array
) -> jax.Array:
    """Go on from x with x1 and `order - 1` earlier predictions."""
    start, end = step.lambdas
    length = len(history.x1)
    nodes = [(lam - start) / (end - start) for lam in history.lambdas]
    weights = _weights(nodes, end - start, order - 1)
    mean = x1
    for k in range(length):
        mean = mean + jnp.where(weights[k] == 0.0, 0.0, weights[k] * (history.x1[k] - x1))
    return step.sigma[1] / step.sigma[0] * x + step.alpha[1] * (1.0 - step.q) * mean


def _correct(
    step: Stretch,
    x: jax.Array,
    x1_end: jax.Array,
    lambda_end: jax.Array,
    history: _History,
    order: jax.Array,
) -> jax.Array:
    """The step again, with the prediction at its end and `order` at its start and before."""
    start, end = history.lambdas[0], lambda_end
    nodes = [jnp.ones_like(end), *((lam - start) / (end - start) for lam in history.lambdas[1:])]
    weights = _weights(nodes, end - start, order)
    first = history.x1[0]
    mean = first
    for k, x1 in enumerate((x1_end, *history.x1[1:])):
        mean = mean + jnp.where(weights[k] == 0.0, 0.0, weights[k] * (x1 - first))
    return step.sigma[1] / step.sigma[0] * x + step.alpha[1] * (1.0 - step.q) * mean


_QUADRATURE = tuple((0.5 * v) for v in np.polynomial.legendre.leggauss(24))


def _weights(nodes: list[jax.Array], h: jax.Array, num: jax.Array) -> jax.Array:
    """Weights on `x1(node) - x1(0)` of the mean of x1 over a step under the weight e^(theta h).

    theta goes from 0 to 1 along the step in lambda, as the nodes are given; the polynomial of
    degree `num` through the first `num` nodes and zero is integrated exactly. With one node the
    paper takes 1/2 for the mean of theta.
    """
    points, shares = _QUADRATURE
    theta = jnp.asarray(points + 0.5, h.dtype)
    density = jnp.asarray(shares, h.dtype) * jnp.exp((theta - 1.0) * h)
    density = density / jnp.sum(density)
    powers = np.arange(1, len(nodes) + 1)
    moments = jnp.stack([jnp.sum(density * theta**m) for m in powers])
    moments = jnp.where(num == 1, 0.5, moments)
    at = jnp.stack(nodes)
    matrix = jnp.stack([at**m for m in powers])
    used = powers <= num
    square = used[:, None] & used[None, :]
    matrix = jnp.where(square, matrix, jnp.eye(len(nodes), dtype=h.dtype))
    return jnp.linalg.solve(matrix, jnp.where(used, moments, 0.0))
