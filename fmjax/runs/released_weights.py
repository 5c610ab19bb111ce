"""Set up the training of a released network, from its weights or from initial weights."""

import dataclasses
from pathlib import Path

import jax
from jax.sharding import Mesh
from jaxtyping import PyTree

from fmjax._progress import Progress
from fmjax.config import Config, Experiment
from fmjax.pretrained.tuning import released_network
from fmjax.sharding import all_or_none
from fmjax.training import TrainState, init_state, newest_step, state_from


def with_released_sizes(config: Config, *, needed: bool = True) -> Config:
    """Set the network sizes of a config to those of the released model that it starts from.

    Args:
        config: The experiment; returned unchanged if it does not start from a released model.
        needed: Whether the released folder must exist. If False and the folder is missing, the
            config is returned unchanged.

    Raises:
        ValueError: If the folder does not exist, or has no transformer of a supported type.
    """
    released = config.pretrained
    if released is None or not (needed or released.root.is_dir()):
        return config
    return dataclasses.replace(config, network=released_network(released.root, config.network))


def require_released_weights(config: Config, experiment: Experiment) -> None:
    """Raise `ValueError` if the released model of a config does not have the network's weights."""
    if config.pretrained is not None and experiment.tuning is not None:
        experiment.tuning.check(config.pretrained.root)


def initial_state(
    config: Config,
    experiment: Experiment,
    mesh: Mesh,
    sharding: TrainState,
    checkpoints: Path,
    progress: Progress,
) -> tuple[TrainState, tuple[PyTree, ...]]:
    """Make the initial state of a training.

    Args:
        config: The experiment.
        experiment: The functions that the config describes.
        mesh: The mesh of devices.
        sharding: Shardings of the state, a `TrainState`.
        checkpoints: The checkpoint folder of the run. If it has checkpoints, the returned state is
            a placeholder that a checkpoint will replace, and released weights are not read for it.
        progress: Receives progress reports.

    Returns:
        The state, and additional arguments of the training step: the frozen weights of a released
        network, if there are any.
    """
    key, tuning = jax.random.key(config.training.seed), experiment.tuning
    if config.pretrained is None or tuning is None:
        return init_state(experiment.model.net, experiment.optimizer, key, mesh)[0], ()
    folder, like = config.pretrained.root, tuning.frozen(mesh)
    with all_or_none("reading the released weights"):
        frozen = tuning.load(folder, like, dtype=tuning.dtype, progress=progress)
        random_init = tuning.lora is not None or not config.pretrained.weights
        if random_init or newest_step(checkpoints) is not None:
            state, _ = init_state(experiment.model.net, experiment.optimizer, key, mesh)
            return state, (frozen,)
        shapes = jax.eval_shape(experiment.model.net.init, key)
        shapes = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            shapes,
            sharding.params,
        )
        params = tuning.load(folder, shapes, dtype="float32", progress=progress)
    return state_from(params, experiment.optimizer, key, sharding), (frozen,)
