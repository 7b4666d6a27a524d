"""Two trees made into one: what is saved later on top of what is there.

Containers are united key by key.  Where both trees have a leaf, or one has a leaf and
the other has leaves below it, the later one replaces the earlier one or is refused.

Pure: skeletons in, a skeleton out, in which every leaf tells where it comes from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

from stowax._keypath import Key, KeyPath, Node, shown_name, sort_keys, walk


class Origin(NamedTuple):
    """Where a leaf of a united tree comes from."""

    tree: int
    """Position of the tree among those that were united."""
    leaf: int
    """Position of the leaf in that tree."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitedTree:
    """What several trees are together."""

    root: Node
    """Its leaves are numbered anew, in its own order."""
    origins: tuple[Origin, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One of the trees that are united; what comes later lies on top."""

    root: Node
    texts: frozenset[int] = frozenset()
    """Positions of leaves that are texts."""
    replaces: bool = False
    """Whether it may replace what is there."""
    is_plain: bool = False
    """Whether its containers are known only as mappings and sequences, as documents of
    others tell them."""


class Clash(NamedTuple):
    """A leaf that a later tree may not replace."""

    stored: str
    """Name of what is there."""
    given: str
    """Name of what was to be saved."""


T = TypeVar("T")


def lay_on(below: Sequence[T], top: T, *, unites: Callable[[T], bool]) -> list[T]:
    """What is left when something is saved on top of what is there.

    Args:
        below: What is there, and is a whole together.
        top: What is saved.
        unites: Whether something is a tree, to be united with others; what is not
            takes the place of all, and all take its place.
    """
    if below and unites(top) and all(map(unites, below)):
        return [*below, top]
    return [top]


def unite(layers: Sequence[Layer]) -> tuple[UnitedTree, tuple[Clash, ...]]:
    """Unites trees, the first one at the bottom.

    A dict, or a class that is like one, gets the keys of both, and so does a class with
    fields if what is given is a dict. Other containers do, too, as long as nothing is
    replaced; a tree that may replace takes the place of a container with another type
    or other children. None and an empty container are no leaves: they are there as long
    as nothing else is.

    Args:
        layers: At least one.

    Returns:
        The tree, and what is in the way of it. If anything is, the tree is that of the
        earlier ones there.
    """
    clashes: list[Clash] = []
    root = _labelled(layers[0].root, 0)
    is_plain = layers[0].is_plain
    for position, layer in enumerate(layers[1:], start=1):
        join = _Join(
            replaces=layer.replaces,
            is_lenient=is_plain or layer.is_plain,
            clashes=clashes,
        )
        root = join.join(root, _labelled(layer.root, position), ())
        is_plain = is_plain or layer.is_plain
    origins: list[Origin] = []
    root = _numbered(root, origins)
    return UnitedTree(root=root, origins=tuple(origins)), tuple(clashes)


_STRIDE = 1 << 40
"""More leaves than any tree has: while trees are united, a leaf has one number for the
tree and its place in it."""


def _labelled(node: Node, tree: int) -> Node:
    if node.kind == "leaf":
        return Node(kind="leaf", leaf=tree * _STRIDE + node.leaf)
    if not node.children:
        return node
    return replace(node, children=tuple([_labelled(c, tree) for c in node.children]))


def _numbered(node: Node, origins: list[Origin]) -> Node:
    if node.kind == "leaf":
        origins.append(Origin(*divmod(node.leaf, _STRIDE)))
        return Node(kind="leaf", leaf=len(origins) - 1)
    if not node.children:
        return node
    return replace(node, children=tuple([_numbered(c, origins) for c in node.children]))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Join:
    """One tree put on top of another."""

    replaces: bool
    is_lenient: bool
    clashes: list[Clash]

    def join(self, stored: Node, given: Node, path: KeyPath) -> Node:
        if not self.replaces and _is_nothing(given):
            return given if stored.kind == "none" else stored
        if not self.replaces and _is_nothing(stored):
            return given
        keys = self._common_keys(stored, given)
        if keys is not None:
            return self._united(stored, given, keys, path)
        if not self.replaces:
            self.clashes.append(_clash(stored, given, path))
            return stored
        return given

    def _common_keys(self, stored: Node, given: Node) -> tuple[Key, ...] | None:
        """The keys of both, in order; None: they are not united."""
        if {"leaf", "none"}.intersection((stored.kind, given.kind)):
            return None
        are_mappings = _is_mapping(stored) and _is_mapping(given)
        # As loaded without its class: a dict of the fields.
        is_partly = given.kind == "dict" and _is_named(stored)
        if not (
            _are_same(stored, given)
            or are_mappings
            or is_partly
            or (self.is_lenient and _is_named(stored) == _is_named(given))
        ):
            return None
        texts = {key.text for key in stored.keys}
        more = [key for key in given.keys if key.text not in texts]
        keys = (*stored.keys, *more)
        if stored.kind == given.kind == "dict":
            return sort_keys(keys)
        if are_mappings or is_partly or not self.replaces:
            return keys
        is_whole = len(keys) == len(stored.keys) == len(given.keys)
        return keys if is_whole else None

    def _united(
        self, stored: Node, given: Node, keys: tuple[Key, ...], path: KeyPath
    ) -> Node:
        children: list[Node] = []
        before, after = _by_text(stored), _by_text(given)
        for key in keys:
            old, new = before.get(key.text), after.get(key.text)
            if old is not None and new is not None:
                new = self.join(old, new, (*path, key))
            child = old if new is None else new
            assert child is not None  # The keys are those of the two.
            children.append(child)
        return replace(
            _container(stored, given, keys), children=tuple(children), build=None
        )


def _container(stored: Node, given: Node, keys: tuple[Key, ...]) -> Node:
    """What the children of both are in, without them."""
    if _are_same(stored, given):
        return replace(stored, keys=keys)
    # One of them may be known by its keys alone: the type of the other counts, if it is
    # a mapping, which may have any keys, or has just these.
    texts = {key.text for key in keys}
    for node in (given, stored):
        is_told = node.type_name is not None or node.kind == "tuple"
        if is_told and (_is_mapping(node) or {k.text for k in node.keys} == texts):
            own = {key.text: key for key in node.keys}
            return replace(node, keys=tuple([own.get(k.text, k) for k in keys]))
    if all(key.is_named for key in keys):
        return Node(kind="dict", keys=tuple([Key("key", k.value) for k in keys]))
    return Node(kind="list", keys=tuple([Key("index", i) for i in range(len(keys))]))


def _is_nothing(node: Node) -> bool:
    return node.kind == "none" or (node.kind != "leaf" and not node.children)


def _are_same(stored: Node, given: Node) -> bool:
    return (stored.kind, stored.type_name) == (given.kind, given.type_name)


def _is_mapping(node: Node) -> bool:
    """Whether it may have any keys: a dict, or a class that is like one."""
    if node.kind == "custom":
        return bool(node.keys) and all(key.role == "key" for key in node.keys)
    return node.kind == "dict"


def _is_named(node: Node) -> bool:
    """Whether it is found by names, and not by positions."""
    return node.kind == "dict" or all(key.is_named for key in node.keys)


def _by_text(node: Node) -> dict[str, Node]:
    return {key.text: c for key, c in zip(node.keys, node.children, strict=True)}


def _clash(stored: Node, given: Node, path: KeyPath) -> Clash:
    """The first leaf, or empty container, of each."""
    firsts = [next(iter(walk(node)))[0] for node in (stored, given)]
    return Clash(*[shown_name((*path, *first)) for first in firsts])
