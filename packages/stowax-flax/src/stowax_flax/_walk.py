"""A module as the Variables it holds, each with every path that leads to it.

Paths are those of `nnx.State`: attribute names are strings, positions in lists are
integers.  A shared Variable is held once, under the path that NNX meets first; the
paths of its other owners are aliases, described by groups of equivalent prefixes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx

from stowax.adapters import Form, KeyPath, class_name, flatten, form_of, show_path
from stowax.errors import UnsupportedLeafError

from . import _compat

AliasGroups = Sequence[Sequence[KeyPath]]
"""Each group holds the paths of one object, a Variable or a whole module."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """One Variable of a module, or one array that is a plain attribute."""

    path: KeyPath
    node: Any
    """The live Variable or the array itself."""
    leaves: tuple[tuple[KeyPath, Any, Form], ...]
    """Path from the root, value and form: one, unless the Variable holds a tree."""
    treedef: Any

    @property
    def type_name(self) -> str | None:
        """The type of the Variable; None for a plain array."""
        if not isinstance(self.node, nnx.Variable):
            return None
        return type_name(getattr(self.node, "var_type", type(self.node)))

    def with_values(self, values: Sequence[Any]) -> Any:
        """The node as it shall be, for `nnx.update`."""
        value = jax.tree.unflatten(self.treedef, values)
        return (
            self.node.replace(value) if isinstance(self.node, nnx.Variable) else value
        )


def walk(module: Any, *filters: Any) -> list[Held]:
    """The Variables that pass the filter, in order of their paths.

    Raises:
        UnsupportedLeafError: A Variable holds an object that no checkpoint can hold.
    """
    state = _compat.state(module, *filters)
    return [_held(path, node) for path, node in _compat.flatten_state(state)]


def alias_groups(module: Any) -> list[list[KeyPath]]:
    """Every object with more than one path, except those that contain themselves."""
    return [group for group in _compat.duplicates(module) if not _is_cycle(group)]


def equivalent_paths(path: KeyPath, groups: AliasGroups) -> Iterator[KeyPath]:
    """The path itself, then every other path that leads to the same value."""
    seen = {path}
    waiting = [path]
    while waiting:
        current = waiting.pop(0)
        yield current
        for group in groups:
            for prefix in group:
                if current[: len(prefix)] != tuple(prefix):
                    continue
                rest = current[len(prefix) :]
                others = {(*other, *rest) for other in group} - seen
                seen |= others
                waiting += sorted(others, key=str)


def type_name(cls: type) -> str:
    """`flax.nnx:Param`, `my.models:EMA`: one name, wherever Flax keeps the class."""
    return class_name(cls, "flax.nnx")


def _held(path: KeyPath, node: Any) -> Held:
    value = _compat.raw_value(node) if isinstance(node, nnx.Variable) else node
    _check_keys(path)
    leaves = []
    for inner, leaf in flatten(value):
        try:
            form = form_of(leaf)
        except UnsupportedLeafError as error:
            raise UnsupportedLeafError(
                f"{show_path((*path, *inner))}: {error}. Leave it out with "
                "`stowax_flax.Module(module, exclude=...)`."
            ) from None
        leaves.append(((*path, *inner), leaf, form))
    treedef = jax.tree.structure(value, is_leaf=lambda part: part is None)
    return Held(path=path, node=node, leaves=tuple(leaves), treedef=treedef)


def _check_keys(path: KeyPath) -> None:
    if wrong := [key for key in path if type(key) not in (str, int)]:
        raise UnsupportedLeafError(
            f"{show_path(path)}: the key {wrong[0]!r} is neither a string nor an "
            "integer. Rename it in the module."
        )


def _is_cycle(group: Sequence[KeyPath]) -> bool:
    return any(
        one != other and other[: len(one)] == one for one in group for other in group
    )
