"""Conversion of images to patch tokens, and position embeddings of the patches."""

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


def sincos_positions(height: int, width: int, dim: int) -> Float[Array, "tokens dim"]:
    """Compute fixed sine-cosine position embeddings of a grid, row by row.

    The first half of the channels encodes the row, the second half the column. Each half holds
    sines, then cosines, of the coordinate at frequencies from 1 to 1e-4. The table is computed by
    the compiled program; tracing only stores the values of one row and one column.

    Reference: Peebles and Xie 2023, arXiv:2212.09748, section 3.2; Vaswani et al. 2017,
        arXiv:1706.03762, section 3.5.
    """
    rows, columns = axis_angles(height, 1, dim // 4)[0], axis_angles(1, width, dim // 4)[1]
    by_row, by_column = (
        np.concatenate([np.sin(angles), np.cos(angles)], axis=-1, dtype=np.float32)
        for angles in (rows, columns)
    )
    shape = (height, width, 2 * (dim // 4))
    halves = [jnp.broadcast_to(by_row[:, None], shape), jnp.broadcast_to(by_column[None], shape)]
    return jnp.concatenate(halves, axis=-1).reshape(height * width, -1)


def rotary_angles(height: int, width: int, dim: int) -> Float[np.ndarray, "tokens half_dim"]:
    """Compute rotary position angles on a grid, half of them by row and half by column.

    Reference: Su et al. 2021, arXiv:2104.09864, section 3.2.2; axial form for images:
        Heo et al. 2024, arXiv:2403.13298, equation 8.
    """
    return np.concatenate(axis_angles(height, width, dim // 4), axis=-1).astype(np.float32)


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


def axis_angles(height: int, width: int, num_frequencies: int) -> tuple[np.ndarray, np.ndarray]:
    """Return row times frequency and column times frequency for each token of a grid."""
    frequencies = 10000.0 ** (-np.arange(num_frequencies) / num_frequencies)
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    return rows.reshape(-1, 1) * frequencies[None], columns.reshape(-1, 1) * frequencies[None]
