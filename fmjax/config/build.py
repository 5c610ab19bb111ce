"""From numbers and names to functions."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import optax

from fmjax._arrays import Params
from fmjax._checks import require
from fmjax.config.fields import Config
from fmjax.guidance import classifier_free
from fmjax.losses import Objective, TimeWeight, flow_matching_objective
from fmjax.networks import make_network
from fmjax.training import make_optimizer
from fmjax.velocity import VelocityFn, VelocityNet


class Experiment(NamedTuple):
    """What a config builds: pure functions, ready for the step and the solvers.

    Attributes:
        net: The network.
        objective: Its loss.
        optimizer: Its optimiser.
        velocity_fn: `velocity_fn(params) -> VelocityFn`, whatever the network predicts.
        null_label: The label that stands for no condition; None if the network knows none.
    """

    net: VelocityNet
    objective: Objective
    optimizer: optax.GradientTransformation
    velocity_fn: Callable[[Params], VelocityFn]
    null_label: int | None


def build(config: Config, event_shape: tuple[int, ...], num_classes: int | None) -> Experiment:
    """Turn names and numbers into functions, for data of this shape and so many classes.

    Raises:
        ValueError: If the parts do not fit together or the data.
    """
    # Without classes, or without examples whose class was dropped, nothing stands for "no class".
    null_label = num_classes if config.loss.label_drop > 0 else None
    for name, part in (("sampling", config.sampling), ("compare", config.compare)):
        _require_guidable(f"{name}.guidance", part.guidance, null_label)
    net = make_network(config.network, event_shape, num_classes)
    loss = config.loss
    objective = flow_matching_objective(
        net,
        config.path,
        density=loss.density,
        stratified=loss.stratified,
        coupling=config.coupling,
        prediction=loss.prediction,
        space=loss.space,
        weight_fn=None if loss.weight == TimeWeight() else loss.weight,
        drop_rate=loss.label_drop,
        null_cond=num_classes,
    )
    optimizer = make_optimizer(config.optimizer, config.training.num_steps)

    def velocity_fn(params: Params) -> VelocityFn:
        return config.path.velocity_fn(partial(net.apply, params), loss.prediction)

    return Experiment(net, objective, optimizer, velocity_fn, null_label)


def _require_guidable(name: str, scale: float, null_label: int | None) -> None:
    rule = "be 1 for a model without classes, or trained with loss.label_drop 0"
    require(scale == 1.0 or null_label is not None, name, rule, scale)


def guided(
    experiment: Experiment,
    params: Params,
    scale: float,
    interval: tuple[float, float] = (0.0, 1.0),
) -> VelocityFn:
    """The field of some parameters, with classifier-free guidance unless `scale` is 1.

    Raises:
        ValueError: If guidance is asked of a model that knows no "no class".
    """
    velocity_fn = experiment.velocity_fn(params)
    if scale == 1.0:
        return velocity_fn
    _require_guidable("guidance", scale, experiment.null_label)
    return classifier_free(velocity_fn, experiment.null_label, scale, interval)


def num_parameters(params: Params) -> int:
    """How many numbers the parameters hold."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
