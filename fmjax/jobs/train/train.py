"""Train from a config into a run folder."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax

from fmjax._files import require_space, size_of
from fmjax._memory import require_device_memory
from fmjax._progress import Progress, Silent
from fmjax.config import Config, Experiment, TrainingConfig, build, make_step, num_parameters
from fmjax.data import BatchIterator, Dataset, Examples, batches
from fmjax.data.dataset import Captions
from fmjax.jobs.compare.compare_run import require_comparable
from fmjax.jobs.planning.workloads import step_flops
from fmjax.jobs.train.prepare import lock_run, prepare, tokenizer_rule
from fmjax.jobs.train.preview import training_pictures
from fmjax.jobs.train.reflow import pairs_for, teacher_of, warm_start
from fmjax.runs.folder import Run, RunFolder, open_run
from fmjax.runs.released_weights import initial_state, require_released_weights, with_released_sizes
from fmjax.sharding import (
    abstract_batch,
    all_or_none,
    is_main,
    make_mesh,
    require_batch_fits,
    require_rows_by_process,
)
from fmjax.training import (
    Checkpoints,
    RunLogger,
    TrainState,
    TrainStep,
    abstract_state,
    fit,
    learning_rate_at,
)


def train(
    config: Config, folder: Path, *, overwrite: bool = False, progress: Progress = Silent()
) -> Run:
    """Train into a run folder with `train_folder`, and return the opened run."""
    train_folder(config, folder, overwrite=overwrite, progress=progress)
    return open_run(folder)


def train_folder(
    config: Config,
    folder: Path,
    *,
    overwrite: bool = False,
    progress: Progress = Silent(),
) -> None:
    """Train into a run folder with config, checkpoints and metrics.

    An existing run with the same config is resumed. In a multi-process run
    (`fmjax.sharding.join`), each process loads a part of the data, and all processes must have
    access to the folder.

    Args:
        config: The experiment.
        folder: The run folder.
        overwrite: Replace an existing run in the folder.
        progress: Receives progress reports.

    Raises:
        ValueError: If the parts of the config are inconsistent with each other or the data, or the
            folder contains another run or other files.
        Interrupted: After SIGTERM or Ctrl-C; a checkpoint of the last step is saved.
        NonFiniteLoss: If the loss became infinite or NaN.
    """
    with lock_run(folder, config, overwrite=overwrite):
        _train(config, RunFolder(folder), overwrite, progress)


def _train(config: Config, folder: RunFolder, overwrite: bool, progress: Progress) -> None:
    """Implement `train_folder`, with the run folder locked."""
    with all_or_none("reading the released model"):
        config = with_released_sizes(config)
    training, mesh = config.training, make_mesh(config.mesh)
    teacher = teacher_of(config)
    resumed = None if overwrite else folder
    paired = teacher is not None
    dataset, source, experiment = _read(config, mesh, progress, paired=paired, resumed=resumed)
    event_shape, conditions = dataset.event_shape, dataset.conditions
    abstract = abstract_state(experiment.net, experiment.optimizer, mesh)
    batch = abstract_batch(event_shape, conditions, training.batch_size, mesh, paired=config.paired)
    require_device_memory("network", abstract, "parameters, their average and optimizer state")
    require_device_memory("training.batch_size", batch, "examples of a batch")
    examples: Examples = dataset
    if teacher is not None:
        examples = pairs_for(config, teacher, dataset, progress)
    with all_or_none("reading the data"):
        feed = batches(
            examples,
            source=source,
            source_noise=config.source_noise,
            batch_size=training.batch_size,
            seed=training.seed,
            flip=training.flip,
            num_processes=jax.process_count(),
            process_index=jax.process_index(),
        )
    sharding = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    step = make_step(config, experiment, mesh, sharding)
    abstract_frozen = () if experiment.tuning is None else (experiment.tuning.frozen(mesh),)
    flops = step_flops(
        config,
        abstract.params,
        batch,
        *abstract_frozen,
        event_shape=event_shape,
        conditions=conditions,
    )
    # The folder is created after all checks.
    with all_or_none("making the run folder"):
        if is_main():
            captions = dataset.captions
            _require_space(folder, abstract, training)
            prepare(folder, config, event_shape, conditions, captions=captions, overwrite=overwrite)
    state, frozen = initial_state(config, experiment, mesh, sharding, folder.checkpoints, progress)
    if teacher is not None:
        state = warm_start(teacher, config, state, folder.checkpoints)
    teacher = None  # Frees the memory of its weights.
    kinds = f" trainable and {num_parameters(frozen):,} frozen" if frozen else ""
    progress.say(
        f"{config.name}: {num_parameters(state.params):,}{kinds} parameters, {len(examples):,} "
        f"{'examples' if config.reflow is None else 'pairs'} of "
        f"{'x'.join(map(str, event_shape))}, {mesh.size} {jax.default_backend()} device(s)"
    )
    bound_step = step if not frozen else lambda state, batch: step(state, batch, *frozen)
    with all_or_none("preparing pictures of samples"):
        on_checkpoint = training_pictures(
            config, experiment, folder, event_shape, conditions, mesh, progress
        )
    _fit(config, state, bound_step, feed, mesh, folder, flops, on_checkpoint, progress)


def _require_space(folder: RunFolder, abstract: TrainState, training: TrainingConfig) -> None:
    """Raise unless the disk has space for the kept checkpoints and the one being written."""
    num_saved = -(-training.num_steps // training.checkpoint_every)
    count = min(training.checkpoints_kept + 1, num_saved)
    num_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract))
    existing = size_of(folder.checkpoints)
    description = f"{count} checkpoint{'s' if count > 1 else ''}"
    require_space(folder.root, max(0, count * num_bytes - existing), description)


def _read(
    config: Config,
    mesh: jax.sharding.Mesh,
    progress: Progress,
    *,
    paired: bool,
    resumed: RunFolder | None,
) -> tuple[Dataset, Dataset | None, Experiment]:
    """Load the data and build the experiment, with all checks of the config against the data.

    Args:
        config: The experiment.
        mesh: The mesh of the training.
        progress: Receives progress reports.
        paired: Whether the training uses pairs, which include the source points.
        resumed: Run folder of an existing run whose tokenizer rule is used, or None.

    Returns:
        The dataset, the dataset of source points (None if they are noise or in pairs), and the
        experiment.
    """
    training = config.training
    with all_or_none("reading the data"):
        dataset = config.data.load("train", progress=progress)
        if not config.conditional:
            dataset = dataset.unconditional()
        if dataset.text is None:  # Text-to-image models are not compared after training.
            require_comparable(config.compare.num_samples, len(dataset))
        source = None
        if (captions := dataset.captions) is not None:
            captions = captions if resumed is None else captions.with_rule(tokenizer_rule(resumed))
            dataset = dataclasses.replace(dataset, captions=captions)
            _warn_about_captions(captions, progress)
        if config.source is not None and not paired:
            source = config.source.load("train", progress=progress)
        experiment = build(config, dataset.event_shape, dataset.conditions)
        require_released_weights(config, experiment)
        require_batch_fits(training.batch_size, mesh, training.accumulation_steps)
        require_rows_by_process(mesh)
    return dataset, source, experiment


def _warn_about_captions(captions: Captions, progress: Progress) -> None:
    """Report captions that are too long or contain no word of the vocabulary."""
    long = captions.tokenizer.cut(captions.texts)
    if long:
        progress.say(
            f"warning: {len(long)} captions are longer than tokenizer.num_tokens "
            f"({captions.config.num_tokens}) and are truncated; the first is {long[0]!r}"
        )
    if wordless := captions.tokenizer.wordless(captions.tokens):
        progress.say(
            f"warning: {len(wordless)} of {len(captions.texts)} captions have no word of the "
            f"vocabulary and count as empty; the first is {captions.texts[wordless[0]]!r}"
        )


def _fit(
    config: Config,
    state: TrainState,
    step: TrainStep,
    feed: BatchIterator,
    mesh: jax.sharding.Mesh,
    folder: RunFolder,
    flops: float,
    on_checkpoint: Callable[[TrainState], None] | None,
    progress: Progress,
) -> None:
    """Run the training loop with checkpoints and logs in the run folder."""
    training = config.training
    with (
        Checkpoints(folder.checkpoints, max_to_keep=training.checkpoints_kept) as checkpoints,
        RunLogger(folder.root) as logger,
    ):
        fit(
            state,
            step,
            feed,
            mesh=mesh,
            num_steps=training.num_steps,
            checkpoints=checkpoints,
            logger=logger,
            flops_per_example=flops,
            learning_rate=partial(learning_rate_at, config.optimizer, training.num_steps),
            log_every=training.log_every,
            checkpoint_every=training.checkpoint_every,
            on_checkpoint=on_checkpoint,
            progress=progress,
        )
