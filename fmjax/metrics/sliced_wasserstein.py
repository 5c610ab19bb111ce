"""Sliced Wasserstein distance: optimal transport along random lines, where sorting solves it."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from fmjax._arrays import PRNGKey, safe_sqrt
from fmjax._checks import require, require_count
from fmjax._inputs import require_key, require_real


def sliced_wasserstein(
    key: PRNGKey,
    x: Float[Array | np.ndarray, " num_x *event"],
    y: Float[Array | np.ndarray, " num_y *event_of_y"],
    *,
    num_projections: int = 256,
    order: int = 2,
) -> Float[Array, ""]:
    r"""Distance between two sets of points, in the units of the points.

    `(mean over directions d of W_p(x . d, y . d)^p)^(1/p)`, directions uniform on the sphere
    of the flattened events, `W_p` exact for any two numbers of points. In one dimension it is
    `W_p` itself. Two point sets that differ by a shift `s` in `n` dimensions have
    `E[(s . d)^2] = |s|^2 / n`, so their distance of order 2 is about `|s| / sqrt(n)`.

    Args:
        key: Of the directions. The same key gives the same directions, so that distances of
            several sets to one reference compare.
        x: Points.
        y: Points with the same event shape; there may be more or fewer of them.
        num_projections: How many directions. The relative standard error of the result falls
            like one over its square root.
        order: p, 1 or 2.

    Raises:
        ValueError: If the event shapes differ, a set is empty, or a setting is out of range.

    Source: Bonneel et al. 2015, Sliced and Radon Wasserstein barycenters of measures, J. Math.
        Imaging Vis. 51, section 3; exact quantile coupling: Peyre and Cuturi 2019,
        arXiv:1803.00567, remark 2.30.
    """
    require_key(key)
    require_real("x", x)
    require_real("y", y)
    require(x.shape[1:] == y.shape[1:], "y", f"have events like x, {x.shape[1:]}", y.shape[1:])
    require_count("num_projections", num_projections, 1)
    require(order in (1, 2), "order", "be 1 or 2", order)
    (x, y), size = _centred(x, y)
    return size * _sliced_wasserstein(key, x, y, num_projections, order)


def _centred(x: Any, y: Any) -> tuple[tuple[Any, Any], Any]:
    """Both sets about the mean of y over their size, and that size, in the points' precision.

    Neither changes the distance but by the size. float32, in which the rest is done, would lose
    the digits of points that are close together and far from the origin.
    """
    known = not any(isinstance(points, Tracer) for points in (x, y))
    # NumPy has float64 wherever JAX has it not.
    xp: Any = np if known else jnp
    wide = np.float64 if known else jnp.result_type(x.dtype, y.dtype, jnp.float32)
    x, y = (xp.asarray(points).astype(wide) for points in (x, y))
    centre = y.mean(axis=0, keepdims=True)
    x, y = x - centre, y - centre
    size = xp.maximum(xp.abs(x).max(initial=0.0), xp.abs(y).max(initial=0.0))
    size = xp.where(size > 0.0, size, 1.0)
    return (x / size, y / size), jnp.asarray(size, jnp.float32)


@functools.partial(jax.jit, static_argnums=(3, 4))
def _sliced_wasserstein(
    key: PRNGKey, x: Array, y: Array, num_projections: int, order: int
) -> Float[Array, ""]:
    x, y = (a.reshape(a.shape[0], -1).astype(jnp.float32) for a in (x, y))
    directions = jax.random.normal(key, (num_projections, x.shape[1]))
    directions = directions / jnp.linalg.norm(directions, axis=1, keepdims=True)
    x, y = (jnp.matmul(directions, a.T, precision="highest") for a in (x, y))
    mass, from_x, from_y = _quantile_coupling(x.shape[1], y.shape[1])
    distance = jnp.abs(jnp.sort(x, axis=1)[:, from_x] - jnp.sort(y, axis=1)[:, from_y])
    moment = distance**order @ mass
    return jnp.mean(moment) if order == 1 else safe_sqrt(jnp.mean(moment))


def _quantile_coupling(num_x: int, num_y: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How n and m sorted points of equal mass are coupled: mass of each piece, its two ranks.

    The quantile functions are steps at multiples of 1/n and 1/m; between two neighbouring
    steps of either, both are constant. Counting in units of 1/(n m) keeps this exact.
    """
    steps = np.union1d(np.arange(num_x + 1) * num_y, np.arange(num_y + 1) * num_x)
    mass = np.diff(steps) / (num_x * num_y)
    return mass.astype(np.float32), steps[:-1] // num_y, steps[:-1] // num_x
