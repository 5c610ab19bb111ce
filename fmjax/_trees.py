"""Nested dicts with dotted names: taken apart by name, and put together again."""

from collections.abc import Callable, Mapping
from typing import Any


def flatten_dict(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Return all leaves of nested dicts, keyed by dotted name, in order."""
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    leaves: dict[str, Any] = {}
    for name, part in tree.items():
        leaves |= flatten_dict(part, f"{prefix}.{name}" if prefix else name)
    return leaves


def unflatten_dict(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts of leaves by dotted name; without leaves an empty one."""
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *branches, last = name.split(".")
        at = tree
        for branch in branches:
            at = at.setdefault(branch, {})
        at[last] = leaf
    return tree


def partition(tree: Any, chosen: Callable[[str], bool]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split nested dicts into the leaves whose dotted names are `chosen` and the others."""
    selected, others = {}, {}
    for name, leaf in flatten_dict(tree).items():
        (selected if chosen(name) else others)[name] = leaf
    return unflatten_dict(selected), unflatten_dict(others)


def combine(*trees: Any) -> dict[str, Any]:
    """Merge nested dicts, the inverse of `partition`; no leaf may be in two of them."""
    merged: dict[str, Any] = {}
    for tree in trees:
        leaves = flatten_dict(tree) if tree else {}
        assert not merged.keys() & leaves.keys(), "a leaf is in two trees"
        merged |= leaves
    return unflatten_dict(merged)
