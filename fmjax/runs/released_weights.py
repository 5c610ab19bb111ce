"""Trainings of released networks, from their weights or anew."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from fmjax._progress import Progress
from fmjax.config import Config, Experiment
from fmjax.pretrained.tuning import released_network
from fmjax.sharding import all_or_none
from fmjax.training import Checkpoints, TrainState, init_state, state_from


def as_released(config: Config, *, needed: bool = True) -> Config:
    """The config with the sizes of the released network that it starts from, if there is one.

    Args:
        config: The experiment.
        needed: Whether its folder has to be there; without it the config's own sizes stand.

    Raises:
        ValueError: If there is no folder, or no transformer of a known kind in it.
    """
    released = config.pretrained
    if released is None or not (needed or released.path.is_dir()):
        return config
    return dataclasses.replace(config, network=released_network(released.path, config.network))


def check_released(config: Config, experiment: Experiment) -> None:
    """Raise unless the released folder, if there is one, has this network's weights."""
    if config.pretrained is not None and experiment.tuning is not None:
        experiment.tuning.check(config.pretrained.path)


def initial_state(
    config: Config,
    experiment: Experiment,
    mesh: Mesh,
    sharding: Any,
    checkpoints: Path,
    progress: Progress,
) -> tuple[TrainState, tuple[Any, ...]]:
    """The state that a training starts from, and what the step takes beside state and batch.

    Args:
        config: The experiment.
        experiment: What it builds.
        mesh: The devices.
        sharding: Of the state.
        checkpoints: Of the run; where there are some, the state is but a place for them.
        progress: Hears of the weights that are read.
    """
    key, tuning = jax.random.key(config.training.seed), experiment.tuning
    if config.pretrained is None or tuning is None:
        return init_state(experiment.net, experiment.optimizer, key, mesh)[0], ()
    folder, like = config.pretrained.path, tuning.frozen(mesh)
    with all_or_none("reading the released weights"):
        frozen = tuning.load(folder, like, dtype=tuning.dtype, progress=progress)
        anew = tuning.lora is not None or not config.pretrained.weights
        if anew or _resumes(checkpoints):
            state, _ = init_state(experiment.net, experiment.optimizer, key, mesh)
            return state, (frozen,)
        places = jax.eval_shape(experiment.net.init, key)
        places = jax.tree.map(
            lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
            places,
            sharding.params,
        )
        params = tuning.load(folder, places, dtype="float32", progress=progress)
    return state_from(params, experiment.optimizer, key, sharding), (frozen,)


def _resumes(checkpoints: Path) -> bool:
    if not checkpoints.is_dir():
        return False
    with Checkpoints(checkpoints) as own:
        return own.latest_step() is not None
