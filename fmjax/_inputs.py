"""Checks of the arrays, keys and functions that users pass; each raises one plain line."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from fmjax._arrays import Batch
from fmjax._checks import require


def described(value: Any) -> str:
    """What a value is, in a few words: `int32 of shape (4,)`, `None`, `a list`."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return repr(value)
    kind = type(value).__name__
    return f"{'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}"


def is_array(value: Any) -> bool:
    """Whether it is an array of numbers of JAX or NumPy, traced or not."""
    return isinstance(value, (jax.Array, np.ndarray, np.generic)) and (
        jnp.issubdtype(value.dtype, np.number) or value.dtype == bool
    )


def require_points(name: str, x: Any) -> None:
    """Raise unless `x` is an array `[batch, *event]` of floating point with at least one number."""
    require(is_array(x), name, "be an array [batch, *event]", described(x))
    require(jnp.issubdtype(x.dtype, jnp.floating), name, "be floating point", x.dtype)
    require(x.ndim >= 1, name, "have a batch axis", f"shape {x.shape}")
    require(0 not in x.shape, name, "hold at least one sample", f"shape {x.shape}")


def require_real(name: str, x: Any) -> None:
    """Raise unless `x` is an array of real numbers with a leading axis, and not empty."""
    real = is_array(x) and not jnp.issubdtype(x.dtype, jnp.complexfloating)
    require(real, name, "be an array of real numbers", described(x))
    require(x.ndim >= 1 and 0 not in x.shape, name, "hold at least one sample", f"shape {x.shape}")


def require_batch(batch: Batch) -> None:
    """Raise unless a batch of training data holds points, and a condition and source for each."""
    require(isinstance(batch, Batch), "batch", "be a Batch(x1, cond, x0)", described(batch))
    require_real("batch.x1", batch.x1)
    require_cond(batch.cond, batch.x1.shape[0])
    if batch.x0 is not None:
        require_real("batch.x0", batch.x0)
        same = batch.x0.shape == batch.x1.shape
        require(same, "batch.x0", f"have the shape of x1, {batch.x1.shape}", batch.x0.shape)


def require_ends(t: Any, x0: Any, x1: Any) -> None:
    """Raise unless `x0` and `x1` are real points of one shape, with a time in `t` for each."""
    for name, x in (("t", t), ("x0", x0), ("x1", x1)):
        require_real(name, x)
    require(x0.shape == x1.shape, "x0", f"have the shape of x1, {x1.shape}", x0.shape)
    require(t.shape == x1.shape[:1], "t", f"have shape {x1.shape[:1]}, one per example", t.shape)


def as_features(name: str, features: Any) -> np.ndarray:
    """The features `[n, d]` as a NumPy array.

    Raises:
        ValueError: If they are no such array of real numbers, or hold inf or nan.
    """
    try:
        x = np.asarray(features)
    except ValueError:  # Rows of different lengths.
        x = np.asarray(None)
    real = x.dtype.kind in "fiub" or jnp.issubdtype(x.dtype, jnp.floating)
    require(real, name, "be an array [n, d] of real numbers", described(features))
    require(x.ndim == 2, name, "be [n, d]", f"shape {x.shape}")
    require(bool(np.isfinite(x).all()), name, "be finite", "inf or nan")
    return x


def require_like(name: str, value: Any, x: Any) -> None:
    """Raise unless what the function `name` returned is shaped like the points `x`, and real."""
    require(is_array(value), name, f"return an array of shape {x.shape}", described(value))
    require(value.shape == x.shape, name, f"return shape {x.shape}", value.shape)
    require(jnp.issubdtype(value.dtype, jnp.floating), name, "return floating point", value.dtype)


def require_function(name: str, fn: Any) -> None:
    """Raise unless `fn` can be called."""
    require(callable(fn), name, "be a function", described(fn))


