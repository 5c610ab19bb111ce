"""Multistep diffusion samplers, which reuse the predictions of earlier steps.

With predicted data D(lambda), `x / sigma` changes by the integral of `e^lambda D(lambda)` over
lambda. The samplers differ in the polynomial by which they approximate D.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fmjax._checks import require_between, require_count
from fmjax.solvers.steppers.ddim import StepCoefficients


class _History(NamedTuple):
    """Data predictions at earlier times and their lambdas, latest first."""

    x1: tuple[jax.Array, ...]
    lambdas: tuple[jax.Array, ...]

    @classmethod
    def empty(cls, x0: jax.Array, length: int) -> "_History":
        zero = jnp.zeros((), x0.dtype)
        return cls((jnp.zeros_like(x0),) * length, (zero,) * length)

    def push(self, x1: jax.Array, lam: jax.Array) -> "_History":
        return _History((x1, *self.x1)[: len(self.x1)], (lam, *self.lambdas)[: len(self.x1)])


@dataclass(frozen=True)
class DPMSolverPP2M:
    """DPM-Solver++(2M): extrapolates the last two data predictions linearly in lambda.

    The first and the last step are of first order (DDIM): the first has only one prediction, and
    lambda is infinite or very large at the end of the last.

    Reference: Lu et al. 2022, arXiv:2211.01095, algorithm 2.
    """

    @property
    def is_stochastic(self) -> bool:
        """Always False."""
        return False

    def start(self, x0: jax.Array) -> _History:
        """Return an empty history of predictions."""
        return _History.empty(x0, 1)

    def advance(
        self,
        step: StepCoefficients,
        x: jax.Array,
        x1: jax.Array,
        x0: jax.Array,
        noise: jax.Array | None,
        memory: _History,
    ) -> tuple[jax.Array, _History]:
        """Take one step, which is a step of UniPC's predictor of order 2."""
        order = jnp.where((step.n == 0) | step.last, 1, 2)
        return _predict(step, x, x1, memory, order), memory.push(x1, _lambdas(step)[0])


class _UniMemory(NamedTuple):
    """The last step: its starting point, coefficients, order and the predictions before its end."""

    x: jax.Array
    step: StepCoefficients
    order: jax.Array
    history: _History


@dataclass(frozen=True)
class UniPC:
    """UniPC: a multistep predictor, and a corrector that reuses the next step's evaluation.

    The corrector uses the predictions of the predictor and the one at the end of the step, so that
    its order is one higher. The first steps have the order that the available predictions allow.
    The second to last step has at most order 2 and the last step, which is not corrected, order 1,
    because steps near t = 1 are long in lambda (the authors' `lower_order_final`).

    Attributes:
        order: Order of the predictor, 1 to 3, with the paper's `B_2(h) = e^h - 1`.

    Reference: Zhao et al. 2023, arXiv:2302.04867, algorithms 1 to 4 for data prediction.
    """

    order: int = 2

    def __post_init__(self) -> None:
        require_count("order", self.order, 1)
        require_between("order", self.order, 1, 3)

    @property
    def is_stochastic(self) -> bool:
        """Always False."""
        return False

    def start(self, x0: jax.Array) -> _UniMemory:
        """Return a placeholder of the last step and an empty history of predictions."""
        zero = jnp.zeros((), x0.dtype)
        one = zero + 1.0
        index, false = jnp.zeros((), jnp.int32), zero > 0
        placeholder = StepCoefficients(index, false, (one, one), (one, one), false)
        return _UniMemory(x0, placeholder, index, _History.empty(x0, self.order))

    def advance(
        self,
        step: StepCoefficients,
        x: jax.Array,
        x1: jax.Array,
        x0: jax.Array,
        noise: jax.Array | None,
        memory: _UniMemory,
    ) -> tuple[jax.Array, _UniMemory]:
        """Correct the last step with the new prediction, then predict the end of this step."""
        history, start = memory.history, _lambdas(step)[0]
        corrected = _correct(memory.step, memory.x, x1, start, history, memory.order)
        x = jnp.where(step.n == 0, x, corrected)
        max_order = jnp.where(step.last, 1, jnp.where(step.before_last, 2, self.order))
        order = jnp.minimum(jnp.minimum(step.n + 1, self.order), max_order)
        end = _predict(step, x, x1, history, order)
        return end, _UniMemory(x, step, order, history.push(x1, start))


