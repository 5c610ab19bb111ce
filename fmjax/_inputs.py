"""Checks of the arrays, keys and functions that users pass."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import PyTree

from fmjax._arrays import Batch
from fmjax._checks import require


def describe(value: object) -> str:
    """Describe a value for a message: `int32 of shape (4,)`, `None`, `a list`."""
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    if dtype is not None and shape is not None:
        return f"{dtype} of shape {tuple(shape)}"
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return repr(value)
    type_name = type(value).__name__
    return f"{'an' if type_name[0] in 'aeiouAEIOU' else 'a'} {type_name}"


def is_array(value: object) -> bool:
    """Return whether a value is a numeric array of JAX (also a tracer) or NumPy."""
    return isinstance(value, (jax.Array, np.ndarray, np.generic)) and (
        jnp.issubdtype(value.dtype, np.number) or value.dtype == bool
    )


def require_points(name: str, x: PyTree) -> None:
    """Raise unless `x` is a non-empty floating-point array `[batch, *event]`."""
    require(is_array(x), name, "be an array [batch, *event]", describe(x))
    require(jnp.issubdtype(x.dtype, jnp.floating), name, "be floating point", x.dtype)
    require(x.ndim >= 1, name, "have a batch axis", f"shape {x.shape}")
    require(0 not in x.shape, name, "hold at least one sample", f"shape {x.shape}")


def require_real(name: str, x: PyTree) -> None:
    """Raise unless `x` is a non-empty array of real numbers with at least one axis."""
    real = is_array(x) and not jnp.issubdtype(x.dtype, jnp.complexfloating)
    require(real, name, "be an array of real numbers", describe(x))
    require(x.ndim >= 1 and 0 not in x.shape, name, "hold at least one sample", f"shape {x.shape}")


def require_batch(batch: Batch) -> None:
    """Raise unless `batch` holds points, and other arrays of the same number."""
    rule = "be a Batch(x1, cond, x0, weight, mask)"
    require(isinstance(batch, Batch), "batch", rule, describe(batch))
    require_real("batch.x1", batch.x1)
    require_cond(batch.cond, batch.x1.shape[0])
    if batch.x0 is not None:
        require_real("batch.x0", batch.x0)
        same_shape = batch.x0.shape == batch.x1.shape
        require(same_shape, "batch.x0", f"have the shape of x1, {batch.x1.shape}", batch.x0.shape)
    if batch.weight is not None:
        require_weight("batch.weight", batch.weight, batch.x1.shape[0])
    if batch.mask is not None:
        require_mask("batch.mask", batch.mask, batch.x1.shape)


def require_weight(name: str, weight: PyTree, num: int) -> None:
    """Raise unless `weight` holds one real number per example."""
    is_real = is_array(weight) and not jnp.issubdtype(weight.dtype, jnp.complexfloating)
    rule = f"be real numbers of shape {(num,)}, one per example"
    require(is_real and weight.shape == (num,), name, rule, describe(weight))


def require_mask(name: str, mask: PyTree, shape: tuple[int, ...]) -> None:
    """Raise unless `mask` is a boolean array for the first axes of data points of this shape."""
    rule = f"be bool of the first axes of {shape}, each of that length or 1"
    is_mask = is_array(mask) and mask.dtype == bool and 1 <= mask.ndim <= len(shape)
    fits = is_mask and mask.shape[0] == shape[0]
    fits = fits and all(m in (1, x) for m, x in zip(mask.shape, shape, strict=False))
    require(fits, name, rule, describe(mask))


def require_ends(t: PyTree, x0: PyTree, x1: PyTree) -> None:
    """Raise unless `x0` and `x1` are real arrays of equal shape, with one time in `t` per row."""
    for name, x in (("t", t), ("x0", x0), ("x1", x1)):
        require_real(name, x)
    require(x0.shape == x1.shape, "x0", f"have the shape of x1, {x1.shape}", x0.shape)
    require(t.shape == x1.shape[:1], "t", f"have shape {x1.shape[:1]}, one per example", t.shape)


def as_features(name: str, features: PyTree) -> np.ndarray:
    """Convert features `[n, d]` to a NumPy array.

    Raises:
        ValueError: If the features are not an array `[n, d]` of finite real numbers.
    """
    try:
        x = np.asarray(features)
    except ValueError:  # Rows of different lengths.
        x = np.asarray(None)
    real = x.dtype.kind in "fiub" or jnp.issubdtype(x.dtype, jnp.floating)
    require(real, name, "be an array [n, d] of real numbers", describe(features))
    require(x.ndim == 2, name, "be [n, d]", f"shape {x.shape}")
    require(bool(np.isfinite(x).all()), name, "be finite", "inf or nan")
    return x


def require_like(name: str, value: PyTree, x: PyTree) -> None:
    """Raise unless `value`, the result of function `name`, is a float array shaped like `x`."""
    require(is_array(value), name, f"return an array of shape {x.shape}", describe(value))
    require(value.shape == x.shape, name, f"return shape {x.shape}", value.shape)
    require(jnp.issubdtype(value.dtype, jnp.floating), name, "return floating point", value.dtype)


def require_function(name: str, fn: object) -> None:
    """Raise unless `fn` is callable."""
    require(callable(fn), name, "be a function", describe(fn))


def require_keys(keys: PyTree, x: PyTree) -> None:
    """Raise unless `keys` holds one typed PRNG key per sample of `x`."""
    is_typed = hasattr(keys, "dtype") and jnp.issubdtype(keys.dtype, jax.dtypes.prng_key)
    rule = f"be typed keys of shape {x.shape[:1]}, one per sample"
    require(is_typed and keys.shape == x.shape[:1], "keys", rule, describe(keys))


def require_key(key: object) -> None:
    """Raise unless `key` is a single PRNG key, typed or raw."""
    is_key = isinstance(key, jax.Array) and (
        (jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.shape == ())
        or (key.dtype == jnp.uint32 and key.ndim == 1)
    )
    require(is_key, "key", "be one key (jax.random.key)", describe(key))


def _require_representable(name: str, value: object) -> None:
    """Raise if JAX's conversion of a NumPy integer array would drop its upper bits."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "iu" and value.size:
        limits = np.iinfo(jax.dtypes.canonicalize_dtype(value.dtype))
        low, high = int(value.min()), int(value.max())
        fits = limits.min <= low and high <= limits.max
        require(fits, name, f"hold integers of {limits.dtype}", f"{low} to {high}")


