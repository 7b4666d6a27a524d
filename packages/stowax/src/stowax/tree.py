"""Words for trees, their leaves and their paths.

A tree is whatever `jax.tree_util` can flatten. The leaves that a checkpoint holds, and
what stands for each in an abstract tree:

===============  ===========================  ==============================
leaf             abstract leaf                what the abstract leaf decides
===============  ===========================  ==============================
`jax.Array`      `jax.ShapeDtypeStruct`       shape, dtype, sharding
`numpy.ndarray`  `numpy.ndarray`              shape, dtype
number           the type, or a number of it  type
``str``          ``str``, or a string         type
anything         `PLACEHOLDER`                that it is not loaded
===============  ===========================  ==============================
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from types import EllipsisType
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeAlias, TypeVar

import jax
import jax.tree_util as jtu
import numpy as np
from jax.experimental.layout import Format

from stowax.errors import KeyPathCollisionError, TreeMismatchError

__all__ = [  # noqa: RUF022 - by code point, as in every public module
    "AbstractLeaf",
    "JsonType",
    "Leaf",
    "PLACEHOLDER",
    "PyTree",
    "PyTreeKey",
    "PyTreeKeyPath",
    "PyTreeMetadata",
    "PyTreeOf",
    "merge",
]

PLACEHOLDER: Final[EllipsisType] = ...
"""Stands for a leaf of an abstract tree that is not to be loaded."""

PyTreeMetadata: TypeAlias = Any
"""What `stowax.metadata` shows of a tree: the tree, with facts in place of values."""

Scalar: TypeAlias = int | float | bool | np.number | bytes
"""A leaf without a shape."""


class AbstractArray(Protocol):
    """Anything that says what an array looks like, without its elements."""

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Length of every dimension; None for the stored one."""
        ...

    @property
    def dtype(self) -> np.dtype | None:
        """Type of the elements; None for the stored one."""
        ...


class AbstractShardedArray(AbstractArray, Protocol):
    """Anything that also says where the parts of an array are."""

    @property
    def sharding(self) -> jax.sharding.Sharding | Format | None:
        """Where each part goes, with or without a memory layout; None for anywhere."""
        ...


# Words of trees, but known to users as `stowax.arrays.AbstractArray` and so on.
AbstractArray.__module__ = AbstractShardedArray.__module__ = "stowax.arrays"

Leaf: TypeAlias = jax.Array | np.ndarray | Scalar | str
"""What a tree holds, besides other trees."""

AbstractLeaf: TypeAlias = AbstractArray | AbstractShardedArray | Scalar | str
"""What stands for a leaf where its value is not known."""

JsonType: TypeAlias = list["JsonValue"] | dict[str, "JsonValue"]
"""A JSON document."""

JsonValue: TypeAlias = str | int | float | bool | JsonType | None
"""Anything inside a JSON document."""

T = TypeVar("T")

if TYPE_CHECKING:
    # No type checker can tell a tree from anything else, and JAX's keys have no types.
    PyTree: TypeAlias = Any
    PyTreeOf: TypeAlias = Any
    PyTreeKey: TypeAlias = Any
else:
    PyTreeKey = jtu.SequenceKey | jtu.DictKey | jtu.GetAttrKey | jtu.FlattenedIndexKey
    """One step from a node to its child, as JAX tells it."""

    class PyTree:
        """Anything that `jax.tree_util` can flatten, a single leaf included."""

    class PyTreeOf(Generic[T]):
        """A tree whose leaves are all of one type, ``PyTreeOf[jax.Array]``."""


PyTreeKeyPath: TypeAlias = tuple[PyTreeKey, ...]
"""The steps from the root of a tree to a leaf."""


