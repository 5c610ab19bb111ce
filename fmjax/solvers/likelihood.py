"""Log-density of data under a flow, by the instantaneous change of variables.

Along a trajectory `d log p_t(x_t) / dt = -div v(t, x_t)`. The points are solved from data at t = 1
to noise at t = 0, where the density is known, together with the integral of the divergence. The
divergence is the sum of `e . (dv/dx) e` over directions e, computed one at a time without forming
a Jacobian.

Reference: Chen et al. 2018, arXiv:1806.07366, theorem 1; Grathwohl et al. 2019, arXiv:1810.01367.
"""

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Key, PyTree

from fmjax._arrays import Cond, PerExample, Points, event_axes
from fmjax._checks import require, require_count, require_positive
from fmjax._inputs import require_function, require_keys, require_like, require_points
from fmjax.paths import CountedField, VelocityFn, evaluations, over_interval
from fmjax.solvers.engine.diffrax_solvers import Solver
from fmjax.solvers.engine.vector_field import checked_velocity
from fmjax.solvers.ode import sample
from fmjax.solvers.steps import AdaptiveSteps, FixedSteps

Keys = Key[Array, "batch"]
_Real = TypeVar("_Real", float, np.floating, np.ndarray, Array)


class Probe(enum.Enum):
    """Distribution of Hutchinson's random directions, with identity covariance."""

    RADEMACHER = "rademacher"
    """Independent numbers 1 or -1. Of all distributions with independent numbers it has the least
    variance, which comes from the off-diagonal entries of the Jacobian only."""
    NORMAL = "normal"
    """Independent standard normal numbers."""


@dataclass(frozen=True)
class ExactDivergence:
    """The exact divergence, with one derivative per dimension of an example."""

    def num_directions(self, num_dims: int) -> int:
        """Return the number of directions, which is `num_dims`."""
        return num_dims

    def direction(self, k: jax.Array, keys: Keys | None, x: jax.Array) -> jax.Array:
        """Return the unit vector of dimension `k` for every example, shaped like `x`."""
        del keys
        axis = jax.nn.one_hot(k, math.prod(x.shape[1:]), dtype=x.dtype)
        return jnp.broadcast_to(axis.reshape(x.shape[1:]), x.shape)


@dataclass(frozen=True)
class Hutchinson:
    """Hutchinson's unbiased estimate of the divergence from random directions (probes).

    The directions of an example are the same along its entire trajectory.

    Attributes:
        num_probes: Number of directions per example, to which the variance is inversely
            proportional.
        distribution: Distribution of the directions.

    Reference: Grathwohl et al. 2019, arXiv:1810.01367, section 3.1.
    """

    num_probes: int = 1
    distribution: Probe = Probe.RADEMACHER

    def __post_init__(self) -> None:
        require_count("num_probes", self.num_probes, 1)

    def num_directions(self, num_dims: int) -> int:
        """Return the number of directions, which is `num_probes`."""
        del num_dims
        return self.num_probes

    def direction(self, k: jax.Array, keys: Keys, x: jax.Array) -> jax.Array:
        """Sample probe `k` of each example, divided by `sqrt(num_probes)`.

        It depends on the key and `k` only, so that probes are sampled again instead of stored.
        """
        is_rademacher = self.distribution is Probe.RADEMACHER
        distribution = jax.random.rademacher if is_rademacher else jax.random.normal

        def sample_one(key: jax.Array) -> jax.Array:
            return distribution(jax.random.fold_in(key, k), x.shape[1:], x.dtype)

        return jax.vmap(sample_one)(keys) / math.sqrt(self.num_probes)


class Likelihood(NamedTuple):
    """Result of `log_density`: log-densities, the points at t = 0, and the cost.

    Attributes:
        log_density: Log-density in nats, with respect to the volume of data space.
        x0: Points at t = 0.
        nfe: Network evaluations (NFE) of each example. A call and a derivative along one direction
            count as one each.
        succeeded: Whether each example reached t = 0 and is finite.
    """

    log_density: PerExample
    x0: Points
    nfe: Int[Array, " batch"]
    succeeded: Bool[Array, " batch"]


