"""Images and class labels to invert, from the test data or from files."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree
from PIL import Image

from fmjax._checks import require
from fmjax.data import Dataset
from fmjax.data.sources.image_files import open_image
from fmjax.runs.folder import Run
from fmjax.sharding import map_batched, on_mesh

# Pillow modes that convert to 1 or 3 channels without loss (except that RGB loses its color).
_MODES = {1: ("L", "1", "RGB"), 3: ("RGB",)}


class Examples(NamedTuple):
    """Images and their class labels.

    Attributes:
        x: Images in [-1, 1], `[num, height, width, channel]`.
        labels: Class labels, int32 `[num]`, or None for an unconditional model.
    """

    x: np.ndarray
    labels: np.ndarray | None

    def at(self, indices: np.ndarray | slice) -> "Examples":
        """Select the examples at `indices`."""
        return Examples(self.x[indices], None if self.labels is None else self.labels[indices])


def check_classes(name: str, classes: tuple[int, ...], num_classes: int | None) -> None:
    """Raise unless a model with `num_classes` classes has all of `classes`.

    Args:
        name: Name of the setting in the error message.
        classes: Class labels.
        num_classes: Number of classes of the model; None for an unconditional model.

    Raises:
        ValueError: If a class does not exist.
    """
    require(num_classes is not None, name, "be left out for a model without classes", classes)
    assert num_classes is not None
    for label in classes:
        require(0 <= label < num_classes, name, f"be between 0 and {num_classes - 1}", label)


def given_images(
    files: tuple[Path, ...],
    classes: tuple[int, ...],
    event_shape: tuple[int, ...],
    num_classes: int | None,
) -> Examples:
    """Read image files and pair them with their class labels.

    Args:
        files: Image files.
        classes: One class label per file; empty for an unconditional model.
        event_shape: Shape of the images of the model, `(height, width, channels)`.
        num_classes: Number of classes of the model; None for an unconditional model.

    Raises:
        ValueError: If a file does not fit the model, or `classes` does not have one class per file.
    """
    if num_classes is not None:
        rule = f"have one class for each of the {len(files)} images"
        require(len(classes) == len(files), "classes", rule, classes)
    if classes:
        check_classes("classes", classes, num_classes)
    x = np.stack([read_image(file, event_shape) for file in files])
    return Examples(x, np.asarray(classes, np.int32) if classes else None)


def chosen_images(test: Dataset, num: int) -> Examples:
    """Select the first `num` images; with classes, two per class in turn, so that pairs match."""
    if test.labels is None:
        return Examples(test.points(slice(num)), None)
    rank = np.empty(len(test), int)  # Position of each image among the images of its class.
    for label in range(test.num_classes or 0):
        indices = np.flatnonzero(test.labels == label)
        rank[indices] = np.arange(len(indices))
    order = np.lexsort((rank, test.labels, rank // 2))[:num]
    return Examples(test.points(order), test.classes(order))


def read_image(file: Path, event_shape: tuple[int, ...]) -> np.ndarray:
    """Read the pixels of an image file as float32 in [-1, 1], of shape `event_shape`.

    Color images are converted to gray for a model with one channel. Images are not resized.

    Args:
        file: Image file of any format that Pillow reads, except EPS.
        event_shape: `(height, width, channels)`, with 1 or 3 channels.

    Raises:
        ValueError: If the file is damaged, or has another size or mode.
    """
    height, width, channels = event_shape
    modes = _MODES[channels]
    try:
        with open_image(file) as image:
            require(
                image.size == (width, height),
                f"image {file}",
                f"be {width} x {height} pixels, the size of the model's images",
                f"{image.width} x {image.height}",
            )
            require(
                image.mode in modes, f"image {file}", f"have mode {' or '.join(modes)}", image.mode
            )
            pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"), np.float32)
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        # Pillow raises `SyntaxError` for some damaged PNG files.
        raise ValueError(f"image {file} must be a valid image file, got {error}") from error
    return pixels.reshape(event_shape) / np.float32(127.5) - np.float32(1)


def over_devices(run: Run, fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """Compile `fn` to run over all devices, for any number of examples.

    Args:
        run: Provides the parameters and the mesh.
        fn: `fn(params, x, labels, *args)` returns arrays with one row per example.

    Returns:
        `(examples, *args) -> arrays`, with NumPy arrays.
    """
    compiled = partial(jax.jit(on_mesh(run.mesh, fn)), run.params)

    def call(examples: Examples, *args: PyTree) -> PyTree:
        num = len(examples.x)
        return map_batched(
            lambda x, labels: compiled(x, labels, *args),
            lambda indices: tuple(examples.at(indices)),
            num,
            batch_size=num,
            mesh=run.mesh,
        )

    return call


def rms(x: np.ndarray) -> np.ndarray:
    """Root mean square of each row over all other axes, in float64."""
    return np.sqrt(np.mean(np.square(x, dtype=np.float64), axis=tuple(range(1, x.ndim))))
