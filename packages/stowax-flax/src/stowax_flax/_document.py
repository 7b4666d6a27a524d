"""`nnx.json`: what the arrays of a module were, for whoever loads them into one.

    {"format": 1, "kind": "flax.nnx", "root": "my.models:Net",
     "leaves": [{"path": ["layers", 0, "kernel"], "variable": "flax.nnx:Param",
                 "meta": {"out_sharding": [null, "model"]}},
                {"path": ["rngs", "key"], "variable": "flax.nnx:RngKey",
                 "prng_impl": "rbg", "meta": {"tag": "default"}}],
     "aliases": [[["emb", "embedding"], ["tied"]]],
     "excluded": ["flax.nnx:Cache"]}

One entry per leaf of the tree.  `variable` is absent for an array that is a plain
attribute; `depth` says how many keys lead to the Variable when it holds a tree;
`python` is the type of a plain scalar; `weak` marks a weakly typed array.  `meta`
informs and is never compared: code changes it freely.  `excluded` names the types of
the Variables that the module had and the filter left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flax import nnx

from stowax.adapters import (
    StoredItem,
    StoredName,
    corrupt_document,
    note_of,
    parse_leaves,
    parse_path,
)

from . import _compat
from ._walk import AliasGroups, Held, alias_groups, type_name

NAME = "nnx.json"
KIND = "flax.nnx"


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """The part of `nnx.json` that a load needs."""

    leaves: Mapping[StoredName, Mapping[str, Any]] = field(default_factory=dict)
    """The entry of every stored leaf."""
    aliases: AliasGroups = ()


def describe(
    module: Any, saved: Sequence[Held], everything: Sequence[Held]
) -> dict[str, Any]:
    """The document for a module of which `saved` goes to disk."""
    paths = {held.path for held in saved}
    left_out = [held for held in everything if held.path not in paths]
    return {
        "kind": KIND,
        "root": type_name(type(module)),
        "leaves": [entry for held in saved for entry in _entries(held)],
        "aliases": alias_groups(module),
        "excluded": sorted({held.type_name or "array" for held in left_out}),
    }


def parse(stored: StoredItem) -> Document | None:
    """Reads what `describe` wrote; None if the item has no document.

    Raises:
        CorruptCheckpointError: Anything is missing or of another type.
    """
    if stored.document is None:
        return None
    try:
        return Document(
            leaves=parse_leaves(stored.document["leaves"], optional={"variable": str}),
            aliases=tuple(
                tuple(map(parse_path, group)) for group in stored.document["aliases"]
            ),
        )
    except (KeyError, TypeError) as error:
        raise corrupt_document(
            stored.directory / NAME, f"an entry is not as expected ({error})"
        ) from error


def _entries(held: Held) -> list[dict[str, Any]]:
    common: dict[str, Any] = {}
    if isinstance(held.node, nnx.Variable):
        common = {"variable": held.type_name}
        if meta := _plain_metadata(held.node):
            common["meta"] = meta
    entries = []
    for path, leaf, _ in held.leaves:
        depth = {} if path == held.path else {"depth": len(held.path)}
        entries.append({"path": path, **common, **depth, **note_of(leaf)})
    return entries


def _plain_metadata(variable: Any) -> dict[str, Any]:
    # What JSON cannot say (functions, rules, arrays) is left out: it only informs.
    metadata = _compat.metadata(variable)
    return {name: value for name, value in metadata.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    match value:
        case None | bool() | int() | str():
            return True
        case float():
            return math.isfinite(value)
        case list() | tuple():
            return all(map(_is_plain, value))
        case dict():
            return all(isinstance(key, str) for key in value) and all(
                map(_is_plain, value.values())
            )
    return False
