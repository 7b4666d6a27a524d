"""How one tree item is read: a target is held against it, filled, and put together.

Planning and finishing are for the thread of the caller, which has JAX's default devices
and meshes; between them the item's source fills the requests on the engine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from stowax._codecs._zarr import dtype_from_name
from stowax._formats._base import ReadRequest, TreeItem
from stowax._keypath import at_leaf, flatten, leaf_name, unflatten
from stowax._leaves import _registry as leaves
from stowax._leaves._base import LeafHandler, Wanted
from stowax._manifest import LeafEntry
from stowax._plan._cast import convert, loss
from stowax._plan._match import check, match_paths
from stowax._processes import Processes
from stowax._transfer import allocate
from stowax.tree import PLACEHOLDER


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedLoad:
    """A load of which only the reading and placing are left."""

    requests: tuple[ReadRequest, ...]
    """To be filled by the item's source."""
    finish: Callable[[], Any]
    """Converts, places and builds the tree, once all requests are filled."""
    narrowed: tuple[str, ...]
    """Leaves that lose range or kind in a conversion that the target asked for."""


def plan_load(
    item: TreeItem,
    target: Any,
    *,
    has_target: bool,
    partial: bool,
    processes: Processes,
) -> PlannedLoad:
    """Matches a target with what is stored and decides what to read.

    Args:
        item: The open item.
        target: The abstract state, if there is one.
        has_target: Whether there is one; None is an abstract state too.
        partial: Whether the target may leave out stored leaves.
        processes: Says which parts this process needs.

    Raises:
        TreeMismatchError: Lists every leaf that does not fit.
    """
    entries = item.manifest.leaves
    if has_target:
        flat = flatten(target)
        skipped = [leaf is PLACEHOLDER for leaf in flat.leaves]
        found = match_paths(
            flat, entries, where=item.path, skipped=skipped, partial=partial
        )
        targets, root = flat.leaves, flat.root
    else:
        targets = tuple(leaves.default_target(entry) for entry in entries)
        found, root = tuple(range(len(entries))), item.manifest.root
    placers: list[_Placer | None] = []
    problems: list[str] = []
    for wanted, position in zip(targets, found, strict=True):
        if position < 0:
            placers.append(None)
            continue
        entry = entries[position]
        placer, problem = _plan_leaf(position, entry, wanted, processes)
        placers.append(placer)
        if problem is not None:
            problems.append(f"{leaf_name(entry.path) or '<root>'}: {problem}")
    check(problems, where=item.path, count=len(targets))
    return PlannedLoad(
        requests=tuple(r for p in placers if p is not None for r in p.requests),
        finish=lambda: unflatten(
            root, [PLACEHOLDER if p is None else p.place(processes) for p in placers]
        ),
        narrowed=tuple(
            f"{p.entry.name}: {reason}"
            for p in placers
            if p is not None and (reason := p.loss()) is not None
        ),
    )


def metadata_tree(item: TreeItem) -> Any:
    """The tree of what `metadata()` shows for every leaf."""
    shown = [leaves.metadata(entry) for entry in item.manifest.leaves]
    return unflatten(item.manifest.root, shown)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Placer:
    """One leaf on its way from the store to its place in the result."""

    entry: LeafEntry
    target: Any
    handler: LeafHandler
    wanted: Wanted
    requests: tuple[ReadRequest, ...]

    def place(self, processes: Processes) -> Any:
        with at_leaf(self.entry.name):
            parts = {r.box: self._converted(r.out) for r in self.requests}
            return self.handler.place(self.target, self.entry, parts, processes)

    def loss(self) -> str | None:
        if self.wanted.dtype is None or self.entry.dtype is None:
            return None
        return loss(dtype_from_name(self.entry.dtype), self.wanted.dtype)

    def _converted(self, part: np.ndarray) -> np.ndarray:
        dtype = self.wanted.dtype
        if dtype is None or dtype == part.dtype:
            return part
        # The caller asked for this dtype, and is told which leaves it does not hold.
        converted = allocate(part.shape, dtype)
        converted[...] = convert(part, dtype)
        return converted


def _plan_leaf(
    position: int, entry: LeafEntry, target: Any, processes: Processes
) -> tuple[_Placer | None, str | None]:
    """How to load one leaf, or why it does not fit."""
    handler = leaves.for_target(target, entry.name)
    try:
        wanted = handler.want(target, entry, processes)
    except ValueError as error:
        # JAX refuses a sharding that does not divide the shape; that is a mismatch.
        return None, f"its target cannot be placed: {error}"
    problem = _mismatch(entry, wanted)
    if problem is not None:
        return None, problem
    dtype = None if entry.dtype is None else dtype_from_name(entry.dtype)
    requests = tuple(
        ReadRequest(leaf=position, box=box, out=allocate(box.shape, dtype))
        for box in wanted.boxes
        if dtype is not None
    )
    placer = _Placer(
        entry=entry, target=target, handler=handler, wanted=wanted, requests=requests
    )
    return placer, None


def _mismatch(entry: LeafEntry, wanted: Wanted) -> str | None:
    stored = "a string" if entry.dtype is None else f"{entry.dtype}{list(entry.shape)}"
    if entry.prng_impl is not None:
        stored = f"PRNG keys {entry.prng_impl!r} of shape {list(entry.shape[:-1])}"
    if (entry.kind == "string") != (wanted.kind == "string"):
        return f"asked for {_shown(wanted)}, stored is {stored}"
    if entry.prng_impl != wanted.prng_impl:
        return f"asked for {_shown(wanted)}, stored is {stored}"
    if wanted.shape is not None and wanted.shape != entry.shape:
        if entry.prng_impl is not None:
            return f"asked for shape {list(wanted.shape[:-1])}, stored is {stored}"
        return f"asked for {_shown(wanted)}, stored is {stored}"
    return None


def _shown(wanted: Wanted) -> str:
    if wanted.prng_impl is not None:
        return f"PRNG keys {wanted.prng_impl!r}"
    if wanted.shape is None:
        return f"a {wanted.kind}"
    dtype = "" if wanted.dtype is None else wanted.dtype
    return f"{wanted.kind} {dtype}{list(wanted.shape)}"
