"""Trees as flat dictionaries of the older API: the texts of the keys, and the leaf.

None and empty containers are no leaves unless asked for, as in JAX.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.tree_util as jtu

from stowax.errors import (
    InvalidArgumentError,
    KeyPathCollisionError,
    LeafNotFoundError,
    TreeMismatchError,
)

IsLeaf = Callable[[Any], bool]


def to_flat_dict(
    tree: Any,
    sep: str | None = None,
    keep_empty_nodes: bool = False,
    is_leaf: IsLeaf | None = None,
) -> dict[Any, Any]:
    """The leaves of a tree by the texts of their keys.

    Args:
        tree: Any tree.
        sep: Joins the texts to one; None leaves them a tuple.
        keep_empty_nodes: Whether None and empty containers are leaves, too.
        is_leaf: Tells which nodes are leaves, in place of `keep_empty_nodes`.

    Example:
        >>> from stowax import v0 as ocp
        >>> ocp.tree.to_flat_dict({"a": [1, 2], "b": {}}, sep="/")
        {'a/0': 1, 'a/1': 2}
    """
    if is_leaf is None and keep_empty_nodes:
        is_leaf = is_empty_or_leaf
    leaves, _ = jtu.tree_flatten_with_path(tree, is_leaf=is_leaf)
    flat = {str_keypath(path): leaf for path, leaf in leaves}
    return flat if sep is None else {sep.join(k): leaf for k, leaf in flat.items()}


def from_flat_dict(
    flat_dict: Mapping[Any, Any],
    target: Any = None,
    sep: str | None = None,
    *,
    inplace: bool = False,
) -> Any:
    """The tree of a flat dictionary.

    Args:
        flat_dict: What `to_flat_dict` makes.
        target: The structure of the result; None for nested dicts.
        sep: As it was given to `to_flat_dict`.
        inplace: Whether to take the leaves out of `flat_dict` on the way, so that no
            more of them than needed are held twice.

    Raises:
        LeafNotFoundError: A leaf of the target is not in the dictionary.
        KeyPathCollisionError: A leaf lies on the path of another.
        InvalidArgumentError: `inplace` is given, and `flat_dict` is no dict.

    Example:
        >>> from stowax import v0 as ocp
        >>> ocp.tree.from_flat_dict({"a/0": 1, "a/1": 2}, sep="/")
        {'a': {'0': 1, '1': 2}}
        >>> ocp.tree.from_flat_dict({"a/0": 1, "a/1": 2}, {"a": [0, 0]}, sep="/")
        {'a': [1, 2]}
    """
    if inplace:
        if not isinstance(flat_dict, dict):
            raise InvalidArgumentError(
                f"inplace=True takes leaves out of a {type(flat_dict).__qualname__}; "
                "give a dict"
            )
        take = flat_dict.pop
    else:
        take = flat_dict.__getitem__
    if target is None:
        return _nested(list(flat_dict), take, sep)
    keys = to_flat_dict(target, sep=sep)
    missing = [key for key in keys if key not in flat_dict]
    if missing:
        names = ", ".join(repr(_shown(key)) for key in missing)
        raise LeafNotFoundError(
            f"the target has leaves that the flat dictionary lacks: {names}"
        )
    return jax.tree.unflatten(jax.tree.structure(target), [take(key) for key in keys])


def serialize_tree(tree: Any, keep_empty_nodes: bool = False) -> Any:
    """The tree as nested dicts and lists: what documents of checkpoints can say.

    Tuples become lists, and what has named fields a dict of them.

    Args:
        tree: Any tree with at least one leaf.
        keep_empty_nodes: Whether None and empty containers are leaves, too.

    Raises:
        TreeMismatchError: There is no leaf, or none at some position of a list.

    Example:
        >>> from stowax import v0 as ocp
        >>> ocp.tree.serialize_tree({"a": (1, 2)})
        {'a': [1, 2]}
    """
    leaves, _ = jtu.tree_flatten_with_path(
        tree, is_leaf=is_empty_or_leaf if keep_empty_nodes else None
    )
    if not leaves:
        raise TreeMismatchError(
            "a tree without leaves may be a dict or a list; give one with leaves, or "
            "keep_empty_nodes=True"
        )
    return _serialized([(tuple(path), leaf) for path, leaf in leaves])


def deserialize_tree(
    serialized: Any, target: Any, keep_empty_nodes: bool = False
) -> Any:
    """The leaves of a tree in the structure of another.

    Args:
        serialized: Any tree, such as what `serialize_tree` makes. It may have more
            leaves than the target.
        target: The structure of the result.
        keep_empty_nodes: Whether None and empty containers of it are leaves, too.

    Raises:
        LeafNotFoundError: The tree lacks a leaf of the target.

    Example:
        >>> from stowax import v0 as ocp
        >>> ocp.tree.deserialize_tree({"a": [1, 2], "b": 3}, {"a": (0, 0)})
        {'a': (1, 2)}
    """

    def find(path: Sequence[Any], _: Any) -> Any:
        node = serialized
        for key in path:
            children = _children(node)
            if (text := _text(key)) not in children:
                raise LeafNotFoundError(
                    f"the tree has no leaf {'.'.join(str_keypath(path))!r}"
                )
            node = children[text]
        return node

    return jtu.tree_map_with_path(
        find, target, is_leaf=is_empty_or_leaf if keep_empty_nodes else None
    )


def get_param_names(item: Any, *, include_empty_nodes: bool = True) -> Any:
    """A tree of the names that its leaves have on disk.

    Args:
        item: Any tree.
        include_empty_nodes: Whether None and empty containers get a name, too.

    Example:
        >>> from stowax import v0 as ocp
        >>> ocp.tree.get_param_names({"a": [1, None]})
        {'a': ['a.0', 'a.1']}
    """
    return jtu.tree_map_with_path(
        lambda path, _: ".".join(str_keypath(path)),
        item,
        is_leaf=is_empty_or_leaf if include_empty_nodes else None,
    )


def is_flat_dict(tree: Any) -> bool:
    """Whether a tree is a dict of leaves.

    Example:
        >>> from stowax import v0 as ocp
        >>> ocp.tree.is_flat_dict({"a": 1}), ocp.tree.is_flat_dict({"a": {"b": 1}})
        (True, False)
    """
    return isinstance(tree, dict) and all(jtu.all_leaves([v]) for v in tree.values())


def str_keypath(keypath: Sequence[Any]) -> tuple[str, ...]:
    """The texts of a key path of JAX.

    Example:
        >>> import jax
        >>> from stowax import v0 as ocp
        >>> [(path, _)] = jax.tree_util.tree_leaves_with_path({"a": [1]})
        >>> ocp.tree.str_keypath(path)
        ('a', '0')
    """
    return tuple([_text(key) for key in keypath])


def get_key_name(key: Any) -> int | str:
    """What one key of a key path of JAX is called; a position stays a number.

    Example:
        >>> import jax
        >>> from stowax import v0 as ocp
        >>> [(path, _)] = jax.tree_util.tree_leaves_with_path({"a": [1]})
        >>> [ocp.utils.get_key_name(key) for key in path]
        ['a', 0]
    """
    match key:
        case jtu.SequenceKey(idx=position) | jtu.FlattenedIndexKey(key=position):
            return position
    return _text(key)


def is_dict_key(key: Any) -> bool:
    """Whether one key of a key path of JAX is a name: of a mapping, or of a field.

    Example:
        >>> import jax
        >>> from stowax import v0 as ocp
        >>> ocp.utils.is_dict_key(jax.tree_util.DictKey("a"))
        True
    """
    return isinstance(key, jtu.DictKey | jtu.GetAttrKey)


def is_sequence_key(key: Any) -> bool:
    """Whether one key of a key path of JAX is a position.

    Example:
        >>> import jax
        >>> from stowax import v0 as ocp
        >>> ocp.utils.is_sequence_key(jax.tree_util.SequenceKey(0))
        True
    """
    return isinstance(key, jtu.SequenceKey | jtu.FlattenedIndexKey)


def is_empty_node(x: Any) -> bool:
    """Whether something is a container without children; None is one.

    Example:
        >>> from stowax import v0 as ocp
        >>> [ocp.utils.is_empty_node(node) for node in ({}, None, {"a": 1}, 1)]
        [True, True, False, False]
    """
    return is_empty_or_leaf(x) and not jtu.all_leaves([x])


def is_empty_or_leaf(x: Any) -> bool:
    """Whether something is a leaf, or a container without children.

    Example:
        >>> from stowax import v0 as ocp
        >>> [ocp.utils.is_empty_or_leaf(node) for node in ({}, None, {"a": 1}, 1)]
        [True, True, False, True]
    """
    if jtu.all_leaves([x]):
        return True
    return not jtu.tree_flatten(x, is_leaf=lambda node: node is not x)[0]


def _text(key: Any) -> str:
    match key:
        case jtu.SequenceKey(idx=name):
            return str(name)
        case jtu.GetAttrKey(name=name):
            return name
        case jtu.DictKey(key=name) | jtu.FlattenedIndexKey(key=name):
            return str(name)
    return str(key)


def _children(node: Any) -> dict[str, Any]:
    if jtu.all_leaves([node]):
        return {}
    found, _ = jtu.tree_flatten_with_path(node, is_leaf=lambda n: n is not node)
    return {_text(path[0]): child for path, child in found}


def _nested(keys: Sequence[Any], take: Callable[[Any], Any], sep: str | None) -> Any:
    if sep is None and keys == [()]:
        return take(())
    result: dict[Any, Any] = {}
    leaves: set[tuple[Any, ...]] = set()
    for key in keys:
        path = key if sep is None else tuple(key.split(sep))
        node = result
        for depth, name in enumerate(path[:-1], 1):
            if path[:depth] in leaves:
                raise _collision(path[:depth], path)
            node = node.setdefault(name, {})
        if not path or path[-1] in node:
            raise _collision(path, path)
        node[path[-1]] = take(key)
        leaves.add(path)
    return result


def _collision(one: Sequence[Any], other: Sequence[Any]) -> KeyPathCollisionError:
    shown = [_shown(tuple(path)) or "<root>" for path in (one, other)]
    return KeyPathCollisionError(
        f"the leaf {shown[0]!r} stands in the way of {shown[1]!r}; rename one of them, "
        "or give the structure as `target`"
    )


def _shown(key: Any) -> str:
    return ".".join(map(str, key)) if isinstance(key, tuple) else str(key)


def _serialized(leaves: Sequence[tuple[tuple[Any, ...], Any]]) -> Any:
    first, leaf = leaves[0]
    if not first:
        return leaf
    groups: dict[Any, list[tuple[tuple[Any, ...], Any]]] = {}
    for path, leaf in leaves:
        groups.setdefault(path[0], []).append((path[1:], leaf))
    children = {_text(key): _serialized(group) for key, group in groups.items()}
    if isinstance(first[0], jtu.DictKey | jtu.GetAttrKey):
        return children
    if list(children) != list(map(str, range(len(children)))):
        raise TreeMismatchError(
            f"only the positions {', '.join(children)} of a container have leaves, and "
            "a list cannot leave out the others; give keep_empty_nodes=True"
        )
    return list(children.values())
