"""What a load of one tree item would do: a target held against what is stored.

No memory is taken and nothing is read, so a dry run ends here. Planning is for the
thread of the caller, which has JAX's default devices and meshes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from stowax._formats._base import TreeItem
from stowax._item_fit import ANYTHING, Fitting, LeafFit
from stowax._item_leaf import LeafPlan
from stowax._item_target import asked_form, stored_form
from stowax._item_types import by_name, misfits
from stowax._keypath import FlatTree, Node, flatten, shown_name
from stowax._leaves._refusal import check_all, function_advice
from stowax._leaves._registry import Leaves
from stowax._manifest import LeafEntry, Manifest
from stowax._plan._match import (
    HINT_COUNT,
    match_paths,
    near_name,
    other_keys,
    roles_below,
)
from stowax._plan._rename import Rules
from stowax._plan._rows import AskedBy, LeafPreview, LoadPreview
from stowax._plan._select import select, show_unused
from stowax._processes import Processes
from stowax._settings import LoadSettings
from stowax._uncollected import uncollected
from stowax.errors import UnsupportedLeafError
from stowax.tree import PLACEHOLDER


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    """What a load would do; nothing has been taken or read for it."""

    path: str
    root: Node
    leaves: Sequence[_Leaf]
    """In the order of the root."""
    fits: Sequence[LeafFit | LeafPreview]
    """How each is loaded; the second kind is not."""
    entries: Sequence[LeafEntry]
    """What is stored."""
    others: Sequence[LeafPreview]
    """Stored leaves that the result has no place for."""
    problems: Sequence[str]
    """Those that are no leaf's own."""
    asked_by: AskedBy
    processes: Processes
    types: dict[str, type]
    """Classes of which stored containers are made, by their recorded names."""

    def preview(self) -> LoadPreview:
        """The same in words."""
        rows = [
            fit
            if isinstance(fit, LeafPreview)
            else fit.row(leaf.name, self.entries[leaf.position].path)
            for leaf, fit in zip(self.leaves, self.fits, strict=True)
        ]
        rows += self.others
        return LoadPreview(self.path, rows, self.problems, asked_by=self.asked_by)

    def check(self) -> None:
        """Refuses what does not fit.

        Raises:
            TreeMismatchError: Lists every leaf that does not fit.
        """
        if not self._is_good():
            self.preview().check()

    def narrowed(self) -> list[str]:
        """Leaves that lose range or kind in a conversion that the target asked for."""
        return [
            f"{leaf.name or '<root>'}: {fit.note}"
            for leaf, fit in zip(self.leaves, self.fits, strict=True)
            if isinstance(fit, LeafFit) and fit.note
        ]

    def plans(self) -> list[LeafPlan | None]:
        """Of every leaf; None: it is not loaded."""
        return [None if isinstance(fit, LeafPreview) else fit.plan for fit in self.fits]

    def _is_good(self) -> bool:
        """Whether there is no problem, without the cost of saying so in words."""
        return (
            not self.problems
            and all(row.outcome != "mismatch" for row in self.others)
            and all(
                fit.plan is not None
                if isinstance(fit, LeafFit)
                else fit.outcome != "mismatch"
                for fit in self.fits
            )
        )


@uncollected()
def plan_load(
    item: TreeItem,
    target: Any,
    *,
    has_target: bool,
    loading: LoadSettings,
    processes: Processes,
    leaves: Leaves,
) -> LoadPlan:
    """Matches a target with what is stored, and says what would be done.

    Args:
        item: The open item.
        target: The abstract state, if there is one.
        has_target: Whether there is one; None is an abstract state too.
        loading: The settings.
        processes: Says which parts this process needs.
        leaves: The kinds of leaves that are known.

    Raises:
        RenameError: The rules of the settings cannot be followed.
        UnsupportedLeafError: Lists every leaf that asks for nothing that a checkpoint
            can hold.
        UnsupportedOptionError: A class of the settings can make no container.
    """
    rules, types = Rules(loading.rename), by_name(loading.container_types)
    if has_target:
        flat = flatten(target, leaves.takes_target)
        asked = _asked(item.manifest, flat, rules, loading)
    else:
        asked = _stored(item, rules)
    entries = item.manifest.leaves
    fitting = Fitting(loading, processes, leaves)
    fits: list[LeafFit | LeafPreview] = []
    unsupported: list[UnsupportedLeafError] = []
    for name, position, target, row in asked.leaves:
        if row is not None:
            fits.append(row)
            continue
        try:
            fits.append(fitting.fit(entries[position].form, target, name))
        except UnsupportedLeafError as error:
            unsupported.append(error)
    check_all(unsupported, "loaded")
    return LoadPlan(
        path=item.path,
        root=asked.root,
        leaves=asked.leaves,
        fits=fits,
        entries=entries,
        others=asked.others,
        problems=[*asked.problems, *misfits(asked.root, types)],
        asked_by=asked.by,
        processes=processes,
        types=types,
    )


