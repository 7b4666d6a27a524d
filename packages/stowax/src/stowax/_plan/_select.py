"""The tree that rules make of a stored one when no abstract state says how it looks.

It holds exactly what the rules map.  Where all children of a stored container arrive
together they keep their container, its order and the types of its keys; what the rules
make up themselves are plain dicts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stowax._keypath import Key, KeyPath, Node, leaf_name, walk
from stowax._plan._rename import Rules, keys_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What the rules map."""

    root: Node
    """The tree of the result; a plain dict without children if there is no such."""
    names: tuple[str, ...]
    """Names of its leaves, in order."""
    positions: tuple[int, ...]
    """Of every leaf, the position of the stored one."""
    problems: tuple[str, ...]
    """Rules that contradict each other; then `root` means nothing."""
    unused_rules: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Graft:
    """A stored leaf, or empty container, on its way to its place in the result."""

    path: KeyPath
    """Its path in the result."""
    stored: KeyPath
    node: Node
    rest_count: int
    """How many keys at the end of both paths are the same."""

    def container(self, depth: int) -> KeyPath | None:
        """The stored path of what the result has at a depth; None if it is made up."""
        below = len(self.path) - depth
        if below > self.rest_count:
            return None
        return self.stored[: len(self.stored) - below]


def select(rules: Rules, root: Node) -> Selection:
    """Finds everything that the rules map.

    Raises:
        RenameError: A rule cannot be used without an abstract state.
    """
    rules.check_selects()
    grafts: list[tuple[int, _Graft]] = []
    for stored, node in walk(root):
        for target in rules.targets_of(leaf_name(stored)):
            rest, part_count = _last_keys(stored, target.rest_count)
            made = target.keys[: len(target.keys) - part_count]
            graft = _Graft(
                path=(*(Key("key", text) for text in made), *rest),
                stored=stored,
                node=node,
                rest_count=len(rest),
            )
            grafts.append((target.rule, graft))
    # In the order of the rules, whatever the order of what is stored.
    grafts.sort(key=lambda pair: pair[0])
    builder = _Builder(root)
    built = builder.build([graft for _, graft in grafts], 0)
    used = {rule for rule, _ in grafts}
    return Selection(
        root=built,
        names=tuple(builder.names),
        positions=tuple(builder.positions),
        problems=tuple(builder.problems),
        unused_rules=tuple(rule for rule in range(len(rules)) if rule not in used),
    )


class _Builder:
    """Puts grafts together, container by container, and numbers the leaves."""

    def __init__(self, stored_root: Node) -> None:
        self._stored_root = stored_root
        self.names: list[str] = []
        self.positions: list[int] = []
        self.problems: list[str] = []

    def build(self, grafts: Sequence[_Graft], depth: int) -> Node:
        here = [graft for graft in grafts if len(graft.path) == depth]
        below = [graft for graft in grafts if len(graft.path) > depth]
        leaf = next((graft for graft in here if graft.node.kind == "leaf"), None)
        if leaf is not None and len(grafts) > 1:
            other = next(graft for graft in grafts if graft is not leaf)
            self.problems.append(
                f"{leaf_name(leaf.path) or '<root>'}: is to be the stored leaf "
                f"{leaf_name(leaf.stored)!r}, and is to hold "
                f"{leaf_name(other.path)!r} from {leaf_name(other.stored)!r}"
            )
            return Node(kind="none")
        if leaf is not None:
            self.names.append(leaf_name(leaf.path))
            self.positions.append(leaf.node.leaf)
            return Node(kind="leaf", leaf=len(self.positions) - 1)
        if here and not below:
            return here[-1].node
        children: dict[str, list[_Graft]] = {}
        for graft in below:
            children.setdefault(graft.path[depth].text, []).append(graft)
        container = self._stored_container(below, depth)
        if container is not None and {k.text for k in container.keys} == set(children):
            return Node(
                kind=container.kind,
                type_name=container.type_name,
                has_static=container.has_static,
                keys=container.keys,
                children=tuple(
                    self.build(children[key.text], depth + 1) for key in container.keys
                ),
            )
        return Node(
            kind="dict",
            keys=tuple(Key("key", c[0].path[depth].value) for c in children.values()),
            children=tuple(self.build(c, depth + 1) for c in children.values()),
        )

    def _stored_container(self, grafts: Sequence[_Graft], depth: int) -> Node | None:
        """The stored container that all children come from, as far as they have one."""
        paths = {graft.container(depth) for graft in grafts} - {None}
        if len(paths) != 1:
            return None
        (path,) = paths
        assert path is not None
        node = self._stored_root
        for key in path:
            node = node.children[node.keys.index(key)]
        return node


def _last_keys(path: KeyPath, count: int) -> tuple[KeyPath, int]:
    """The keys at the end of a path whose texts are the last `count` keys of its name.

    Fewer, where a key with a dot in it would have to be cut: beside them, how many keys
    of the name they are.
    """
    taken = 0
    for position in range(len(path), 0, -1):
        size = len(keys_of(path[position - 1].text)) or 1
        if taken + size > count:
            return path[position:], taken
        taken += size
    return path, taken


def show_unused(rules: Rules, unused: Sequence[int], where: str) -> list[str]:
    """A line for every rule that led to nothing."""
    return [f"the rule {rules.shown(rule)}: fits no leaf of {where}" for rule in unused]
