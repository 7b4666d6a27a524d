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
from stowax._plan._waves import Wave
from stowax._report import Tally
from stowax._settings import LoadSettings
from stowax._transfer import HostMemory, settle
from stowax._uncollected import uncollected
from stowax.tree import PLACEHOLDER

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
    operation: Operation, item: TreeItem, requests: Sequence[ReadRequest]
) -> None:
    """Fills all requests, and tells what was read; for the engine's loop."""
    report = operation.report
    if report is None or not report.is_watched:
        await item.source.read(requests, operation.reading)
        return
    leaves = item.manifest.leaves
    tally = Tally(
        report,
        [(request.leaf, request.out.nbytes) for request in requests],
        lambda leaf: shown_name(leaves[leaf].path),
    )
    await item.source.read(
        requests, operation.reading, lambda parts: report.moved(tally.arrived(parts))
    )
    report.moved(tally.complete())  # Zeros that nobody has stored.


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
        self._mesh = mesh
        self._placing = Placing(plan.processes)
        self._waves = plan.waves(operation.settings.memory.passing_bytes)
        self._begun: _BegunWave | None = None

    def begin(self) -> None:
        """Begins to read, unless that takes memory that others may wait for."""
        if (report := self._operation.report) is not None:
            report.expect(self._plan.read_bytes())
        wave = self._waves[0]  # If it passes on nothing, there is no other.
        if not wave.passing_bytes:
            self._begun = self._begin(wave)

    async def finish(self) -> Any:
        """Reads what is left, and makes the tree."""
        values: list[Any] = []
        for wave in self._waves:
            if wave.start:
                entering("reading the next leaves")
            async with self._operation.passing(wave.passing_bytes):
                begun, self._begun = self._begun or self._begin(wave), None
                await self._operation.finished(begun.reading)
                # Here and not on the engine's loop: JAX takes default devices and
                # meshes from the thread.
                with in_mesh(self._mesh):
                    placed = self._place(begun.leaves)
                if wave.passing_bytes:
                    settle(placed)
                values += placed
        return unflatten(self._plan.root, values, self._plan.types)

    def _begin(self, wave: Wave) -> _BegunWave:
        leaves = self._take_memory(wave)
        requests = [r for leaf in leaves if leaf is not None for r in leaf.requests]
        reading = read_item(self._operation, self._item, requests)
        return _BegunWave(leaves, self._operation.submit(reading))

    @uncollected()
    def _take_memory(self, wave: Wave) -> list[BegunLeaf | None]:
        """What is to be filled; None: of a leaf that is not loaded."""
        chosen, memory = slice(wave.start, wave.stop), HostMemory()
        plan = self._plan
        return [
            None
            if how is None
            else how.begin(leaf.position, plan.entries[leaf.position].path, memory)
            for leaf, how in zip(plan.leaves[chosen], plan.plans(chosen), strict=True)
        ]

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
