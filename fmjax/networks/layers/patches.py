"""Images as tokens: cut into patches, and told where each of them is."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fmjax.networks.layers.linear import at_least_float32


def patchify(
    x: Float[Array, "batch height width channel"], size: int
) -> Float[Array, "batch tokens patch"]:
    """Cut images into square patches, row by row; a token is one patch, flattened."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // size, size, width // size, size, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, size * size * channels)


def unpatchify(
    tokens: Float[Array, "batch tokens patch"], size: int, image_shape: tuple[int, ...]
) -> Float[Array, "batch height width channel"]:
    """Put the patches together again: the inverse of `patchify`."""
    height, width, channels = image_shape
    x = tokens.reshape(-1, height // size, width // size, size, size, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, height, width, channels)


def sincos_positions(height: int, width: int, dim: int) -> Float[Array, "tokens dim"]:
    """Fixed positions of a grid, row by row: half of `dim` tells the row, half the column.

    Each half holds sines, then cosines, of the coordinate at frequencies from 1 to 1e-4. Of a large
    table nothing large is computed while a program is traced.

    Source: Peebles and Xie 2023, arXiv:2212.09748, section 3.2; Vaswani et al. 2017,
        arXiv:1706.03762, section 3.5.
    """
    rows, columns = axis_angles(height, 1, dim // 4)[0], axis_angles(1, width, dim // 4)[1]
    waves = [
        np.concatenate([np.sin(a), np.cos(a)], axis=-1, dtype=np.float32) for a in (rows, columns)
    ]
    shape = (height, width, 2 * (dim // 4))
    halves = [jnp.broadcast_to(waves[0][:, None], shape), jnp.broadcast_to(waves[1][None], shape)]
    return jnp.concatenate(halves, axis=-1).reshape(height * width, -1)


def rotary_angles(height: int, width: int, dim: int) -> Float[np.ndarray, "tokens half_dim"]:
    """Angles of rotary positions on a grid: half of the channel pairs turn by row, half by column.

    Source: Su et al. 2021, arXiv:2104.09864, section 3.2.2; axial form for images:
        Heo et al. 2024, arXiv:2403.13298, equation 8.
    """
    return np.concatenate(axis_angles(height, width, dim // 4), axis=-1).astype(np.float32)


def rotate(
    x: Float[Array, "batch heads tokens dim"], angles: Float[np.ndarray, "tokens half_dim"]
) -> Float[Array, "batch heads tokens dim"]:
    """Turn channel pair `(i, i + dim/2)` of each token by that token's angle i.

    The product of a turned query with a turned key depends on their positions only
    through the difference.

    Source: Su et al. 2021, arXiv:2104.09864, equation 34.
    """
    cos, sin = np.cos(angles)[None, None], np.sin(angles)[None, None]
    first, second = jnp.split(at_least_float32(x), 2, axis=-1)
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def axis_angles(height: int, width: int, num_frequencies: int) -> tuple[np.ndarray, np.ndarray]:
    """Row times frequency, and column times frequency, for every token of the grid."""
    frequencies = 10000.0 ** (-np.arange(num_frequencies) / num_frequencies)
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    return rows.reshape(-1, 1) * frequencies[None], columns.reshape(-1, 1) * frequencies[None]