def _predict(
    step: StepCoefficients, x: jax.Array, x1: jax.Array, history: _History, order: jax.Array
) -> jax.Array:
    """Take one step from x with the prediction x1 and `order - 1` earlier predictions."""
    start, end = _lambdas(step)
    nodes = [_node(lam, start, end) for lam in history.lambdas]
    weights = _weights(nodes, end - start, order - 1)
    return _exact_step(step, x, x1, history.x1, weights)


def _correct(
    step: StepCoefficients,
    x: jax.Array,
    x1_end: jax.Array,
    lambda_end: jax.Array,
    history: _History,
    order: jax.Array,
) -> jax.Array:
    """Repeat a step with the prediction at its end and the latest `order` of the history."""
    start, end = history.lambdas[0], lambda_end
    nodes = [_node(lam, start, end) for lam in (end, *history.lambdas[1:])]
    weights = _weights(nodes, end - start, order)
    return _exact_step(step, x, history.x1[0], (x1_end, *history.x1[1:]), weights)


def _exact_step(
    step: StepCoefficients,
    x: jax.Array,
    x1: jax.Array,
    others: tuple[jax.Array, ...],
    weights: jax.Array,
) -> jax.Array:
    """Solve the step exactly for data that follow the polynomial through their predictions."""
    mean = x1
    for weight, other in zip(weights, others, strict=True):
        # Predictions that do not exist yet have weight zero, and their placeholder may be NaN.
        mean = mean + jnp.where(weight == 0.0, 0.0, weight * (other - x1))
    return step.sigma[1] / step.sigma[0] * x + step.alpha[1] * (1.0 - step.q) * mean


# For larger ratios of data and noise the smaller one is lost in float32.
_MAX_LAMBDA = 20.0


def _lambdas(step: StepCoefficients) -> tuple[jax.Array, jax.Array]:
    """`log(alpha / sigma)` at both ends of a step, clipped to [-20, 20]."""
    min_ratio = math.exp(-_MAX_LAMBDA - 1.0)

    def log_ratio(alpha: jax.Array, sigma: jax.Array) -> jax.Array:
        # Clipped before the logarithm too, whose derivative at zero is infinite.
        alpha, sigma = jnp.maximum(alpha, min_ratio * sigma), jnp.maximum(sigma, min_ratio * alpha)
        return jnp.clip(jnp.log(alpha / sigma), -_MAX_LAMBDA, _MAX_LAMBDA)

    start, end = map(log_ratio, step.alpha, step.sigma)
    return start, end


def _node(lam: jax.Array, start: jax.Array, end: jax.Array) -> jax.Array:
    """The position of `lam` between `start` (0) and `end` (1), 0 if they are equal."""
    return (lam - start) / jnp.where(end > start, end - start, jnp.inf)


_QUADRATURE = tuple((0.5 * v) for v in np.polynomial.legendre.leggauss(24))


def _weights(nodes: list[jax.Array], h: jax.Array, num: jax.Array) -> jax.Array:
    """Weights of `x1(node) - x1(0)` in the mean of x1 over a step with density e^(theta h).

    theta in [0, 1] is the position within the step in lambda, as for the nodes. The weights
    integrate the polynomial of degree `num` through the first `num` nodes and zero exactly. With
    one node the paper sets the mean of theta to 1/2. Clipped lambdas may be equal: the first
    duplicate node and all nodes after it get weight zero.
    """
    is_new = [
        jnp.all(jnp.stack([node != other for other in (0.0, *nodes[:i])]))
        for i, node in enumerate(nodes)
    ]
    num = jnp.minimum(num, jnp.sum(jnp.cumprod(jnp.stack(is_new).astype(jnp.int32))))
    points, quadrature_weights = _QUADRATURE
    theta = jnp.asarray(points + 0.5, h.dtype)
    density = jnp.asarray(quadrature_weights, h.dtype) * jnp.exp((theta - 1.0) * h)
    density = density / jnp.sum(density)
    powers = np.arange(1, len(nodes) + 1)
    moments = jnp.stack([jnp.sum(density * theta**m) for m in powers])
    moments = jnp.where(num == 1, 0.5, moments)
    node_array = jnp.stack(nodes)
    matrix = jnp.stack([node_array**m for m in powers])
    used = powers <= num
    both_used = used[:, None] & used[None, :]
    matrix = jnp.where(both_used, matrix, jnp.eye(len(nodes), dtype=h.dtype))
    return jnp.linalg.solve(matrix, jnp.where(used, moments, 0.0))
