"""Conversion of images to patch tokens, and position embeddings of patches and sequences."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fmjax.networks.layers.linear import at_least_float32


def patchify(
    x: Float[Array, "batch height width channel"], size: int
) -> Float[Array, "batch tokens patch"]:
    """Split images into square patches, row by row; each token is one flattened patch."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // size, size, width // size, size, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, size * size * channels)


def unpatchify(
    tokens: Float[Array, "batch tokens patch"], size: int, image_shape: tuple[int, ...]
) -> Float[Array, "batch height width channel"]:
    """Reassemble images from patches, the inverse of `patchify`."""
    height, width, channels = image_shape
    x = tokens.reshape(-1, height // size, width // size, size, size, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, height, width, channels)


def sincos_positions(*sides: int, dim: int) -> Float[Array, "tokens dim"]:
    """Compute fixed sine-cosine position embeddings of a grid, row by row.

    Each axis of the grid has an equal share of the channels: for an image, the first half encodes
    the row and the second half the column. Each share holds sines, then cosines, of the coordinate
    at frequencies from 1 to 1e-4. The table is computed by the compiled program; tracing only
    stores the values along each axis.

    Args:
        sides: Lengths of the axes: (height, width) in patches of an image, or one length.
        dim: Number of channels, a multiple of twice the number of axes.

    Reference: Peebles and Xie 2023, arXiv:2212.09748, section 3.2; Vaswani et al. 2017,
        arXiv:1706.03762, section 3.5.
    """
    num_axes, share = len(sides), dim // (2 * len(sides))
    parts = []
    for axis, side in enumerate(sides):
        angles = _angles(np.arange(side), share)
        values = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1, dtype=np.float32)
        aligned = values.reshape(*(side if i == axis else 1 for i in range(num_axes)), -1)
        parts.append(jnp.broadcast_to(aligned, (*sides, 2 * share)))
    return jnp.concatenate(parts, axis=-1).reshape(math.prod(sides), -1)


def rotary_angles(*sides: int, dim: int) -> Float[np.ndarray, "tokens half_dim"]:
    """Compute rotary position angles on a grid; each axis has an equal share of the angles.

    Args:
        sides: Lengths of the axes: (height, width) in patches of an image, or one length.
        dim: Number of channels of a head, a multiple of twice the number of axes.

    Reference: Su et al. 2021, arXiv:2104.09864, section 3.2.2; axial form for images:
        Heo et al. 2024, arXiv:2403.13298, equation 8.
    """
    share = dim // (2 * len(sides))
    return np.concatenate(axis_angles(*sides, num_frequencies=share), axis=-1).astype(np.float32)


def rotate(
    x: Float[Array, "batch heads tokens dim"], angles: Float[np.ndarray, "tokens half_dim"]
) -> Float[Array, "batch heads tokens dim"]:
    """Rotate the channel pair `(i, i + dim/2)` of each token by the token's angle i.

    The dot product of a rotated query and a rotated key depends on their positions only through
    the difference.

    Reference: Su et al. 2021, arXiv:2104.09864, equation 34.
    """
    cos, sin = np.cos(angles)[None, None], np.sin(angles)[None, None]
    first, second = jnp.split(at_least_float32(x), 2, axis=-1)
    rotated = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


def axis_angles(*sides: int, num_frequencies: int) -> tuple[np.ndarray, ...]:
    """Return coordinate times frequency for each token of a grid, one array for each axis."""
    coordinates = np.meshgrid(*(np.arange(side) for side in sides), indexing="ij")
    return tuple(_angles(coordinate.reshape(-1), num_frequencies) for coordinate in coordinates)


def _angles(coordinates: np.ndarray, num_frequencies: int) -> np.ndarray:
    """Return coordinate times frequency, with frequencies from 1 to 1e-4."""
    frequencies = 10000.0 ** (-np.arange(num_frequencies) / num_frequencies)
    return coordinates.reshape(-1, 1) * frequencies[None]
