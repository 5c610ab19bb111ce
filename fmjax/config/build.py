"""Build the functions that a config describes: network, objective, optimizer, solve."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import optax
from jax.sharding import Mesh
from jaxtyping import PyTree

from fmjax._arrays import Cond, Params, Points, PRNGKey, TextShape
from fmjax._checks import require
from fmjax._specs import CondSpec, as_cond_spec, is_captions, null_cond as null_cond_of
from fmjax.config.experiment import Config
from fmjax.config.flow_maps import build_flow_map, plain_attention
from fmjax.config.losses import LossConfig
from fmjax.config.sampling import Sampling
from fmjax.losses import Objective, TimeWeight, flow_matching_objective
from fmjax.networks import make_network
from fmjax.paths import Prediction, require_velocity_process
from fmjax.pretrained.tuning import Tuning, make_tuning
from fmjax.solvers import AdaptiveSteps, FixedSteps, Model, Samples
from fmjax.training import TrainStep, make_optimizer, make_train_step

Steps = FixedSteps | AdaptiveSteps
# (params, x0, keys, cond, steps) -> Samples. Keys are `[batch]`; None for deterministic solvers.
SolveFn = Callable[[Params, Points, PyTree, Cond, PyTree], Samples]


class Experiment(NamedTuple):
    """A model with the functions that train it, built from a config.

    Attributes:
        model: The network, its path and what it predicts.
        objective: The training loss.
        optimizer: The optax optimizer.
        tuning: Trained and frozen parameters of a finetuned released model, else None. If set,
            `model.net.init` returns the trained parameters, and `model.net.apply` takes all.
    """

    model: Model
    objective: Objective
    optimizer: optax.GradientTransformation
    tuning: Tuning | None = None

    @property
    def init(self) -> Callable[[PRNGKey], Params]:
        """Function `init(key) -> params` of all parameters, frozen ones included."""
        return self.model.net.init if self.tuning is None else self.tuning.init


def build(config: Config, event_shape: tuple[int, ...], conditions: CondSpec | int) -> Experiment:
    """Build the functions of an experiment.

    Args:
        config: The experiment.
        event_shape: Shape of one example.
        conditions: Description of the condition, such as a number of classes; None for an
            unconditional model.

    Raises:
        ValueError: If parts of the config contradict each other or the data.
    """
    conditions = as_cond_spec(conditions)
    # The network learns a null condition only from examples whose condition was dropped.
    parts_drop = config.loss.encoder_drop if isinstance(config.loss, LossConfig) else 0.0
    drops = config.loss.label_drop > 0 or parts_drop > 0
    null_cond = null_cond_of(conditions) if drops else None
    rule = "be left out for data without captions"
    usable = not config.sampling.prompts or is_captions(conditions)
    require(usable, "sampling.prompts", rule, config.sampling.prompts)
    optimizer = make_optimizer(config.optimizer, config.training.num_steps)
    loss, path = config.loss, config.path
    if not isinstance(loss, LossConfig):
        flow_map, objective = build_flow_map(config, event_shape, conditions, null_cond)
        model = Model(flow_map.velocity_net(), path, Prediction.VELOCITY, null_cond, flow_map)
        _require_samplings(config, model)
        return Experiment(model, objective, optimizer)
    tuning, released = None, config.pretrained
    if released is None:
        encoder = config.text_encoder
        net = make_network(config.network, event_shape, conditions, text_encoder=encoder)
    else:
        tuning = make_tuning(
            config.network, event_shape, conditions, released.lora, dtype=released.dtype
        )
        net = tuning.net
    parts = conditions.parts if isinstance(conditions, TextShape) else ()
    droppable = bool(parts) or loss.encoder_drop == 0.0
    rule = "be 0 for data without a known TextPart per encoder"
    require(droppable, "loss.encoder_drop", rule, loss.encoder_drop)
    objective = flow_matching_objective(
        net,
        require_velocity_process(path),
        density=loss.density,
        stratified=loss.stratified,
        coupling=config.coupling,
        prediction=loss.prediction,
        space=loss.space,
        weight_fn=None if loss.weight == TimeWeight() else loss.weight,
        huber=loss.huber,
        label_drop=loss.label_drop,
        null_cond=null_cond,
        parts=parts,
        encoder_drop=loss.encoder_drop,
    )
    model = Model(net, path, loss.prediction, null_cond)
    _require_samplings(config, model)
    return Experiment(model, objective, optimizer, tuning)


def differentiable_forwards(config: Config) -> Config:
    """Return the config with plain attention, which supports forward-mode differentiation."""
    return dataclasses.replace(config, network=plain_attention(config.network))


def make_step(
    config: Config, experiment: Experiment, mesh: Mesh, state_sharding: PyTree
) -> TrainStep:
    """Return the training step; with frozen parameters, it takes them as its third argument.

    Args:
        config: The experiment.
        experiment: Functions of the config, from `build`.
        mesh: The devices.
        state_sharding: Shardings of the training state.
    """
    tuning = experiment.tuning
    frozen = None if tuning is None else tuning.frozen(mesh)
    return make_train_step(
        experiment.objective,
        experiment.optimizer,
        mesh=mesh,
        state_sharding=state_sharding,
        ema_decay=config.training.ema_decay,
        accumulation_steps=config.training.accumulation_steps,
        frozen_sharding=None if frozen is None else jax.tree.map(lambda a: a.sharding, frozen),
    )


def make_solve(model: Model, sampling: Sampling) -> SolveFn:
    """Return the function that solves a batch, with the sampler and guidance of a config.

    The steps are an argument (from `sampling.steps`), so all step counts share the function.

    Raises:
        ValueError: If the model does not support the sampler or the guidance.
    """
    sampling.check(model)
    return partial(sampling.sampler, sampling.guided(model))


def _require_samplings(config: Config, model: Model) -> None:
    """Raise if the model does not support `sampling` or `compare` of its config."""
    samplings = [("sampling", config.sampling)]
    compare = config.compare
    samplings += [("compare", sampling) for sampling in compare.checked_samplings()]
    for name, sampling in samplings:
        try:
            sampling.check(model)
        except ValueError as error:
            raise ValueError(f"{name}.{error}") from error


def num_parameters(params: Params) -> int:
    """Count the scalars in a pytree of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
