"""Which stored leaf is which leaf of the optimizer, decided before anything is loaded.

Pure: every problem is found here and raised in one error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stowax.adapters import (
    StoredItem,
    StoredName,
    abstract_leaf,
    same_class,
    show_path,
    stored_form,
    stored_name,
    tree_mismatch,
)

from ._document import Document
from ._walk import OwnedLeaf

STEP: StoredName = ("step",)
"""The counter of an `nnx.Optimizer`, for which a bare optimizer state has no place."""


def plan_requests(
    stored: StoredItem,
    document: Document | None,
    leaves: Sequence[OwnedLeaf],
    *,
    tag: str | None,
) -> dict[StoredName, Any]:
    """The abstract leaf to ask for, for every leaf of the optimizer.

    Raises:
        TreeMismatchError: Names every leaf that is missing, left over or different.
    """
    entries = document.leaves if document is not None else {}
    problems = []
    if document is not None and document.tag != tag:
        problems.append(f"<tag>   asked {tag!r}   stored {document.tag!r}")
    requests: dict[StoredName, Any] = {}
    for leaf in leaves:
        name = stored_name(leaf.path)
        if name not in stored.leaves:
            problems.append(f"{show_path(name)}   asked {_owned(leaf)}   not stored")
            continue
        entry = entries.get(name, {})
        found = stored_form(stored.leaves[name], entry)
        if not leaf.form.fits(found):
            problems.append(f"{show_path(name)}   asked {leaf.form}   stored {found}")
        elif document is not None and (clash := _owner_clash(leaf, entry)):
            problems.append(f"{show_path(name)}   {clash}")
        else:
            requests[name] = abstract_leaf(leaf.live, stored.leaves[name])
    wanted = {stored_name(leaf.path) for leaf in leaves} | {STEP}
    for name in stored.leaves.keys() - wanted:
        if stored.leaves[name] is None:
            continue  # Orbax writes None where a transform keeps nothing.
        form = stored_form(stored.leaves[name], entries.get(name, {}))
        owner = entries.get(name, {}).get("owner")
        by = f" of {owner}" if owner else ""
        problems.append(f"{show_path(name)}   not in the optimizer   stored {form}{by}")
    if problems:
        raise tree_mismatch(
            stored,
            f"the optimizer ({len(leaves)} leaves)",
            problems,
            "Build the optimizer that was saved",
        )
    return requests


def _owned(leaf: OwnedLeaf) -> str:
    return f"{leaf.form} of {leaf.owner}" if leaf.owner else str(leaf.form)


def _owner_clash(leaf: OwnedLeaf, entry: Mapping[str, Any]) -> str | None:
    owner, field = entry.get("owner"), entry.get("field")
    # Transforms of Optax move from contrib to the core without a change of state.
    if same_class(owner, leaf.owner, library="optax") and field == leaf.field:
        return None
    return f"asked {leaf.owner}.{leaf.field}   stored {owner}.{field}"
