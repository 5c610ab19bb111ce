"""Name, write and read files of samples, as PNG and NPZ."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fmjax._arrays import Cond, is_image
from fmjax._checks import require
from fmjax._files import read_npz, write_atomically, write_npz
from fmjax._specs import named_arrays
from fmjax.config import SOLVERS, Sampling, SamplingOptions
from fmjax.runs.sample_set import SampleSet
from fmjax.runs.sampling.batches import has_picture
from fmjax.runs.sampling.condition_arrays import digest_of
from fmjax.solvers import ErrorControl

_MAX_NAME_BYTES = 200  # Most file systems allow 255, including prefix and suffix.


def settings_name(
    sampling: Sampling, classes: tuple[int, ...] = (), conditions: Cond = None
) -> str:
    """Make a file name from all sampling settings except the batch size, and from the conditions.

    The batch size only affects which samples share adaptive steps, within the tolerance.
    """
    options = sampling.options
    solver = options.solver if options.solver in SOLVERS else _as_name(options.solver)
    parts = [solver, *_step_names(options)]
    if options.last_step is not None:
        default = Sampling.of(solver="euler_maruyama", num_steps=1).options
        for name in ("rate", "rate_scale", "rate_power"):
            value = getattr(options, name)
            if value not in (None, getattr(default, name)):
                parts.append(f"{name.replace('_', '')}{value}")
        if options.last_step != default.last_step:
            parts.append(f"last{options.last_step:g}")
    if options.clip is not None:
        parts.append(f"clip{options.clip:g}")
    if options.guidance not in (None, 1.0) and options.guidance_interval is not None:
        low, high = options.guidance_interval
        interval = "" if (low, high) == (0.0, 1.0) else f"-on{low:g}-{high:g}"
        parts.append(f"guidance{options.guidance:g}{interval}")
    if not sampling.is_named:
        settings = repr((sampling.sampler, sampling.guidance))
        parts.append(hashlib.sha256(settings.encode()).hexdigest()[:8])
    if classes:
        parts.append("classes" + "-".join(map(str, classes)))
    if conditions is not None:
        parts.append(f"conditions-{digest_of(conditions)}")
    if sampling.prompts:
        # All prompts would be too long: use the first one and a hash of all.
        digest = hashlib.sha256("\n".join(sampling.prompts).encode()).hexdigest()[:8]
        parts.append(f"{_as_name(sampling.prompts[0].replace(' ', '-'))[:40]}-{digest}")
    name = "-".join([*parts, f"num{sampling.num_samples}", f"seed{sampling.seed}"])
    if len(name.encode()) <= _MAX_NAME_BYTES:
        return name
    return f"{name[: _MAX_NAME_BYTES // 2]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def _step_names(options: SamplingOptions) -> list[str]:
    """Name the steps: "16-uniform" or "rtol0.0001"; empty for steps of another kind."""
    if options.rtol is not None:
        steps = f"rtol{options.rtol:g}"
        if options.atol != options.rtol:
            steps += f"-atol{options.atol:g}"
        is_separate = options.rate is not None  # With an SDE, each sample has separate steps.
        if options.slots is not None:
            steps += f"-slots{options.slots}"
        elif not is_separate and options.control not in (None, ErrorControl.LARGEST_SAMPLE):
            steps += f"-{options.control.value}"
        return [steps]
    if options.grid is None:
        return []
    steps = f"{options.num_steps}-{_as_name(options.grid)}"
    if options.shift is not None:
        steps += f"{options.shift:g}"
    elif options.grid_density is not None:
        steps += "-" + _as_name(options.grid_density)
    return [steps]


def _as_name(value: object) -> str:
    """The text or `repr` of a value without characters that file names may not contain."""
    return "".join(
        c
        for c in (value if isinstance(value, str) else repr(value)).lower()
        if c.isalnum() or c in ".-"
    )


def summarize_samples(samples: SampleSet) -> str:
    """Summarize samples in one line: their number, cost and failures."""
    mean, maximum, failed = samples.nfe.mean(), samples.nfe.max(), int(np.sum(~samples.succeeded))
    text = f"{len(samples.x1)} samples, {mean:.4g} network evaluations each"
    text += f" (at most {maximum})" if maximum != mean else ""
    return text + (f"; {failed} of them did not reach t = 1" if failed else "")


def describe_sampling(sampling: Sampling) -> str:
    """Describe the sampler, such as "heun with 16 steps and guidance 1.5"."""
    options = sampling.options
    solver = options.solver
    if options.rtol is not None:
        solver = f"{solver} at tolerance {options.rtol:g}"
    elif options.num_steps is not None:
        grid = "" if options.grid == "uniform" else f"{options.grid} "
        steps = "step" if options.num_steps == 1 else "steps"
        solver = f"{solver} with {options.num_steps} {grid}{steps}"
    if sampling.guidance is None or options.guidance == 1.0:
        return solver
    if options.guidance is None:
        return f"{solver} and {type(sampling.guidance).__name__}"
    return f"{solver} and guidance {options.guidance:g}"


def read_samples(file: Path) -> tuple[SampleSet, int]:
    """Read the samples that `sample_run` wrote, and the training step of the weights.

    Raises:
        ValueError: If the file is damaged or does not hold samples.
    """
    try:
        arrays = read_npz(file)
        labels, x0 = arrays.get("labels"), arrays.get("x0")  # Optional.
        prompts = tuple(map(str, arrays.get("prompts", ())))
        samples = SampleSet(
            arrays["x1"], labels, arrays["nfe"], arrays["succeeded"], x0=x0, prompts=prompts
        )
        samples = samples._replace(cond=condition_of(arrays))
        return samples, int(arrays["step"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} must hold samples that fmjax wrote, got {error}") from error


def condition_of(arrays: Mapping[str, np.ndarray]) -> Cond:
    """Return the array `cond` of a file, the arrays `cond_KEY` as a dict by key, or None."""
    prefix = "cond_"
    by_key = {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }
    return by_key or arrays.get("cond")


def write_samples(
    samples: SampleSet, step: int, stem: Path, *, class_names: Sequence[str] = ()
) -> list[Path]:
    """Write samples and the training step to `STEM.npz`, and a picture to `STEM.png`.

    Conditions that are arrays are written as `cond`, or `cond_KEY` for the keys of a dict.

    Args:
        samples: The samples.
        step: The training step of the weights.
        stem: Name of both files without the suffix.
        class_names: Names of the classes for the picture; empty shows their numbers.

    Returns:
        The files; data that are neither images nor points in the plane have no picture.
    """
    arrays: dict[str, np.ndarray] = {
        "x1": samples.x1,
        "nfe": samples.nfe,
        "succeeded": samples.succeeded,
    }
    for name in ("labels", "x0"):
        if getattr(samples, name) is not None:
            arrays[name] = getattr(samples, name)
    arrays |= named_arrays(samples.cond)
    if samples.prompts:
        arrays["prompts"] = np.asarray(samples.prompts)
    arrays["step"] = np.asarray(step)
    npz_file, *pictures = sample_files(stem, samples.x1.shape[1:])
    # The arrays are written last, so that a complete NPZ file implies a complete picture.
    for picture in pictures:
        write_picture(samples, picture, class_names)
    write_npz(npz_file, **arrays)
    return [*pictures, npz_file]


def write_picture(samples: SampleSet, file: Path, class_names: Sequence[str] = ()) -> None:
    """Write samples as PNG: a grid of images with one row per class, or points in the plane."""
    with write_atomically(file) as temporary:
        temporary.write_bytes(_picture(samples, class_names))


def _picture(samples: SampleSet, class_names: Sequence[str]) -> bytes:
    """Encode samples as PNG: a grid of images, or points in the plane."""
    if is_image(samples.x1.shape[1:]):
        from fmjax.report.images import image_bytes, image_grid

        images, columns, row_labels = sample_grid(samples, class_names)
        return image_bytes(image_grid(images, columns, row_labels=row_labels))
    from fmjax.report.plots import plot_points
    from fmjax.report.style import png_bytes

    return png_bytes(plot_points(samples.x1, np.empty((0, 2))))


def sample_files(stem: Path, event_shape: tuple[int, ...]) -> list[Path]:
    """The NPZ file of samples and, for images and points in the plane, the PNG file."""
    require(stem.name not in ("", ".."), "output", "be the name of a file", stem)
    suffixes = (".npz", ".png") if has_picture(event_shape) else (".npz",)
    return [stem.with_name(stem.name + suffix) for suffix in suffixes]


def sample_grid(
    samples: SampleSet, class_names: Sequence[str] = ()
) -> tuple[np.ndarray, int, tuple[str, ...]]:
    """Arrange images in a grid with one row per class or prompt.

    Short rows are filled with NaN. If the source points are images, a row of source points precedes
    each row of samples.

    Args:
        samples: The samples.
        class_names: Names of the classes; empty shows their numbers.

    Returns:
        Images `[rows * columns, *event]`, the number of columns, and a name for each row.
    """
    num, labels = len(samples.x1), samples.labels
    if labels is None:
        columns = max(1, round(num**0.5))
        rows = [np.arange(first, min(first + columns, num)) for first in range(0, num, columns)]
        names = ()
    else:
        classes = list(dict.fromkeys(labels.tolist()))
        rows = [np.flatnonzero(labels == label) for label in classes]
        columns = max(map(len, rows))
        row_names = samples.prompts or tuple(class_names)
        names = tuple(row_names[label] if row_names else str(label) for label in classes)
    sides = [samples.x1]
    if samples.x0 is not None:
        sides = [samples.x0, samples.x1]
        names = tuple(name for target in names or ["to"] * len(rows) for name in ("from", target))
    grid = np.full((len(rows), len(sides), columns, *samples.x1.shape[1:]), np.nan, np.float32)
    for row, indices in enumerate(rows):
        for side, images in enumerate(sides):
            grid[row, side, : len(indices)] = images[indices]
    return grid.reshape(-1, *samples.x1.shape[1:]), columns, names
