"""The gallery of a page: a strip of samples for each row, and the budgets at which it is shown."""

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
    """Samples of one row, side by side.

    Attributes:
        title: The solver, after its model where there are several.
        cost: Its setting and evaluations, in words.
        keys: The legend's names that it goes by.
        lowest: The least budget of evaluations at which it is shown.
        below: It is shown for budgets below this, where a dearer row of its solver takes over.
        uri: The strip, as a PNG in an address.
        width: Of the strip, in pixels.
        height: Of the strip, in pixels.
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
    """One for each entry that some budget shows, solver by solver."""
    several = len({entry.model for entry in gallery}) > 1
    solvers: dict[tuple[str, str, str], list[GalleryEntry]] = {}
    for entry in gallery:
        solvers.setdefault((entry.model, entry.solver, entry.family), []).append(entry)
    found = []
    for entries in solvers.values():
        entries.sort(key=lambda entry: entry.nfe_mean)
        ends = [*(entry.nfe_mean for entry in entries[1:]), math.inf]
        for entry, end in zip(entries, ends, strict=True):
            if end > entry.nfe_mean:
                found.append(_strip(entry, end, several))
    return found


def budgets(gallery: Sequence[GalleryEntry]) -> list[int]:
    """Powers of two from the first that holds a row to the first that holds them all."""
    if not gallery:
        return []
    costs = [entry.nfe_mean for entry in gallery]
    first, last = (max(0, math.ceil(math.log2(cost))) for cost in (min(costs), max(costs)))
    return [2**power for power in range(first, last + 1)]


def _strip(entry: GalleryEntry, end: float, several: bool) -> Strip:
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
        title=f"{entry.model} · {entry.solver}" if several else entry.solver,
        cost=f"{entry.setting}, {count} evaluation{'' if count == '1' else 's'}",
        keys=(f"model:{entry.model}", solver) if several else (solver,),
        lowest=entry.nfe_mean,
        below=end,
        uri=data_uri(image_bytes(strip)),
        width=strip.width,
        height=strip.height,
    )
