"""Conversion of pytrees to flat dicts of named arrays without typed random keys, for saving."""

from collections.abc import Mapping
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

Leaf: TypeAlias = jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct
"""An array, or the shape, dtype and sharding of one."""


def flat_arrays(tree: PyTree) -> dict[str, Leaf]:
    """Return the leaves of `tree` by dotted name, with typed random keys as their uint32 data."""
    named = {
        jax.tree_util.keystr(key_path, simple=True, separator="."): key_bits(leaf)
        for key_path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    assert len(named) == len(jax.tree.leaves(tree)), "two leaves have the same name"
    return named


def unflat_arrays(named: Mapping[str, jax.Array], like: PyTree) -> PyTree:
    """Invert `flat_arrays`, with the structure and the key types of `like`."""
    leaves, structure = jax.tree.flatten(like)
    values = [
        jax.random.wrap_key_data(value, impl=key_impl(leaf)) if is_key(leaf) else value
        for leaf, value in zip(leaves, named.values(), strict=True)
    ]
    return jax.tree.unflatten(structure, values)


def is_key(leaf: Leaf) -> bool:
    """Return whether an array or `ShapeDtypeStruct` holds typed random keys."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def key_impl(leaf: Leaf) -> str:
    """Return the name of the random number generator of a typed key."""
    names = []
    # Traced, because `jax.random.key_impl` does not accept a `ShapeDtypeStruct`.
    jax.eval_shape(lambda key: names.append(str(jax.random.key_impl(key))), leaf)
    return names[0]


def key_bits(leaf: Leaf) -> Leaf:
    """Convert a typed key to its uint32 data; return anything else unchanged."""
    if not is_key(leaf):
        return leaf
    if isinstance(leaf, jax.ShapeDtypeStruct):
        bits = jax.eval_shape(jax.random.key_data, leaf)
        return jax.ShapeDtypeStruct(bits.shape, bits.dtype, sharding=leaf.sharding)
    assert isinstance(leaf, jax.Array), "NumPy has no typed keys"
    return jax.random.key_data(leaf)
