"""Style of the figures: a light and a dark theme, shades of colors, and PNG files.

Figures are matplotlib `Figure` objects with an Agg canvas, without pyplot: no global state, no
windows, and safe in threads.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from fmjax._files import write_atomically

# Width in inches, with which text of 9 points is legible on the screen of a phone.
WIDTH = 5.8
DPI = 160


class Theme(NamedTuple):
    """Colors of the light or the dark theme.

    Attributes:
        background: Background of figures.
        ink: Text and outlines.
        faint: Secondary text.
        grid: Grid and axis lines.
        cool: Gradient stops for fixed-step solvers and real data.
        warm: Gradient stops for adaptive solvers and samples.
        fresh: Gradient stops for stochastic samplers.
        hues: One color for each model, if several are compared.
        ramp: Gradient stops for ordered settings, starting with the largest tolerance.
    """

    background: str
    ink: str
    faint: str
    grid: str
    cool: tuple[str, ...]
    warm: tuple[str, ...]
    fresh: tuple[str, ...]
    hues: tuple[str, ...]
    ramp: tuple[str, ...]


# Blue and orange can be distinguished with every common color vision deficiency (Okabe and Ito,
# "Color Universal Design", 2008). Markers distinguish the shades of each.
LIGHT = Theme(
    background="#ffffff",
    ink="#1c2128",
    faint="#5b646e",
    grid="#e3e7eb",
    cool=("#74c0d8", "#2b83ba", "#0b3c78"),
    warm=("#f2a93b", "#d9601a", "#7d1d12"),
    fresh=("#5bbf93", "#2a8a5f", "#0f4a31"),
    hues=(
        "#2b6cb0",
        "#d9601a",
        "#2a8a5f",
        "#b3327a",
        "#7b5cc4",
        "#9a6a10",
        "#128a9c",
        "#c53b3b",
        "#5f6b78",
        "#64801e",
    ),
    ramp=("#e8b04a", "#d4643c", "#9c2f6b", "#3b1f6e"),
)
DARK = Theme(
    background="#14181d",
    ink="#e6e9ed",
    faint="#9ba5b0",
    grid="#2b323a",
    cool=("#b5e3f0", "#58aede", "#3474c9"),
    warm=("#ffd28a", "#f58a3c", "#d04a35"),
    fresh=("#b9f0d4", "#5cc795", "#2c9a69"),
    hues=(
        "#6cabf0",
        "#f5935a",
        "#62c893",
        "#ee7ab8",
        "#ac92ee",
        "#dcb05a",
        "#4cc4d6",
        "#f07b7b",
        "#a9b4c0",
        "#a9c95e",
    ),
    ramp=("#7d5bc4", "#c95a9b", "#ee8a5c", "#fbdc8f"),
)


def shades(stops: Sequence[str], count: int) -> list[tuple[float, float, float, float]]:
    """Return `count` RGBA colors at equal distances along the gradient through `stops`."""
    gradient = LinearSegmentedColormap.from_list("stops", list(stops))
    return [gradient(0.5 if count == 1 else i / (count - 1)) for i in range(count)]


def new_figure(width: float, height: float, theme: Theme) -> Figure:
    """Create an empty figure with the theme's background; sizes are in inches."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor=theme.background)
    FigureCanvasAgg(figure)
    return figure


def dress(axes: Axes, theme: Theme, *, xlabel: str = "", ylabel: str = "", title: str = "") -> None:
    """Apply the theme to axes: colors, labels, a grid and no box."""
    axes.set_facecolor(theme.background)
    axes.set_xlabel(xlabel, color=theme.ink, fontsize=10)
    axes.set_ylabel(ylabel, color=theme.ink, fontsize=10)
    axes.set_title(title, loc="left", color=theme.ink, fontsize=11, fontweight="bold", pad=8)
    axes.tick_params(which="both", colors=theme.faint, labelsize=9, length=0)
    axes.grid(True, color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(theme.grid)


def png_bytes(figure: Figure, dpi: int = DPI) -> bytes:
    """Render a figure as PNG without a time stamp, so that equal figures have equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(
        buffer, format="png", dpi=dpi, facecolor=figure.get_facecolor(), metadata={"Software": None}
    )
    return buffer.getvalue()


def save_png(content: bytes, file: Path) -> None:
    """Write the content of a PNG file, atomically."""
    with write_atomically(file) as temporary:
        temporary.write_bytes(content)