def require_cond(cond: PyTree, num: int | None = None) -> None:
    """Raise unless a condition is a pytree of numbers, arrays of numbers or keys.

    Args:
        cond: The condition, or None.
        num: Number of samples, the required length of each leaf's leading axis; None to allow
            any shape.
    """
    for leaf in jax.tree.leaves(cond):
        is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        is_number = is_array(leaf) or is_key or isinstance(leaf, (bool, int, float))
        require(is_number, "cond", "hold arrays of numbers", describe(leaf))
        _require_representable("cond", leaf)
        if num is not None:
            leading = jnp.shape(leaf)[:1]
            rule = f"hold arrays with a leading batch axis of {num}"
            require(leading == (num,), "cond", rule, describe(leaf))


def null_like(cond: PyTree, null_cond: PyTree) -> PyTree:
    """Broadcast the null condition to the shapes and dtypes of `cond`, without changing values.

    Args:
        cond: Condition, a pytree of arrays.
        null_cond: Pytree with the structure of `cond`, whose leaves broadcast to those of `cond`.

    Raises:
        ValueError: If the structures differ, a leaf does not broadcast, or the dtype of `cond`
            cannot represent a value, such as 0.5 for a class label.
    """
    leaves, structure = jax.tree.flatten(cond)
    try:
        nulls = structure.flatten_up_to(null_cond)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"null_cond must have the structure of the condition, {structure}, "
            f"got {describe(null_cond)}"
        ) from error
    return structure.unflatten(map(_null_leaf, leaves, nulls))


def _null_leaf(leaf: PyTree, null: PyTree) -> jax.Array:
    """Broadcast one leaf of the null condition to the shape and dtype of `leaf`."""
    dtype, shape = jnp.result_type(leaf), jnp.shape(leaf)
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return jnp.broadcast_to(null, shape)
    is_number = is_array(null) or isinstance(null, (bool, int, float))
    require(is_number, "null_cond", "hold numbers like the condition", describe(null))
    try:
        broadcasts = np.broadcast_shapes(jnp.shape(null), shape) == shape
    except ValueError:
        broadcasts = False
    require(broadcasts, "null_cond", f"broadcast to shape {shape}", describe(null))
    if isinstance(null, Tracer):
        fits = jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(null.dtype, dtype)
        require(fits, "null_cond", f"hold {dtype} values like the condition", null.dtype)
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
    require(fits, "null_cond", f"hold {dtype} values like the condition", null)
    return jnp.broadcast_to(jnp.asarray(value.astype(dtype)), shape)
