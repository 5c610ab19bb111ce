"""Train from a config into a run folder."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax

from fmjax._checks import require
from fmjax._files import require_space, size_of
from fmjax._memory import require_device_memory
from fmjax._progress import Lines, Progress, Silent
from fmjax.config import (
    Config,
    Experiment,
    TrainingConfig,
    build,
    make_step,
    num_parameters,
    register_classes,
    user_classes,
)
from fmjax.data import (
    BatchIterator,
    Dataset,
    Examples,
    Standardization,
    StandardizedDataset,
    batches,
    fit_standardization,
    load,
    read_standardization,
)
from fmjax.jobs.compare.compare_run import require_comparable
from fmjax.jobs.planning.workloads import step_flops
from fmjax.jobs.train.prepare import lock_run, prepare, tokenizer_rule
from fmjax.jobs.train.preview import training_pictures
from fmjax.jobs.train.reflow import pairs_for, teacher_of
from fmjax.jobs.train.start import require_same_sizes, starting_run, warm_start
from fmjax.runs.folder import Run, RunFolder, open_run, require_openable
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
    learning_rate_schedule,
    newest_step,
)


def train(
    config: Config,
    folder: Path | str,
    *,
    overwrite: bool = False,
    progress: Progress = Lines(),  # noqa: B008 (has no state)
) -> Run:
    """Train into a run folder on all devices, and return the opened run.

    An existing run with the same config is resumed, and a complete one is only opened. The folder
    holds the config, checkpoints and metrics; `fmjax.open_run` opens it again, and the commands
    of fmjax work on it. It is locked while it is trained. With several processes, all of them
    call this function.

    Args:
        config: The experiment. Its objects of your own classes are frozen dataclasses.
        folder: The run folder.
        overwrite: Replace an existing run in the folder.
        progress: Receives progress reports; by default lines on standard error.

    Raises:
        ValueError: If parts of the config do not fit each other or the data, the folder contains
            another run or other files, another process writes to it, or the model is conditioned
            on text embeddings, which a `Run` cannot sample.
        Interrupted: After SIGTERM or Ctrl-C (in a notebook, an interrupted cell); a checkpoint of
            the last step is saved, from which the same call continues.
        NonFiniteLoss: If the loss became infinite or NaN.
    """
    folder = Path(folder)
    progress = progress if is_main() else Silent()
    register_classes(user_classes(config))  # The config of the run folder is read again.
    with lock_run(folder, config, overwrite=overwrite):
        _train(config, RunFolder(folder), overwrite, progress, needs_run=True)
    return open_run(folder, classes=user_classes(config))


def train_folder(
    config: Config,
    folder: Path,
    *,
    overwrite: bool = False,
    progress: Progress = Silent(),
) -> None:
    """Train into a run folder with config, checkpoints and metrics.

    An existing run is resumed. Its config may differ in the number of steps, and in options that
    do not change the training; each such change is reported. In a multi-process run
    (`fmjax.sharding.join`), each process loads a part of the data, and all processes must have
    access to the folder.

    Args:
        config: The experiment.
        folder: The run folder.
        overwrite: Replace an existing run in the folder.
        progress: Receives progress reports.

    Raises:
        ValueError: If the parts of the config are inconsistent with each other or the data, or the
            folder contains other files or a run that cannot be resumed with this config.
        Interrupted: After SIGTERM or Ctrl-C; a checkpoint of the last step is saved.
        NonFiniteLoss: If the loss became infinite or NaN.
    """
    with lock_run(folder, config, overwrite=overwrite):
        _train(config, RunFolder(folder), overwrite, progress)


def _train(
    config: Config,
    folder: RunFolder,
    overwrite: bool,
    progress: Progress,
    *,
    needs_run: bool = False,
) -> None:
    """Implement `train` and `train_folder`, with the run folder locked."""
    with all_or_none("reading the released model"):
        config = with_released_sizes(config)
    training, mesh = config.training, make_mesh(config.mesh)
    teacher = teacher_of(config)
    resumed = None if overwrite else folder
    dataset, source, experiment = _read(
        config, mesh, progress, paired=teacher is not None, resumed=resumed, needs_run=needs_run
    )
    event_shape, conditions = dataset.event_shape, dataset.conditions
    abstract = abstract_state(experiment.model.net, experiment.optimizer, mesh)
    batch = abstract_batch(event_shape, conditions, training.batch_size, mesh, paired=config.paired)
    require_device_memory("network", abstract, "parameters, their average and optimizer state")
    require_device_memory("training.batch_size", batch, "examples of a batch")
    resumes = not overwrite and newest_step(folder.checkpoints) is not None
    if config.start_from is not None and not resumes:
        with all_or_none("comparing with the run to start from"):
            require_same_sizes(config.start_from, config, abstract.params, dataset.captions)
    with all_or_none("standardizing the data"):
        standardization = _standardization(config, dataset, teacher, resumed, progress)
    examples: Examples = StandardizedDataset(dataset, standardization)
    if teacher is not None:
        examples = pairs_for(config, teacher, dataset, progress)
    with all_or_none("reading the data"):
        feed = _batches(config, examples, source, standardization)
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
            _require_space(folder, abstract, training)
            _prepare(folder, config, dataset, standardization, overwrite, progress)
    state, frozen = initial_state(config, experiment, mesh, sharding, folder.checkpoints, progress)
    teacher = None  # Frees the memory of its weights.
    if (weights := starting_run(config)) is not None:
        state = warm_start(weights, state, folder, progress)
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


def _standardization(
    config: Config,
    dataset: Dataset,
    teacher: Run | None,
    resumed: RunFolder | None,
    progress: Progress,
) -> Standardization:
    """Return the standardization of a training: the teacher's, that of the run, or a new one."""
    if teacher is not None:
        rule = f"be {teacher.config.standardize}, as in the run that generates the pairs"
        same = config.standardize == teacher.config.standardize
        require(same, "standardize", rule, config.standardize)
        return teacher.standardization
    if not config.standardize:
        return Standardization()
    if resumed is not None and resumed.standardization.is_file():
        return read_standardization(resumed.standardization)
    return fit_standardization(dataset, progress=progress)


