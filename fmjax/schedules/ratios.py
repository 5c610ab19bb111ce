"""Rates and signal-to-noise ratios, of any schedule."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fmjax._checks import require
from fmjax.schedules.continuous import Linear, Schedule


def with_rate(fn: Callable[[jax.Array], jax.Array], t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`fn(t)` and its derivative `dfn/dt`, for an elementwise `fn`, by forward mode."""
    return jax.jvp(fn, (t,), (jnp.ones_like(t),))


def angle(schedule: Schedule, t: jax.Array) -> jax.Array:
    """`atan2(alpha, sigma)` in [0, pi/2]: the signal-to-noise ratio, finite at both ends."""
    return jnp.arctan2(schedule.alpha(t), schedule.sigma(t))


def time_at_angle(schedule: Schedule, wanted: jax.Array, *, num_halvings: int = 40) -> jax.Array:
    """The time in [0, 1] at which `schedule` has the angle `wanted`, by bisection.

    An angle that the schedule never has gives the nearest end. Elementwise, any shape,
    accurate to a few units in the last place; not differentiable (the callers know the
    derivative in closed form).
    """

    def halve(_, bounds):
        low, high = bounds
        middle = 0.5 * (low + high)
        below = angle(schedule, middle) < wanted
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    # The upper bound, because it is exact at t = 1 and 2^-40 at t = 0.
    _, high = jax.lax.fori_loop(
        0, num_halvings, halve, (jnp.zeros_like(wanted), jnp.ones_like(wanted))
    )
    return high


def times_of_linear(schedule: Schedule, grid: Float[Array, " points"]) -> Float[Array, " points"]:
    """When `schedule` has the noise-to-data ratios `(1 - t) / t` of a grid of the linear path.

    The ends 0 and 1 stay. The grid's numbers must be known, not traced.

    Raises:
        ValueError: If the schedule never has one of the ratios.
    """
    if isinstance(schedule, Linear):
        return grid
    wanted = angle(Linear(), grid[1:-1])
    first, last = angle(schedule, jnp.asarray([0.0, 1.0]))
    has_all = bool(jnp.all((first < wanted) & (wanted < last)))
    require(has_all, "schedule", "have every noise-to-data ratio of the grid", schedule)
    return grid.at[1:-1].set(time_at_angle(schedule, wanted))
