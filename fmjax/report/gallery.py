"""The gallery: samples of every row of a comparison, and its file."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np

from fmjax._checks import require
from fmjax._files import read_npz, write_npz
from fmjax._json import NonNegative, check_json, parse_json, require_lengths
from fmjax.report.comparison import Family, SolverRun


class GalleryEntry(NamedTuple):
    """A few samples of one row; all rows of a model start from the same noise.

    Attributes:
        model: Name of the model; "" if there is only one.
        solver: Name of the solver.
        setting: Number of steps or tolerance, in words.
        family: "fixed", "adaptive" or "stochastic".
        nfe_mean: Mean network evaluations per sample.
        images: Sampled images, `[n, height, width, 1 or 3]` in [-1, 1].
    """

    model: str
    solver: str
    setting: str
    family: str
    nfe_mean: float
    images: np.ndarray

    @classmethod
    def of(cls, run: SolverRun, images: np.ndarray) -> "GalleryEntry":
        """Make the entry of a run from its samples."""
        return cls(run.model, run.solver, run.setting, run.family, run.nfe_mean, images)


class _Row(TypedDict):
    """A `GalleryEntry` as JSON data; the images are stored separately."""

    model: str
    solver: str
    setting: str
    family: Family
    nfe_mean: NonNegative
    images: None


def write_gallery(entries: Sequence[GalleryEntry], file: Path) -> None:
    """Write a gallery to one .npz file, with images as bytes."""
    images = [
        np.round(127.5 * (np.clip(np.nan_to_num(entry.images), -1.0, 1.0) + 1.0)).astype(np.uint8)
        for entry in entries
    ]
    rows = [entry._replace(images=None)._asdict() for entry in entries]  # pyright: ignore
    write_npz(file, images=np.stack(images), rows=np.asarray(json.dumps(rows)))


def read_gallery(file: Path) -> tuple[GalleryEntry, ...]:
    """Read a gallery written by `write_gallery`; pixel values are rounded to 256 levels.

    Raises:
        ValueError: If the file is damaged or not a gallery.
    """
    arrays = read_npz(file)
    names = ", ".join(sorted(arrays))
    rule = "be a gallery written by fmjax"
    require({"rows", "images"} <= set(arrays), str(file), rule, f"arrays {names}")
    text, images = str(arrays["rows"]), arrays["images"]
    rows = check_json(parse_json(text, f"{file}: rows"), list[_Row], f"{file}: rows")
    is_valid = images.ndim == 5 and images.shape[-1] in (1, 3) and images.dtype == np.uint8
    is_valid = is_valid and images.size > 0
    rule = "be uint8 of shape [rows, n, height, width, 1 or 3]"
    require(is_valid, f"{file}: images", rule, f"{images.dtype} of shape {images.shape}")
    require_lengths(str(file), rows=rows, images=images)
    return tuple(
        GalleryEntry(**{**row, "images": image.astype(np.float32) / 127.5 - 1.0})
        for row, image in zip(rows, images, strict=True)
    )
