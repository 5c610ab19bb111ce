"""Generate samples from a run and write them as a picture and as arrays."""

import math
from pathlib import Path

from fmjax._arrays import Cond
from fmjax._files import lock_outputs, require_space
from fmjax._progress import Progress, Silent
from fmjax.config import Sampling
from fmjax.runs.folder import Run
from fmjax.runs.sample_set import SampleSet
from fmjax.runs.sampling.batches import require_samples_fit
from fmjax.runs.sampling.conditions import requested_conditions
from fmjax.runs.sampling.files import sample_files, settings_name, summarize_samples, write_samples
from fmjax.runs.sampling.run_samples import sample_from_run


def sample_run(
    run: Run,
    sampling: Sampling,
    classes: tuple[int, ...] = (),
    output: Path | None = None,
    *,
    conditions: Cond = None,
    progress: Progress = Silent(),
) -> SampleSet:
    """Generate samples and write them to `OUTPUT.png` and `OUTPUT.npz`.

    Existing files of the same name are replaced: the same settings give the same samples.

    Args:
        run: A trained run.
        sampling: Settings of the sampler.
        classes: Class labels to sample, in equal numbers; empty samples all classes.
        output: Output file without suffix; by default a file in the `samples/` folder of the run,
            named by the settings.
        conditions: Conditions for a model that is conditioned on arrays, in data units, sampled in
            equal numbers; None for those of the test data.
        progress: Receives progress reports.

    Raises:
        ValueError: If the model does not have one of the classes or does not take prompts or
            arrays, or the files cannot be written.
    """
    require_samples_fit("num_samples", sampling.num_samples, run.event_shape)
    if output is None:
        stem = run.folder.samples / f"step{run.step}-{settings_name(sampling, classes, conditions)}"
    else:
        stem = output.with_suffix("") if output.suffix in (".png", ".npz") else output
    arrays_per_sample = 1 if run.config.source is None else 2  # x1, and x0 from a dataset.
    num_bytes = 4 * arrays_per_sample * sampling.num_samples * math.prod(run.event_shape)
    require_space(stem.parent, num_bytes, f"{sampling.num_samples} samples")
    with lock_outputs(*sample_files(stem, run.event_shape)):
        requested = requested_conditions(
            run,
            sampling.num_samples,
            classes,
            sampling.prompts,
            arrays=conditions,
            progress=progress,
        )
        samples = sample_from_run(run, sampling, requested, progress=progress)
        files = write_samples(samples, run.step, stem, class_names=run.class_names)
    progress.say(summarize_samples(samples))
    progress.say(f"wrote {' and '.join(str(file) for file in files)}")
    return samples
