"""Decoding of large images tile by tile, in the memory of one tile."""

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
    """Where a tile stands along one side of the latents."""

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
    """Decode square tiles that overlap, and blend each linearly into the one before it.

    Each tile is decoded without a sight of the others, so the images differ a little from those of
    `decode`; they are those of diffusers' `enable_tiling`. The last tiles of a row or column are
    what is left of the latents. Tiles of one size go through one loop: of the decoder, the program
    holds a copy for each size, nine at most with a quarter of overlap.

    Args:
        decode: `decode(params, latents) -> images`, as of `Autoencoder`.
        params: Passed to `decode`.
        latents: Those of one tile or less are decoded as they are.
        tile: Side of a tile, in pixels of the latents.
        overlap: Of neighbouring tiles, in pixels of the latents; None for a quarter of a tile.

    Raises:
        ValueError: If the tile is not positive or no larger than the overlap.
    """
    require_at_least("tile", tile, 1)
    overlap = tile // 4 if overlap is None else overlap
    require(0 <= overlap < tile, "overlap", f"lie in [0, tile - 1 = {tile - 1}]", overlap)
    height, width = latents.shape[1:3]
    if max(height, width) <= tile:
        return decode(params, latents)
    stride = tile - overlap
    rows, columns = _spans(height, tile, stride), _spans(width, tile, stride)
    images = _decoded(lambda part: decode(params, part), latents, rows, columns)
    factor = images[0, 0].shape[_ROWS] // rows[0].size
    return _joined(images, len(rows), len(columns), overlap * factor, stride * factor)


def _spans(size: int, tile: int, stride: int) -> list[_Span]:
    return [_Span(start, min(tile, size - start)) for start in range(0, size, stride)]


def _decoded(
    decode: Callable[[Array], Array],
    latents: Array,
    rows: Sequence[_Span],
    columns: Sequence[_Span],
) -> dict[tuple[int, int], Array]:
    """All tiles by their places in the grid, decoded one after the other."""
    places: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            places.setdefault((row.size, column.size), []).append((i, j))
    images = {}
    for (height, width), alike in places.items():

        def one(corner: Array, height: int = height, width: int = width) -> Array:
            part = jax.lax.dynamic_slice_in_dim(latents, corner[0], height, _ROWS)
            return decode(jax.lax.dynamic_slice_in_dim(part, corner[1], width, _COLUMNS))

        corners = np.array([(rows[i].start, columns[j].start) for i, j in alike], np.int32)
        images |= zip(alike, jax.lax.map(one, corners), strict=True)
    return images


def _joined(
    images: dict[tuple[int, int], Array], rows: int, columns: int, overlap: int, stride: int
) -> Array:
    """One image. A tile is blended with those above and to the left, which are blended already."""
    blended: dict[tuple[int, int], Array] = {}
    for i in range(rows):
        for j in range(columns):
            image = images[i, j]
            if i > 0:
                image = _blend(blended[i - 1, j], image, overlap, _ROWS)
            if j > 0:
                image = _blend(blended[i, j - 1], image, overlap, _COLUMNS)
            blended[i, j] = image
    bands = [
        jnp.concatenate([blended[i, j][:, :stride, :stride] for j in range(columns)], _COLUMNS)
        for i in range(rows)
    ]
    return jnp.concatenate(bands, _ROWS)


def _blend(before: Array, after: Array, overlap: int, axis: int) -> Array:
    """`after`, its first pixels fading from the last of `before`, which lie on the same place."""
    overlap = min(overlap, before.shape[axis], after.shape[axis])
    if overlap == 0:
        return after
    shape = [overlap if axis == other else 1 for other in range(after.ndim)]
    ramp = (np.arange(overlap, dtype=np.float32) / overlap).reshape(shape)
    end = before.shape[axis]
    last = jax.lax.slice_in_dim(before, end - overlap, end, axis=axis)
    first = jax.lax.slice_in_dim(after, 0, overlap, axis=axis)
    rest = jax.lax.slice_in_dim(after, overlap, None, axis=axis)
    return jnp.concatenate([last * (1.0 - ramp) + first * ramp, rest], axis)
