"""`optax.json`: whose leaves the arrays of an optimizer state are.

    {"format": 1, "kind": "optax", "tag": null,
     "leaves": [{"path": ["opt_state", 0, "mu", "dense", "kernel"],
                 "owner": "optax:ScaleByAdamState", "field": "mu",
                 "param": ["dense", "kernel"]}]}

One entry per leaf.  `param` is null for a leaf that belongs to no parameter, and where
the parameters were not known; `python`, `prng_impl` and `weak` say what a plain tree
cannot: the type of a plain scalar, the implementation of PRNG keys, a weakly typed
array.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stowax.adapters import (
    StoredItem,
    StoredName,
    check_type,
    corrupt_document,
    note_of,
    parse_leaves,
)

from ._walk import OwnedLeaf

NAME = "optax.json"
KIND = "optax"


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """The part of `optax.json` that a load needs."""

    tag: str | None = None
    leaves: Mapping[StoredName, Mapping[str, Any]] = field(default_factory=dict)
    """The entry of every stored leaf."""


def describe(leaves: Sequence[OwnedLeaf], tag: str | None) -> dict[str, Any]:
    """The document for these leaves."""
    return {
        "kind": KIND,
        "tag": tag,
        "leaves": [
            {
                "path": leaf.path,
                "owner": leaf.owner,
                "field": leaf.field,
                "param": leaf.param,
                **note_of(leaf.live),
            }
            for leaf in leaves
        ],
    }


def parse(stored: StoredItem) -> Document | None:
    """Reads what `describe` wrote; None if the item has no document.

    Raises:
        CorruptCheckpointError: Anything is missing or of another type.
    """
    if stored.document is None:
        return None
    try:
        tag = stored.document["tag"]
        check_type("tag", tag, str | None)
        leaves = parse_leaves(
            stored.document["leaves"],
            required={"owner": str | None, "field": str | None, "param": list | None},
        )
        return Document(tag=tag, leaves=leaves)
    except (KeyError, TypeError) as error:
        raise corrupt_document(
            stored.directory / NAME, f"an entry is not as expected ({error})"
        ) from error
