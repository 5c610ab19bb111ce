"""Multistep samplers of diffusion models: they remember what was predicted before.

With data D(lambda) predicted along the path, `x / sigma` grows by the integral of `e^lambda D`.
The samplers here differ in the polynomial that they take for D.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fmjax._checks import require_between, require_count
from fmjax.solvers.steppers.ddim import StepCoefficients


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
        self,
        step: StepCoefficients,
        x: jax.Array,
        x1: jax.Array,
        x0: jax.Array,
        noise: Any,
        memory: _History,
    ) -> tuple[jax.Array, _History]:
        """The algorithm's step, which is that of UniPC's predictor of order 2."""
        order = jnp.where((step.n == 0) | step.last, 1, 2)
        return _predict(step, x, x1, memory, order), memory.pushed(x1, _lambdas(step)[0])


class _UniMemory(NamedTuple):
    """Of the step before: where it started, what it was, and the predictions before its end."""

    x: jax.Array
    step: StepCoefficients
    order: jax.Array
    history: _History


@dataclass(frozen=True)
class UniPC:
    """UniPC: a multistep predictor, then a corrector that uses the next step's own evaluation.

    The corrector uses as many predictions as the predictor of its step, and the new one: it is of
    one order more. First steps are of the order that there are predictions for. The last but one
    is at most of order 2 and the last, which nothing corrects, of order 1: steps near t = 1 are
    long in lambda (the authors' `lower_order_final`).

    Attributes:
        order: Of the predictor, 1 to 3, with the paper's `B_2(h) = e^h - 1`.

    Source: Zhao et al. 2023, arXiv:2302.04867, algorithms 1 to 4 for data prediction.
    """

    order: int = 2

    def __post_init__(self) -> None:
        require_count("order", self.order, 1)
        require_between("order", self.order, 1, 3)

    @property
    def is_stochastic(self) -> bool:
        """Never."""
        return False

    def start(self, x0: jax.Array) -> _UniMemory:
        """No step yet."""
        zero = jnp.zeros((), x0.dtype)
        one = zero + 1.0
        first, no = jnp.zeros((), jnp.int32), zero > 0
        none = StepCoefficients(first, no, (one, one), (one, one), no)
        return _UniMemory(x0, none, first, _History.empty(x0, self.order))

    def advance(
        self,
        step: StepCoefficients,
        x: jax.Array,
        x1: jax.Array,
        x0: jax.Array,
        noise: Any,
        memory: _UniMemory,
    ) -> tuple[jax.Array, _UniMemory]:
        """Correct the step before by what was predicted here, then predict the next."""
        history, here = memory.history, _lambdas(step)[0]
        corrected = _correct(memory.step, memory.x, x1, here, history, memory.order)
        x = jnp.where(step.n == 0, x, corrected)
        most = jnp.where(step.last, 1, jnp.where(step.before_last, 2, self.order))
        order = jnp.minimum(jnp.minimum(step.n + 1, self.order), most)
        end = _predict(step, x, x1, history, order)
        return end, _UniMemory(x, step, order, history.pushed(x1, here))


def _predict(
    step: StepCoefficients, x: jax.Array, x1: jax.Array, history: _History, order: jax.Array
) -> jax.Array:
    """Go on from x with x1 and `order - 1` earlier predictions."""
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
    """The step again, with the prediction at its end and `order` at its start and before."""
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
    """The solution for data that go on in lambda as their predictions say."""
    mean = x1
    for weight, other in zip(weights, others, strict=True):
        # What is not known yet has no weight, whatever stands in its place.
        mean = mean + jnp.where(weight == 0.0, 0.0, weight * (other - x1))
    return step.sigma[1] / step.sigma[0] * x + step.alpha[1] * (1.0 - step.q) * mean


# Beyond e^20 to one there is nothing to be told of data or noise in float32.
_MAX_LAMBDA = 20.0


def _lambdas(step: StepCoefficients) -> tuple[jax.Array, jax.Array]:
    """`log(alpha / sigma)` at both ends, held within what float32 can tell."""
    least = math.exp(-_MAX_LAMBDA - 1.0)

    def log_ratio(alpha: jax.Array, sigma: jax.Array) -> jax.Array:
        # Roughly held before the logarithm too, whose derivative at zero is infinite.
        alpha, sigma = jnp.maximum(alpha, least * sigma), jnp.maximum(sigma, least * alpha)
        return jnp.clip(jnp.log(alpha / sigma), -_MAX_LAMBDA, _MAX_LAMBDA)

    start, end = map(log_ratio, step.alpha, step.sigma)
    return start, end


def _node(lam: jax.Array, start: jax.Array, end: jax.Array) -> jax.Array:
    """Where lambda is on the way from start to end, 0 if that way has no length."""
    return (lam - start) / jnp.where(end > start, end - start, jnp.inf)


_QUADRATURE = tuple((0.5 * v) for v in np.polynomial.legendre.leggauss(24))


def _weights(nodes: list[jax.Array], h: jax.Array, num: jax.Array) -> jax.Array:
    """Weights on `x1(node) - x1(0)` of the mean of x1 over a step under the weight e^(theta h).

    theta goes from 0 to 1 along the step in lambda, as the nodes are given; the polynomial of
    degree `num` through the first `num` nodes and zero is integrated exactly. With one node the
    paper takes 1/2 for the mean of theta. Lambdas that are held within bounds may be equal: from
    the first node on that is not a new one, none is used.
    """
    new = [
        jnp.all(jnp.stack([node != other for other in (0.0, *nodes[:i])]))
        for i, node in enumerate(nodes)
    ]
    num = jnp.minimum(num, jnp.sum(jnp.cumprod(jnp.stack(new).astype(jnp.int32))))
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
