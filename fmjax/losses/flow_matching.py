"""Flow-matching loss: regress a network on the conditional velocity of a probability path."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Key, PyTree

from fmjax._arrays import (
    Batch,
    Cond,
    Params,
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
    describe,
    null_like,
    require_batch,
    require_cond,
    require_ends,
    require_function,
    require_like,
    require_mask,
)
from fmjax._specs import Spec
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
    AffinePath,
    Coupling,
    Density,
    Independent,
    PathSample,
    Prediction,
    Process,
    Uniform,
    VelocityNet,
    VelocityProcess,
    interpolate,
    require_velocity_process,
    sample_source,
    sample_times,
    source_keys,
)


@dataclass(frozen=True)
class TimeWeight:
    """Loss weight `t^data_power (1 - t)^noise_power`; zero powers weight all times equally.

    Attributes:
        data_power: Exponent of t, at least 0.
        noise_power: Exponent of 1 - t, at least 0.
    """

    data_power: float = 0.0
    noise_power: float = 0.0

    def __post_init__(self) -> None:
        require_numbers(self)
        require_at_least("data_power", self.data_power, 0.0)
        require_at_least("noise_power", self.noise_power, 0.0)

    def __call__(self, t: Times) -> Times:
        """Return the weight at each time."""
        return t**self.data_power * (1.0 - t) ** self.noise_power


def flow_matching_loss(
    predict_fn: Callable[[Times, Points, Cond], Points],
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
    mask: Mask | None = None,
) -> PerExample:
    """Compute the weighted squared error of a prediction, per example.

    The loss is `w(t) * mean over event axes of |r_hat - r|^2`. Here r is the quantity named by
    `space`, and r_hat is the network output, which is the quantity named by `prediction`, converted
    to `space`. For a velocity the unit is squared data units per squared unit of time. At a given
    x_t, errors in two quantities differ only by a factor that depends on t, so the error is
    computed on the network output and then scaled; this avoids numerical cancellation. With
    `prediction=X1, space=VELOCITY, path=AffinePath(min_divisor=0.05)` this is the loss of JiT.

    Where this factor diverges at an end of the time interval (an x1 prediction in velocity space,
    and the score, both at the data end), times within 0.001 of that end use the factor at 0.001
    from the end, so that it stays finite. At all other times the loss is exact.

    Args:
        predict_fn: Network `(t, x_t, cond) -> prediction`.
        path: Probability path between x0 and x1.
        t: Times in [0, 1], one per example.
        x0: Standard normal noise.
        x1: Data points.
        cond: Condition, passed to `predict_fn` unchanged.
        prediction: Quantity that the network predicts.
        space: Quantity whose squared error is the loss.
        weight_fn: Loss weight as a function of time; None weights all times equally.
        huber: If a number c is given, the pseudo-Huber distance `sqrt(|r_hat - r|^2 + c^2) - c` of
            the entire event, in data units, replaces the mean of squares.
        mask: True for each element that counts, as `Batch.mask`; None counts all. The mean (or the
            pseudo-Huber distance) is over the unmasked elements.

    Returns:
        The loss of each example, float32 for every compute dtype.

    Raises:
        ValueError: If the prediction is not shaped like `x_t`. Broadcasting would silently compare
            predictions and targets of different examples.

    Reference: Lipman et al. 2022, arXiv:2210.02747, equation 9; Li and He 2025,
    arXiv:2511.13720 (x-prediction with velocity loss); Lee et al. 2024, arXiv:2405.20320,
    section 4.2 (pseudo-Huber).
    """
    require_function("predict_fn", predict_fn)
    require_ends(t, x0, x1)
    require_cond(cond)
    sample = path(t, x0, x1)
    if mask is not None:
        require_mask("mask", mask, x1.shape)
    target = _truth(path, prediction, t, x0, x1, sample)
    examples = FlowExamples(t, sample.x_t, target, cond, mask=mask)
    scale = _error_scale(path, t, prediction, space)
    return _regression_loss(predict_fn, examples, scale, weight_fn, huber)


class FlowExamples(NamedTuple):
    """Training examples of flow matching; the first axis of every leaf is the batch.

    Attributes:
        t: Times in [0, 1].
        x_t: Points on the path.
        target: The quantity that the network predicts, at these points.
        cond: Conditions, some of them replaced by the null condition.
        weight: Weights of the examples, of mean 1 over the global batch.
        mask: True for the elements that count in the loss.
        keys: One random key per example, for networks that take keys.
    """

    t: Times
    x_t: Points
    target: Points
    cond: Cond
    weight: PerExample | None = None
    mask: Mask | None = None
    keys: Key[Array, " batch"] | None = None


def _regression_loss(
    predict_fn: Callable[[Times, Points, Cond], Points],
    examples: FlowExamples,
    scale: Times | None,
    weight_fn: Callable[[Times], Times] | None,
    huber: float | None,
) -> PerExample:
    """Return the weighted loss of a prediction whose error is multiplied by `scale`."""
    t, x_t = examples.t, examples.x_t
    value = predict_fn(t, x_t, examples.cond)
    require_like("predict_fn", value, x_t)
    error = masked(value.astype(jnp.float32) - examples.target, examples.mask)
    if scale is not None:
        error = expand_like(scale, x_t) * error
    if huber is None:
        loss = mean_square(error, examples.mask)
    else:
        squares = jnp.sum(jnp.square(error), axis=event_axes(x_t))
        loss = safe_sqrt(squares + huber**2) - huber
    loss = weighted(loss, examples.weight)
    return loss if weight_fn is None else weight_fn(t) * loss


def _truth(
    path: AffinePath,
    prediction: Prediction,
    t: Times,
    noise: Points,
    x1: Points,
    sample: PathSample,
) -> Points:
    """Return the quantity that the network predicts at `sample.x_t`."""
    if prediction == Prediction.SCORE:
        return path.convert(t, sample.x_t, noise, from_=Prediction.X0, to=Prediction.SCORE)
    truths = {Prediction.VELOCITY: sample.target, Prediction.X1: x1, Prediction.X0: noise}
    return truths[prediction]


def _error_scale(path: AffinePath, t: Times, prediction: Prediction, space: Prediction) -> Times:
    """Return the bounded factor that converts an error in `prediction` to one in `space`."""
    if prediction == Prediction.SCORE:
        # The score diverges at sigma = 0; the noise, -sigma times the score, stays finite.
        return -path.schedule.sigma(t) * _error_scale(path, t, Prediction.X0, space)
    t = path.away_from_poles(t, from_=prediction, to=space)
    return path.conversion_weights(t, from_=prediction, to=space)[1]


def drop_condition(key: PRNGKey, cond: Cond, null_cond: PyTree, rate: float) -> Cond:
    """Replace conditions by the null condition, independently for each example.

    Args:
        key: Random key.
        cond: Conditions, a pytree in which the first axis of every leaf is the batch.
        null_cond: Null condition, a pytree with the structure of `cond`. Its leaves are broadcast
            to those of `cond`.
        rate: Probability in [0, 1] that an example loses its condition.

    Raises:
        ValueError: If `rate` is not in [0, 1], or is positive and `null_cond` is None.
    """
    require_between("rate", rate, 0.0, 1.0)
    if rate == 0.0:
        return cond
    require(null_cond is not None, "null_cond", f"be given for rate {rate}", null_cond)
    batch_size = jax.tree.leaves(cond)[0].shape[0]
    return null_where(jax.random.bernoulli(key, rate, (batch_size,)), cond, null_cond)


def null_where(dropped: Bool[Array, " batch"], cond: Cond, null_cond: PyTree) -> Cond:
    """Replace the conditions of the examples where `dropped` is True by the null condition."""

    def replace(leaf: jax.Array, null: jax.Array) -> jax.Array:
        return jnp.where(expand_like(dropped, leaf), null, leaf)

    return jax.tree.map(replace, cond, null_like(cond, null_cond))


def drop_parts(key: PRNGKey, text: Text, parts: Sequence[TextPart], rate: float) -> Text:
    """Zero the outputs of single text encoders, independently for each encoder and example.

    A model trained this way can sample without any subset of its text encoders.

    Args:
        key: Random key.
        text: Joint output of all text encoders.
        parts: Token and channel ranges of each encoder in `text`.
        rate: Probability in [0, 1] that the output of an encoder is zeroed; 0.464 in SD3.

    Raises:
        ValueError: If `rate` is not in [0, 1], or is positive and `parts` is empty.

    Reference: Esser et al. 2024, arXiv:2403.03206 (SD3 drops each text encoder independently).
    """
    require_between("encoder_drop", rate, 0.0, 1.0)
    if rate == 0.0:
        return text
    require(bool(parts), "encoder_drop", "be 0 for text without a known TextPart per encoder", rate)
    dropped = jax.random.bernoulli(key, rate, (len(parts), text.tokens.shape[0]))
    tokens, pooled = jnp.asarray(text.tokens), jnp.asarray(text.pooled)
    for part, part_dropped in zip(parts, dropped, strict=True):
        index = slice(None), slice(*part.tokens), slice(*part.channels)
        kept = tokens[index]
        tokens = tokens.at[index].set(jnp.where(expand_like(part_dropped, kept), 0.0, kept))
        index = slice(None), slice(*part.pooled)
        kept = pooled[index]
        pooled = pooled.at[index].set(jnp.where(expand_like(part_dropped, kept), 0.0, kept))
    return text._replace(tokens=tokens, pooled=pooled)


def source_points(key: PRNGKey, process: Process, batch: Batch) -> Points:
    """Return the source points of the batch, or sample them with one key per example."""
    if batch.x0 is not None:
        return batch.x0
    keys = source_keys(key, jnp.arange(batch.x1.shape[0]))
    return sample_source(process, keys, Spec(batch.x1.shape[1:]))


def flow_matching_objective(
    net: VelocityNet,
    process: VelocityProcess,
    *,
    density: Density = Uniform(),  # noqa: B008 (frozen)
    stratified: bool = False,
    coupling: Coupling = Independent(),  # noqa: B008 (frozen)
    prediction: Prediction = Prediction.VELOCITY,
    space: Prediction = Prediction.VELOCITY,
    weight_fn: Callable[[Times], Times] | None = None,
    huber: float | None = None,
    label_drop: float = 0.0,
    null_cond: PyTree = None,
    parts: Sequence[TextPart] = (),
    encoder_drop: float = 0.0,
) -> Objective:
    """Build the flow-matching objective.

    Source points come with the batch, or else from the process, with one key per example.

    Args:
        net: Network that is trained.
        process: An `AffinePath`, or another process from the source distribution to the data whose
            targets are velocities.
        density: Density of the training times.
        stratified: Whether to sample one time per equally probable interval of the density.
        coupling: Pairing of source points and data points.
        prediction: Quantity that the network predicts. Only an `AffinePath` can convert
            quantities; for other processes this is the velocity.
        space: Quantity whose squared error is the loss; also the velocity for these.
        weight_fn: Loss weight as a function of time; None weights all times equally.
        huber: Constant c of the pseudo-Huber distance; None uses the mean squared error.
        label_drop: Fraction of examples whose condition is replaced by the null condition.
        null_cond: Null condition (for class labels, `num_classes`).
        parts: Token and channel ranges of each text encoder in a `Text` condition.
        encoder_drop: Probability that the output of a text encoder is zeroed.

    Returns:
        The objective; its `make_examples` takes a `Batch`.

    Raises:
        ValueError: If the process is not a `VelocityProcess`, or does not support the prediction.
    """
    require_velocity_process(process)
    path = process if isinstance(process, AffinePath) else None
    for name, quantity in (("prediction", prediction), ("space", space)):
        rule = f"be velocity for {describe(process)}, which is not an AffinePath"
        require(path is not None or quantity == Prediction.VELOCITY, name, rule, quantity)

    def make_examples(key: PRNGKey, batch: Batch) -> FlowExamples:
        require_batch(batch)
        noise_key, time_key, drop_key, path_key = jax.random.split(key, 4)
        x1 = batch.x1
        t = sample_times(time_key, x1.shape[0], density, stratified=stratified)
        x0 = coupling(source_points(noise_key, process, batch), x1, batch.cond)
        sample = interpolate(process, path_key, t, x0, x1)
        target = sample.target
        if path is not None:
            target = _truth(path, prediction, t, path.noise(x0), x1, sample)
        cond = batch.cond
        if cond is not None:
            cond = drop_condition(drop_key, cond, null_cond, label_drop)
        if isinstance(cond, Text):
            cond = drop_parts(jax.random.fold_in(drop_key, 1), cond, parts, encoder_drop)
        keys = example_keys(net, key, x1.shape[0])
        weight, mask = weight_and_mask(batch)
        return FlowExamples(t, sample.x_t, target, cond, weight, mask, keys)

    def loss(params: Params, examples: FlowExamples) -> PerExample:
        def predict_fn(t: Times, x: Points, cond: Cond) -> Points:
            return net.apply(params, t, x, cond, **network_keys(examples.keys))

        scale = None if path is None else _error_scale(path, examples.t, prediction, space)
        return _regression_loss(predict_fn, examples, scale, weight_fn, huber)

    return Objective(make_examples, loss)
