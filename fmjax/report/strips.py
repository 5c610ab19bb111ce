"""The gallery of a page: strips of samples, and the budgets for which each is shown."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from fmjax.report.gallery import GalleryEntry
from fmjax.report.images import image_bytes
from fmjax.report.pictures import data_uri

GAP = 1  # Pixels between the images of a strip.


class Strip(NamedTuple):
    """Samples of one row of a comparison, side by side.

    It is shown for budgets of network evaluations in `[lowest, below)`.

    Attributes:
        title: Name of the solver, preceded by the model if there are several.
        cost: Setting and number of evaluations, in words.
        keys: Keys of the legend entries that show or hide the strip.
        lowest: Smallest budget for which the strip is shown.
        below: Smallest budget for which a more expensive row of the solver replaces the strip.
        uri: The strip as a PNG data URI.
        width: Width of the strip in pixels.
        height: Height of the strip in pixels.
    """

    title: str
    cost: str
    keys: tuple[str, ...]
    lowest: float
    below: float
    uri: str
    width: int
    height: int


def strips(gallery: Sequence[GalleryEntry]) -> list[Strip]:
    """Make a strip for each entry that is shown for some budget, grouped by solver."""
    has_models = len({entry.model for entry in gallery}) > 1
    solvers: dict[tuple[str, str, str], list[GalleryEntry]] = {}
    for entry in gallery:
        solvers.setdefault((entry.model, entry.solver, entry.family), []).append(entry)
    result = []
    for entries in solvers.values():
        entries.sort(key=lambda entry: entry.nfe_mean)
        ends = [*(entry.nfe_mean for entry in entries[1:]), math.inf]
        for entry, end in zip(entries, ends, strict=True):
            if end > entry.nfe_mean:
                result.append(_strip(entry, end, has_models))
    return result


def budgets(gallery: Sequence[GalleryEntry]) -> list[int]:
    """Return powers of two, from one within which a row fits to one within which all rows fit."""
    if not gallery:
        return []
    costs = [entry.nfe_mean for entry in gallery]
    first, last = (max(0, math.ceil(math.log2(cost))) for cost in (min(costs), max(costs)))
    return [2**power for power in range(first, last + 1)]


def _strip(entry: GalleryEntry, end: float, has_models: bool) -> Strip:
    levels = np.clip(np.rint((entry.images + 1) * 127.5), 0, 255).astype(np.uint8)
    _, height, width, channels = levels.shape
    pixels = np.zeros((height, len(levels) * (width + GAP) - GAP, channels + 1), np.uint8)
    for i, image in enumerate(levels):
        left = i * (width + GAP)
        pixels[:, left : left + width, :channels] = image
        pixels[:, left : left + width, channels] = 255
    strip = Image.fromarray(pixels)
    solver = f"{entry.family}:{entry.solver}"
    count = f"{entry.nfe_mean:,.0f}"
    return Strip(
        title=f"{entry.model} · {entry.solver}" if has_models else entry.solver,
        cost=f"{entry.setting}, {count} evaluation{'' if count == '1' else 's'}",
        keys=(f"model:{entry.model}", solver) if has_models else (solver,),
        lowest=entry.nfe_mean,
        below=end,
        uri=data_uri(image_bytes(strip)),
        width=strip.width,
        height=strip.height,
    )
