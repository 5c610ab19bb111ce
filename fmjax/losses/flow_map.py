"""Flow maps: a network of mean velocities between two times, learned from data alone.

Of the trajectory through x at time t the mean velocity up to r is `u = (X(r) - x) / (r - t)`. With
r held, the derivative along the trajectory of `(r - t) u = X(r) - x` gives MeanFlow's identity

    u = v + (r - t) du/dt,    du/dt = (d/dt + v . d/dx) u,

whose right-hand side is a target that needs no trajectory, only one forward-mode derivative. A
shortcut model needs none: one step has to agree with two of half its length.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fmjax._arrays import Batch, Cond, PerExample, Points, PRNGKey, Times, event_axes, expand_like
from fmjax._checks import require, require_at_least, require_between, require_positive
from fmjax._inputs import require_batch, require_like
from fmjax.losses.flow_matching import null_where, source_points
from fmjax.losses.guidance import BuiltInGuidance
from fmjax.losses.objective import Objective
from fmjax.paths import AffinePath, Density, FlowMapNet, LogitNormal, Uniform, sample_times

MapFn = Callable[..., Points]  # As a `FlowMapFn`.


def mean_flow_target(
    map_fn: MapFn,
    r: Times,
    t: Times,
    x: Points,
    velocity: Points,
    tangent: Points,
    cond: Cond = None,
) -> tuple[Points, Points]:
    """The mean velocity that a map gives, and what MeanFlow's identity says that it should be.

    `target = velocity + (r - t) (d/dt + tangent . d/dx) u`: on the true map, with the true velocity
    for both, prediction and target are one. Differentiate through the prediction alone.

    Args:
        map_fn: `(r, t, x, cond) -> mean velocity`; anything in it must know forward mode.
        r: Times to go to, one per example.
        t: Times of `x`, one per example.
        x: Points.
        velocity: dx/dt at `(t, x)`, or a draw whose mean it is.
        tangent: The direction in which the map is differentiated: the same, or a map's own
            velocity, which has no noise in it (improved MeanFlow).
        cond: Passed to `map_fn`.

    Raises:
        ValueError: If the map does not give the shape of its points.

    Source: Geng et al. 2025, arXiv:2505.13447, equations 6 to 11; arXiv:2512.02012 (the tangent).
    """
    prediction, rate = jax.jvp(
        lambda t, x: map_fn(r, t, x, cond), (t, x), (jnp.ones_like(t), tangent.astype(x.dtype))
    )
    require_like("map_fn", prediction, x)
    return prediction, jax.lax.stop_gradient(velocity + expand_like(r - t, x) * rate)


def shortcut_target(
    map_fn: MapFn,
    t: Times,
    step: Times,
    x: Points,
    cond: Cond = None,
    *,
    least_step: float = 0.0,
) -> Points:
    """The mean velocity of two steps of a map, one after the other: what one of both should give.

    Args:
        map_fn: `(r, t, x, cond) -> mean velocity`.
        t: Times of `x`, one per example.
        step: Length of each of the two steps.
        x: Points.
        cond: Passed to `map_fn`.
        least_step: Steps of this length follow the velocity (`r = t`), as they were trained.

    Source: Frans et al. 2024, arXiv:2410.12557, equation 4 and algorithm 1.
    """
    end = jnp.where(step > least_step, step, 0.0)
    first = map_fn(t + end, t, x, cond)
    middle, x_middle = t + step, x + expand_like(step, x) * first
    second = map_fn(middle + end, middle, x_middle, cond)
    return jax.lax.stop_gradient(0.5 * (first + second))


def adaptive_loss(error: Points, power: float, floor: float) -> PerExample:
    """The squared norm e of an error, which learns as `e / stop_gradient(e + floor)^power`.

    With power 1 every example pulls alike however wrong it is; with 0 as far as it is wrong. The
    value, float32, is e itself: that of the quotient would be 1 from the first step to the last.

    Source: arXiv:2505.13447, section 4.3 and appendix B.2.
    """
    squares = jnp.sum(jnp.square(error.astype(jnp.float32)), axis=event_axes(error))
    weighted = squares / jax.lax.stop_gradient((squares + floor) ** power)
    return weighted + jax.lax.stop_gradient(squares - weighted)


class FlowMapExamples(NamedTuple):
    """What one step of a flow map learns from; every leaf has the batch as leading axis."""

    r: Any
    t: Any
    x0: Any
    x1: Any
    cond: Any
    dropped: Any
    guidance: Any = None
    target: Any = None


def _drawn(
    keys: jax.Array, batch: Batch, r: Times, t: Times, label_drop: float, null_cond: Any
) -> FlowMapExamples:
    """Examples between times that were drawn: source points, and conditions some of them lose."""
    require_batch(batch)
    dropped = jax.random.bernoulli(keys[1], label_drop, t.shape)
    cond = null_where(dropped, batch.cond, null_cond) if label_drop > 0.0 else batch.cond
    x0 = source_points(keys[0], batch)
    return FlowMapExamples(r, t, x0, batch.x1, cond, dropped)


def mean_flow_objective(
    net: FlowMapNet,
    path: AffinePath,
    *,
    improved: bool = False,
    density: Density = LogitNormal(0.4, 1.0),  # noqa: B008 (frozen)
    ratio_r_neq_t: float = 0.25,
    power: float = 1.0,
    floor: float = 1e-2,
    guidance: BuiltInGuidance = BuiltInGuidance(),  # noqa: B008 (frozen)
    label_drop: float = 0.0,
    null_cond: Any = None,
) -> Objective:
    """MeanFlow, as the training step wants it.

    Args:
        net: A flow map.
        path: The path between noise and data.
        improved: Differentiate along the map's own velocity, not along the draw's: the target's
            noise is then that of flow matching (improved MeanFlow).
        density: Of both times, of which the earlier is where the point is.
        ratio_r_neq_t: Share of examples whose two times differ; the others learn the velocity.
        power: Of the adaptive loss.
        floor: Of the adaptive loss.
        guidance: What of it is built into the target.
        label_drop: Share of examples that train without their condition.
        null_cond: What stands for no condition.

    Source: arXiv:2505.13447, algorithm 1 and table 4, with t counted from the noise (its
    logit-normal(-0.4, 1) is `LogitNormal(0.4, 1)`); arXiv:2512.02012, algorithm 1.
    """
    require_between("ratio_r_neq_t", ratio_r_neq_t, 0.0, 1.0)
    require_at_least("power", power, 0.0)
    require_positive("floor", floor)
    guidance.check(net.guided, null_cond if label_drop > 0.0 else None)

    def draw(key: PRNGKey, batch: Batch) -> FlowMapExamples:
        keys, num = jax.random.split(key, 6), batch.x1.shape[0]
        first, second = (sample_times(k, num, density) for k in keys[:2])
        t, apart = jnp.minimum(first, second), jax.random.bernoulli(keys[2], ratio_r_neq_t, (num,))
        r, asked = jnp.where(apart, jnp.maximum(first, second), t), guidance.draw(keys[5], num)
        return _drawn(keys[3:5], batch, r, t, label_drop, null_cond)._replace(guidance=asked)

    def loss(params: Any, examples: FlowMapExamples) -> PerExample:
        r, t, x0, x1, cond, dropped, asked, _ = examples
        seen = asked if net.guided else None
        x_t, u_t = path(t, x0, x1)

        def map_fn(r: Times, t: Times, x: Points, cond: Cond = None) -> Points:
            return net.apply(params, r, t, x, cond, seen)

        own = (
            jax.lax.stop_gradient(map_fn(t, t, x_t, cond)) if guidance.enabled or improved else u_t
        )
        velocity = u_t
        if guidance.enabled:
            null = null_where(jnp.ones_like(dropped), cond, null_cond)
            without = jax.lax.stop_gradient(map_fn(t, t, x_t, null))
            velocity = guidance.target(t, u_t, own, without, asked, dropped)
        tangent = own if improved else velocity
        prediction, target = mean_flow_target(map_fn, r, t, x_t, velocity, tangent, cond)
        return adaptive_loss(prediction - target, power, floor)

    return Objective(draw, loss)


def shortcut_objective(
    net: FlowMapNet,
    path: AffinePath,
    *,
    num_steps: int = 128,
    bootstrap_ratio: float = 0.25,
    density: Density = Uniform(),  # noqa: B008 (frozen)
    stratified: bool = False,
    guidance: float = 1.0,
    label_drop: float = 0.0,
    null_cond: Any = None,
) -> Objective:
    """Shortcut models, as the training step wants it.

    Args:
        net: A flow map.
        path: The path between noise and data.
        num_steps: Of the finest grid, a power of two: its steps follow the velocity, and every
            step of 2, 4, .. of them has to agree with two of half its length.
        bootstrap_ratio: Share of examples that learn steps; the others learn the velocity.
        density: Of the times of those others.
        stratified: Spread these evenly over the density.
        guidance: Scale of classifier-free guidance that finest steps follow in targets; 1 is none.
            The velocity itself stays unguided. Any other scale doubles what targets cost.
        label_drop: Share of examples that train without their condition.
        null_cond: What stands for no condition.

    Targets come from averaged weights.

    Source: arXiv:2410.12557, algorithm 1 and table 3.
    """
    require_between("bootstrap_ratio", bootstrap_ratio, 0.0, 1.0)
    power_of_two = num_steps >= 2 and num_steps & (num_steps - 1) == 0
    require(power_of_two, "num_steps", "be a power of two, at least 2", num_steps)
    rule = "be 1 without examples that lose their condition (drop_rate)"
    require(guidance == 1.0 or label_drop > 0.0, "guidance", rule, guidance)
    num_levels = num_steps.bit_length() - 1

    def draw(key: PRNGKey, batch: Batch) -> FlowMapExamples:
        keys, num = jax.random.split(key, 6), batch.x1.shape[0]
        span = 2.0 ** -jax.random.randint(keys[0], (num,), 0, num_levels)
        place = jax.random.uniform(keys[1], (num,))  # Which of the 1 / span steps of this length.
        apart = jax.random.bernoulli(keys[2], bootstrap_ratio, (num,))
        t_alone = sample_times(keys[5], num, density, stratified=stratified)
        t = jnp.where(apart, jnp.floor(place / span) * span, t_alone)
        r = jnp.where(apart, t + span, t)
        return _drawn(keys[3:5], batch, r, t, label_drop, null_cond)

    def make_targets(average: Any, examples: FlowMapExamples) -> FlowMapExamples:
        r, t, x0, x1, cond, dropped, *_ = examples
        x_t, u_t = path(t, x0, x1)

        def map_fn(r: Times, t: Times, x: Points, cond: Cond = None) -> Points:
            given = net.apply(average, r, t, x, cond)
            if guidance == 1.0:
                return given
            null = null_where(jnp.ones_like(dropped), cond, null_cond)
            guided = (r == t) & ~dropped
            scale = expand_like(jnp.where(guided, guidance, 1.0), x)
            without = net.apply(average, r, t, x, null)
            return without + scale * (given - without)

        two = shortcut_target(map_fn, t, 0.5 * (r - t), x_t, cond, least_step=1.0 / num_steps)
        return examples._replace(target=jnp.where(expand_like(r > t, x_t), two, u_t))

    def loss(params: Any, examples: FlowMapExamples) -> PerExample:
        x_t = path(examples.t, examples.x0, examples.x1)[0]
        prediction = net.apply(params, examples.r, examples.t, x_t, examples.cond)
        require_like("net.apply", prediction, x_t)
        error = prediction.astype(jnp.float32) - examples.target
        return jnp.mean(jnp.square(error), axis=event_axes(x_t))

    return Objective(draw, loss, make_targets)
