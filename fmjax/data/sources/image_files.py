"""Image files of any size, decoded on access to squares of one size."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

# Pillow reads PostScript with Ghostscript, which executes the file as a program.
_EXECUTABLE_FORMATS = ("EPS",)
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def open_image(file: Path | str | BytesIO) -> Image.Image:
    """Open an image of any format that Pillow reads without running another program.

    Raises:
        OSError: If the file is not an image of such a format.
    """
    Image.init()
    return Image.open(file, formats=[name for name in Image.ID if name not in _EXECUTABLE_FORMATS])


def crop_to_square(image: Image.Image, size: int) -> np.ndarray:
    """Center-crop and resize an image to uint8 `[size, size, 3]`, on a white background."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # Pillow would clip all values above 255.
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise OSError(f"32-bit pixels (mode {image.mode}), whose value range is unknown")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    fitted = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.LANCZOS)
    return np.asarray(fitted)


class ImageFiles:
    """Image files as a uint8 array `[num, size, size, 3]` that is decoded on access."""

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, files: Sequence[Path], size: int) -> None:
        """Set the files, in order, and the side of the square images in pixels."""
        self._files, self._size = np.asarray([str(file) for file in files], object), size

    def __len__(self) -> int:
        return len(self._files)

    @property
    def files(self) -> tuple[Path, ...]:
        """The image files, in order."""
        return tuple(map(Path, self._files))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array, `(num, size, size, 3)`."""
        return (len(self), self._size, self._size, 3)

    def __getitem__(self, indices: slice | np.ndarray) -> np.ndarray:
        """Decode the images at `indices`.

        Raises:
            ValueError: If a file is not a valid image.
        """
        files = self._files[indices]
        pixels = np.empty((len(files), *self.shape[1:]), np.uint8)
        for row, file in zip(pixels, files, strict=True):
            row[...] = _read(file, self._size)
        return pixels


def _read(file: str, size: int) -> np.ndarray:
    """Read an image file as a square, uint8 `[size, size, 3]`."""
    try:
        with open_image(file) as image:
            # Lets the JPEG decoder skip detail that the resize would remove.
            image.draft("RGB", (2 * size, 2 * size))
            return crop_to_square(image, size)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"image {file} must be a valid image file, got {error}") from error
