"""Nested dicts with dotted names: taken apart by name, and put together again."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any


def named_leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All leaves of nested dicts, by dotted name."""
    if not isinstance(tree, Mapping):
        yield prefix, tree
        return
    for name, part in tree.items():
        yield from named_leaves(part, f"{prefix}.{name}" if prefix else name)


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts of leaves by dotted name; without leaves an empty one."""
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *branches, last = name.split(".")
        at = tree
        for branch in branches:
            at = at.setdefault(branch, {})
        at[last] = leaf
    return tree


def divided(tree: Any, chosen: Callable[[str], bool]) -> tuple[Any, Any]:
    """The leaves whose dotted names are `chosen`, and the others, both as nested dicts."""
    leaves = dict(named_leaves(tree))
    parts = ({name: leaf for name, leaf in leaves.items() if chosen(name) == wanted}
             for wanted in (True, False))  # fmt: skip
    first, second = map(nested, parts)
    return first, second


def joined(*trees: Any) -> dict[str, Any]:
    """What `divided` took apart; no leaf may stand in two of them."""
    leaves: dict[str, Any] = {}
    for tree in trees:
        own = dict(named_leaves(tree)) if tree else {}
        assert not leaves.keys() & own.keys(), "a leaf in two trees"
        leaves |= own
    return nested(leaves)
