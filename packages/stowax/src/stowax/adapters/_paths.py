"""Plain nested trees and the paths that lead to their leaves.

A path is a tuple of strings and integers.  A tree on disk is nested dicts; a level
whose keys are exactly the integers 0 … n-1 is a list, so that
`tree["layers"][0]["kernel"]` reads as it does in the program.  On disk a key is known
by its text, which is why stored leaves are looked up by `stored_name` and never by
order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

Key = str | int

KeyPath = tuple[Key, ...]
"""The keys that lead to a leaf: attribute names, dict keys and positions."""

StoredName = tuple[str, ...]
"""The same keys as texts: what names a leaf on disk."""


def show_path(path: KeyPath) -> str:
    """The path as it is written in messages.

    Args:
        path: A path, or the stored name of a leaf.

    Example:
        >>> import stowax
        >>> stowax.adapters.show_path(("layers", 0, "kernel"))
        'layers.0.kernel'
    """
    return ".".join(map(str, path)) or "<root>"


def stored_name(path: KeyPath) -> StoredName:
    """What the leaf at a path is called on disk, whoever wrote it.

    Args:
        path: A path in the live object.

    Example:
        >>> import stowax
        >>> stowax.adapters.stored_name(("layers", 0, "kernel"))
        ('layers', '0', 'kernel')
    """
    return tuple(map(str, path))


def flatten(tree: Any) -> list[tuple[KeyPath, Any]]:
    """Every leaf with its path, in JAX's order; `None` counts as a leaf.

    Args:
        tree: Any tree that JAX knows.

    Example:
        >>> import stowax
        >>> stowax.adapters.flatten({"mu": [1.0, None]})
        [(('mu', 0), 1.0), (('mu', 1), None)]
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_none)
    return [(tuple(map(plain_key, path)), leaf) for path, leaf in leaves]


def map_with_path(function: Callable[[KeyPath, Any], Any], tree: Any) -> Any:
    """A tree of the same containers, with `function(path, leaf)` for every leaf."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: function(tuple(map(plain_key, path)), leaf),
        tree,
        is_leaf=_is_none,
    )


def nest(leaves: Iterable[tuple[KeyPath, Any]]) -> Any:
    """The plain tree with these leaves: dicts, and lists where the keys are 0 … n-1.

    Positions with gaps stay the keys of a dict: nothing moves.  A leaf whose path is
    empty is the whole tree.

    Args:
        leaves: Paths and leaves; no path may be the beginning of another.

    Example:
        >>> import stowax
        >>> stowax.adapters.nest([(("layers", 0), "a"), (("layers", 1), "b")])
        {'layers': ['a', 'b']}
        >>> stowax.adapters.nest([(("layers", 0), "a"), (("layers", 2), "b")])
        {'layers': {0: 'a', 2: 'b'}}
    """
    root: dict[Key, Any] = {}
    for path, leaf in leaves:
        if not path:
            return leaf
        level = root
        for key in path[:-1]:
            level = level.setdefault(key, _Level())
        level[path[-1]] = leaf
    return _with_lists(root)


def plain_key(entry: Any) -> Key:
    """The plain key of one entry of a JAX key path.

    A key that is neither a string nor an integer is known by its text, as on disk.

    Args:
        entry: What `jax.tree_util.tree_flatten_with_path` puts into paths.

    Example:
        >>> import jax, stowax
        >>> stowax.adapters.plain_key(jax.tree_util.GetAttrKey("kernel"))
        'kernel'
    """
    match entry:
        case jax.tree_util.SequenceKey(idx=key):
            return key
        case jax.tree_util.GetAttrKey(name=key):
            return key
        case jax.tree_util.DictKey(key=key) | jax.tree_util.FlattenedIndexKey(key=key):
            # bool is an int, but True is no position.
            return key if type(key) in (str, int) else str(key)
    return str(entry)


class _Level(dict[Key, Any]):
    """A level that `nest` made; a dict without this mark is a leaf of the caller."""


def _with_lists(level: Mapping[Key, Any]) -> dict[Key, Any] | list[Any]:
    items = {
        key: _with_lists(value) if isinstance(value, _Level) else value
        for key, value in level.items()
    }
    positions = range(len(items))
    # A stored tree is never empty below its root, and an empty root is a dict.
    if items and all(type(key) is int and key in positions for key in items):
        return [items[position] for position in positions]
    return items


def _is_none(value: Any) -> bool:
    return value is None
