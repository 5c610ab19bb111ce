"""Images of any size as squares of one size, decoded when they are asked for."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

# Pillow reads PostScript with Ghostscript, which runs the file as a program.
_PROGRAMS = ("EPS",)
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def open_image(file: Path | str | BytesIO) -> Image.Image:
    """Open an image of any format that Pillow reads, except those that run another program.

    Raises:
        OSError: If the file is no image of such a format.
    """
    Image.init()
    return Image.open(file, formats=[name for name in Image.ID if name not in _PROGRAMS])


def squared(image: Image.Image, size: int) -> np.ndarray:
    """The middle of an image on white, uint8 `[size, size, 3]`: its short side fills the square."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # Pillow would cut off all but the darkest 256 levels.
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise OSError(f"pixels of 32 bits (mode {image.mode}), of which nothing says what is white")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    fitted = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.LANCZOS)
    return np.asarray(fitted)


class ImageFiles:
    """Image files as one array `[num, size, size, 3]` of uint8 that never stands in memory."""

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, paths: Sequence[Path], size: int) -> None:
        """Take the files, in their order, and the side of the squares."""
        self._paths, self._size = np.asarray([str(path) for path in paths], object), size

    def __len__(self) -> int:
        return len(self._paths)

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files."""
        return tuple(map(Path, self._paths))

    @property
    def shape(self) -> tuple[int, ...]:
        """Of all images together."""
        return (len(self), self._size, self._size, 3)

    def __getitem__(self, indices: slice | np.ndarray) -> np.ndarray:
        """Decode the images at `indices`.

        Raises:
            ValueError: If a file is not a whole image.
        """
        pixels = np.empty((len(self._paths[indices]), *self.shape[1:]), np.uint8)
        for row, path in zip(pixels, self._paths[indices], strict=True):
            row[...] = _read(path, self._size)
        return pixels


def _read(path: str, size: int) -> np.ndarray:
    try:
        with open_image(path) as image:
            # JPEGs are decoded at a fraction of their size, where that is enough.
            image.draft("RGB", (2 * size, 2 * size))
            return squared(image, size)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"image {path} must be a whole image file, got {error}") from error
