"""Draw samples from a run: a picture to look at, and the numbers."""

import math
from pathlib import Path

from fmjax._files import lock_outputs, require_space
from fmjax._progress import Progress, Silent
from fmjax.config import SamplingConfig
from fmjax.runs.folder import Run
from fmjax.runs.sampling.batches import Drawn, require_samples_fit
from fmjax.runs.sampling.conditions import requested_conditions
from fmjax.runs.sampling.files import (
    described,
    sample_files,
    settings_name,
    write_samples,
)
from fmjax.runs.sampling.run_samples import draw_from


def sample_run(
    run: Run,
    sampling: SamplingConfig,
    classes: tuple[int, ...] = (),
    output: Path | None = None,
    *,
    progress: Progress = Silent(),
) -> Drawn:
    """Draw samples and write them: `OUTPUT.png` and `OUTPUT.npz`.

    The same settings give the same samples, so files of the same name are replaced.

    Args:
        run: A trained run.
        sampling: How noise becomes samples.
        classes: Only these; empty for all, evenly.
        output: Name without ending; by default it says the settings, in the run's `samples/`.
        progress: Hears of each batch.

    Raises:
        ValueError: If the model has no such class, or takes no prompts, or the files cannot be
            written.
    """
    require_samples_fit("num_samples", sampling.num_samples, run.event_shape)
    if output is None:
        stem = run.folder.samples / f"step{run.step}-{settings_name(sampling, classes)}"
    else:
        stem = output.with_suffix("") if output.suffix in (".png", ".npz") else output
    sides = 1 if run.config.source is None else 2
    num_bytes = 4 * sides * sampling.num_samples * math.prod(run.event_shape)
    require_space(stem.parent, num_bytes, f"{sampling.num_samples} samples")
    with lock_outputs(*sample_files(stem, run.event_shape)):
        prompts = sampling.prompts
        asked = requested_conditions(run, sampling.num_samples, classes, prompts, progress=progress)
        drawn = draw_from(run, sampling, asked, progress=progress)
        paths = write_samples(drawn, run.step, stem)
    progress.say(described(drawn))
    progress.say(f"wrote {' and '.join(str(path) for path in paths)}")
    return drawn
