"""Samples of every row of a comparison, side by side: what the figures look like."""

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
    """A few samples of one row, of the same noises in every row of a model.

    Attributes:
        model: Which trained model, where there are several.
        solver: The solver's name.
        setting: Its steps or tolerance, in words.
        family: "fixed", "adaptive" or "stochastic".
        nfe_mean: Network evaluations of a sample.
        images: `[n, height, width, 1 or 3]` in [-1, 1].
    """

    model: str
    solver: str
    setting: str
    family: str
    nfe_mean: float
    images: np.ndarray

    @classmethod
    def of(cls, run: SolverRun, images: np.ndarray) -> "GalleryEntry":
        """Samples of this row."""
        return cls(run.model, run.solver, run.setting, run.family, run.nfe_mean, images)


class _Row(TypedDict):
    """A `GalleryEntry` in JSON; its images are an array of their own."""

    model: str
    solver: str
    setting: str
    family: Family
    nfe_mean: NonNegative
    images: None


def write_gallery(entries: Sequence[GalleryEntry], path: Path) -> None:
    """Write to one .npz file: images as bytes, and their rows' names."""
    images = [
        np.round(127.5 * (np.clip(np.nan_to_num(entry.images), -1.0, 1.0) + 1.0)).astype(np.uint8)
        for entry in entries
    ]
    rows = [entry._replace(images=None)._asdict() for entry in entries]  # pyright: ignore
    write_npz(path, images=np.stack(images), rows=np.asarray(json.dumps(rows)))


def read_gallery(path: Path) -> tuple[GalleryEntry, ...]:
    """Read what `write_gallery` wrote, to half a byte's step.

    Raises:
        ValueError: If the file is damaged, or of something else.
    """
    arrays = read_npz(path)
    names = ", ".join(sorted(arrays))
    rule = "be a gallery that fmjax wrote"
    require({"rows", "images"} <= set(arrays), str(path), rule, f"arrays {names}")
    text, images = str(arrays["rows"]), arrays["images"]
    rows = check_json(parse_json(text, f"{path}: rows"), list[_Row], f"{path}: rows")
    pictures = images.ndim == 5 and images.shape[-1] in (1, 3) and images.dtype == np.uint8
    pictures = pictures and images.size > 0
    require(pictures, f"{path}: images", "be pictures as bytes", f"{images.dtype}{images.shape}")
    require_lengths(str(path), rows=rows, images=images)
    return tuple(
        GalleryEntry(**{**row, "images": image.astype(np.float32) / 127.5 - 1.0})
        for row, image in zip(rows, images, strict=True)
    )
