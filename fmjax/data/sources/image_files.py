"""Image files of any size, decoded on access to squares of one size."""

import hashlib
import os
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


def is_test_image(name: str, test_every: int) -> bool:
    """Return whether an image is a test image: about one in `test_every` is, by a hash of its name.

    Args:
        name: The file, relative to the folder of the data set, with slashes.
        test_every: Average number of images per test image.
    """
    digest = hashlib.sha256(os.fsencode(name)).digest()
    return int.from_bytes(digest[:8], "big") % test_every == 0


def require_readable_mode(image: Image.Image) -> None:
    """Raise an `OSError` if the pixels of an image have an unknown range of values."""
    if image.mode in ("I", "F"):
        raise OSError(f"32-bit pixels (mode {image.mode}), whose value range is unknown")


def crop_to_square(image: Image.Image, size: int, channels: int = 3) -> np.ndarray:
    """Center-crop and resize an image, on a white background.

    Args:
        image: An image of any size and mode.
        size: Side of the result in pixels.
        channels: 3 for colors, 1 for gray values.

    Returns:
        The pixels, uint8 `[size, size, channels]`.

    Raises:
        OSError: If the image cannot be decoded or has 32-bit pixels.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # Pillow would clip all values above 255.
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    require_readable_mode(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    fitted = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.LANCZOS)
    return np.asarray(fitted) if channels == 3 else np.asarray(fitted.convert("L"))[..., None]


class ImageFiles:
    """Image files as a uint8 array `[num, size, size, channels]` that is decoded on access."""

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, files: Sequence[Path], size: int, channels: int = 3) -> None:
        """Set the files, in order, the side of the square images in pixels, and 1 or 3 channels."""
        self._files, self._size = np.asarray([str(file) for file in files], object), size
        self._channels = channels

    def __len__(self) -> int:
        return len(self._files)

    @property
    def files(self) -> tuple[Path, ...]:
        """The image files, in order."""
        return tuple(map(Path, self._files))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array, `(num, size, size, channels)`."""
        return (len(self), self._size, self._size, self._channels)

    def __getitem__(self, indices: slice | np.ndarray) -> np.ndarray:
        """Decode the images at `indices`.

        Raises:
            ValueError: If a file is not a valid image.
        """
        files = self._files[indices]
        pixels = np.empty((len(files), *self.shape[1:]), np.uint8)
        for row, file in zip(pixels, files, strict=True):
            row[...] = _read(file, self._size, self._channels)
        return pixels


def _read(file: str, size: int, channels: int) -> np.ndarray:
    """Read an image file as a square, uint8 `[size, size, channels]`."""
    try:
        with open_image(file) as image:
            # Lets the JPEG decoder skip detail that the resize would remove.
            image.draft("RGB", (2 * size, 2 * size))
            return crop_to_square(image, size, channels)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"image {file} must be a valid image file, got {error}") from error
