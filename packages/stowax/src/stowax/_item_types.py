"""Containers of a stored tree made of classes that the caller allowed.

The recorded names are compared with those of the caller's classes; nothing is imported.
A NamedTuple and a dataclass can be made of their fields by keyword, and nothing else
can without a guess, so no other class is taken.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from stowax._keypath import Node, container_types, leaf_name, type_name
from stowax.errors import UnsupportedOptionError


def by_name(types: Iterable[Any]) -> dict[str, type]:
    """The classes that a caller allowed, by the names that a tree has for them.

    Raises:
        UnsupportedOptionError: One is neither a NamedTuple nor a dataclass.
    """
    found: dict[str, type] = {}
    for cls in types:
        if not isinstance(cls, type) or _fields(cls) is None:
            raise UnsupportedOptionError(
                "PyTreeOptions.Loading.container_types takes classes of NamedTuples "
                f"and dataclasses, found {cls!r}; give an abstract state instead"
            )
        found[type_name(cls)] = cls
    return found


def misfits(root: Node, types: dict[str, type]) -> list[str]:
    """A line for every stored container that its class cannot be made of."""
    if not types:
        return []
    return [
        f"{leaf_name(path) or '<root>'}: {node.type_name} {problem}"
        for path, node in container_types(root)
        if node.build is None
        and node.type_name in types
        and (problem := _misfit(node, types[node.type_name])) is not None
    ]


def shown_types(root: Node) -> dict[str, str]:
    """The recorded type of every container that is not plain, by its name."""
    return {
        leaf_name(path): node.type_name
        for path, node in container_types(root)
        if node.type_name is not None
    }


def _misfit(node: Node, cls: type) -> str | None:
    if any(key.role != "field" for key in node.keys):
        return "has children without names; give an abstract state"
    fields = _fields(cls)
    assert fields is not None
    every, required = fields
    stored = [key.text for key in node.keys]
    if unknown := [name for name in stored if name not in every]:
        return f"has no field {', '.join(unknown)} any more, or does not take it"
    if missing := [name for name in required if name not in stored]:
        return (
            f"needs {', '.join(missing)}, which is not stored; give the field a "
            "default, or load with an abstract state"
        )
    unstored = [name for name in every if name not in stored]
    if node.has_static and unstored:
        return (
            f"had static fields when it was saved, and {', '.join(unstored)} is not "
            "stored; give an abstract state, which says them"
        )
    return None


def _fields(cls: type) -> tuple[Sequence[str], Sequence[str]] | None:
    """Fields that can be given when one is made, and those that must be."""
    if issubclass(cls, tuple) and hasattr(cls, "_fields"):
        named: Any = cls  # NamedTuples have no type of their own to check for.
        names: Sequence[str] = named._fields
        defaults: Any = named._field_defaults
        return names, [name for name in names if name not in defaults]
    if not dataclasses.is_dataclass(cls):
        return None
    fields = [field for field in dataclasses.fields(cls) if field.init]
    missing = dataclasses.MISSING
    required = [
        field.name
        for field in fields
        if field.default is missing and field.default_factory is missing
    ]
    return [field.name for field in fields], required