class _Leaf(NamedTuple):
    """One leaf of the result, and the stored one that it is to be made of."""

    name: str
    position: int = -1
    target: Any = ANYTHING
    row: LeafPreview | None = None
    """What there is to say of a leaf that is not loaded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _AskedTree:
    root: Node
    by: AskedBy
    leaves: Sequence[_Leaf]
    others: Sequence[LeafPreview] = ()
    """Stored leaves that the result has no place for."""
    problems: Sequence[str] = ()


def _stored(item: TreeItem, rules: Rules) -> _AskedTree:
    """All that is stored, or exactly what the rules map."""
    entries = item.manifest.leaves
    if not rules:
        leaves = [
            _Leaf(name=shown_name(e.path), position=i) for i, e in enumerate(entries)
        ]
        return _AskedTree(root=item.manifest.root, by="nobody", leaves=leaves)
    selection = select(rules, item.manifest.root)
    chosen = set(selection.positions)
    return _AskedTree(
        root=selection.root,
        by="rules",
        leaves=[
            _Leaf(name=name, position=position)
            for name, position in zip(selection.names, selection.positions, strict=True)
        ],
        others=[
            LeafPreview(
                target=None,
                stored=shown_name(entry.path),
                stored_form=stored_form(entry.form),
                outcome="not loaded",
            )
            for i, entry in enumerate(entries)
            if i not in chosen
        ],
        problems=[
            *show_unused(rules, selection.unused_rules, "the checkpoint"),
            *selection.problems,
        ],
    )


def _asked(
    manifest: Manifest, flat: FlatTree, rules: Rules, loading: LoadSettings
) -> _AskedTree:
    """The abstract state, with the stored leaf for each of its leaves."""
    entries = manifest.leaves
    skipped = [leaf is PLACEHOLDER for leaf in flat.leaves]
    match = match_paths(
        flat, entries, skipped=skipped, rules=rules, by_name=manifest.is_flat
    )
    unused = [entries[i].name for i in match.unused]
    roles = roles_below(entries[i].path for i in match.unused)
    leaves: list[_Leaf] = []
    hint_count = 0
    for path, name, looked_up, position, leaf in zip(
        *(flat.paths, flat.names, match.looked_up, match.positions, flat.leaves),
        strict=True,
    ):
        name = name or shown_name(path)
        row = None
        if leaf is PLACEHOLDER:
            row = LeafPreview(target=name, stored=None, outcome="not loaded")
        elif position < 0:
            keys, near = other_keys(path, roles), None
            if keys is None and hint_count < HINT_COUNT:
                # A rule cannot say "" of the key that is empty: it means the root.
                near = near_name(looked_up, unused) or None
                hint_count += 1
            row = _missing(name, looked_up, leaf, near, (keys, function_advice(leaf)))
        leaves.append(_Leaf(name=name, position=position, target=leaf, row=row))
    others = [_dropped(name, entries[i]) for name, i in match.dropped]
    others += [_unasked(entries[i], loading) for i in match.unused]
    return _AskedTree(
        root=flat.root,
        by="state",
        leaves=leaves,
        others=others,
        problems=show_unused(rules, match.unused_rules, "the abstract state"),
    )


def _missing(
    name: str,
    looked_up: str,
    target: Any,
    near: str | None,
    more: Sequence[str | None],
) -> LeafPreview:
    notes = [note for note in more if note is not None]
    if looked_up and looked_up != name:
        notes.append(f"looked for as {looked_up!r}")
    if near is not None:
        notes.append(f"near it is {near!r}")
    return LeafPreview(
        target=name,
        stored=None,
        asked_form=asked_form(target),
        outcome="mismatch",
        note=", ".join(notes),
        cause="name",
        near=near,
    )


def _dropped(name: str, entry: LeafEntry) -> LeafPreview:
    """A stored leaf in whose place the abstract state has None."""
    return LeafPreview(
        target=name,
        stored=shown_name(entry.path),
        asked_form="None",
        stored_form=stored_form(entry.form),
        outcome="not loaded",
    )


def _unasked(entry: LeafEntry, loading: LoadSettings) -> LeafPreview:
    """A stored leaf that the abstract state has no place for."""
    return LeafPreview(
        target=None,
        stored=shown_name(entry.path),
        stored_form=stored_form(entry.form),
        outcome="not loaded" if loading.partial else "mismatch",
        cause="" if loading.partial else "extra",
    )
