"""Write pictures of samples during training."""

import dataclasses
from collections.abc import Callable

import jax

from fmjax._arrays import TextShape
from fmjax._memory import is_out_of_memory
from fmjax._progress import Progress
from fmjax._specs import CondSpec
from fmjax.config import Config, Experiment
from fmjax.runs.folder import Run, RunFolder
from fmjax.runs.sampling.batches import has_picture
from fmjax.runs.sampling.conditions import requested_conditions
from fmjax.runs.sampling.files import write_picture
from fmjax.runs.sampling.run_samples import make_run_sampler
from fmjax.sharding import all_or_none, is_main
from fmjax.solvers import needs_calibration
from fmjax.training import TrainState


def training_pictures(
    config: Config,
    experiment: Experiment,
    folder: RunFolder,
    event_shape: tuple[int, ...],
    conditions: CondSpec,
    mesh: jax.sharding.Mesh,
    progress: Progress,
) -> Callable[[TrainState], None] | None:
    """Make a function that computes one batch of samples and writes `samples/stepNUMBER.png`.

    The samples use the settings of `config.sampling`, with a uniform time grid in place of a
    calibrated one. All processes of a run must call the function; process 0 writes the picture.

    Args:
        config: The experiment.
        experiment: The model and the other objects built from the config.
        folder: The run folder.
        event_shape: Shape of one sample.
        conditions: What the model is conditioned on.
        mesh: The mesh of the training.
        progress: Receives progress reports.

    Returns:
        A function of the training state, or None if `config.training.preview_samples` is False or
        the model cannot be sampled here (latents, text-to-image models, fine-tuned released
        models).
    """
    training, sampling = config.training, config.sampling
    released = experiment.tuning is not None or isinstance(conditions, TextShape)
    if not training.preview_samples or not has_picture(event_shape) or released:
        return None
    num_samples = min(sampling.num_samples, sampling.batch_size)
    sampling = dataclasses.replace(sampling, num_samples=num_samples)
    if needs_calibration(sampling.sampler):
        sampling = sampling.with_names(grid="uniform")
    run = Run(folder, config, experiment, event_shape, conditions, None, 0, mesh)
    requested = requested_conditions(run, num_samples, (), sampling.prompts)
    sample = make_run_sampler(run, sampling, requested, progress=progress)
    width = len(str(training.num_steps))
    enabled = True

    def write(state: TrainState) -> None:
        nonlocal enabled
        if not enabled:
            return
        try:
            samples = sample(state.ema_params)
        except jax.errors.JaxRuntimeError as error:
            if not is_out_of_memory(error):
                raise
            enabled = False
            progress.say(
                "warning: samples are not generated during training, because the devices do not "
                "have memory for sampling.batch_size samples in addition to the training state"
            )
            return
        with all_or_none("writing a picture of samples"):
            if is_main():
                file = folder.samples / f"step{int(state.step):0{width}}.png"
                write_picture(samples, file, run.class_names)
        progress.part_done("samples")

    return write
