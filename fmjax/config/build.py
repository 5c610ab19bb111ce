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
        null_label: The label that stands for no condition, None without classes.
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
    for name, part in (("sampling", config.sampling), ("compare", config.compare)):
        possible = part.guidance == 1.0 or num_classes is not None
        require(possible, f"{name}.guidance", "be 1 for a model without classes", part.guidance)
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

    return Experiment(net, objective, optimizer, velocity_fn, num_classes)


def guided(
    experiment: Experiment,
    params: Params,
    scale: float,
    interval: tuple[float, float] = (0.0, 1.0),
) -> VelocityFn:
    """The field of some parameters, with classifier-free guidance unless `scale` is 1.

    Raises:
        ValueError: If guidance is asked of a model without classes.
    """
    velocity_fn = experiment.velocity_fn(params)
    if scale == 1.0:
        return velocity_fn
    has_classes = experiment.null_label is not None
    require(has_classes, "guidance", "be 1 for a model without classes", scale)
    return classifier_free(velocity_fn, experiment.null_label, scale, interval)


def num_parameters(params: Params) -> int:
    """How many numbers the parameters hold."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
