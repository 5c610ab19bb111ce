"""Images to work on, with their classes: of the test data, or from files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from fmjax._checks import require
from fmjax.data import Dataset
from fmjax.data.sources.image_files import open_image
from fmjax.runs.folder import Run
from fmjax.runs.sampling.batches import even_batches
from fmjax.sharding import batch_sharding

# What has nothing to lose on the way to so many channels but, to one of them, its colour.
_MODES = {1: ("L", "1", "RGB"), 3: ("RGB",)}


class Examples(NamedTuple):
    """Images and their classes.

    Attributes:
        x: `[num, height, width, channel]` in [-1, 1].
        labels: int32 `[num]`, or None for an unconditional model.
    """

    x: np.ndarray
    labels: np.ndarray | None

    def at(self, which: Any) -> "Examples":
        """Those at some indices."""
        return Examples(self.x[which], None if self.labels is None else self.labels[which])


def check_classes(name: str, classes: tuple[int, ...], num_classes: int | None) -> None:
    """Refuse classes that a model does not have.

    Raises:
        ValueError: If there is one, called `name`.
    """
    require(num_classes is not None, name, "be left out for a model without classes", classes)
    assert num_classes is not None
    for label in classes:
        require(0 <= label < num_classes, name, f"lie in 0 .. {num_classes - 1}", label)


def given_images(
    paths: tuple[Path, ...],
    classes: tuple[int, ...],
    event_shape: tuple[int, ...],
    num_classes: int | None,
) -> Examples:
    """Image files, and their classes for a model that has `num_classes` of them.

    Raises:
        ValueError: If a file is not as the model takes it, or there is not one class for each.
    """
    if num_classes is not None:
        rule = f"be one for each of {len(paths)} images, for a model that has classes"
        require(len(classes) == len(paths), "classes", rule, classes)
    if classes:
        check_classes("classes", classes, num_classes)
    x = np.stack([read_image(path, event_shape) for path in paths])
    return Examples(x, np.asarray(classes, np.int32) if classes else None)


def chosen_images(test: Dataset, num: int) -> Examples:
    """The first images; with classes, two of each in turn, so that pairs share theirs."""
    if test.labels is None:
        return Examples(test.points(slice(num)), None)
    rank = np.empty(len(test), int)  # Among those of its class.
    for label in range(test.num_classes or 0):
        of_class = np.flatnonzero(test.labels == label)
        rank[of_class] = np.arange(len(of_class))
    order = np.lexsort((rank, test.labels, rank // 2))[:num]
    return Examples(test.points(order), test.classes(order))


def read_image(path: Path, event_shape: tuple[int, ...]) -> np.ndarray:
    """The pixels of a file, float32 in [-1, 1], shaped as the model takes them.

    Colour becomes grey for a model of one channel. Nothing is resized.

    Args:
        path: Image file of any format that Pillow reads, except EPS.
        event_shape: `(height, width, channels)`, of 1 or 3 channels.

    Raises:
        ValueError: If the file is no whole image, or of another size or mode.
    """
    height, width, channels = event_shape
    modes = _MODES[channels]
    try:
        with open_image(path) as image:
            sized = image.size == (width, height)
            require(
                sized,
                f"image {path}",
                f"be {width} x {height} pixels, as the model's",
                f"{image.width} x {image.height}",
            )
            require(
                image.mode in modes, f"image {path}", f"be of mode {' or '.join(modes)}", image.mode
            )
            pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"), np.float32)
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        # Pillow says so of a damaged PNG.
        raise ValueError(f"image {path} must be a whole image file, got {error}") from error
    return pixels.reshape(event_shape) / np.float32(127.5) - np.float32(1)


def over_devices(run: Run, fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn(params, x, labels, *rest)`, compiled, over all devices, for any number of examples.

    Args:
        run: Whose parameters and mesh.
        fn: Gives arrays with a row for each example.
    """
    rows = batch_sharding(run.mesh)

    @jax.jit
    def compiled(*args: Any) -> Any:
        # Lets networks name the mesh axes without being handed the mesh.
        with jax.sharding.use_abstract_mesh(run.mesh.abstract_mesh):
            return fn(*args)

    def call(examples: Examples, *rest: Any) -> Any:
        num = len(examples.x)
        ((which, _),) = even_batches(num, num, run.mesh)
        x, labels = jax.tree.map(lambda a: jax.device_put(a, rows), tuple(examples.at(which)))
        return jax.tree.map(lambda a: np.asarray(a)[:num], compiled(run.params, x, labels, *rest))

    return call


def rms(x: np.ndarray) -> np.ndarray:
    """Of each row, over its other axes, in float64."""
    return np.sqrt(np.mean(np.square(x, dtype=np.float64), axis=tuple(range(1, x.ndim))))
