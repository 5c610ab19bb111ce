"""From data back to noise, between two noises, and from noised data to data again.

A flow is a bijection: its own equation, solved from t = 1 to t = 0, gives the noise that `sample`
takes to the data. What is done to that noise is done to the data's whole content at once.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fmjax._arrays import Cond, Points, event_axes, safe_sqrt
from fmjax._checks import require, require_between, require_count
from fmjax._inputs import described, is_array, require_function, require_keys, require_points
from fmjax.paths import AffinePath, Prediction, over_interval, require_conversion, reversed_time
from fmjax.solvers.ode import sample
from fmjax.solvers.steps import (
    AdaptiveSteps,
    FixedSteps,
    Samples,
    as_times,
    is_concrete,
    num_steps,
    require_steps,
)


class Inverted(NamedTuple):
    """Where data come from, and at what cost.

    Attributes:
        x0: The points at t = 0 (or where the solve gave up: see `succeeded`).
        nfe: Network evaluations spent on each.
        succeeded: Whether the point arrived at t = 0, every number of it finite.
    """

    x0: Points
    nfe: Int[Array, " batch"]
    succeeded: Bool[Array, " batch"]


def invert(
    velocity_fn: Callable[..., Any],
    x1: Points,
    cond: Cond = None,
    *,
    solver: Any = diffrax.Tsit5(),  # noqa: B008 (frozen)
    steps: FixedSteps | AdaptiveSteps = AdaptiveSteps(1e-5, 1e-5),  # noqa: B008 (frozen)
) -> Inverted:
    """Carry data along the field from t = 1 back to t = 0; `sample` carries them there again.

    The way there and back ends where it began up to the error of both solves. A point that is
    not finite is flagged, and spoils no other.

    Args:
        velocity_fn: The field, better without guidance: a guided field is no flow between the
            noise and the data, and what it takes data to need not be normal.
        x1: Data.
        cond: Passed to `velocity_fn`, every leaf with a leading batch axis.
        solver: As in `sample`.
        steps: As in `sample`. A fixed grid is walked backwards, over the very times at which
            `sample` steps on it.

    Raises:
        ValueError: If `x1` is not floating point, or as `sample` raises.
    """
    require_function("velocity_fn", velocity_fn)
    require_points("x1", x1)
    require_steps(steps)
    if isinstance(steps, FixedSteps):
        steps = _backwards(steps)
    solved = sample(reversed_time(velocity_fn), x1, cond, solver=solver, steps=steps)
    return Inverted(solved.x1, solved.nfe, solved.succeeded)


def _backwards(steps: FixedSteps) -> FixedSteps:
    """The same grid from its end: ones that pad it still stand last."""
    times = as_times(steps)
    np_or_jnp = np if is_concrete(times) else jnp
    times = np_or_jnp.asarray(times)
    back = num_steps(times) - np.arange(len(times))
    # Here a grid that is known stays so: it is checked, and makes a plainer program.
    return FixedSteps(np_or_jnp.where(back >= 0, 1 - times[np_or_jnp.maximum(back, 0)], 1))


def interpolate(a: Points, b: Points, num: int) -> Float[Array, "num batch *event"]:
    """`num` noises from `a` to `b`, both included, evenly along the arc between them.

    With theta the angle between two points and w from 0 to 1,

        x(w) = |x(w)| (sin((1 - w) theta) a / |a| + sin(w theta) b / |b|) / sin(theta),
        |x(w)| = (1 - w) |a| + w |b|.

    The straight line passes inside the shell on which normal noise lies in many dimensions. On
    the arc, directions of independent noises stay uniform. Where the angle is zero or the half
    circle, which all events of one number have, or a point is zero, there is no one arc, and
    the points lie on the straight line.

    Args:
        a: Noise, one arc for each example.
        b: Noise, shaped like it.
        num: At least 2.

    Raises:
        ValueError: If the shapes differ, or `num` is below 2.

    Source: Shoemake 1985, Animating rotation with quaternion curves, section 3.3; norms are ours.
    """
    require_points("a", a)
    require_points("b", b)
    require(b.shape == a.shape, "b", f"have the shape of a, {a.shape}", b.shape)
    require_count("num", num, 2)

    def norm(x: jax.Array) -> jax.Array:
        return safe_sqrt(jnp.sum(jnp.square(x), axis=event_axes(x), keepdims=True))

    length_a, length_b = norm(a), norm(b)
    there_is_one = (length_a > 0) & (length_b > 0)
    unit_a = a / jnp.where(there_is_one, length_a, 1.0)
    unit_b = b / jnp.where(there_is_one, length_b, 1.0)
    # Exact for angles of any size, where the arccos of a product loses half the digits.
    # Of two zeros (no points, no angle) neither it nor its gradient exists.
    along = jnp.where(there_is_one, norm(unit_a + unit_b), 1.0)
    theta = 2.0 * jnp.arctan2(norm(unit_a - unit_b), along)
    there_is_one &= jnp.sin(theta) > jnp.finfo(a.dtype).eps ** 0.5
    theta = jnp.where(there_is_one, theta, 1.0)

    def at(w: jax.Array) -> jax.Array:
        length = (1.0 - w) * length_a + w * length_b
        on_a, on_b = jnp.sin((1.0 - w) * theta), jnp.sin(w * theta)
        arc = length * (on_a * unit_a + on_b * unit_b) / jnp.sin(theta)
        return jnp.where(there_is_one, arc, (1.0 - w) * a + w * b)

    return jax.vmap(at)(jnp.linspace(0.0, 1.0, num, dtype=a.dtype))


def edit(
    velocity_fn: Callable[..., Any],
    path: AffinePath,
    x1: Points,
    keys: jax.Array,
    strength: Any,
    cond: Cond = None,
    *,
    solver: Any = diffrax.Tsit5(),  # noqa: B008 (frozen)
    steps: FixedSteps | AdaptiveSteps = AdaptiveSteps(),  # noqa: B008 (frozen)
) -> Samples:
    """Noise data to t = 1 - strength along the path, and solve from there to t = 1.

    The noise drowns what is finer than itself, which the field then makes anew, as the condition
    has it. Strength 0 changes nothing and strength 1 draws a fresh sample, but for what noise the
    path leaves at t = 1 (none of most; sigma_min of `VarianceExploding`) and what data at t = 0.
    In distribution, data edited under their own condition stay what they are at any strength.

    Args:
        velocity_fn: The field, guided or not.
        path: The path it was trained on.
        x1: Data.
        keys: Typed keys `[batch]`, one per example.
        strength: In [0, 1], one number. It may be traced: one program serves all.
        cond: Passed to `velocity_fn`: what the data are to become.
        solver: As in `sample`.
        steps: As in `sample`, over what is left to solve: 0 is t = 1 - strength.

    Returns:
        The edited data. Where times are given, they are those of `steps`.

    Raises:
        ValueError: If the strength lies outside [0, 1], there is not one key per example, `x1` is
            not floating point, or as `sample` raises.

    Source: Meng et al. 2021, arXiv:2108.01073 (SDEdit), with the flow's own equation in the
        place of an SDE.
    """
    require_function("velocity_fn", velocity_fn)
    require_points("x1", x1)
    require_keys(keys, x1)
    require_conversion(path, Prediction.VELOCITY)
    one = isinstance(strength, (int, float)) or (is_array(strength) and strength.ndim == 0)
    require(one, "strength", "be a number in [0, 1]", described(strength))
    if is_concrete(strength):
        require_between("strength", float(strength), 0.0, 1.0)
    x1 = x1.astype(jnp.result_type(x1.dtype, jnp.float32))
    noise = jax.vmap(lambda key: jax.random.normal(key, x1.shape[1:], x1.dtype))(keys)
    start = 1.0 - jnp.asarray(strength, x1.dtype)
    x_t = path(jnp.broadcast_to(start, x1.shape[:1]), noise, x1).x_t
    rest = over_interval(velocity_fn, start, 1.0)
    return sample(rest, x_t, cond, solver=solver, steps=steps)
