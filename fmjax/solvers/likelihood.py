"""The log-density of data under a flow, by the instantaneous change of variables.

Along a trajectory `d log p_t(x_t) / dt = -div v(t, x_t)`. So the points are carried from data at
t = 1 to noise at t = 0, where the density is known, and the divergence is added up on the way.
It is the sum of `e . (dv/dx) e` over directions e, taken one after the other: a Jacobian is
never formed.

Source: Chen et al. 2018, arXiv:1806.07366, theorem 1; Grathwohl et al. 2019, arXiv:1810.01367.
"""

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key

from fmjax._arrays import Cond, PerExample, Points, event_axes
from fmjax._checks import require, require_count, require_positive
from fmjax._inputs import require_function, require_keys, require_points
from fmjax.paths import CountedField, evaluations, over_interval
from fmjax.solvers.engine.vector_field import checked_velocity
from fmjax.solvers.ode import sample
from fmjax.solvers.steps import AdaptiveSteps, FixedSteps

Keys = Key[Array, "batch"]


class Probe(enum.Enum):
    """The law of Hutchinson's directions, whose covariance is the identity."""

    RADEMACHER = "rademacher"
    """Every number is 1 or -1. No law with independent numbers has less variance: what adds to
    it is the Jacobian outside its diagonal alone."""
    NORMAL = "normal"
    """Standard normal numbers."""


@dataclass(frozen=True)
class ExactDivergence:
    """Along every axis: as many derivatives as an example has numbers."""

    def num_directions(self, num_dims: int) -> int:
        """All of them."""
        return num_dims

    def direction(self, k: jax.Array, keys: Any, x: jax.Array) -> jax.Array:
        """The axis number `k`, shaped like one of `x`, for every example."""
        del keys
        axis = jax.nn.one_hot(k, math.prod(x.shape[1:]), dtype=x.dtype)
        return jnp.broadcast_to(axis.reshape(x.shape[1:]), x.shape)


@dataclass(frozen=True)
class Hutchinson:
    """An unbiased estimate from random directions, kept fixed along an example's trajectory.

    Attributes:
        num_probes: Directions of each example. The variance falls as one over their number.
        distribution: Their law.

    Source: Grathwohl et al. 2019, arXiv:1810.01367, section 3.1.
    """

    num_probes: int = 1
    distribution: Probe = Probe.RADEMACHER

    def __post_init__(self) -> None:
        require_count("num_probes", self.num_probes, 1)

    def num_directions(self, num_dims: int) -> int:
        """`num_probes`, whatever the dimension."""
        del num_dims
        return self.num_probes

    def direction(self, k: jax.Array, keys: Keys, x: jax.Array) -> jax.Array:
        """Probe number `k` of each example, over `sqrt(num_probes)`: drawn anew, never stored."""
        rademacher = self.distribution is Probe.RADEMACHER
        draw = jax.random.rademacher if rademacher else jax.random.normal

        def one(key: jax.Array) -> jax.Array:
            return draw(jax.random.fold_in(key, k), x.shape[1:], x.dtype)

        return jax.vmap(one)(keys) / math.sqrt(self.num_probes)


class Likelihood(NamedTuple):
    """How likely points are, and where in the noise they come from.

    Attributes:
        log_density: In nats, with respect to the volume of data space.
        x0: The points at t = 0.
        nfe: Network evaluations of each: a call, and a derivative along one direction, count one.
        succeeded: Whether the point arrived at t = 0, every number of it finite.
    """

    log_density: PerExample
    x0: Points
    nfe: Int[Array, " batch"]
    succeeded: Bool[Array, " batch"]