def merge(
    *trees: PyTree,
    overwrite: bool = False,
    is_leaf: Callable[[Any], bool] | None = None,
) -> PyTree:
    """Joins trees that hold different parts of one tree.

    Mappings get the keys of all; other nodes need the same children and are merged
    child by child. The trees themselves are left as they are.

    Args:
        *trees: Trees to join; none at all make an empty dict.
        overwrite: Whether the last tree that holds a leaf, or a node in its place,
            decides. None never replaces anything. Nodes of different types become
            one of the last type, or a dict where their fields differ.
        is_leaf: Tells which nodes to keep whole, as in `jax.tree.map`. What JAX holds
            to be a leaf is one in any case, and so is None.

    Returns:
        A new tree.

    Raises:
        KeyPathCollisionError: Two trees hold the same leaf, and `overwrite` is False.
        TreeMismatchError: Nodes at the same place cannot be merged: their lengths
            differ or, unless `overwrite` is True, their types.

    Example:
        >>> import stowax as ocp
        >>> ocp.tree.merge({"a": 1, "b": {"c": 2}}, {"b": {"d": 3}})
        {'a': 1, 'b': {'c': 2, 'd': 3}}
        >>> ocp.tree.merge({"a": 1, "b": {"c": 2}}, {"a": 10}, overwrite=True)
        {'a': 10, 'b': {'c': 2}}
    """
    if not trees:
        return {}
    merge_nodes = _Merge(overwrite=overwrite, is_leaf=is_leaf)
    merged = trees[0]
    for tree in trees[1:]:
        merged = merge_nodes(merged, tree, ())
    if merge_nodes.collisions:
        raise KeyPathCollisionError(
            f"several trees hold {', '.join(merge_nodes.collisions)}; "
            "merge(..., overwrite=True) takes the last"
        )
    if merge_nodes.problems:
        raise TreeMismatchError(
            "trees cannot be merged:\n  " + "\n  ".join(merge_nodes.problems),
            merge_nodes.problems,
        )
    return merged


class _Merge:
    """Merges two nodes, and collects what stands against it."""

    def __init__(
        self, *, overwrite: bool, is_leaf: Callable[[Any], bool] | None
    ) -> None:
        self.overwrite = overwrite
        self.is_leaf = is_leaf
        self.collisions: list[str] = []
        self.problems: list[str] = []

    def __call__(self, first: Any, last: Any, path: tuple[Hashable, ...]) -> Any:
        leaves = self._ends_at(first), self._ends_at(last)
        if self.overwrite and any(leaves):
            return first if last is None else last
        if all(leaves):
            self.collisions.append(_shown(path))
            return last
        if type(first) is not type(last) and not self.overwrite:
            self._refuse(path, type(first).__name__, type(last).__name__)
            return last
        merged = _children(first)
        for name, child in _children(last).items():
            if name in merged:
                child = self(merged[name], child, (*path, name))
            merged[name] = child
        return self._rebuilt(first, last, merged, path)

    def _ends_at(self, node: Any) -> bool:
        if self.is_leaf is not None and self.is_leaf(node):
            return True
        return node is None or jtu.all_leaves([node])

    def _rebuilt(
        self,
        first: Any,
        last: Any,
        children: dict[Hashable, Any],
        path: tuple[Hashable, ...],
    ) -> Any:
        if isinstance(last, Mapping):
            return _mapping_like(last, children)
        names, structure = _flatten_one_level(last)
        if _is_numbered(children) and len(_children(first)) != len(names):
            before, after = len(_children(first)), len(names)
            self._refuse(path, f"{before} children", f"{after} children")
            return last
        if children.keys() != names.keys():
            return children
        return structure.unflatten([children[name] for name in names])

    def _refuse(self, path: tuple[Hashable, ...], first: str, last: str) -> None:
        self.problems.append(f"{_shown(path)}: {first} and {last}")


def _children(node: Any) -> dict[Hashable, Any]:
    """Children by name; those of a mapping in its own order, not in JAX's."""
    return dict(node) if isinstance(node, Mapping) else _flatten_one_level(node)[0]


def _flatten_one_level(node: Any) -> tuple[dict[Hashable, Any], Any]:
    children, structure = jtu.tree_flatten_with_path(
        node, is_leaf=lambda inner: inner is not node
    )
    return {_name(path[0]): child for path, child in children}, structure


def _name(key: Any) -> Hashable:
    match key:
        case jtu.SequenceKey(idx=name):
            return name
        case jtu.GetAttrKey(name=name):
            return name
        case jtu.DictKey(key=name) | jtu.FlattenedIndexKey(key=name):
            return name
    return key


def _is_numbered(children: Mapping[Hashable, Any]) -> bool:
    return any(isinstance(name, int) for name in children)


def _mapping_like(last: Mapping[Any, Any], children: dict[Hashable, Any]) -> Any:
    try:
        return type(last)(children)  # pyright: ignore[reportCallIssue] - most take one
    except TypeError:
        # A type with other arguments, such as defaultdict; its items count.
        return children


def _shown(path: tuple[Hashable, ...]) -> str:
    return ".".join(map(str, path)) or "<root>"
