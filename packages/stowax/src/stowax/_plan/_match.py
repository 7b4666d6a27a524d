"""A target tree held against a stored one: which leaf is found where.

Paths are compared by the texts of their keys, because that is all a checkpoint of
Orbax records; containers are the target's business.  What does not fit is no error
here: it is for whoever asked to say all of it at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from stowax._keypath import FlatTree, KeyPath, leaf_name
from stowax._manifest import LeafEntry
from stowax._plan._rename import Keys, Rules, keys_of

HINT_COUNT = 20
"""Leaves that get a hint: each costs more than all the rest of its line."""

_COMPARED = 1000
"""Names that are looked at for a hint; the time it takes grows with every one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """What was found."""

    positions: tuple[int, ...]
    """For every leaf of the target the position of its entry; -1: none, or skipped."""
    looked_up: tuple[str, ...]
    """For every leaf of the target the stored name that the rules give it."""
    dropped: tuple[tuple[str, int], ...]
    """The name and the entry of every None that stands for a stored leaf."""
    unused: tuple[int, ...]
    """Entries that nothing in the target stands for."""
    unused_rules: tuple[int, ...]
    """Rules that no leaf was looked up by."""


def match_paths(
    target: FlatTree,
    entries: Sequence[LeafEntry],
    *,
    skipped: Sequence[bool],
    rules: Rules,
    by_name: bool = False,
) -> Match:
    """Finds the stored leaf for every leaf of the target.

    Args:
        target: The abstract state. A None in it stands for the stored leaf of exactly
            its path, which is not loaded, as in Orbax.
        entries: The stored leaves.
        skipped: For every leaf of the target whether it is not to be loaded; such a
            leaf also covers all stored leaves below its path.
        rules: Where leaves are stored under other names.
        by_name: Whether names count, and not the keys that they are made of.
    """
    texts_of = _name_parts if by_name else _texts
    if _are_alike(target, entries, skipped, rules):
        return Match(
            positions=tuple(range(len(entries))),
            looked_up=target.names,
            dropped=(),
            unused=(),
            unused_rules=(),
        )
    paths = {texts_of(entry.path): i for i, entry in enumerate(entries)}
    names = {entry.name: i for i, entry in enumerate(entries)} if rules else {}
    positions: list[int] = []
    looked_up: list[str] = []
    used_rules: set[int | None] = set()

    def look_up(path: KeyPath, name: str) -> int:
        if not rules:
            looked_up.append(name)
            return paths.get(texts_of(path), -1)
        name, rule = rules.stored_name(name)
        used_rules.add(rule)
        looked_up.append(name)
        return paths.get(texts_of(path), -1) if rule is None else names.get(name, -1)

    for path, name, skip in zip(target.paths, target.names, skipped, strict=True):
        position = look_up(path, name)
        positions.append(-1 if skip else position)
    nones = [(path, leaf_name(path)) for path in target.nones]
    found = [(name, look_up(path, name)) for path, name in nones]
    dropped = tuple((name, position) for name, position in found if position >= 0)
    asked = {*positions, *(position for _, position in dropped)}
    del looked_up[len(positions) :]
    covers = _Covers(
        (p for p, skip in zip(target.paths, skipped, strict=True) if skip),
        rules,
        texts_of,
    )
    unused: list[int] = []
    for i, entry in enumerate(entries):
        if i in asked:
            continue
        is_covered, rule = covers.cover(entry)
        used_rules.add(rule)
        if not is_covered:
            unused.append(i)
    return Match(
        positions=tuple(positions),
        looked_up=tuple(looked_up),
        dropped=dropped,
        unused=tuple(unused),
        unused_rules=tuple(r for r in range(len(rules)) if r not in used_rules),
    )


def _are_alike(
    target: FlatTree,
    entries: Sequence[LeafEntry],
    skipped: Sequence[bool],
    rules: Rules,
) -> bool:
    """Whether everything is asked for, and nothing else, in the order of what is there.

    So it is when a program loads what it saved.
    """
    if rules or len(target.paths) != len(entries) or any(skipped):
        return False
    # Names too: keys such as 1 and True are equal, and called differently.
    return all(
        path == entry[0] and name == entry[1]
        for path, name, entry in zip(target.paths, target.names, entries, strict=True)
    )


def near_name(name: str, candidates: Sequence[str]) -> str | None:
    """The candidate that was probably meant; None if none is near."""
    near = difflib.get_close_matches(name, candidates[:_COMPARED], n=1)
    return near[0] if near else None


def roles_below(paths: Iterable[KeyPath]) -> dict[Keys, set[bool]]:
    """Whether containers name their children or number them, by their paths."""
    roles: dict[Keys, set[bool]] = {}
    for path in paths:
        for depth, key in enumerate(path):
            roles.setdefault(_texts(path[:depth]), set()).add(key.is_named)
    return roles


def other_keys(path: KeyPath, roles: Mapping[Keys, set[bool]]) -> str | None:
    """Says where a path has names and what is stored has positions, or the reverse."""
    for depth, key in enumerate(path):
        found = roles.get(_texts(path[:depth]))
        if found == {not key.is_named}:
            kinds = ["positions (a list or tuple)", "names (a dict or fields)"]
            asked, stored = kinds if not key.is_named else reversed(kinds)
            return (
                f"{leaf_name(path[:depth]) or '<root>'!r} is asked for with {asked}, "
                f"and stored with {stored}"
            )
    return None


class _Covers:
    """The paths that stand for all stored leaves below them."""

    def __init__(
        self,
        paths: Iterable[KeyPath],
        rules: Rules,
        texts_of: Callable[[KeyPath], Keys],
    ) -> None:
        paths = list(paths)
        self._rules = rules
        self._texts_of = texts_of
        self._texts = {texts_of(path) for path in paths}
        self._targets = {keys_of(leaf_name(p)) for p in paths} if rules else set[Keys]()

    def cover(self, entry: LeafEntry) -> tuple[bool, int | None]:
        """Whether an entry is covered, and by which rule it is known to be."""
        if not self._texts:
            return False, None
        for target in self._rules.targets_of(entry.name):
            if _has_beginning_in(target.keys, self._targets):
                return True, target.rule
        texts = self._texts_of(entry.path)
        is_kept = not self._rules or self._rules.stored_name(entry.name).rule is None
        return is_kept and _has_beginning_in(texts, self._texts), None


def _has_beginning_in(keys: Keys, beginnings: set[Keys]) -> bool:
    return any(keys[:n] in beginnings for n in range(len(keys) + 1))


def _name_parts(path: KeyPath) -> Keys:
    """The keys of a path that has the same name, and no "." in a key."""
    return tuple(leaf_name(path).split("."))


def _texts(path: KeyPath) -> Keys:
    return tuple([f"{value!s}" for _, value in path])
