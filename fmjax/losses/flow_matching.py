"""Flow matching: regress a network on the velocity of known paths."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from fmjax._arrays import (
    Batch,
    Cond,
    PerExample,
    Points,
    PRNGKey,
    Text,
    TextPart,
    Times,
    event_axes,
    expand_like,
    safe_sqrt,
)
from fmjax._checks import require, require_at_least, require_between, require_numbers
from fmjax._inputs import (
    null_like,
    require_batch,
    require_cond,
    require_ends,
    require_function,
    require_like,
)
from fmjax.losses.objective import Objective
from fmjax.paths import (
    AffinePath,
    Coupling,
    Density,
    Independent,
    Prediction,
    Uniform,
    VelocityNet,
    sample_times,
)


@dataclass(frozen=True)
class TimeWeight:
    """The weight `t^data_power (1 - t)^noise_power` of an example's loss; both zero: one."""

    data_power: float = 0.0
    noise_power: float = 0.0

    def __post_init__(self) -> None:
        require_numbers(self)
        require_at_least("data_power", self.data_power, 0.0)
        require_at_least("noise_power", self.noise_power, 0.0)

    def __call__(self, t: Times) -> Times:
        """Give the weight at each time."""
        return t**self.data_power * (1.0 - t) ** self.noise_power


def flow_matching_loss(
    predict_fn: Callable[..., jax.Array],
    path: AffinePath,
    t: Times,
    x0: Points,
    x1: Points,
    cond: Cond = None,
    *,
    prediction: Prediction = Prediction.VELOCITY,
    space: Prediction = Prediction.VELOCITY,
    weight_fn: Callable[[Times], Times] | None = None,
    huber: float | None = None,
) -> PerExample:
    """Mean squared error of a prediction, per example.

    `w(t) * mean over event axes of |r_hat - r|^2`, where r is the quantity `space` (velocity:
    squared data units per squared unit of time) and r_hat what the network's output, the
    quantity `prediction`, says of it. At equal x_t the two differ by a factor of t alone,
    so the error is taken where the network answers and scaled: nothing cancels. With
    `prediction=X1, space=VELOCITY, path=AffinePath(min_divisor=0.05)` this is JiT's loss.

    Towards an end of time at which the scale grows without bound (x1 as a velocity, at the data;
    the score itself, at the data) it is that of the time 0.001 before the end: the weight of no
    example is infinite. Everywhere else it is exact.

    Args:
        predict_fn: `(t, x_t, cond) -> prediction`.
        path: The path between x0 and x1.
        t: Times in [0, 1], one per example.
        x0: Source points.
        x1: Target points.
        cond: Passed to `predict_fn` as it is.
        prediction: What the network predicts.
        space: The quantity whose error counts.
        weight_fn: Weight of each time; None weighs all alike.
        huber: A number c replaces the mean of squares by the pseudo-Huber distance
            `sqrt(|r_hat - r|^2 + c^2) - c` of the whole event, in data units.

    Returns:
        The loss of each example, float32 whatever the compute dtype.

    Raises:
        ValueError: If the prediction is not shaped like `x_t`: broadcasting the two
            together would train on the wrong pairs without a sign of it.

    Source: Lipman et al. 2022, arXiv:2210.02747, equation 9; Li and He 2025,
    arXiv:2511.13720 (x-prediction with velocity loss); Lee et al. 2024, arXiv:2405.20320,
    section 4.2 (pseudo-Huber).
    """
    require_function("predict_fn", predict_fn)
    require_ends(t, x0, x1)
    require_cond(cond)
    x_t, u_t = path(t, x0, x1)
    value = predict_fn(t, x_t, cond)
    require_like("predict_fn", value, x_t)
    if prediction == Prediction.SCORE:
        truth = path.convert(t, x_t, x0, source=Prediction.X0, target=Prediction.SCORE)
    else:
        truth = {Prediction.VELOCITY: u_t, Prediction.X1: x1, Prediction.X0: x0}[prediction]
    scale = _error_scale(path, t, prediction, space)
    error = expand_like(scale, x_t) * (value.astype(jnp.float32) - truth)
    if huber is None:
        loss = jnp.mean(jnp.square(error), axis=event_axes(x_t))
    else:
        squares = jnp.sum(jnp.square(error), axis=event_axes(x_t))
        loss = safe_sqrt(squares + huber**2) - huber
    return loss if weight_fn is None else weight_fn(t) * loss


def _error_scale(path: AffinePath, t: Times, prediction: Prediction, space: Prediction) -> Times:
    """What an error of `prediction` is to be multiplied with to be one of `space`, bounded."""
    if prediction == Prediction.SCORE:
        # The score itself has a pole. As noise, -sigma times it, it has none.
        return -path.schedule.sigma(t) * _error_scale(path, t, Prediction.X0, space)
    t = path.away_from_poles(t, source=prediction, target=space)
    return path.conversion_weights(t, source=prediction, target=space)[1]