def _batches(
    config: Config, examples: Examples, source: Dataset | None, standardization: Standardization
) -> BatchIterator:
    """Iterate over the share of this process in the batches of a training."""
    return batches(
        examples,
        source=None if source is None else StandardizedDataset(source, standardization),
        source_noise=config.source_noise,
        batch_size=config.training.batch_size,
        seed=config.training.seed,
        flip=config.training.flip,
        num_processes=jax.process_count(),
        process_index=jax.process_index(),
    )


def _prepare(
    folder: RunFolder,
    config: Config,
    dataset: Dataset,
    standardization: Standardization,
    overwrite: bool,
    progress: Progress,
) -> None:
    """Create the run folder, or report what changes in the run that is resumed."""
    changes = prepare(
        folder,
        config,
        dataset.event_shape,
        dataset.conditions,
        captions=dataset.captions,
        class_names=dataset.class_names,
        standardization=standardization,
        overwrite=overwrite,
    )
    for change in changes:
        progress.say(change)


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
    needs_run: bool,
) -> tuple[Dataset, Dataset | None, Experiment]:
    """Load the data and build the experiment, with all checks of the config against the data.

    Args:
        config: The experiment.
        mesh: The mesh of the training.
        progress: Receives progress reports.
        paired: Whether the training uses pairs, which include the source points.
        resumed: Run folder of an existing run whose tokenizer rule is used, or None.
        needs_run: Whether to refuse a model that `open_run` refuses.

    Returns:
        The dataset, the dataset of source points (None if they are noise or in pairs), and the
        experiment.
    """
    training = config.training
    with all_or_none("reading the data"):
        dataset = load(config.data, "train", progress=progress)
        if not config.conditional:
            dataset = dataset.unconditional()
        if needs_run:
            require_openable("config", dataset.conditions)
        if dataset.text is None:  # Text-to-image models are not compared after training.
            require_comparable(config.compare.num_samples, len(dataset))
        source = None
        if (captions := dataset.captions) is not None:
            captions = captions if resumed is None else captions.with_rule(tokenizer_rule(resumed))
            dataset = dataclasses.replace(dataset, captions=captions)
            for warning in captions.warnings():
                progress.say(warning)
        if config.source is not None and not paired:
            source = load(config.source, "train", progress=progress)
        experiment = build(config, dataset.event_shape, dataset.conditions)
        require_released_weights(config, experiment)
        require_batch_fits(training.batch_size, mesh, training.accumulation_steps)
        require_rows_by_process(mesh)
    return dataset, source, experiment


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
            learning_rate=learning_rate_schedule(config.optimizer, training.num_steps),
            log_every=training.log_every,
            checkpoint_every=training.checkpoint_every,
            on_checkpoint=on_checkpoint,
            progress=progress,
        )
