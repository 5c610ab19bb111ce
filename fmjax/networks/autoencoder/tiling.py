"""Tiled decoding of large images, with the memory use of one tile."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fmjax._arrays import Params
from fmjax._checks import require, require_at_least

_ROWS, _COLUMNS = 1, 2  # Axes of images.


class _Span(NamedTuple):
    """Extent of a tile along one side of the latents: first pixel and number of pixels."""

    start: int
    size: int


def decode_tiled(
    decode: Callable[[Params, Array], Array],
    params: Params,
    latents: Float[Array, "batch height width latent"],
    *,
    tile: int,
    overlap: int | None = None,
) -> Float[Array, "batch _height _width channel"]:
    """Decode latents in overlapping square tiles and blend neighboring tiles linearly.

    Tiles are decoded independently, so the images differ slightly from those of `decode`; they
    equal those of `enable_tiling` in diffusers. The last tile of a row or column can be smaller.
    Tiles of equal size are decoded in one loop; the program contains one copy of the decoder per
    size, at most nine with an overlap of a quarter tile.

    Args:
        decode: Function `decode(params, latents) -> images`, such as `Autoencoder.decode`.
        params: Parameters passed to `decode`.
        latents: Latents to decode; those that fit in one tile are decoded at once.
        tile: Side of a tile, in pixels of the latents.
        overlap: Overlap of neighboring tiles, in pixels of the latents; None for a quarter of
            `tile`.

    Raises:
        ValueError: If `tile` is not positive, or `overlap` is negative or not less than `tile`.
    """
    require_at_least("tile", tile, 1)
    overlap = tile // 4 if overlap is None else overlap
    require(0 <= overlap < tile, "overlap", f"lie in [0, tile - 1 = {tile - 1}]", overlap)
    height, width = latents.shape[1:3]
    if max(height, width) <= tile:
        return decode(params, latents)
    stride = tile - overlap
    rows, columns = _spans(height, tile, stride), _spans(width, tile, stride)
    images = _decode_tiles(lambda part: decode(params, part), latents, rows, columns)
    factor = images[0, 0].shape[_ROWS] // rows[0].size
    return _join_tiles(images, len(rows), len(columns), overlap * factor, stride * factor)


def _spans(size: int, tile: int, stride: int) -> list[_Span]:
    return [_Span(start, min(tile, size - start)) for start in range(0, size, stride)]


def _decode_tiles(
    decode: Callable[[Array], Array],
    latents: Array,
    rows: Sequence[_Span],
    columns: Sequence[_Span],
) -> dict[tuple[int, int], Array]:
    """Decode all tiles one after the other; return them by their (row, column) in the grid."""
    tiles_by_size: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            tiles_by_size.setdefault((row.size, column.size), []).append((i, j))
    images = {}
    for (height, width), tiles in tiles_by_size.items():

        def decode_tile(corner: Array, height: int = height, width: int = width) -> Array:
            part = jax.lax.dynamic_slice_in_dim(latents, corner[0], height, _ROWS)
            return decode(jax.lax.dynamic_slice_in_dim(part, corner[1], width, _COLUMNS))

        corners = np.array([(rows[i].start, columns[j].start) for i, j in tiles], np.int32)
        images |= zip(tiles, jax.lax.map(decode_tile, corners), strict=True)
    return images


def _join_tiles(
    images: dict[tuple[int, int], Array], rows: int, columns: int, overlap: int, stride: int
) -> Array:
    """Join tiles to one image; blend each with the blended tiles above and to the left."""
    blended: dict[tuple[int, int], Array] = {}
    for i in range(rows):
        for j in range(columns):
            image = images[i, j]
            if i > 0:
                image = _blend(blended[i - 1, j], image, overlap, _ROWS)
            if j > 0:
                image = _blend(blended[i, j - 1], image, overlap, _COLUMNS)
            blended[i, j] = image
    strips = [
        jnp.concatenate([blended[i, j][:, :stride, :stride] for j in range(columns)], _COLUMNS)
        for i in range(rows)
    ]
    return jnp.concatenate(strips, _ROWS)


def _blend(previous: Array, image: Array, overlap: int, axis: int) -> Array:
    """Fade linearly from the last pixels of `previous` to the first pixels of `image`."""
    overlap = min(overlap, previous.shape[axis], image.shape[axis])
    if overlap == 0:
        return image
    shape = [overlap if axis == other else 1 for other in range(image.ndim)]
    ramp = (np.arange(overlap, dtype=np.float32) / overlap).reshape(shape)
    end = previous.shape[axis]
    last = jax.lax.slice_in_dim(previous, end - overlap, end, axis=axis)
    first = jax.lax.slice_in_dim(image, 0, overlap, axis=axis)
    remaining = jax.lax.slice_in_dim(image, overlap, None, axis=axis)
    return jnp.concatenate([last * (1.0 - ramp) + first * ramp, remaining], axis)