def drop_condition(key: PRNGKey, cond: Cond, null_cond: Any, rate: float) -> Cond:
    """Replace the condition of a share `rate` of the examples, each by its own coin.

    Args:
        key: Random key.
        cond: A pytree with leading axis batch.
        null_cond: What stands for no condition: a pytree like cond, broadcast to its leaves.
        rate: Probability in [0, 1].

    Raises:
        ValueError: If the rate is not a probability, or is above zero without a `null_cond`.
    """
    require_between("drop rate", rate, 0.0, 1.0)
    if rate == 0.0:
        return cond
    require(null_cond is not None, "null_cond", f"be given for a drop rate of {rate}", null_cond)
    batch_size = jax.tree.leaves(cond)[0].shape[0]
    return null_where(jax.random.bernoulli(key, rate, (batch_size,)), cond, null_cond)


def null_where(dropped: Bool[Array, " batch"], cond: Cond, null_cond: Any) -> Cond:
    """The condition, and what stands for none where `dropped`, broadcast to its leaves."""

    def replace(leaf: jax.Array, null: jax.Array) -> jax.Array:
        return jnp.where(expand_like(dropped, leaf), null, leaf)

    return jax.tree.map(replace, cond, null_like(cond, null_cond))


def drop_parts(key: PRNGKey, text: Text, parts: Sequence[TextPart], rate: float) -> Text:
    """Set to zero what single text encoders gave, each by a coin of its own for every example.

    A model trained so can do without any of them.

    Args:
        key: Random key.
        text: Of all encoders together.
        parts: What of it is whose.
        rate: Probability in [0, 1] that an encoder's part is dropped; 0.464 in SD3.

    Raises:
        ValueError: If the rate is not a probability, or is above zero without parts.

    Source: Esser et al. 2024, arXiv:2403.03206 (each of SD3's text encoders is dropped by itself).
    """
    require_between("encoder_drop", rate, 0.0, 1.0)
    if rate == 0.0:
        return text
    require(bool(parts), "encoder_drop", "be 0 for text whose encoders are not known", rate)
    dropped = jax.random.bernoulli(key, rate, (len(parts), text.tokens.shape[0]))
    tokens, pooled = jnp.asarray(text.tokens), jnp.asarray(text.pooled)
    for part, coins in zip(parts, dropped, strict=True):
        where = slice(None), slice(*part.tokens), slice(*part.channels)
        own = tokens[where]
        tokens = tokens.at[where].set(jnp.where(expand_like(coins, own), 0.0, own))
        own = pooled[:, slice(*part.pooled)]
        pooled = pooled.at[:, slice(*part.pooled)].set(jnp.where(coins[:, None], 0.0, own))
    return text._replace(tokens=tokens, pooled=pooled)


def source_points(key: PRNGKey, batch: Batch) -> Points:
    """The batch's own source points, or normal noise where it has none."""
    if batch.x0 is not None:
        return batch.x0
    return jax.random.normal(key, batch.x1.shape, jnp.float32)


class FlowExamples(NamedTuple):
    """What one flow-matching step learns from; every leaf has the batch as leading axis."""

    t: Any
    x0: Any
    x1: Any
    cond: Any


def flow_matching_objective(
    net: VelocityNet,
    path: AffinePath,
    *,
    density: Density = Uniform(),  # noqa: B008 (frozen, holds nothing)
    stratified: bool = False,
    coupling: Coupling = Independent(),  # noqa: B008
    prediction: Prediction = Prediction.VELOCITY,
    space: Prediction = Prediction.VELOCITY,
    weight_fn: Callable[[Times], Times] | None = None,
    huber: float | None = None,
    label_drop: float = 0.0,
    null_cond: Any = None,
    parts: Sequence[TextPart] = (),
    encoder_drop: float = 0.0,
) -> Objective:
    """Flow matching, from normal noise or a batch's own source points, for the training step.

    Args:
        net: The network that predicts.
        path: The path between noise and data.
        density: Density of the training times.
        stratified: Spread a batch's times evenly over the density.
        coupling: How noise and data are paired.
        prediction: What the network predicts.
        space: The quantity whose error counts.
        weight_fn: Weight of each time.
        huber: As of `flow_matching_loss`.
        label_drop: Share of examples that train without their condition.
        null_cond: What stands for no condition (class labels: `num_classes`).
        parts: What of a text is which encoder's.
        encoder_drop: As of `drop_parts`.

    Returns:
        The objective; its `draw` takes a `Batch`.
    """

    def draw(key: PRNGKey, batch: Batch) -> FlowExamples:
        require_batch(batch)
        noise_key, time_key, drop_key = jax.random.split(key, 3)
        x0 = source_points(noise_key, batch)
        t = sample_times(time_key, batch.x1.shape[0], density, stratified=stratified)
        x0 = coupling(x0, batch.x1, batch.cond)
        cond = batch.cond
        if cond is not None:
            cond = drop_condition(drop_key, cond, null_cond, label_drop)
        if isinstance(cond, Text):
            cond = drop_parts(jax.random.fold_in(drop_key, 1), cond, parts, encoder_drop)
        return FlowExamples(t, x0, batch.x1, cond)

    def loss(params: Any, examples: FlowExamples) -> PerExample:
        return flow_matching_loss(
            lambda t, x, cond: net.apply(params, t, x, cond),
            path,
            examples.t,
            examples.x0,
            examples.x1,
            examples.cond,
            prediction=prediction,
            space=space,
            weight_fn=weight_fn,
            huber=huber,
        )

    return Objective(draw, loss)
