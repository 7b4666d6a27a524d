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

from stowax.adapters import StoredName, corrupt_document, note_of, stored_name
from stowax.path import Path

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


def parse(where: Path, document: Mapping[str, Any]) -> Document:
    """Reads what `describe` wrote.

    Raises:
        CorruptCheckpointError: Anything is missing or of another type.
    """
    try:
        _check(document, {"tag": str})
        return Document(
            tag=document["tag"],
            leaves={
                _name(entry["path"]): _entry(entry) for entry in document["leaves"]
            },
        )
    except (KeyError, TypeError) as error:
        raise corrupt_document(
            where / NAME, f"an entry is not as expected ({error})"
        ) from error


def _name(path: Any) -> StoredName:
    if not isinstance(path, list) or any(type(k) not in (str, int) for k in path):
        raise TypeError(f"{path!r} is no path")
    return stored_name(tuple(path))


def _entry(entry: Any) -> Mapping[str, Any]:
    if absent := {"owner", "field", "param"} - set(entry):
        raise KeyError(*sorted(absent))
    _check(
        entry,
        {"owner": str, "field": str, "param": list}
        | {"prng_impl": str, "python": str, "weak": bool},
    )
    return entry


def _check(document: Mapping[str, Any], kinds: Mapping[str, type]) -> None:
    for name, kind in kinds.items():
        value = document.get(name)
        if value is not None and type(value) is not kind:
            raise TypeError(f"{name} is {value!r}")