def log_density(
    velocity_fn: Callable[..., Any],
    x1: Points,
    cond: Cond = None,
    *,
    divergence: ExactDivergence | Hutchinson = ExactDivergence(),  # noqa: B008 (frozen)
    keys: Keys | None = None,
    solver: Any = diffrax.Tsit5(),  # noqa: B008 (frozen)
    steps: FixedSteps | AdaptiveSteps = AdaptiveSteps(1e-5, 1e-5),  # noqa: B008 (frozen)
    source_scale: float = 1.0,
) -> Likelihood:
    """The log-density of `x1` under the flow of N(0, source_scale^2 I) along the field.

    Differentiable in `x1`, in the condition and in what the field closes over. Under adaptive
    steps the log-density so far, in nats per dimension, counts in the error as much as the
    points do. Memory: twice the points, what the solver holds, and what one call of the network
    keeps for its derivative.

    Args:
        velocity_fn: The field, without guidance: a guided field has a density as well, but not
            that of any data.
        x1: Data.
        cond: Passed to `velocity_fn`, every leaf with a leading batch axis.
        divergence: Exact, or Hutchinson's estimate, which leaves `log_density` unbiased but for
            the error of the solve.
        keys: For Hutchinson's probes, one of each example.
        solver: As in `sample`.
        steps: As in `sample`, in the time that runs from data to noise.
        source_scale: Standard deviation at t = 0: sigma(0) of the path.

    Raises:
        ValueError: If Hutchinson's estimate has no keys, or as `sample` raises.
    """
    require_positive("source_scale", source_scale)
    keyed = keys is not None or isinstance(divergence, ExactDivergence)
    require(keyed, "keys", "be given for Hutchinson, one of each example", keys)
    require_function("velocity_fn", velocity_fn)
    require_points("x1", x1)
    if keys is not None:
        require_keys(keys, x1)
    x1 = x1.astype(jnp.result_type(x1.dtype, jnp.float32))
    num_dims = math.prod(x1.shape[1:])
    field = _with_divergence(over_interval(velocity_fn, 1.0, 0.0), divergence, num_dims)
    start = jnp.stack([x1, jnp.zeros_like(x1)], axis=1)
    solved = sample(field, start, (keys, cond), solver=solver, steps=steps)
    x0, gained = solved.x1[:, 0], num_dims * solved.x1[:, 1].reshape(x1.shape[0], -1)[:, 0]
    square = jnp.sum(jnp.square(x0 / source_scale), axis=event_axes(x0))
    at_source = -0.5 * square - num_dims * math.log(source_scale * math.sqrt(2.0 * math.pi))
    return Likelihood(at_source + gained, x0, solved.nfe, solved.succeeded)


def _with_divergence(
    velocity_fn: Any, divergence: ExactDivergence | Hutchinson, num_dims: int
) -> CountedField:
    """The field on `[batch, 2, *event]`: points, and beside each number of theirs, div / num_dims.

    All numbers of the second half are alike. So the rms over both halves, by which a solve
    judges its error, weighs the mean of a dimension's nats like the points.
    """
    num_directions = divergence.num_directions(num_dims)

    def velocity(t: jax.Array, both: Points, keys_and_cond: Any) -> Points:
        (keys, cond), x = keys_and_cond, both[:, 0]
        dx, along = jax.linearize(lambda x: checked_velocity(velocity_fn, t, x, cond), x)

        @jax.checkpoint  # A gradient would keep what every direction needs, all at once.
        def add(total: jax.Array, k: jax.Array) -> Any:
            e = divergence.direction(k, keys, x)
            return total + jnp.sum(e * along(e), axis=event_axes(x), keepdims=True), None

        nothing = jnp.zeros_like(x, shape=(x.shape[0],) + (1,) * (x.ndim - 1))
        total, _ = jax.lax.scan(add, nothing, jnp.arange(num_directions))
        return jnp.stack([dx, jnp.broadcast_to(total / num_dims, x.shape)], axis=1)

    return CountedField(velocity, lambda t: (1 + num_directions) * evaluations(velocity_fn, t))


def bits_per_dim(log_density: Any, num_dims: int, bin_width: float) -> Any:
    """Bits that a number of an example costs, stored in steps of `bin_width`.

    `-(log_density / num_dims + log(bin_width)) / log 2`. Averaged over `dequantize`'s noise it
    is an upper bound of the discrete model's.

    Args:
        log_density: In nats, of dequantised data: a number or an array.
        num_dims: Numbers of an example.
        bin_width: In data units: 2 / 255 for bytes laid over [-1, 1].

    Source: Theis et al. 2016, arXiv:1511.01844, section 3.1.
    """
    require_count("num_dims", num_dims, 1)
    require_positive("bin_width", bin_width)
    return -(log_density / num_dims + math.log(bin_width)) / math.log(2.0)


def dequantize(keys: Keys, x1: Points, bin_width: float) -> Points:
    """Spread each number evenly over the bin of width `bin_width` in whose middle it stands.

    Every example draws from its own key.
    """
    require_positive("bin_width", bin_width)
    require_points("x1", x1)
    require_keys(keys, x1)

    def one(key: jax.Array, x: jax.Array) -> jax.Array:
        return x + bin_width * (jax.random.uniform(key, x.shape, x.dtype) - 0.5)

    return jax.vmap(one)(keys, x1)
