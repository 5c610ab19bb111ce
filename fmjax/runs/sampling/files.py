"""Files of samples: their names, and writing and reading them as PNG and NPZ."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from fmjax._arrays import (
    is_image,
)
from fmjax._checks import require
from fmjax._files import read_npz, write_atomically, write_npz
from fmjax.config import SDE_SOLVERS, SamplingConfig
from fmjax.runs.sampling.batches import (
    Drawn,
    has_picture,
)
from fmjax.solvers import ErrorControl

_LONGEST_NAME = 200  # Bytes; most file systems take 255, with what is put before and behind it.


def settings_name(sampling: SamplingConfig, classes: tuple[int, ...] = ()) -> str:
    """A file name that tells all settings apart but the batch size.

    That decides nothing but, within the tolerance, who shares adaptive steps.
    """
    if sampling.num_steps is None:
        steps = f"rtol{sampling.rtol:g}"
        if sampling.atol != sampling.rtol:
            steps += f"-atol{sampling.atol:g}"
        if sampling.slots is not None:
            steps += f"-slots{sampling.slots}"
        elif sampling.control is not ErrorControl.LARGEST_SAMPLE:
            steps += f"-{sampling.control.value}"
    else:
        steps = f"{sampling.num_steps}-{sampling.grid}"
        if sampling.grid == "shifted":
            steps += f"{sampling.shift:g}"
        elif sampling.grid == "quantiles":
            steps += "-" + _as_name(sampling.grid_density)
    parts = [sampling.solver, steps]
    if sampling.solver in SDE_SOLVERS:
        plain = SamplingConfig()
        for name in ("rate", "rate_scale", "rate_power"):
            value = getattr(sampling, name)
            if value != getattr(plain, name):
                parts.append(f"{name.replace('_', '')}{value}")
        if sampling.last_step != SamplingConfig.last_step:
            parts.append(f"last{sampling.last_step:g}")
    if sampling.clip is not None:
        parts.append(f"clip{sampling.clip:g}")
    if sampling.guidance != 1.0:
        low, high = sampling.guidance_interval
        where = "" if (low, high) == (0.0, 1.0) else f"-on{low:g}-{high:g}"
        parts.append(f"guidance{sampling.guidance:g}{where}")
    if classes:
        parts.append("classes" + "-".join(map(str, classes)))
    if sampling.prompts:
        # Too long for a name, together: the first one is to be read, the rest to be told apart.
        digest = hashlib.sha256("\n".join(sampling.prompts).encode()).hexdigest()[:8]
        parts.append(f"{_as_name(sampling.prompts[0].replace(' ', '-'))[:40]}-{digest}")
    name = "-".join([*parts, f"num{sampling.num_samples}", f"seed{sampling.seed}"])
    if len(name.encode()) <= _LONGEST_NAME:
        return name
    return f"{name[: _LONGEST_NAME // 2]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def _as_name(choice: Any) -> str:
    """What a choice prints, of which file names can hold all."""
    return "".join(c for c in repr(choice).lower() if c.isalnum() or c in ".-")


def described(drawn: Drawn) -> str:
    """How many samples, at what cost, and whether all arrived."""
    mean, most, failed = drawn.nfe.mean(), drawn.nfe.max(), int(np.sum(~drawn.succeeded))
    text = f"{len(drawn.x1)} samples, {mean:.4g} network evaluations each"
    text += f" (at most {most})" if most != mean else ""
    return text + (f"; {failed} of them did not arrive at t = 1" if failed else "")


def in_words(sampling: SamplingConfig) -> str:
    """What draws the samples: "heun with 16 steps and guidance 1.5"."""
    if sampling.num_steps is None:
        how = f"{sampling.solver} at tolerance {sampling.rtol:g}"
    else:
        grid = "" if sampling.grid == "uniform" else f"{sampling.grid} "
        steps = "step" if sampling.num_steps == 1 else "steps"
        how = f"{sampling.solver} with {sampling.num_steps} {grid}{steps}"
    return how if sampling.guidance == 1.0 else f"{how} and guidance {sampling.guidance:g}"


def read_samples(path: Path) -> tuple[Drawn, int]:
    """The samples that `sample_run` wrote, and the training step of what drew them.

    Raises:
        ValueError: If the file is damaged, or of something else.
    """
    try:
        arrays = read_npz(path)
        labels, x0 = arrays.get("labels"), arrays.get("x0")  # Not every model has them.
        prompts = tuple(map(str, arrays.get("prompts", ())))
        drawn = Drawn(
            arrays["x1"], labels, arrays["nfe"], arrays["succeeded"], x0=x0, prompts=prompts
        )
        return drawn, int(arrays["step"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} must hold samples that fmjax wrote, got {error}") from error


def write_samples(drawn: Drawn, step: int, stem: Path) -> list[Path]:
    """Write `STEM.npz` (a `Drawn` and the step) and, if there is one, `STEM.png`."""
    arrays: dict[str, Any] = {"x1": drawn.x1, "nfe": drawn.nfe, "succeeded": drawn.succeeded}
    for name in ("labels", "x0"):
        if getattr(drawn, name) is not None:
            arrays[name] = getattr(drawn, name)
    if drawn.prompts:
        arrays["prompts"] = np.asarray(drawn.prompts)
    arrays["step"] = step
    numbers, *pictures = sample_files(stem, drawn.x1.shape[1:])
    # The picture first: where the numbers are whole, nothing is missing.
    for picture in pictures:
        write_picture(drawn, picture)
    write_npz(numbers, **arrays)
    return [*pictures, numbers]


def write_picture(drawn: Drawn, file: Path) -> None:
    """Write samples as a PNG: images in a grid, a row for each class, or points in the plane."""
    with write_atomically(file) as temporary:
        temporary.write_bytes(_picture(drawn))


def _picture(drawn: Drawn) -> bytes:
    """A PNG of images in a grid, or of points in the plane."""
    if is_image(drawn.x1.shape[1:]):
        from fmjax.report.images import image_bytes, image_grid

        images, columns, row_labels = grid_of(drawn)
        return image_bytes(image_grid(images, columns, row_labels=row_labels))
    from fmjax.report.plots import plot_points
    from fmjax.report.style import png_bytes

    return png_bytes(plot_points(drawn.x1, np.empty((0, 2))))


def sample_files(stem: Path, event_shape: tuple[int, ...]) -> list[Path]:
    """The files of samples: the numbers and, of images and of points in the plane, a picture."""
    require(stem.name not in ("", ".."), "output", "be the name of a file", stem)
    endings = (".npz", ".png") if has_picture(event_shape) else (".npz",)
    return [stem.with_name(stem.name + end) for end in endings]


def grid_of(drawn: Drawn) -> tuple[np.ndarray, int, tuple[str, ...]]:
    """Images, columns and row names of a grid, a row for each class or prompt.

    Rows that are short end in blanks.

    What starts from other images has those in rows of their own, each above what became of it.
    """
    num, labels = len(drawn.x1), drawn.labels
    if labels is None:
        columns = max(1, round(num**0.5))
        rows = [np.arange(first, min(first + columns, num)) for first in range(0, num, columns)]
        names = ()
    else:
        classes = list(dict.fromkeys(labels.tolist()))
        rows = [np.flatnonzero(labels == label) for label in classes]
        columns = max(map(len, rows))
        names = tuple(drawn.prompts[c] if drawn.prompts else str(c) for c in classes)
    shown = [drawn.x1]
    if drawn.x0 is not None:
        shown = [drawn.x0, drawn.x1]
        names = tuple(name for to in names or ["to"] * len(rows) for name in ("from", to))
    grid = np.full((len(rows), len(shown), columns, *drawn.x1.shape[1:]), np.nan, np.float32)
    for row, members in enumerate(rows):
        for side, images in enumerate(shown):
            grid[row, side, : len(members)] = images[members]
    return grid.reshape(-1, *drawn.x1.shape[1:]), columns, names