def require_keys(keys: Any, x: Any) -> None:
    """Raise unless there is a typed key for each sample of `x`."""
    typed = hasattr(keys, "dtype") and jnp.issubdtype(keys.dtype, jax.dtypes.prng_key)
    rule = f"be typed keys of shape {x.shape[:1]}, one per sample"
    require(typed and keys.shape == x.shape[:1], "keys", rule, described(keys))


def require_key(key: Any) -> None:
    """Raise unless `key` is one key of JAX."""
    is_key = isinstance(key, jax.Array) and (
        (jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.shape == ())
        or (key.dtype == jnp.uint32 and key.ndim == 1)
    )
    require(is_key, "key", "be one key (jax.random.key)", described(key))


def _require_kept(name: str, value: Any) -> None:
    """Raise if JAX would drop the upper bits of an integer array of NumPy."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "iu" and value.size:
        limits = np.iinfo(jax.dtypes.canonicalize_dtype(value.dtype))
        low, high = int(value.min()), int(value.max())
        kept = limits.min <= low and high <= limits.max
        require(kept, name, f"hold integers of {limits.dtype}", f"{low} to {high}")


def require_cond(cond: Any, num: int | None = None) -> None:
    """Raise unless a condition is a pytree of numbers.

    Args:
        cond: The condition, or None.
        num: The samples that each leaf must have one row for; None if any shape will do.
    """
    for leaf in jax.tree.leaves(cond):
        is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        number = is_array(leaf) or is_key or isinstance(leaf, (bool, int, float))
        require(number, "cond", "hold arrays of numbers", described(leaf))
        _require_kept("cond", leaf)
        if num is not None:
            rows = jnp.shape(leaf)[:1]
            rule = f"hold arrays with a leading batch axis of {num}"
            require(rows == (num,), "cond", rule, described(leaf))


def null_like(cond: Any, null_cond: Any) -> Any:
    """The null condition in arrays of the shapes and dtypes of `cond`, with unchanged values.

    Args:
        cond: A condition, a pytree of arrays.
        null_cond: A pytree like it, each leaf broadcast to that of `cond`.

    Raises:
        ValueError: If it is another pytree, or a leaf has another shape or holds what the leaf of
            `cond` cannot hold: no class label is 0.5.
    """
    leaves, structure = jax.tree.flatten(cond)
    try:
        nulls = structure.flatten_up_to(null_cond)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"null_cond must be like the condition, {structure}, got {described(null_cond)}"
        ) from error
    return structure.unflatten(map(_null_leaf, leaves, nulls))


def _null_leaf(leaf: Any, null: Any) -> jax.Array:
    dtype, shape = jnp.result_type(leaf), jnp.shape(leaf)
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return jnp.broadcast_to(null, shape)
    known = is_array(null) or isinstance(null, (bool, int, float))
    require(known, "null_cond", "hold numbers like the condition", described(null))
    try:
        broadcasts = np.broadcast_shapes(jnp.shape(null), shape) == shape
    except ValueError:
        broadcasts = False
    require(broadcasts, "null_cond", f"broadcast to shape {shape}", described(null))
    if isinstance(null, Tracer):
        like = jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(null.dtype, dtype)
        require(like, "null_cond", f"hold {dtype} like the condition", null.dtype)
        return jnp.broadcast_to(jnp.asarray(null, dtype), shape)
    value = np.asarray(null)
    fits = (value.dtype.kind == "b") == jnp.issubdtype(dtype, jnp.bool_)
    if jnp.issubdtype(dtype, jnp.integer):
        limits = jnp.iinfo(dtype)
        fits = fits and bool(np.all((value >= limits.min) & (value <= limits.max)))
        fits = fits and bool(np.all(value == np.floor(value)))
    elif jnp.issubdtype(dtype, jnp.floating):
        largest = float(jnp.finfo(dtype).max)
        fits = fits and not np.any(np.isfinite(value) & (np.abs(value) > largest))
    require(fits, "null_cond", f"hold {dtype} like the condition", null)
    return jnp.broadcast_to(jnp.asarray(value.astype(dtype)), shape)
