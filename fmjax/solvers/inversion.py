"""Inversion of data to noise, interpolation between noises, and editing of data (SDEdit).

A flow is a bijection: its ODE, solved from t = 1 to t = 0, gives the noise from which `sample`
generates the data. Changing that noise changes the content of the data.
"""

from typing import NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fmjax._arrays import Cond, Points, event_axes, safe_sqrt
from fmjax._checks import require, require_between, require_count
from fmjax._inputs import describe, is_array, require_function, require_keys, require_points
from fmjax.paths import (
    AffinePath,
    Prediction,
    VelocityFn,
    over_interval,
    require_conversion,
    reversed_time,
)
from fmjax.solvers.engine.diffrax_solvers import Solver
from fmjax.solvers.ode import sample
from fmjax.solvers.steps import (
    AdaptiveSteps,
    FixedSteps,
    Samples,
    ScalarLike,
    as_times,
    is_concrete,
    num_steps,
    require_steps,
)


class Inverted(NamedTuple):
    """Result of `invert`: noise and its cost.

    Attributes:
        x0: Points at t = 0, or where a failed solve stopped (see `succeeded`).
        nfe: Network evaluations (NFE) of each sample.
        succeeded: Whether each sample reached t = 0 and is finite.
    """

    x0: Points
    nfe: Int[Array, " batch"]
    succeeded: Bool[Array, " batch"]


