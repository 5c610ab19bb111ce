"""Flatten, split and merge nested dicts by dotted names."""

from collections.abc import Callable, Mapping

from jaxtyping import PyTree


def flatten_dict(tree: PyTree, prefix: str = "") -> dict[str, PyTree]:
    """Return the leaves of nested dicts, keyed by dotted name, in order."""
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    leaves: dict[str, PyTree] = {}
    for name, subtree in tree.items():
        leaves |= flatten_dict(subtree, f"{prefix}.{name}" if prefix else name)
    return leaves


def unflatten_dict(leaves: Mapping[str, PyTree]) -> dict[str, PyTree]:
    """Build nested dicts from leaves keyed by dotted name, the inverse of `flatten_dict`."""
    tree: dict[str, PyTree] = {}
    for name, leaf in leaves.items():
        *branches, last = name.split(".")
        node = tree
        for branch in branches:
            node = node.setdefault(branch, {})
        node[last] = leaf
    return tree


def partition(
    tree: PyTree, chosen: Callable[[str], bool]
) -> tuple[dict[str, PyTree], dict[str, PyTree]]:
    """Split nested dicts into the leaves whose dotted name is `chosen` and the remaining leaves."""
    selected, others = {}, {}
    for name, leaf in flatten_dict(tree).items():
        (selected if chosen(name) else others)[name] = leaf
    return unflatten_dict(selected), unflatten_dict(others)


def combine(*trees: PyTree) -> dict[str, PyTree]:
    """Merge nested dicts with disjoint leaves, the inverse of `partition`."""
    merged: dict[str, PyTree] = {}
    for tree in trees:
        leaves = flatten_dict(tree) if tree else {}
        assert not merged.keys() & leaves.keys(), "a leaf is in two trees"
        merged |= leaves
    return unflatten_dict(merged)
