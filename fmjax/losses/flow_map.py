"""Losses for flow maps: MeanFlow and shortcut models, trained from data without a teacher.

A flow map predicts the mean velocity between two times. For the trajectory X through x at time t,
the mean velocity up to time r is `u = (X(r) - x) / (r - t)`. Differentiating `(r - t) u = X(r) - x`
along the trajectory at constant r gives the MeanFlow identity

    u = v + (r - t) du/dt,    du/dt = (d/dt + v . d/dx) u.

The right-hand side is a training target that needs one forward-mode derivative of the network
and no trajectory. Shortcut models need no derivative: one step must equal two steps of half the
length.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, PyTree

from fmjax._arrays import (
    Batch,
    Cond,
    Params,
    PerExample,
    Points,
    PRNGKey,
    Times,
    event_axes,
    expand_like,
)
from fmjax._checks import require, require_at_least, require_between, require_positive
from fmjax._inputs import require_batch, require_like
from fmjax.losses.flow_matching import null_where, source_points
from fmjax.losses.guidance import BuiltInGuidance
from fmjax.losses.objective import Objective
from fmjax.losses.weights import (
    Mask,
    example_keys,
    masked,
    mean_square,
    network_keys,
    weight_and_mask,
    weighted,
)
from fmjax.paths import (
    Density,
    FlowMapFn,
    FlowMapNet,
    LogitNormal,
    Uniform,
    VelocityProcess,
    interpolate,
    require_velocity_process,
    sample_times,
)


def mean_flow_target(
    map_fn: FlowMapFn,
    r: Times,
    t: Times,
    x: Points,
    velocity: Points,
    tangent: Points,
    cond: Cond = None,
) -> tuple[Points, Points]:
    """Compute the mean velocity that a flow map predicts and its MeanFlow target.

    `target = velocity + (r - t) (d/dt + tangent . d/dx) u`. For the exact flow map, and the exact
    velocity as both `velocity` and `tangent`, the prediction equals the target. Gradients flow
    through the prediction only.

    Args:
        map_fn: Flow map `(r, t, x, cond) -> mean velocity`. It must support forward-mode
            differentiation.
        r: End times, one per example.
        t: Times of `x`, one per example.
        x: Points at the times `t`.
        velocity: dx/dt at `(t, x)`, or an unbiased sample of it.
        tangent: Direction of the derivative with respect to x: either `velocity`, or the velocity
            that the map itself predicts, which is free of sampling noise (improved MeanFlow).
        cond: Condition, passed to `map_fn`.

    Returns:
        The prediction and the target, both shaped like `x`.

    Raises:
        ValueError: If `map_fn` does not return the shape of `x`.

    Reference: Geng et al. 2025, arXiv:2505.13447, equations 6 to 11; arXiv:2512.02012 (tangent).
    """
    prediction, rate = jax.jvp(
        lambda t, x: map_fn(r, t, x, cond), (t, x), (jnp.ones_like(t), tangent.astype(x.dtype))
    )
    require_like("map_fn", prediction, x)
    return prediction, jax.lax.stop_gradient(velocity + expand_like(r - t, x) * rate)


def shortcut_target(
    map_fn: FlowMapFn,
    t: Times,
    step: Times,
    x: Points,
    cond: Cond = None,
    *,
    min_step: float = 0.0,
) -> Points:
    """Compute the shortcut target: the mean velocity over two consecutive steps of a flow map.

    Args:
        map_fn: Flow map `(r, t, x, cond) -> mean velocity`.
        t: Times of `x`, one per example.
        step: Length of each of the two steps, one per example.
        x: Points at the times `t`.
        cond: Condition, passed to `map_fn`.
        min_step: Steps of at most this length use the instantaneous velocity (`r = t`), which is
            what the network learns at that length.

    Returns:
        The target for one step of length `2 * step`, shaped like `x`, without gradient.

    Reference: Frans et al. 2024, arXiv:2410.12557, equation 4 and algorithm 1.
    """
    end = jnp.where(step > min_step, step, 0.0)
    first = map_fn(t + end, t, x, cond)
    middle, x_middle = t + step, x + expand_like(step, x) * first
    second = map_fn(middle + end, middle, x_middle, cond)
    return jax.lax.stop_gradient(0.5 * (first + second))


def adaptive_loss(error: Points, power: float, floor: float) -> PerExample:
    """Compute the squared error e per example, with the gradient of an adaptively weighted loss.

    The gradient is that of `e / stop_gradient(e + floor)^power`. With power 0 it is that of the
    squared error; with power 1 it hardly depends on the size of the error. The value is e in
    float32, because the weighted loss itself would stay near 1 during the entire training.

    Reference: arXiv:2505.13447, section 4.3 and appendix B.2.
    """
    squares = jnp.sum(jnp.square(error.astype(jnp.float32)), axis=event_axes(error))
    weighted = squares / jax.lax.stop_gradient((squares + floor) ** power)
    return weighted + jax.lax.stop_gradient(squares - weighted)


class FlowMapExamples(NamedTuple):
    """Training examples of a flow map; the first axis of every leaf is the batch.

    Attributes:
        r: End times.
        t: Start times.
        x_t: Points on the path at the start times.
        u_t: Conditional velocities at these points.
        cond: Conditions, with the null condition where `dropped` is True.
        dropped: Whether the condition was replaced by the null condition.
        guidance: Guidance scale, start and end time (MeanFlow).
        target: Target mean velocity, shaped like `x_t` (shortcut models).
        weight: Weights of the examples, of mean 1 over the global batch.
        mask: True for the elements that count in the loss.
        keys: One random key per example, for networks that take keys.
    """

    r: Times
    t: Times
    x_t: Points
    u_t: Points
    cond: Cond
    dropped: Bool[Array, " batch"]
    guidance: Float[Array, "batch 3"] | None = None
    target: Points | None = None
    weight: PerExample | None = None
    mask: Mask | None = None
    keys: Key[Array, " batch"] | None = None


def _sample_examples(
    keys: jax.Array,
    process: VelocityProcess,
    batch: Batch,
    r: Times,
    t: Times,
    label_drop: float,
    null_cond: PyTree,
) -> FlowMapExamples:
    """Sample the path and dropped conditions for examples whose times are known."""
    require_batch(batch)
    dropped = jax.random.bernoulli(keys[1], label_drop, t.shape)
    cond = null_where(dropped, batch.cond, null_cond) if label_drop > 0.0 else batch.cond
    source_key, path_key = jax.random.split(keys[0])
    x0 = source_points(source_key, process, batch)
    x_t, u_t = interpolate(process, path_key, t, x0, batch.x1)
    weight, mask = weight_and_mask(batch)
    examples = FlowMapExamples(r, t, x_t, u_t, cond, dropped)
    return examples._replace(weight=weight, mask=mask)


def mean_flow_objective(
    net: FlowMapNet,
    process: VelocityProcess,
    *,
    improved: bool = False,
    density: Density = LogitNormal(0.4, 1.0),  # noqa: B008 (frozen)
    ratio_r_neq_t: float = 0.25,
    power: float = 1.0,
    floor: float = 1e-2,
    guidance: BuiltInGuidance = BuiltInGuidance(),  # noqa: B008 (frozen)
    label_drop: float = 0.0,
    null_cond: PyTree = None,
) -> Objective:
    """Build the MeanFlow training objective.

    Args:
        net: Flow-map network.
        process: An `AffinePath`, or another process from the source distribution to the data whose
            targets are velocities.
        improved: Differentiate the map along the velocity that it predicts instead of the
            conditional velocity (improved MeanFlow). The target is then as noisy as in flow
            matching.
        density: Density of both times. The earlier one is t, the later one is r.
        ratio_r_neq_t: Fraction of examples with r != t. The others learn the velocity.
        power: Exponent of the adaptive loss weight.
        floor: Constant added to the squared error in the adaptive loss weight.
        guidance: Classifier-free guidance that is part of the target.
        label_drop: Fraction of examples whose condition is replaced by the null condition.
        null_cond: Null condition.

    Reference: arXiv:2505.13447, algorithm 1 and table 4, with t = 0 at the noise (its
    logit-normal(-0.4, 1) is `LogitNormal(0.4, 1)` here); arXiv:2512.02012, algorithm 1.
    """
    require_velocity_process(process)
    require_between("ratio_r_neq_t", ratio_r_neq_t, 0.0, 1.0)
    require_at_least("power", power, 0.0)
    require_positive("floor", floor)
    guidance.check(net.guided, null_cond if label_drop > 0.0 else None)

    def make_examples(key: PRNGKey, batch: Batch) -> FlowMapExamples:
        keys, num = jax.random.split(key, 6), batch.x1.shape[0]
        first, second = (sample_times(k, num, density) for k in keys[:2])
        t, r_neq_t = (
            jnp.minimum(first, second),
            jax.random.bernoulli(keys[2], ratio_r_neq_t, (num,)),
        )
        r = jnp.where(r_neq_t, jnp.maximum(first, second), t)
        examples = _sample_examples(keys[3:5], process, batch, r, t, label_drop, null_cond)
        network_keys = example_keys(net, key, num)
        return examples._replace(guidance=guidance.sample(keys[5], num), keys=network_keys)

    def loss(params: Params, examples: FlowMapExamples) -> PerExample:
        r, t, x_t, u_t, cond, dropped, guidance_input, *_ = examples
        network_guidance = guidance_input if net.guided else None

        def map_fn(r: Times, t: Times, x: Points, cond: Cond = None) -> Points:
            keys = network_keys(examples.keys)
            return net.apply(params, r, t, x, cond, network_guidance, **keys)

        velocity = v_cond = u_t
        if guidance.enabled or improved:
            v_cond = jax.lax.stop_gradient(map_fn(t, t, x_t, cond))
        if guidance.enabled:
            assert guidance_input is not None
            null = null_where(jnp.ones_like(dropped), cond, null_cond)
            v_uncond = jax.lax.stop_gradient(map_fn(t, t, x_t, null))
            velocity = guidance.target(t, u_t, v_cond, v_uncond, guidance_input, dropped)
        tangent = v_cond if improved else velocity
        prediction, target = mean_flow_target(map_fn, r, t, x_t, velocity, tangent, cond)
        error = masked(prediction - target, examples.mask)
        return weighted(adaptive_loss(error, power, floor), examples.weight)

    return Objective(make_examples, loss)


def shortcut_objective(
    net: FlowMapNet,
    process: VelocityProcess,
    *,
    num_steps: int = 128,
    bootstrap_ratio: float = 0.25,
    density: Density = Uniform(),  # noqa: B008 (frozen)
    stratified: bool = False,
    guidance: float = 1.0,
    label_drop: float = 0.0,
    null_cond: PyTree = None,
) -> Objective:
    """Build the training objective of shortcut models. Targets use the averaged parameters.

    Args:
        net: Flow-map network.
        process: An `AffinePath`, or another process from the source distribution to the data whose
            targets are velocities.
        num_steps: Number of steps of the finest time grid, a power of two. Steps of this grid use
            the instantaneous velocity. A step of 2, 4, 8, ... grid steps is trained to equal two
            steps of half its length.
        bootstrap_ratio: Fraction of examples that learn longer steps. The others learn the
            velocity.
        density: Density of the times of examples that learn the velocity.
        stratified: Whether to sample these times with one time per equally probable interval.
        guidance: Classifier-free guidance scale of the finest steps in the targets; 1 disables
            guidance. The learned velocity stays unguided. A scale other than 1 doubles the network
            evaluations of the targets.
        label_drop: Fraction of examples whose condition is replaced by the null condition.
        null_cond: Null condition.

    Reference: arXiv:2410.12557, algorithm 1 and table 3.
    """
    require_velocity_process(process)
    require_between("bootstrap_ratio", bootstrap_ratio, 0.0, 1.0)
    power_of_two = num_steps >= 2 and num_steps & (num_steps - 1) == 0
    require(power_of_two, "num_steps", "be a power of two, at least 2", num_steps)
    require(guidance == 1.0 or label_drop > 0.0, "guidance", "be 1 if label_drop is 0", guidance)
    num_levels = num_steps.bit_length() - 1

    def make_examples(key: PRNGKey, batch: Batch) -> FlowMapExamples:
        keys, num = jax.random.split(key, 6), batch.x1.shape[0]
        span = 2.0 ** -jax.random.randint(keys[0], (num,), 0, num_levels)
        position = jax.random.uniform(keys[1], (num,))
        bootstrap = jax.random.bernoulli(keys[2], bootstrap_ratio, (num,))
        velocity_t = sample_times(keys[5], num, density, stratified=stratified)
        t = jnp.where(bootstrap, jnp.floor(position / span) * span, velocity_t)
        r = jnp.where(bootstrap, t + span, t)
        examples = _sample_examples(keys[3:5], process, batch, r, t, label_drop, null_cond)
        return examples._replace(keys=example_keys(net, key, num))

    def make_targets(average: Params, examples: FlowMapExamples) -> FlowMapExamples:
        r, t, x_t, u_t, cond, dropped, *_ = examples

        def map_fn(r: Times, t: Times, x: Points, cond: Cond = None) -> Points:
            v_cond = net.apply(average, r, t, x, cond)
            if guidance == 1.0:
                return v_cond
            null = null_where(jnp.ones_like(dropped), cond, null_cond)
            guided = (r == t) & ~dropped
            scale = expand_like(jnp.where(guided, guidance, 1.0), x)
            v_uncond = net.apply(average, r, t, x, null)
            return v_uncond + scale * (v_cond - v_uncond)

        two_steps = shortcut_target(map_fn, t, 0.5 * (r - t), x_t, cond, min_step=1.0 / num_steps)
        return examples._replace(target=jnp.where(expand_like(r > t, x_t), two_steps, u_t))

    def loss(params: Params, examples: FlowMapExamples) -> PerExample:
        x_t = examples.x_t
        keys = network_keys(examples.keys)
        prediction = net.apply(params, examples.r, examples.t, x_t, examples.cond, **keys)
        require_like("net.apply", prediction, x_t)
        assert examples.target is not None, "with_targets must be called first"
        error = masked(prediction.astype(jnp.float32) - examples.target, examples.mask)
        return weighted(mean_square(error, examples.mask), examples.weight)

    return Objective(make_examples, loss, make_targets)
