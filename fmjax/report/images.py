"""Grids of small images as PNG, with exact pixels."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fmjax._checks import require, require_at_least

CELL = 56  # Approximate shorter side of a cell in pixels: 8x8 is enlarged 7 times, 64x64 is not.


def image_grid(
    images: np.ndarray,
    columns: int,
    *,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    gap: int = 4,
    background: str = "#ffffff",
    ink: str = "#1c2128",
) -> Image.Image:
    """Arrange images in a grid, enlarged by an integer factor without smoothing.

    Args:
        images: `[n, height, width, 1 or 3]` in [-1, 1]. Values outside are clipped, and NaN is
            black. The cell of an image of only NaNs is blank.
        columns: Number of images in a row; the last row may be shorter.
        row_labels: One label for each row, to its left, or none; line breaks become spaces.
        column_labels: One label for each column, above it, or none; line breaks become spaces.
        gap: Pixels between cells.
        background: Color between cells.
        ink: Color of labels.

    Raises:
        ValueError: If `images` has another shape, `columns` is below 1, or the number of labels
            differs from that of rows or columns.
    """
    shape_ok = images.ndim == 4 and images.shape[0] > 0 and images.shape[-1] in (1, 3)
    require(shape_ok, "images", "have shape [n, height, width, 1 or 3]", images.shape)
    require_at_least("columns", columns, 1)
    rows = -(-len(images) // columns)
    rows_ok = len(row_labels) in (0, rows)
    require(rows_ok, "row_labels", f"have one entry for each of {rows} rows", len(row_labels))
    columns_ok = len(column_labels) in (0, columns)
    rule = f"have one entry for each of {columns} columns"
    require(columns_ok, "column_labels", rule, len(column_labels))
    row_labels = [" ".join(label.split()) for label in row_labels]
    column_labels = [" ".join(label.split()) for label in column_labels]
    scale = max(1, round(CELL / min(images.shape[1:3])))
    height, width = images.shape[1] * scale, images.shape[2] * scale
    font = ImageFont.load_default(size=min(22, max(13, height // 3)))
    margin = max((int(font.getlength(label)) for label in row_labels), default=-2 * gap) + 3 * gap
    column_font = ImageFont.load_default(size=13)
    top = gap + (18 if column_labels else 0)
    size = (margin + min(columns, len(images)) * (width + gap), top + rows * (height + gap))
    canvas = Image.new("RGB", size, background)
    for i, pixels in enumerate(_to_rgb(images)):
        if np.isnan(images[i]).all():
            continue
        row, column = divmod(i, columns)
        cell = Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)
        canvas.paste(cell, (margin + column * (width + gap), top + row * (height + gap)))
    draw = ImageDraw.Draw(canvas)
    for row, label in enumerate(row_labels):
        middle = top + row * (height + gap) + height / 2
        draw.text((margin - 2 * gap, middle), label, fill=ink, font=font, anchor="rm")
    for column, label in enumerate(column_labels):
        middle = margin + column * (width + gap) + width / 2
        draw.text((middle, top / 2), label, fill=ink, font=column_font, anchor="mm")
    return canvas


def image_bytes(image: Image.Image) -> bytes:
    """Encode an image as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _to_rgb(images: np.ndarray) -> np.ndarray:
    """Convert images in [-1, 1] to uint8 `[n, height, width, 3]`; -1 is 0 and 1 is 255."""
    bounded = np.clip(np.nan_to_num(images.astype(np.float32), nan=-1.0), -1.0, 1.0)
    gray_or_rgb = np.rint((bounded + 1) * 127.5).astype(np.uint8)
    return np.broadcast_to(gray_or_rgb, (*images.shape[:3], 3))