def log_density(
    velocity_fn: VelocityFn,
    x1: Points,
    cond: Cond = None,
    *,
    divergence: ExactDivergence | Hutchinson = ExactDivergence(),  # noqa: B008 (frozen)
    keys: Keys | None = None,
    solver: Solver = diffrax.Tsit5(),  # noqa: B008 (frozen)
    steps: FixedSteps | AdaptiveSteps = AdaptiveSteps(1e-5, 1e-5),  # noqa: B008 (frozen)
    source_scale: float = 1.0,
    source_log_density: Callable[[Points], PerExample] | None = None,
) -> Likelihood:
    """Compute the log-density of `x1` under the flow of a source distribution.

    Differentiable with respect to `x1`, the condition and everything that the velocity field closes
    over. In adaptive steps the error of the log-density, in nats per dimension, has the same weight
    as that of the points. Memory: twice the points, the state of the solver, and what one network
    call stores for its derivative.

    Args:
        velocity_fn: Velocity field, without guidance: a guided field has a density too, but not
            that of the data.
        x1: Data.
        cond: Condition passed to `velocity_fn`; every leaf has a leading batch axis.
        divergence: Exact divergence, or Hutchinson's estimate, with which `log_density` is unbiased
            up to the error of the solve.
        keys: Typed keys `[batch]` of Hutchinson's probes, one per example.
        solver: Solver, as in `sample`.
        steps: Steps, as in `sample`, in a time that runs from data at 0 to noise at 1.
        source_scale: Standard deviation of the source distribution N(0, source_scale^2 I).
        source_log_density: Log-density of another source distribution in nats, such as
            `source_log_density` of a process; None for the normal distribution.

    Raises:
        ValueError: If Hutchinson's estimate has no keys, `source_log_density` does not return one
            number per example or is given with a `source_scale` other than 1, or as `sample`
            raises.
    """
    require_positive("source_scale", source_scale)
    if source_log_density is not None:
        require_function("source_log_density", source_log_density)
        rule = "be 1 with source_log_density"
        require(source_scale == 1.0, "source_scale", rule, source_scale)
    has_keys = keys is not None or isinstance(divergence, ExactDivergence)
    require(has_keys, "keys", "be given for Hutchinson, one per example", keys)
    require_function("velocity_fn", velocity_fn)
    require_points("x1", x1)
    if keys is not None:
        require_keys(keys, x1)
    x1 = x1.astype(jnp.result_type(x1.dtype, jnp.float32))
    num_dims = math.prod(x1.shape[1:])
    field = _with_divergence(over_interval(velocity_fn, 1.0, 0.0), divergence, num_dims)
    start = jnp.stack([x1, jnp.zeros_like(x1)], axis=1)
    solved = sample(field, start, (keys, cond), solver=solver, steps=steps)
    x0 = solved.x1[:, 0]
    divergence_integral = num_dims * solved.x1[:, 1].reshape(x1.shape[0], -1)[:, 0]
    if source_log_density is None:
        square = jnp.sum(jnp.square(x0 / source_scale), axis=event_axes(x0))
        at_source = -0.5 * square - num_dims * math.log(source_scale * math.sqrt(2.0 * math.pi))
    else:
        at_source = source_log_density(x0)
        require_like("source_log_density", at_source, divergence_integral)
    return Likelihood(at_source + divergence_integral, x0, solved.nfe, solved.succeeded)


def _with_divergence(
    velocity_fn: VelocityFn, divergence: ExactDivergence | Hutchinson, num_dims: int
) -> CountedField:
    """Make the field on `[batch, 2, *event]` of the points and of `div / num_dims`.

    All numbers of the second half are equal, so that the rms over both halves, which sets the step
    size, weighs the nats per dimension like the points.
    """
    num_directions = divergence.num_directions(num_dims)

    def velocity(t: jax.Array, both: Points, keys_and_cond: PyTree) -> Points:
        (keys, cond), x = keys_and_cond, both[:, 0]
        dx, jvp = jax.linearize(lambda x: checked_velocity(velocity_fn, t, x, cond), x)

        @jax.checkpoint  # Otherwise gradients store the activations of all directions at once.
        def add_direction(total: jax.Array, k: jax.Array) -> tuple[jax.Array, None]:
            e = divergence.direction(k, keys, x)
            return total + jnp.sum(e * jvp(e), axis=event_axes(x), keepdims=True), None

        zero = jnp.zeros_like(x, shape=(x.shape[0],) + (1,) * (x.ndim - 1))
        total, _ = jax.lax.scan(add_direction, zero, jnp.arange(num_directions))
        return jnp.stack([dx, jnp.broadcast_to(total / num_dims, x.shape)], axis=1)

    return CountedField(velocity, lambda t: (1 + num_directions) * evaluations(velocity_fn, t))


def bits_per_dim(log_density: _Real, num_dims: int, bin_width: float) -> _Real:
    """Convert the log-density of dequantized data to bits per dimension.

    `-(log_density / num_dims + log(bin_width)) / log 2`. Averaged over the noise of `dequantize`
    it is an upper bound on the bits per dimension of the discrete data.

    Args:
        log_density: Log-density of dequantized data in nats, a number or an array.
        num_dims: Number of dimensions of an example.
        bin_width: Width of a quantization bin in data units: 2 / 255 for bytes scaled to [-1, 1].

    Reference: Theis et al. 2016, arXiv:1511.01844, section 3.1.
    """
    require_count("num_dims", num_dims, 1)
    require_positive("bin_width", bin_width)
    return -(log_density / num_dims + math.log(bin_width)) / math.log(2.0)


def dequantize(keys: Keys, x1: Points, bin_width: float) -> Points:
    """Add uniform noise within the bins of width `bin_width` around the quantized data.

    Args:
        keys: Typed keys `[batch]`, one per example.
        x1: Quantized data at the centers of the bins.
        bin_width: Width of a bin in data units.
    """
    require_positive("bin_width", bin_width)
    require_points("x1", x1)
    require_keys(keys, x1)

    def dequantize_one(key: jax.Array, x: jax.Array) -> jax.Array:
        return x + bin_width * (jax.random.uniform(key, x.shape, x.dtype) - 0.5)

    return jax.vmap(dequantize_one)(keys, x1)
