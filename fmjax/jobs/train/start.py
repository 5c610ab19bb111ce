"""Start a training from the averaged weights of another run."""

from pathlib import Path

import jax
import jax.numpy as jnp

from fmjax._arrays import Params
from fmjax._checks import require
from fmjax._files import require_outside
from fmjax._progress import Progress
from fmjax.config import Config, build
from fmjax.data import Captions, read_word_tokenizer
from fmjax.runs.folder import RunFolder, read_config, read_model
from fmjax.sharding import all_or_none
from fmjax.training import TrainState, newest_step, restore_ema
from fmjax.training.checkpoints.named_arrays import flat_arrays
from fmjax.training.checkpoints.reader import describe_arrays


def starting_run(config: Config) -> Path | None:
    """Return the folder of the run whose weights a training starts from; None for new weights."""
    if config.start_from is not None:
        return Path(config.start_from)
    if config.reflow is not None and config.reflow.warm_start:
        return Path(config.reflow.teacher)
    return None


def require_start(config: Config, folder: RunFolder, *, overwrite: bool) -> None:
    """Check that `config.start_from` is a trained run, if the training of `folder` needs it.

    Args:
        config: Config of the training.
        folder: Run folder of the training. If it has a checkpoint, the training resumes from it.
        overwrite: Whether the run in the folder is replaced.

    Raises:
        ValueError: If `start_from` is not a run, has no checkpoint, or is in the run folder.
    """
    if config.start_from is None:
        return
    source = RunFolder(Path(config.start_from))
    require_outside(source.root, folder.root, "start_from")
    if overwrite or newest_step(folder.checkpoints) is None:
        read_config(source.root)
        has_weights = newest_step(source.checkpoints) is not None
        require(has_weights, "start_from", "be a run with a checkpoint", source.root)


def require_same_sizes(
    folder: str, config: Config, params: Params, captions: Captions | None
) -> None:
    """Check that the weights of a run fit the network of a training that starts from them.

    Args:
        folder: Folder of the run.
        config: Config of the training.
        params: Shapes of the parameters of the network.
        captions: Captions of the data, for a model conditioned on them.

    Raises:
        ValueError: If a parameter has another shape; the message names the first one. If the runs
            fine-tune different released models or number words differently.
    """
    source = RunFolder(Path(folder))
    source_config = read_config(source.root)
    if config.pretrained is not None:
        rule = f"fine-tune the same released model, {config.pretrained}"
        same = source_config.pretrained == config.pretrained
        require(same, "start_from", rule, source_config.pretrained)
    network = build(source_config, *read_model(source.root)).model.net
    source_params = jax.eval_shape(network.init, jax.random.key(0))
    old, new = (describe_arrays(flat_arrays(tree)) for tree in (source_params, params))
    for name in [*new, *(name for name in old if name not in new)]:
        in_source, in_config = old.get(name, "nothing"), new.get(name, "nothing")
        got = f"{name}: {in_source} in {source.root}, {in_config} in this config"
        rule = "be a run with the same network sizes and conditions"
        require(in_source == in_config, "start_from", rule, got)
    if captions is not None:
        words = read_word_tokenizer(source.tokenizer).to_json()
        rule = "have the words of the data's captions"
        same_words = words == captions.tokenizer.to_json()
        require(same_words, "start_from", rule, f"other words in {source.tokenizer}")


def warm_start(
    source: Path, state: TrainState, folder: RunFolder, progress: Progress
) -> TrainState:
    """Replace the initial weights of a training by the averaged weights of a run.

    Args:
        source: Folder of the run whose newest weights are read.
        state: Initial state of the training.
        folder: Run folder of the training. If it has a checkpoint, the state is returned unchanged,
            because the training resumes from the checkpoint.
        progress: Receives a line that names the run and the step of its weights.

    Raises:
        ValueError: If the weights do not fit the network.
    """
    with all_or_none("loading the weights to start from"):
        if newest_step(folder.checkpoints) is not None:
            return state
        abstract_params = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
            state.params,
        )
        params, step = restore_ema(RunFolder(source).checkpoints, abstract_params)
    progress.say(f"starting from the averaged weights of step {step} of run {source}")
    # A copy, because the training step donates the state and no buffer may be donated twice.
    return state._replace(params=params, ema_params=jax.tree.map(jnp.copy, params))
