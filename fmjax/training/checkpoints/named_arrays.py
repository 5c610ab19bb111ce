"""States as flat named arrays, the form in which a disk can hold them: no keys, no nesting."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp


def flat_arrays(tree: Any) -> dict[str, Any]:
    """The leaves of `tree` by dotted name; typed keys as their data (what a disk can hold)."""
    named = {
        jax.tree_util.keystr(path, simple=True, separator="."): key_bits(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    assert len(named) == len(jax.tree.leaves(tree)), "two leaves have one name"
    return named


def unflat_arrays(named: Mapping[str, jax.Array], like: Any) -> Any:
    """The inverse of `flat_arrays`, in the structure and with the key types of `like`."""
    leaves, structure = jax.tree.flatten(like)
    values = [
        jax.random.wrap_key_data(value, impl=key_impl(leaf)) if is_key(leaf) else value
        for leaf, value in zip(leaves, named.values(), strict=True)
    ]
    return jax.tree.unflatten(structure, values)


def is_key(leaf: Any) -> bool:
    """Whether an array, or a description of one, holds typed random keys."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def key_impl(leaf: Any) -> str:
    """Name of the generator a typed key, or a description of one, belongs to."""
    names = []
    # Traced, because key_impl takes no description.
    jax.eval_shape(lambda key: names.append(str(jax.random.key_impl(key))), leaf)
    return names[0]


def key_bits(leaf: Any) -> Any:
    """A typed key as its uint32 data, anything else as it is; descriptions stay descriptions."""
    if not is_key(leaf):
        return leaf
    if isinstance(leaf, jax.ShapeDtypeStruct):
        bits = jax.eval_shape(jax.random.key_data, leaf)
        return jax.ShapeDtypeStruct(bits.shape, bits.dtype, sharding=leaf.sharding)
    return jax.random.key_data(leaf)
