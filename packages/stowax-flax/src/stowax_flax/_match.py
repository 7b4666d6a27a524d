"""Which stored leaf goes to which Variable, decided before anything is touched.

Pure: every problem of the whole module is found here and raised in one error.  A shared
Variable is looked for under every path that leads, or led, to it, so that a renamed
alias and weights that were tied or untied since are found.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stowax.adapters import (
    Form,
    KeyPath,
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
from ._walk import AliasGroups, Held, equivalent_paths


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """One leaf of the module and where its value is stored."""

    path: KeyPath
    live: Any
    sources: tuple[StoredName, ...]
    """More than one if the module ties what was stored apart: all must be equal."""
    note: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    """Everything to load, and where it goes."""

    directory: str
    targets: tuple[tuple[Held, tuple[Match, ...]], ...]

    def requests(self, stored: StoredItem) -> dict[StoredName, Any]:
        """The abstract leaf for every stored leaf that is needed."""
        wanted: dict[StoredName, Any] = {}
        for _, matches in self.targets:
            for match in matches:
                for name in match.sources:
                    wanted.setdefault(
                        name, abstract_leaf(match.live, stored.leaves[name])
                    )
        return wanted


def plan_load(
    stored: StoredItem,
    document: Document | None,
    *,
    selected: Sequence[Held],
    everything: Sequence[Held],
    live_groups: AliasGroups,
) -> LoadPlan:
    """Matches the selected Variables with what is stored.

    Raises:
        TreeMismatchError: Names every leaf that is missing, left over or different.
    """
    known = document if document is not None else Document()
    groups = (*live_groups, *known.aliases)
    problems: list[str] = []
    used: set[StoredName] = set()
    targets = []
    for held in selected:
        matches = []
        for path, live, form in held.leaves:
            sources = _sources(path, groups, stored)
            used.update(sources)
            found = _problems(held, path, form, sources, stored, document)
            problems += found
            if not found:
                note = known.leaves.get(sources[0], {})
                matches.append(Match(path=path, live=live, sources=sources, note=note))
        targets.append((held, tuple(matches)))
    # What the filter leaves out of this load is in the module all the same.
    in_module = _names(everything, groups)
    for name in stored.leaves.keys() - used - in_module:
        form = stored_form(stored.leaves[name], known.leaves.get(name, {}))
        problems.append(f"{show_path(name)}   not in the module   stored {form}")
    if problems:
        count = sum(len(held.leaves) for held in selected)
        raise tree_mismatch(
            stored,
            f"the module ({count} leaves)",
            problems,
            "Load a part with `stowax_flax.Module(module, only=...)`",
        )
    return LoadPlan(directory=str(stored.directory), targets=tuple(targets))


def _sources(
    path: KeyPath, groups: AliasGroups, stored: StoredItem
) -> tuple[StoredName, ...]:
    names = map(stored_name, equivalent_paths(path, groups))
    return tuple(name for name in names if name in stored.leaves)


def _problems(
    held: Held,
    path: KeyPath,
    form: Form,
    sources: tuple[StoredName, ...],
    stored: StoredItem,
    document: Document | None,
) -> list[str]:
    if not sources:
        return [f"{show_path(path)}   asked {form}   not stored"]
    problems = []
    for name in sources:
        note = document.leaves.get(name, {}) if document is not None else {}
        found = stored_form(stored.leaves[name], note)
        if not form.fits(found):
            problems.append(f"{show_path(path)}   asked {form}   stored {found}")
        if document is None:
            continue
        variable = note.get("variable")
        if not same_class(variable, held.type_name, library="flax.nnx"):
            problems.append(
                f"{show_path(path)}   asked {held.type_name or 'a plain array'}   "
                f"stored {variable or 'a plain array'}"
            )
    return problems


def _names(everything: Iterable[Held], groups: AliasGroups) -> set[StoredName]:
    return {
        stored_name(equivalent)
        for held in everything
        for path, _, _ in held.leaves
        for equivalent in equivalent_paths(path, groups)
    }