def invert(
    velocity_fn: VelocityFn,
    x1: Points,
    cond: Cond = None,
    *,
    solver: Solver = diffrax.Tsit5(),  # noqa: B008 (frozen)
    steps: FixedSteps | AdaptiveSteps = AdaptiveSteps(1e-5, 1e-5),  # noqa: B008 (frozen)
) -> Inverted:
    """Solve the flow's ODE backwards, from data at t = 1 to noise at t = 0.

    `sample` maps the noise back to the data, up to the error of both solves. A point that is not
    finite fails without affecting the others.

    Args:
        velocity_fn: Velocity field, preferably without guidance: a guided field is not a flow
            between the noise and the data, and its inverted data need not be normal.
        x1: Data.
        cond: Condition passed to `velocity_fn`; every leaf has a leading batch axis.
        solver: Solver, as in `sample`.
        steps: Steps, as in `sample`. A fixed grid is traversed backwards, over the same times.

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
    """Reverse a time grid as `1 - times`, with its padding of ones still at the end."""
    times = as_times(steps)
    np_or_jnp = np if is_concrete(times) else jnp
    times = np_or_jnp.asarray(times)
    indices = num_steps(times) - np.arange(len(times))
    # A concrete grid stays concrete, so that it is checked and the program is simpler.
    return FixedSteps(np_or_jnp.where(indices >= 0, 1 - times[np_or_jnp.maximum(indices, 0)], 1))


def interpolate(a: Points, b: Points, num: int) -> Float[Array, "num batch *event"]:
    """Interpolate between two noises at `num` equal steps on the arc from `a` to `b`, inclusive.

    With theta the angle between two points and w from 0 to 1,

        x(w) = |x(w)| (sin((1 - w) theta) a / |a| + sin(w theta) b / |b|) / sin(theta),
        |x(w)| = (1 - w) |a| + w |b|.

    In many dimensions normal noise lies near a sphere, and the straight line passes inside it. On
    the arc, directions of independent noises stay uniform. The arc is not unique where the angle
    is 0 or pi (always so for events of one number) or a point is zero; there the points lie on the
    straight line.

    Args:
        a: Noise at the start of each example's arc.
        b: Noise at the end of each example's arc, shaped like `a`.
        num: Number of points, at least 2.

    Raises:
        ValueError: If the shapes differ, or `num` is below 2.

    Reference: Shoemake 1985, Animating rotation with quaternion curves, section 3.3. The
        interpolation of the norms is not from there.
    """
    require_points("a", a)
    require_points("b", b)
    require(b.shape == a.shape, "b", f"have the shape of a, {a.shape}", b.shape)
    require_count("num", num, 2)

    def norm(x: jax.Array) -> jax.Array:
        return safe_sqrt(jnp.sum(jnp.square(x), axis=event_axes(x), keepdims=True))

    length_a, length_b = norm(a), norm(b)
    has_arc = (length_a > 0) & (length_b > 0)
    unit_a = a / jnp.where(has_arc, length_a, 1.0)
    unit_b = b / jnp.where(has_arc, length_b, 1.0)
    # Accurate for all angles; the arccos of a scalar product loses half the digits at small ones.
    # For two zeros neither the angle nor its gradient exists.
    along = jnp.where(has_arc, norm(unit_a + unit_b), 1.0)
    theta = 2.0 * jnp.arctan2(norm(unit_a - unit_b), along)
    has_arc &= jnp.sin(theta) > jnp.finfo(a.dtype).eps ** 0.5
    theta = jnp.where(has_arc, theta, 1.0)

    def at(w: jax.Array) -> jax.Array:
        length = (1.0 - w) * length_a + w * length_b
        on_a, on_b = jnp.sin((1.0 - w) * theta), jnp.sin(w * theta)
        arc = length * (on_a * unit_a + on_b * unit_b) / jnp.sin(theta)
        return jnp.where(has_arc, arc, (1.0 - w) * a + w * b)

    return jax.vmap(at)(jnp.linspace(0.0, 1.0, num, dtype=a.dtype))


def edit(
    velocity_fn: VelocityFn,
    path: AffinePath,
    x1: Points,
    keys: jax.Array,
    strength: ScalarLike,
    cond: Cond = None,
    *,
    solver: Solver = diffrax.Tsit5(),  # noqa: B008 (frozen)
    steps: FixedSteps | AdaptiveSteps = AdaptiveSteps(),  # noqa: B008 (frozen)
) -> Samples:
    """Edit data (SDEdit): noise them to t = 1 - strength and solve from there to t = 1.

    The noise removes details, which the velocity field generates again under the condition.
    Strength 0 leaves the data unchanged and strength 1 gives a new sample, apart from the noise
    that the path has at t = 1 (zero for most paths; sigma_min of `VarianceExploding`) and the data
    it has at t = 0. Data edited under their original condition keep their distribution at any
    strength.

    Args:
        velocity_fn: Velocity field, guided or not.
        path: Probability path of training.
        x1: Data.
        keys: Typed keys `[batch]`, one per example.
        strength: A number in [0, 1]. It may be traced, so that one program serves all strengths.
        cond: Condition passed to `velocity_fn`, which the edited data follow.
        solver: Solver, as in `sample`.
        steps: Steps, as in `sample`, over the remaining interval: time 0 is t = 1 - strength.

    Returns:
        The edited data. Their `times` are those of `steps`.

    Raises:
        ValueError: If the strength lies outside [0, 1], there is not one key per example, `x1` is
            not floating point, or as `sample` raises.

    Reference: Meng et al. 2021, arXiv:2108.01073 (SDEdit), with the flow's ODE in the place of an
        SDE.
    """
    require_function("velocity_fn", velocity_fn)
    require_points("x1", x1)
    require_keys(keys, x1)
    require_conversion(path, Prediction.VELOCITY)
    is_number = isinstance(strength, (int, float)) or (is_array(strength) and strength.ndim == 0)
    require(is_number, "strength", "be a number in [0, 1]", describe(strength))
    if is_concrete(strength):
        require_between("strength", float(strength), 0.0, 1.0)
    x1 = x1.astype(jnp.result_type(x1.dtype, jnp.float32))
    noise = jax.vmap(lambda key: jax.random.normal(key, x1.shape[1:], x1.dtype))(keys)
    start = 1.0 - jnp.asarray(strength, x1.dtype)
    x_t = path(jnp.broadcast_to(start, x1.shape[:1]), noise, x1).x_t
    remaining_field = over_interval(velocity_fn, start, 1.0)
    return sample(remaining_field, x_t, cond, solver=solver, steps=steps)
