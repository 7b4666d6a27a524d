"""How one tree item is read: it is opened, filled wave by wave, and put together.

The item's source fills the requests on the engine; placing is for the thread of the
caller, which has JAX's default devices and meshes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from stowax._caller import in_mesh
from stowax._deadline import entering
from stowax._formats._base import ReadRequest, TreeItem
from stowax._formats._detect import open_tree
from stowax._item_leaf import BegunLeaf, Placing
from stowax._item_plan import LoadPlan
from stowax._item_target import metadata_leaf
from stowax._item_types import by_name, misfits
from stowax._keypath import shown_name, unflatten
from stowax._operation import EngineTask, Operation
from stowax._plan._waves import Wave, in_waves
from stowax._report import Tally
from stowax._settings import LoadSettings
from stowax._transfer import HostMemory, settle
from stowax._uncollected import uncollected
from stowax.tree import PLACEHOLDER

WAITING = "waiting for memory that other loads have (`read_concurrent_bytes`)"
"""The phase of a load that could go on if others gave back what they hold."""

_PLACED_TOGETHER = 256
"""Leaves, between two chances for a garbage collection."""


async def open_item(
    operation: Operation, location: str, loading: LoadSettings
) -> TreeItem:
    """Opens a tree item, whoever wrote it; for the engine's loop."""
    return await open_tree(
        operation.store,
        location,
        operation.digests,
        verify=operation.settings.verify,
        rich_types=operation.settings.rich_types,
        fills_missing=loading.fills_missing,
    )


async def read_item(
    operation: Operation,
    item: TreeItem,
    requests: Sequence[ReadRequest],
    tally: Tally | None,
) -> None:
    """Fills requests, and tells what was read; for the engine's loop.

    Args:
        operation: The load.
        item: The open item.
        requests: What is wanted.
        tally: What the whole load is to read; see `tally_of`.
    """
    arrived = None if tally is None else tally.told
    await item.source.read(requests, operation.reading, arrived)


def tally_of(
    operation: Operation, item: TreeItem, parts: Sequence[tuple[int, int]]
) -> Tally | None:
    """Who is told what has been read of an item; None: nobody.

    Args:
        operation: The load.
        item: The open item.
        parts: Leaves, by position in the item, and how much will be read of each.
    """
    report = operation.report
    if report is None:
        return None
    report.expect(sum([size_bytes for _, size_bytes in parts]))
    if not report.is_watched:
        return None
    leaves = item.manifest.leaves
    return Tally(report, parts, lambda leaf: shown_name(leaves[leaf].path))


class ItemLoad:
    """Carries out a plan: wave after wave is read on the engine, and placed here.

    Args:
        operation: The load.
        item: The open item.
        plan: What is to be done.
        mesh: What shardings are resolved against.
    """

    def __init__(
        self,
        operation: Operation,
        item: TreeItem,
        plan: LoadPlan,
        mesh: jax.sharding.Mesh | None,
    ) -> None:
        self._operation = operation
        self._item = item
        self._plan = plan
        self._plans = plan.plans()
        self._mesh = mesh
        self._placing = Placing(plan.processes)
        self._waves = in_waves(
            [0 if how is None else how.passing_bytes for how in self._plans],
            operation.settings.memory.passing_bytes,
        )
        self._tally: Tally | None = None
        self._begun: _BegunWave | None = None

    def begin(self) -> None:
        """Begins to read what takes no memory that others may wait for."""
        parts = [
            (leaf.position, how.read_bytes)
            for leaf, how in zip(self._plan.leaves, self._plans, strict=True)
            if how is not None
        ]
        self._tally = tally_of(self._operation, self._item, parts)
        if self._waves and not self._waves[0].passing_bytes:
            self._begun = self._begin(self._waves[0])

    async def finish(self) -> Any:
        """Reads what is left, and makes the tree."""
        values: list[Any] = [PLACEHOLDER] * len(self._plans)
        for wave in self._waves:
            if wave.passing_bytes:
                entering(WAITING)
            async with self._operation.passing(wave.passing_bytes):
                if wave.passing_bytes:
                    entering(f"reading {len(wave.leaves)} of {len(values)} leaves")
                begun, self._begun = self._begun or self._begin(wave), None
                await self._operation.finished(begun.reading)
                # Here and not on the engine's loop: JAX takes default devices and
                # meshes from the thread.
                with in_mesh(self._mesh):
                    placed = self._place(begun.leaves)
                if wave.passing_bytes:
                    settle([value for value in placed if isinstance(value, jax.Array)])
                for position, value in zip(wave.leaves, placed, strict=True):
                    values[position] = value
        if self._tally is not None:
            self._tally.finish()
        return unflatten(self._plan.root, values, self._plan.types)

    def _begin(self, wave: Wave) -> _BegunWave:
        leaves = self._take_memory(wave)
        requests = [r for leaf in leaves if leaf is not None for r in leaf.requests]
        reading = read_item(self._operation, self._item, requests, self._tally)
        return _BegunWave(leaves, self._operation.submit(reading))

    @uncollected()
    def _take_memory(self, wave: Wave) -> list[BegunLeaf | None]:
        """What is to be filled; None: of a leaf that is not loaded."""
        leaves, entries, plans = self._plan.leaves, self._plan.entries, self._plans
        # What a wave passes on shares no block with anything that stays.
        memory = HostMemory()
        begun: list[BegunLeaf | None] = []
        for leaf in wave.leaves:
            how, position = plans[leaf], leaves[leaf].position
            begun.append(
                None
                if how is None
                else how.begin(position, entries[position].path, memory)
            )
        return begun

    def _place(self, leaves: list[BegunLeaf | None]) -> list[Any]:
        entering("placing what was read")
        place = self._placing.place
        values: list[Any] = []
        for start in range(0, len(leaves), _PLACED_TOGETHER):
            together = slice(start, start + _PLACED_TOGETHER)
            with uncollected():
                values += [
                    PLACEHOLDER if leaf is None else place(leaf)
                    for leaf in leaves[together]
                ]
            # What they were made of is not needed any more.
            leaves[together] = [None] * len(leaves[together])
        return values


class _BegunWave(NamedTuple):
    leaves: list[BegunLeaf | None]
    reading: EngineTask[None]


@uncollected()
def metadata_tree(item: TreeItem, loading: LoadSettings) -> Any:
    """The tree of what `metadata()` shows for every leaf."""
    # By form: what is shown cannot be changed, so that leaves that are alike share it.
    by_form: dict[int, Any] = {}
    shown: list[Any] = []
    for _, _, form in item.manifest.leaves:
        if id(form) not in by_form:
            by_form[id(form)] = metadata_leaf(form, loading)
        shown.append(by_form[id(form)])
    root, types = item.manifest.root, by_name(loading.container_types)
    return unflatten(root, shown, None if misfits(root, types) else types)
