"""Sliced Wasserstein distance: mean over random directions of one-dimensional distances."""

import functools

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
    """Compute the sliced Wasserstein distance between two sets of points, in their units.

    It is `(mean over directions d of W_p(x . d, y . d)^p)^(1/p)`, with directions uniform on the
    sphere of the flattened events and `W_p` exact for any two numbers of points. In one dimension
    it equals `W_p`. Two point sets that differ by a shift `s` in `n` dimensions have
    `E[(s . d)^2] = |s|^2 / n`, so their distance of order 2 is about `|s| / sqrt(n)`.

    Args:
        key: Random key of the directions. Use the same key to compare the distances of several
            sets to one reference set.
        x: First set of points.
        y: Second set of points, with the same event shape as x and any number of points.
        num_projections: Number of directions. The relative standard error of the result is
            proportional to `1 / sqrt(num_projections)`.
        order: Order p of the distance, 1 or 2.

    Raises:
        ValueError: If the event shapes differ, a set is empty, or a setting is out of range.

    Reference: Bonneel et al. 2015, Sliced and Radon Wasserstein barycenters of measures, J. Math.
        Imaging Vis. 51, section 3; exact quantile coupling: Peyre and Cuturi 2019,
        arXiv:1803.00567, remark 2.30.
    """
    require_key(key)
    require_real("x", x)
    require_real("y", y)
    rule = f"have the event shape of x, {x.shape[1:]}"
    require(x.shape[1:] == y.shape[1:], "y", rule, y.shape[1:])
    require_count("num_projections", num_projections, 1)
    require(order in (1, 2), "order", "be 1 or 2", order)
    x, y, scale = _normalize(x, y)
    return scale * _sliced_wasserstein(key, x, y, num_projections, order)


def _normalize(
    x: Array | np.ndarray, y: Array | np.ndarray
) -> tuple[Array | np.ndarray, Array | np.ndarray, Array]:
    """Center both sets at the mean of y and scale them to at most 1 in absolute value.

    The distance is computed in float32, which would lose the digits of points that are close
    together and far from the origin. So this is done in float64 on the host, or in the precision of
    the points under a JAX transformation.

    Returns:
        x, y, and the scale by which to multiply the distance.
    """
    traced = any(isinstance(points, Tracer) for points in (x, y))
    xp = jnp if traced else np
    dtype = jnp.result_type(x.dtype, y.dtype, jnp.float32) if traced else np.float64
    x, y = (xp.asarray(points).astype(dtype) for points in (x, y))
    center = y.mean(axis=0, keepdims=True)
    x, y = x - center, y - center
    scale = xp.maximum(xp.abs(x).max(initial=0.0), xp.abs(y).max(initial=0.0))
    scale = xp.where(scale > 0.0, scale, 1.0)
    return x / scale, y / scale, jnp.asarray(scale, jnp.float32)


@functools.partial(jax.jit, static_argnums=(3, 4))
def _sliced_wasserstein(
    key: PRNGKey, x: Array, y: Array, num_projections: int, order: int
) -> Float[Array, ""]:
    x, y = (a.reshape(a.shape[0], -1).astype(jnp.float32) for a in (x, y))
    directions = jax.random.normal(key, (num_projections, x.shape[1]))
    directions = directions / jnp.linalg.norm(directions, axis=1, keepdims=True)
    x, y = (jnp.matmul(directions, a.T, precision="highest") for a in (x, y))
    mass, x_ranks, y_ranks = _quantile_coupling(x.shape[1], y.shape[1])
    distance = jnp.abs(jnp.sort(x, axis=1)[:, x_ranks] - jnp.sort(y, axis=1)[:, y_ranks])
    moment = distance**order @ mass
    return jnp.mean(moment) if order == 1 else safe_sqrt(jnp.mean(moment))


def _quantile_coupling(num_x: int, num_y: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Couple two sets of sorted points of equal mass optimally.

    The quantile functions are piecewise constant, with jumps at multiples of `1 / num_x` and
    `1 / num_y`. Positions are counted in units of `1 / (num_x num_y)`, which is exact.

    Returns:
        The mass of each piece between two jumps, and the ranks of the coupled points in x and y.
    """
    jumps = np.union1d(np.arange(num_x + 1) * num_y, np.arange(num_y + 1) * num_x)
    mass = np.diff(jumps) / (num_x * num_y)
    return mass.astype(np.float32), jumps[:-1] // num_y, jumps[:-1] // num_x
